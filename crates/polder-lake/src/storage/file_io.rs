//! [`Store`] as the `iceberg` crate's storage, so that there is one storage library in the binary.
//!
//! The crate's trait is made for `typetag`, which registers implementations so that they can be
//! read back from JSON. Ours never is: a store holds credentials. So the two hidden methods
//! that `typetag`'s macro would write are written here, and serialising gives nothing.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage,
    StorageConfig, StorageFactory,
};
use iceberg::{Error as IcebergError, ErrorKind, Result as IcebergResult};
use polder_core::Error;
use serde::{Serialize, Serializer};

use super::Store;

impl Store {
    pub(crate) fn file_io(&self) -> FileIO {
        FileIOBuilder::new(Arc::new(Factory(self.clone()))).build()
    }
}

#[derive(Debug)]
struct Factory(Store);

impl Serialize for Factory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl StorageFactory for Factory {
    fn build(&self, _: &StorageConfig) -> IcebergResult<Arc<dyn Storage>> {
        Ok(Arc::new(self.0.clone()))
    }

    fn typetag_name(&self) -> &'static str {
        "polder"
    }

    fn typetag_deserialize(&self) {}
}

impl Serialize for Store {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

/// Our error inside the crate's, with what matters for retrying kept.
fn wrap(error: Error) -> IcebergError {
    let retryable = error.retryable();
    let message = match error.detail_text() {
        Some(detail) => format!("{}: {detail}", error.message()),
        None => error.message().to_owned(),
    };
    IcebergError::new(ErrorKind::Unexpected, message).with_retryable(retryable).with_source(error)
}

#[async_trait]
impl Storage for Store {
    async fn exists(&self, path: &str) -> IcebergResult<bool> {
        match self.head(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == polder_core::ErrorCode::LakeNotFound => Ok(false),
            Err(error) => Err(wrap(error)),
        }
    }

    async fn metadata(&self, path: &str) -> IcebergResult<FileMetadata> {
        let found = self.head(path).await.map_err(wrap)?;
        Ok(FileMetadata { size: found.size })
    }

    async fn read(&self, path: &str) -> IcebergResult<Bytes> {
        Store::read(self, path).await.map_err(wrap)
    }

    async fn reader(&self, path: &str) -> IcebergResult<Box<dyn FileRead>> {
        Ok(Box::new(Reader { store: self.clone(), location: path.to_owned() }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> IcebergResult<()> {
        self.put_new(path, bytes).await.map_err(wrap)
    }

    async fn writer(&self, path: &str) -> IcebergResult<Box<dyn FileWrite>> {
        let (store, location) = (self.clone(), path.to_owned());
        Ok(Box::new(Writer { store, location, bytes: BytesMut::new() }))
    }

    async fn delete(&self, path: &str) -> IcebergResult<()> {
        Store::delete(self, vec![path.to_owned()]).await.map_err(wrap)
    }

    async fn delete_prefix(&self, _: &str) -> IcebergResult<()> {
        // Only `purge_table` asks for this, which is not how tables are removed here.
        Err(IcebergError::new(ErrorKind::FeatureUnsupported, "removing a whole prefix"))
    }

    async fn delete_stream(&self, paths: BoxStream<'static, String>) -> IcebergResult<()> {
        paths.map(Ok).try_for_each(|path| async move { Storage::delete(self, &path).await }).await
    }

    fn new_input(&self, path: &str) -> IcebergResult<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> IcebergResult<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn typetag_name(&self) -> &'static str {
        "polder"
    }

    fn typetag_deserialize(&self) {}
}

struct Reader {
    store: Store,
    location: String,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> IcebergResult<Bytes> {
        self.store.read_range(&self.location, range).await.map_err(wrap)
    }
}

/// Collects a metadata file, which is small, and writes it whole.
struct Writer {
    store: Store,
    location: String,
    bytes: BytesMut,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> IcebergResult<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn close(&mut self) -> IcebergResult<()> {
        let bytes = std::mem::take(&mut self.bytes).freeze();
        self.store.put_new(&self.location, bytes).await.map_err(wrap)
    }
}
