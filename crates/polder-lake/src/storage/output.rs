//! One file being written: on local disk through a temporary file, on S3 as one put or, once it is
//! large, as a multipart upload with a bounded number of parts on their way.

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{ObjectStoreExt, WriteMultipart};
use polder_core::{Error, ErrorCode, Result};

use super::Store;
use super::local::NewFile;
use crate::error;

/// The size of an upload's parts; S3 allows 10,000 of them, so files up to 80 GB.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file on their way at the same time.
const PARTS_MAX: usize = 4;

#[derive(Debug)]
pub(crate) enum Output {
    Local { path: PathBuf, file: Option<NewFile> },
    Remote(Remote),
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
        Self::Local { path, file: None }
    }

    pub(super) fn remote(store: Store, path: Path) -> Self {
        Self::Remote(Remote { store, path, head: BytesMut::new(), upload: None })
    }

    /// The most bytes this output keeps in memory between calls.
    pub(crate) fn buffered(&self) -> usize {
        match self {
            Self::Local { .. } => 0,
            // The part being filled and those on their way.
            Self::Remote(remote) if remote.upload.is_some() => (PARTS_MAX + 1) * PART_BYTES,
            Self::Remote(remote) => remote.head.len(),
        }
    }

    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        match self {
            Self::Local { path, file } => {
                let (path, open) = (path.clone(), file.take());
                let written = tokio::task::spawn_blocking(move || {
                    let mut open = open.map_or_else(|| NewFile::create(&path), Ok)?;
                    open.write(&bytes)?;
                    Ok(open)
                });
                let written = written.await.map_err(error::join)?;
                *file = Some(written.map_err(|error| error::io("write a data file", error))?);
                Ok(())
            }
            Self::Remote(remote) => remote.write(bytes).await,
        }
    }

    /// Completes the file. When this returns, it is there and durable; or it has failed, and what there
    /// is of it is removed, as far as that works.
    pub(crate) async fn finish(self) -> Result<()> {
        match self {
            Self::Local { file: Some(file), .. } => tokio::task::spawn_blocking(|| file.finish())
                .await
                .map_err(error::join)?
                .map_err(|error| error::io("write a data file", error)),
            Self::Local { file: None, .. } => {
                Err(Error::new(ErrorCode::Internal, "a data file without content"))
            }
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
