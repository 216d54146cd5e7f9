//! What lies below a location, and moving it: for orphan removal.

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use polder_core::{Error, Result};

use bytes::Bytes;

use super::Store;
use crate::error;

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: Path,
    pub(crate) bytes: u64,
    /// Milliseconds since the epoch.
    pub(crate) modified_ms: i64,
}

impl Store {
    /// Every file below a location.
    pub(crate) async fn list(&self, location: &str) -> Result<Vec<Listed>> {
        let failed = |error| error::storage("list files of the lake", error).detail(location);
        let prefix = self.path(location)?;
        let found = self.inner.objects.list(Some(&prefix)).map_ok(|file| Listed {
            path: file.location,
            bytes: file.size,
            modified_ms: file.last_modified.timestamp_millis(),
        });
        found.try_collect().await.map_err(failed)
    }

    pub(crate) async fn read_path(&self, path: &Path) -> Result<Bytes> {
        let failed = |error| named(path, error::storage("read a file of the lake", error));
        let found = self.inner.objects.get(path).await.map_err(failed)?;
        found.bytes().await.map_err(failed)
    }

    /// Moves a file within the store. Where the store can only copy, a copy may stay if this fails.
    ///
    /// # Errors
    /// `lake.not_found` if there is no such file.
    pub(crate) async fn move_path(&self, from: &Path, to: &Path) -> Result<()> {
        let moved = self.inner.objects.rename(from, to).await;
        moved.map_err(|error| named(from, error::storage("move a file of the lake", error)))
    }

    /// Removes a file; one that is not there counts as removed.
    pub(crate) async fn delete_path(&self, path: &Path) -> Result<()> {
        match self.inner.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(named(path, error::storage("remove a file of the lake", error))),
        }
    }
}

fn named(path: &Path, error: Error) -> Error {
    error.detail(path.to_string())
}
