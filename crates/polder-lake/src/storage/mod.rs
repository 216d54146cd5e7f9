//! Bytes by location: local disk and S3 behind one type, [`Store`].
//!
//! A *location* is what Iceberg metadata holds: `file:///abs/path` or `s3://bucket/key`. Reading goes
//! through the `object_store` crate for both; writing on local disk is our own ([`local`]), because a
//! file that metadata names must have survived a power cut, and must never replace another one.
//! Nothing here knows tables.

mod below;
mod bounds;
mod bucket;
mod conditions;
mod file_io;
mod listing;
mod local;
mod output;
mod token_service;
mod vended;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use polder_core::{Error, ErrorCode, Result};
use secrecy::ExposeSecret;
use tokio::task::JoinSet;

use crate::error;
use crate::settings::{CatalogSettings, LakeSettings, S3Settings};

pub use below::Below;
use bounds::{Bounds, out_of_bounds};
use bucket::Bucket;
use conditions::Connector;
pub(crate) use conditions::lacks_conditions;
pub(crate) use listing::Listed;
pub(crate) use output::Output;
pub use token_service::TemporaryKeys;
pub(crate) use token_service::TokenService;
pub(crate) use vended::{KeySource, Vended, VendedKeys};

/// The scheme of local locations.
const FILE_SCHEME: &str = "file://";
/// Files below this are small.
const SMALL_BYTES: u64 = 32 * 1024;
/// Files removed at the same time.
const DELETES_MAX: usize = 16;

/// The place where all files of the lake are. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
    /// What is found through it; everything if absent.
    bounds: Option<Arc<Bounds>>,
}

#[derive(Debug)]
struct Inner {
    objects: Arc<dyn ObjectStore>,
    kind: Kind,
    /// The warehouse as a location, without a slash at the end.
    root: String,
    /// What locations of this store begin with, for engines that register stores by it.
    url: String,
    /// `objects`, where a catalog hands out keys for it.
    vended: Option<Vended>,
    /// What destructors could not wait for.
    cleaning: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
enum Kind {
    Local,
    S3 {
        bucket: String,
        /// Absent where a catalog hands out the keys.
        api: Option<Arc<Bucket>>,
    },
}

impl Store {
    /// # Errors
    /// `spec.invalid` for a warehouse that is neither an absolute folder nor an S3 address.
    pub fn open(settings: &LakeSettings) -> Result<Self> {
        let warehouse = settings.warehouse.trim_end_matches('/');
        match warehouse.strip_prefix("s3://") {
            Some(address) => Self::open_s3(address, settings),
            None => Self::open_local(warehouse),
        }
    }

    fn open_local(warehouse: &str) -> Result<Self> {
        let folder = warehouse.strip_prefix(FILE_SCHEME).unwrap_or(warehouse);
        let clean = std::path::Path::new(folder).components().all(|part| {
            use std::path::Component::{Normal, RootDir};
            matches!(part, RootDir | Normal(_))
        });
        if !folder.starts_with('/') || !clean {
            return Err(Error::new(
                ErrorCode::SpecInvalid,
                format!("{warehouse:?} is not an absolute folder without '..'"),
            )
            .hint("use an absolute path or s3://bucket/prefix"));
        }
        local::ensure_folder(std::path::Path::new(folder))
            .map_err(|error| error::io("create the warehouse folder", error))?;
        let (root, url) = (format!("{FILE_SCHEME}{folder}"), "file:///".to_owned());
        Ok(Self::new(Arc::new(LocalFileSystem::new()), Kind::Local, root, url, None))
    }

    fn open_s3(address: &str, settings: &LakeSettings) -> Result<Self> {
        let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
        let account = settings.s3.clone().unwrap_or_default();
        let objects = s3(bucket, account.clone()).build();
        let objects = objects.map_err(|error| error::storage("open the bucket", error))?;
        let url = format!("s3://{bucket}");
        Path::parse(prefix).map_err(|cause| {
            Error::new(ErrorCode::SpecInvalid, "the warehouse's prefix is not a valid key")
                .detail(format!("s3://{address}"))
                .caused_by(cause)
        })?;
        let root = if prefix.is_empty() { url.clone() } else { format!("{url}/{prefix}") };
        let keys = objects.credentials().clone();
        let mut objects: Arc<dyn ObjectStore> = Arc::new(objects);
        let external = matches!(settings.catalog, CatalogSettings::Rest(_));
        let vended = (external && account.access_key.is_none())
            .then(|| Vended::new(bucket, &account, Arc::clone(&objects)));
        let api = match &vended {
            None => Some(Arc::new(Bucket::open(bucket, &account, keys)?)),
            Some(_) => None,
        };
        let kind = Kind::S3 { bucket: bucket.to_owned(), api };
        if let Some(vended) = &vended {
            objects = Arc::new(vended.clone());
        }
        Ok(Self::new(objects, kind, root, url, vended))
    }

