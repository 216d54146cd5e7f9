//! One file being written: on local disk through a temporary file, on S3 as one put or, once it is
//! large, as a multipart upload with a bounded number of parts on their way.

use std::io;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{ObjectStoreExt, WriteMultipart};
use polder_core::{Error, ErrorCode, Result};
use tokio::task::JoinHandle;

use super::Store;
use super::local::NewFile;
use crate::error;

/// The size of an upload's parts; S3 allows 10,000 of them, so files up to 80 GB.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file on their way at the same time.
const PARTS_MAX: usize = 4;
/// Bytes of a local file from which on the disk is asked to take them while more are being made, so that
/// little is left to wait for at the end.
const FLUSH_BYTES: usize = 16 << 20;

#[derive(Debug)]
pub(crate) enum Output {
    Local(Local),
    Remote(Remote),
}

#[derive(Debug)]
pub(crate) struct Local {
    path: PathBuf,
    file: Option<NewFile>,
    /// Bytes written since the disk was last asked to take them.
    unflushed: usize,
    /// The disk taking them. A failure is told to who asks first, and to nobody else.
    flushing: Option<JoinHandle<io::Result<()>>>,
}

/// Dropped before it is finished, it takes back the parts it has uploaded, in the background.
#[derive(Debug)]
pub(crate) struct Remote {
    store: Store,
    path: Path,
    /// What was written before there was enough for an upload of parts.
    head: BytesMut,
    upload: Option<WriteMultipart>,
}

impl Output {
    pub(super) fn local(path: PathBuf) -> Self {
        Self::Local(Local { path, file: None, unflushed: 0, flushing: None })
    }

    pub(super) fn remote(store: Store, path: Path) -> Self {
        Self::Remote(Remote { store, path, head: BytesMut::new(), upload: None })
    }

    /// The most bytes this output keeps in memory between calls.
    pub(crate) fn buffered(&self) -> usize {
        match self {
            Self::Local(_) => 0,
            // The part being filled and those on their way.
            Self::Remote(remote) if remote.upload.is_some() => (PARTS_MAX + 1) * PART_BYTES,
            Self::Remote(remote) => remote.head.len(),
        }
    }

    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        match self {
            Self::Local(local) => local.write(bytes).await,
            Self::Remote(remote) => remote.write(bytes).await,
        }
    }

    /// Completes the file. When this returns, it is there and durable; or it has failed, and what there
    /// is of it is removed, as far as that works.
    pub(crate) async fn finish(self) -> Result<()> {
        match self {
            Self::Local(local) => local.finish().await,
            Self::Remote(remote) => remote.finish().await,
        }
    }

    /// Gives the file up and removes what there is of it, as far as that works.
    pub(crate) async fn abort(self) {
        if let Self::Remote(mut remote) = self
            && let Some(upload) = remote.upload.take()
        {
            give_up(upload, &remote.path).await;
        }
    }
}

impl Local {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.unflushed += bytes.len();
        let (path, open) = (self.path.clone(), self.file.take());
        let written = tokio::task::spawn_blocking(move || {
            let mut open = open.map_or_else(|| NewFile::create(&path), Ok)?;
            open.write(&bytes)?;
            Ok(open)
        });
        let file = written.await.map_err(error::join)?.map_err(failed)?;
        let idle = self.flushing.as_ref().is_none_or(JoinHandle::is_finished);
        if self.unflushed >= FLUSH_BYTES && idle {
            self.flushed().await?;
            let written = file.handle().map_err(failed)?;
            self.flushing = Some(tokio::task::spawn_blocking(move || written.sync_data()));
            self.unflushed = 0;
        }
        self.file = Some(file);
        Ok(())
    }

    /// Waits for what the disk was asked to take.
    async fn flushed(&mut self) -> Result<()> {
        match self.flushing.take() {
            Some(flushing) => flushing.await.map_err(error::join)?.map_err(failed),
            None => Ok(()),
        }
    }

    async fn finish(mut self) -> Result<()> {
        self.flushed().await?;
        let Some(file) = self.file.take() else {
            return Err(Error::new(ErrorCode::Internal, "a data file without content"));
        };
        let finished = tokio::task::spawn_blocking(|| file.finish());
        finished.await.map_err(error::join)?.map_err(failed)
    }
}

fn failed(error: io::Error) -> Error {
    error::io("write a data file", error)
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            let path = self.path.clone();
            self.store.clean_up(async move { give_up(upload, &path).await });
        }
    }
}

async fn give_up(upload: WriteMultipart, path: &Path) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(%path, "an unfinished upload stays in the bucket: {error}");
    }
}

impl Remote {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let failed = |error| error::storage("upload a data file", error);
        if self.upload.is_none() {
            if self.head.len() + bytes.len() < PART_BYTES {
                self.head.extend_from_slice(&bytes);
                return Ok(());
            }
            let objects = self.store.objects();
            let upload = objects.put_multipart(&self.path).await.map_err(failed)?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            upload.put(std::mem::take(&mut self.head).freeze());
            self.upload = Some(upload);
        }
        if let Some(upload) = &mut self.upload {
            let mut bytes = bytes;
            while !bytes.is_empty() {
                upload.wait_for_capacity(PARTS_MAX).await.map_err(failed)?;
                upload.put(bytes.split_to(bytes.len().min(PART_BYTES)));
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        let objects = self.store.objects();
        let done = match &mut self.upload {
            None => {
                let head = std::mem::take(&mut self.head).freeze();
                objects.put(&self.path, head.into()).await.map(drop)
            }
            // `WriteMultipart::finish` would not take back the parts of an upload that fails here.
            Some(upload) => match (upload.wait_for_capacity(0).await, self.upload.take()) {
                (Ok(()), Some(upload)) => upload.finish().await.map(drop),
                (done, Some(upload)) => {
                    give_up(upload, &self.path).await;
                    done
                }
                (done, None) => done,
            },
        };
        if done.is_err() {
            // The answer alone may have been lost.
            let _ = objects.delete(&self.path).await;
        }
        done.map_err(|error| error::storage("upload a data file", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_large_local_file_is_whole_and_an_unfinished_one_leaves_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let names = || std::fs::read_dir(folder.path()).expect("folder").count();
        let path = folder.path().join("a");
        let part = |number: u8| Bytes::from(vec![number; FLUSH_BYTES / 2 + 1]);
        let mut output = Output::local(path.clone());
        for number in 0..5 {
            output.write(part(number)).await.expect("write");
        }
        output.finish().await.expect("finish");
        let whole: Vec<u8> = (0..5).flat_map(|number| part(number).to_vec()).collect();
        assert!(std::fs::read(&path).expect("read") == whole, "what was written");
        let mut output = Output::local(folder.path().join("b"));
        for number in 0..3 {
            output.write(part(number)).await.expect("write");
        }
        assert_eq!(names(), 2);
        drop(output);
        assert_eq!(names(), 1);
        let nothing = Output::local(folder.path().join("c"));
        assert_eq!(nothing.finish().await.expect_err("empty").code(), ErrorCode::Internal);
    }
}
