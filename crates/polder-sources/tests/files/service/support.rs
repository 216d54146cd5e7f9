//! A prefix of a bucket per test.

use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as StorePath;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt};
use polder_core::spec::{S3Config, StorageConfig};
use polder_core::{SecretRef, SecretResolver};
use polder_sources::files::{FilesSource, Place};
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::super::support::Environment;

/// The bucket that the test services always have.
pub(super) const BUCKET: &str = "polder-ready";
/// Requests at the same time.
const REQUESTS: usize = 16;

fn variable(name: &str) -> String {
    let secret = Environment.resolve(&SecretRef::Env(name.to_owned())).expect(name);
    secret.expose_secret().to_owned()
}

fn bucket() -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(variable("POLDER_TEST_S3_ENDPOINT"))
        .with_access_key_id(variable("S3_ACCESS_KEY"))
        .with_secret_access_key(variable("S3_SECRET_KEY"))
        .with_region("us-east-1")
        .with_bucket_name(BUCKET)
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .build()
        .expect("store")
}

/// A part of the bucket that is the test's own, emptied at the end.
pub(super) struct Prefix {
    pub(super) path: String,
    store: AmazonS3,
    base: TempDir,
}

impl Prefix {
    pub(super) fn new() -> Self {
        Self {
            path: format!("sources-tests/{}", uuid::Uuid::new_v4()),
            store: bucket(),
            base: tempfile::tempdir().expect("folder"),
        }
    }

    pub(super) async fn write(&self, key: &str, content: impl Into<bytes::Bytes>) {
        self.write_all([(key.to_owned(), content.into())]).await;
    }

    pub(super) async fn write_all<B: Into<bytes::Bytes>>(
        &self,
        files: impl IntoIterator<Item = (String, B)>,
    ) {
        let puts = files.into_iter().map(|(key, content)| {
            let path = StorePath::parse(format!("{}/{key}", self.path)).expect("key");
            let content: bytes::Bytes = content.into();
            async move { self.store.put(&path, content.into()).await }
        });
        stream::iter(puts)
            .buffer_unordered(REQUESTS)
            .try_collect::<Vec<_>>()
            .await
            .expect("objects");
    }

    /// The source that sees this part of the bucket only.
    pub(super) fn source(&self) -> FilesSource {
        self.open(&format!("s3://{BUCKET}/{}", self.path), &settings())
    }

    pub(super) fn open(&self, url: &str, settings: &S3Config) -> FilesSource {
        let storage = StorageConfig { s3: Some(settings.clone()) };
        let place = Place::open(url, &storage, &Environment, self.base.path());
        FilesSource::new("uploads", place.expect("place"), self.base.path())
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        let path = StorePath::parse(&self.path).expect("path");
        // Out of the test's runtime, which may be going down with a panic.
        let drop = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async {
                let store = bucket();
                let objects = store.list(Some(&path)).map_ok(|object| object.location).boxed();
                store.delete_stream(objects).try_collect::<Vec<_>>().await.expect("deleted");
            });
        });
        drop.join().ok();
    }
}

pub(super) fn settings() -> S3Config {
    S3Config {
        endpoint: Some(variable("POLDER_TEST_S3_ENDPOINT")),
        region: "us-east-1".to_owned(),
        access_key: Some(SecretRef::Env("S3_ACCESS_KEY".to_owned())),
        secret_key: Some(SecretRef::Env("S3_SECRET_KEY".to_owned())),
        path_style: true,
        role_arn: None,
        sts_endpoint: None,
    }
}