    fn new(
        objects: Arc<dyn ObjectStore>,
        kind: Kind,
        root: String,
        url: String,
        vended: Option<Vended>,
    ) -> Self {
        let cleaning = Mutex::default();
        let inner = Arc::new(Inner { objects, kind, root, url, vended, cleaning });
        Self { inner, bounds: None }
    }

    /// The same store for what a table at `location` names: see [`bounds`].
    pub(crate) fn of_table(&self, location: &str) -> Self {
        // Of a bucket without a prefix the warehouse is its root, which is no location of a file.
        let warehouse = self.path_anywhere(&self.inner.root).unwrap_or_default();
        let location = self.path_anywhere(location).ok();
        let bounds = Bounds::of(warehouse, location.as_ref());
        Self { inner: Arc::clone(&self.inner), bounds: Some(Arc::new(bounds)) }
    }

    /// The same files through another object store: how tests put faults under a lake.
    #[must_use]
    pub fn with_objects(&self, objects: Arc<dyn ObjectStore>) -> Self {
        let Inner { kind, root, url, vended, .. } = &*self.inner;
        let kind = match kind {
            Kind::Local => Kind::Local,
            Kind::S3 { bucket, api } => Kind::S3 { bucket: bucket.clone(), api: api.clone() },
        };
        Self::new(objects, kind, root.clone(), url.clone(), vended.clone())
    }

    /// Where keys go that a catalog hands out; `None` for a store that needs none.
    pub(crate) fn vended(&self) -> Option<Vended> {
        self.inner.vended.clone()
    }

    pub(crate) fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.inner.objects)
    }

    /// Whether files are on this machine's disk.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.inner.kind, Kind::Local)
    }

    pub(crate) fn url(&self) -> &str {
        &self.inner.url
    }

    pub(crate) fn root(&self) -> &str {
        &self.inner.root
    }

    /// The object store's path of a location.
    ///
    /// # Errors
    /// `lake.corrupt` for a location of another store, or one out of bounds ([`Self::of_table`]).
    pub(crate) fn path(&self, location: &str) -> Result<Path> {
        let path = self.path_anywhere(location)?;
        match &self.bounds {
            Some(bounds) if !bounds.admit(&path) => Err(out_of_bounds(location)),
            _ => Ok(path),
        }
    }

    fn path_anywhere(&self, location: &str) -> Result<Path> {
        match &self.inner.kind {
            Kind::Local => Path::from_absolute_path(local_path(location))
                .map_err(|cause| foreign(location).caused_by(cause)),
            Kind::S3 { bucket, .. } => {
                let key = location
                    .strip_prefix("s3://")
                    .or_else(|| location.strip_prefix("s3a://"))
                    .and_then(|rest| rest.strip_prefix(bucket.as_str())?.strip_prefix('/'))
                    .ok_or_else(|| foreign(location))?;
                Path::parse(key).map_err(|cause| foreign(location).caused_by(cause))
            }
        }
    }

    pub(crate) async fn head(&self, location: &str) -> Result<ObjectMeta> {
        let path = self.path(location)?;
        let found = self.inner.objects.head(&path).await;
        found.map_err(|error| error::storage("look at a file of the lake", error).detail(location))
    }

    /// # Errors
    /// `lake.not_found` if there is no such file.
    pub(crate) async fn check_there(&self, location: &str) -> Result<()> {
        if self.is_local() {
            // Asking the kernel takes less than handing the question to another thread would.
            let found = std::fs::metadata(local_path(location));
            return found.map(drop).map_err(|cause| unseen("look at", location, cause));
        }
        self.head(location).await.map(drop)
    }

    /// A file on this machine's disk, to be read by parts; `None` if files are elsewhere.
    ///
    /// # Errors
    /// `lake.not_found` if there is no such file; as [`Self::path`].
    pub(crate) fn local_file(&self, location: &str) -> Result<Option<std::fs::File>> {
        self.path(location)?;
        if !self.is_local() {
            return Ok(None);
        }
        let file = std::fs::File::open(local_path(location));
        file.map(Some).map_err(|cause| unseen("open", location, cause))
    }

    pub(crate) async fn read(&self, location: &str) -> Result<Bytes> {
        let failed = |error| error::storage("read a file of the lake", error).detail(location);
        let found = self.inner.objects.get(&self.path(location)?).await.map_err(failed)?;
        found.bytes().await.map_err(failed)
    }

    /// Reads a whole file that is likely to be small, as a table's metadata: on local disk another
    /// thread is asked once and not twice.
    pub(crate) async fn read_small(&self, location: &str) -> Result<Bytes> {
        if self.is_local() {
            let (path, range) = (self.path(location)?, 0..SMALL_BYTES);
            let found = self.inner.objects.get_ranges(&path, &[range]).await;
            let found = found.ok().and_then(|mut found| found.pop());
            // As much as was asked for may not be all. What went wrong comes again below.
            if let Some(bytes) = found.filter(|bytes| (bytes.len() as u64) < SMALL_BYTES) {
                return Ok(bytes);
            }
        }
        self.read(location).await
    }

    pub(crate) async fn read_range(
        &self,
        location: &str,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes> {
        let found = self.inner.objects.get_range(&self.path(location)?, range).await;
        found.map_err(|error| error::storage("read a file of the lake", error).detail(location))
    }

    /// Writes a whole new file. When this returns, the file is there and survives a power cut. What a
    /// write that failed has left is removed, as far as that works.
    ///
    /// # Errors
    /// `lake.failed` if another file with this name exists. The same content under the same name is
    /// taken for our own earlier try whose answer was lost.
    pub(crate) async fn put_new(&self, location: &str, bytes: Bytes) -> Result<()> {
        if self.is_local() {
            let path = local_path(location);
            let write = move || local::write_new(&path, &bytes);
            return tokio::task::spawn_blocking(write)
                .await
                .map_err(error::join)?
                .map_err(|error| error::io("write a file of the lake", error).detail(location));
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = self.path(location)?;
        match self.inner.objects.put_opts(&path, bytes.clone().into(), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. })
                if self.read(location).await.is_ok_and(|found| found == bytes) =>
            {
                Ok(())
            }
            Err(error) if lacks_conditions(&error) => {
                // Our names are unique, so this replaces nothing.
                match self.inner.objects.put(&path, bytes.into()).await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(self.unwritten(&path, error).await.detail(location)),
                }
            }
            Err(error) => Err(self.unwritten(&path, error).await.detail(location)),
        }
    }

    /// What a put that failed has come to; what it may have left is removed, as far as that works.
    async fn unwritten(&self, path: &Path, error: object_store::Error) -> Error {
        if !matches!(error, object_store::Error::AlreadyExists { .. }) {
            // The answer alone may have been lost, or a part be there.
            let _ = self.inner.objects.delete(path).await;
        }
        error::storage("write a file of the lake", error)
    }

    /// Starts a new file that is written piece by piece.
    pub(crate) fn create(&self, location: &str) -> Result<Output> {
        Ok(match self.inner.kind {
            Kind::Local => Output::local(local_path(location)),
            Kind::S3 { .. } => Output::remote(self.clone(), self.path(location)?),
        })
    }

    /// Removes files, several at a time. A file that is not there counts as removed.
    ///
    /// # Errors
    /// The first of those that could not be removed; the others are gone.
    pub(crate) async fn delete(&self, locations: Vec<String>) -> Result<()> {
        let removed = futures::stream::iter(locations).map(|location| async move {
            let path = self.path(&location)?;
            match self.inner.objects.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error::storage("remove a file of the lake", error)),
            }
        });
        let removed: Vec<Result<()>> = removed.buffer_unordered(DELETES_MAX).collect().await;
        removed.into_iter().collect()
    }

    /// Removes files without waiting: for destructors. What stays is found by orphan removal.
    pub(crate) fn delete_soon(&self, locations: Vec<String>) {
        if self.is_local() {
            for location in locations {
                let _ = std::fs::remove_file(local_path(&location));
            }
        } else if !locations.is_empty() {
            let store = self.clone();
            self.clean_up(async move {
                if let Err(error) = store.delete(locations).await {
                    tracing::warn!("files of a dropped writer stay until orphan removal: {error}");
                }
            });
        }
    }

    /// Cleans up in the background, where that is possible: for destructors.
    pub(crate) fn clean_up(&self, work: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime, the process is about to end.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut cleaning = self.inner.cleaning.lock().unwrap_or_else(PoisonError::into_inner);
        while cleaning.try_join_next().is_some() {}
        cleaning.spawn_on(work, &runtime);
    }

    /// Waits for what destructors have left to be cleaned up.
    pub(crate) async fn cleaned_up(&self) {
        let taken = || {
            let mut cleaning = self.inner.cleaning.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *cleaning)
        };
        let mut cleaning = taken();
        while cleaning.join_next().await.is_some() {}
    }
}

/// An account's way to a bucket. Keys that are not configured are looked for where AWS's own tools
/// look.
fn s3(bucket: &str, settings: S3Settings) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_http_connector(Connector::default())
        .with_virtual_hosted_style_request(!settings.path_style);
    if !settings.region.is_empty() {
        builder = builder.with_region(settings.region);
    }
    if let Some(endpoint) = settings.endpoint {
        builder = builder.with_allow_http(endpoint.starts_with("http://"));
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(key) = settings.access_key {
        builder = builder.with_access_key_id(key.expose_secret());
    }
    if let Some(key) = settings.secret_key {
        builder = builder.with_secret_access_key(key.expose_secret());
    }
    builder
}

/// `file:///a`, Hadoop's `file:/a` and `/a` are one path.
fn local_path(location: &str) -> PathBuf {
    let hadoop = || location.strip_prefix("file:").filter(|rest| rest.starts_with('/'));
    let path = location.strip_prefix(FILE_SCHEME).or_else(hadoop);
    PathBuf::from(path.unwrap_or(location))
}

fn unseen(doing: &str, location: &str, cause: std::io::Error) -> Error {
    let gone = cause.kind() == std::io::ErrorKind::NotFound;
    let code = if gone { ErrorCode::LakeNotFound } else { ErrorCode::LakeFailed };
    let message = format!("cannot {doing} a file of the lake");
    Error::new(code, message).detail(location).caused_by(cause)
}

fn foreign(location: &str) -> Error {
    Error::new(ErrorCode::LakeCorrupt, "a file of the lake lies outside its store").detail(location)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::CatalogSettings;

    fn settings(warehouse: &str) -> LakeSettings {
        LakeSettings {
            warehouse: warehouse.to_owned(),
            catalog: CatalogSettings::Sql(String::new().into()),
            s3: Some(S3Settings { region: "r".into(), ..S3Settings::default() }),
        }
    }

    #[test]
    fn locations_become_paths_of_their_own_store_only() {
        let s3 = Store::open(&settings("s3://bucket/a/b/")).expect("s3");
        assert_eq!((s3.root(), s3.url()), ("s3://bucket/a/b", "s3://bucket"));
        assert_eq!(s3.path("s3://bucket/a/x").expect("path").as_ref(), "a/x");
        for foreign in ["s3://bucket2/a", "s3://other/a", "/a", "file:///a", "s3://bucket/../x"] {
            assert_eq!(s3.path(foreign).expect_err(foreign).code(), ErrorCode::LakeCorrupt);
        }
        let folder = tempfile::tempdir().expect("folder");
        let name = folder.path().join("my lake é");
        let local = Store::open(&settings(name.to_str().expect("utf-8"))).expect("local");
        assert!(name.is_dir() && local.root().starts_with("file:///"));
        for same in ["file:///a/b c", "file:/a/b c", "/a/b c"] {
            assert_eq!(local.path(same).expect("path").as_ref(), "a/b c");
        }
        assert!(local.path("file:a").is_err());
    }

    #[tokio::test]
    async fn small_and_large_files_are_read_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(&settings(folder.path().to_str().expect("utf-8"))).expect("local");
        for length in [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 3 * SMALL_BYTES] {
            let location = format!("{}/{length}", store.root());
            let bytes = Bytes::from(vec![7; length as usize]);
            store.put_new(&location, bytes.clone()).await.expect("write");
            assert_eq!(store.read_small(&location).await.expect("read"), bytes, "{length} bytes");
            store.check_there(&location).await.expect("there");
        }
        let nowhere = format!("{}/nowhere", store.root());
        let error = store.read_small(&nowhere).await.expect_err("nothing");
        assert_eq!(error.code(), ErrorCode::LakeNotFound);
        let error = store.check_there(&nowhere).await.expect_err("nothing");
        assert_eq!(error.code(), ErrorCode::LakeNotFound);
    }

    #[tokio::test]
    async fn a_new_file_on_s3_replaces_no_other() {
        let objects: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let store = Store::open(&settings("s3://bucket/a")).expect("s3").with_objects(objects);
        let location = "s3://bucket/a/x";
        let put = |text: &'static [u8]| store.put_new(location, Bytes::from_static(text));
        put(b"one").await.expect("new");
        put(b"one").await.expect("the same again, as after a lost answer");
        put(b"two").await.expect_err("another");
        assert_eq!(store.read(location).await.expect("read"), Bytes::from_static(b"one"));
    }

    #[test]
    fn a_warehouse_is_absolute_and_goes_straight_down() {
        for bad in ["lake", "./lake", "/a/../b", ""] {
            let error = Store::open(&settings(bad)).expect_err(bad);
            assert_eq!(error.code(), ErrorCode::SpecInvalid);
        }
    }
}
