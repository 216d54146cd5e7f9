//! S3 with keys that a catalog hands out, each for the objects below one prefix. Keys that expire are
//! asked for anew in time, by whoever uses them next.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::aws::AwsCredential;
use object_store::path::Path;
use object_store::{
    CopyOptions, CredentialProvider, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result as StoreResult,
};
use polder_core::{Error, ErrorCode, Result};
use secrecy::{ExposeSecret, SecretString};

use super::s3;
use crate::error;
use crate::settings::S3Settings;

/// Prefixes remembered. The one that was not used for the longest time leaves first.
const PLACES_MAX: usize = 512;
/// Keys are renewed this long before their end, in milliseconds, or after four fifths of a short life.
const MARGIN_MS: i64 = 5 * 60_000;
/// Keys that are at their end when they come are asked for again after this, in milliseconds.
const PAUSE_MS: i64 = 5_000;
/// Objects removed at the same time.
const DELETES_MAX: usize = 16;

/// Keys for the objects below a prefix, and what their giver says of the store.
#[derive(Clone, Debug)]
pub(crate) struct VendedKeys {
    /// What locations begin with: `s3://bucket/folder`, or less.
    pub(crate) prefix: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: SecretString,
    pub(crate) session_token: Option<SecretString>,
    /// Milliseconds since the epoch; they do not expire when absent.
    pub(crate) expires_at_ms: Option<i64>,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) path_style: Option<bool>,
}

/// Where keys come from, once those at hand expire.
#[async_trait]
pub(crate) trait KeySource: fmt::Debug + Send + Sync {
    async fn keys(&self) -> Result<Vec<VendedKeys>>;
}

/// A bucket through the keys that were handed out. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Vended {
    bucket: Arc<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    name: String,
    settings: S3Settings,
    /// For objects that no keys were handed out for: the environment, the instance's profile.
    own: Arc<dyn ObjectStore>,
    /// Longest prefix first.
    places: RwLock<Vec<Arc<Place>>>,
    clock: AtomicU64,
}

/// The objects below one prefix.
#[derive(Debug)]
struct Place {
    prefix: String,
    server: Server,
    store: Arc<dyn ObjectStore>,
    held: Arc<Held>,
    /// When it was used last, by the bucket's clock.
    used: AtomicU64,
}

/// What a store is opened with, beside keys.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    endpoint: Option<String>,
    region: String,
    path_style: bool,
}

impl Vended {
    pub(super) fn new(name: &str, settings: &S3Settings, own: Arc<dyn ObjectStore>) -> Self {
        Self {
            bucket: Arc::new(Bucket {
                name: name.to_owned(),
                settings: settings.clone(),
                own,
                places: RwLock::default(),
                clock: AtomicU64::new(0),
            }),
        }
    }

    /// Uses these keys from now on. Those for another bucket are left out.
    ///
    /// # Errors
    /// `lake.failed` if no store can be opened with them.
    pub(crate) fn take(&self, keys: Vec<VendedKeys>, source: &Arc<dyn KeySource>) -> Result<()> {
        for keys in keys {
            let Some(prefix) = self.bucket.key_prefix(&keys.prefix) else { continue };
            let server = self.bucket.server(&keys);
            let known = self.place(|place| place.prefix == prefix && place.server == server);
            if let Some(known) = known {
                known.held.replace(&keys, Some(Arc::clone(source)));
                continue;
            }
            let place = self.bucket.open(prefix, server, &keys, Arc::clone(source))?;
            let mut places = self.bucket.places.write().unwrap_or_else(PoisonError::into_inner);
            places.retain(|other| other.prefix != place.prefix);
            if places.len() >= PLACES_MAX {
                let oldest = places.iter().map(|other| other.used.load(Ordering::Relaxed)).min();
                places.retain(|other| Some(other.used.load(Ordering::Relaxed)) != oldest);
            }
            places.push(Arc::new(place));
            places.sort_by_key(|place| std::cmp::Reverse(place.prefix.len()));
        }
        Ok(())
    }

    fn place(&self, wanted: impl Fn(&Place) -> bool) -> Option<Arc<Place>> {
        let places = self.bucket.places.read().unwrap_or_else(PoisonError::into_inner);
        let found = places.iter().find(|place| wanted(place))?;
        found.used.store(self.bucket.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(Arc::clone(found))
    }

    /// The store for an object.
    fn store(&self, path: &Path) -> Arc<dyn ObjectStore> {
        let found = self.place(|place| path.as_ref().starts_with(&place.prefix));
        found.map_or_else(|| Arc::clone(&self.bucket.own), |place| Arc::clone(&place.store))
    }
}

impl Bucket {
    /// What the keys of objects begin with, for a prefix of locations; `None` for another bucket.
    fn key_prefix(&self, prefix: &str) -> Option<String> {
        let rest = prefix.strip_prefix("s3a://").or_else(|| prefix.strip_prefix("s3n://"));
        let prefix = rest.map_or_else(|| prefix.to_owned(), |rest| format!("s3://{rest}"));
        let own = format!("s3://{}/", self.name);
        if own.starts_with(&prefix) {
            return Some(String::new());
        }
        prefix.strip_prefix(&own).map(str::to_owned)
    }

    /// What is configured here counts; what the catalog says fills the gaps.
    fn server(&self, keys: &VendedKeys) -> Server {
        let Self { settings, .. } = self;
        let endpoint = settings.endpoint.clone();
        let path_style = match &endpoint {
            Some(_) => settings.path_style,
            None => keys.path_style.unwrap_or(settings.path_style),
        };
        let region = keys.region.clone().filter(|_| endpoint.is_none());
        Server {
            endpoint: endpoint.or_else(|| keys.endpoint.clone()),
            region: region.unwrap_or_else(|| settings.region.clone()),
            path_style,
        }
    }

    fn open(
        &self,
        prefix: String,
        server: Server,
        keys: &VendedKeys,
        source: Arc<dyn KeySource>,
    ) -> Result<Place> {
        let held = Arc::new(Held {
            prefix: keys.prefix.clone(),
            keys: Mutex::new(Keys::new(keys)),
            source: Mutex::new(source),
            renewing: tokio::sync::Mutex::new(()),
        });
        let settings = S3Settings {
            endpoint: server.endpoint.clone(),
            region: server.region.clone(),
            path_style: server.path_style,
            access_key: None,
            secret_key: None,
            ..S3Settings::default()
        };
        let credentials: Arc<dyn CredentialProvider<Credential = AwsCredential>> = held.clone();
        let store = s3(&self.name, settings).with_credentials(credentials).build();
        let store = store.map_err(|error| error::storage("open the bucket", error))?;
        let used = AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed));
        Ok(Place { prefix, server, store: Arc::new(store), held, used })
    }
}

/// The keys at hand, as the S3 client asks for them.
#[derive(Debug)]
struct Held {
    /// As the giver of the keys writes it.
    prefix: String,
    keys: Mutex<Keys>,
    source: Mutex<Arc<dyn KeySource>>,
    /// Held by the one request that asks for new keys.
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Keys {
    credential: Arc<AwsCredential>,
    renew_at_ms: Option<i64>,
    expires_at_ms: Option<i64>,
}

impl Keys {
    fn new(keys: &VendedKeys) -> Self {
        let now = Utc::now().timestamp_millis();
        let renew_at_ms = keys.expires_at_ms.map(|end| {
            let life = (end - now).max(0);
            (end - MARGIN_MS.min(life / 5)).max(now + PAUSE_MS.min(life))
        });
        let token = keys.session_token.as_ref().map(|token| token.expose_secret().to_owned());
        let credential = AwsCredential {
            key_id: keys.access_key.clone(),
            secret_key: keys.secret_key.expose_secret().to_owned(),
            token,
        };
        let expires_at_ms = keys.expires_at_ms;
        Self { credential: Arc::new(credential), renew_at_ms, expires_at_ms }
    }

    fn is_due(&self) -> bool {
        self.renew_at_ms.is_some_and(|at| Utc::now().timestamp_millis() >= at)
    }

    fn is_over(&self) -> bool {
        self.expires_at_ms.is_some_and(|at| Utc::now().timestamp_millis() >= at)
    }
}

impl Held {
    fn keys(&self) -> Keys {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, keys: &VendedKeys, source: Option<Arc<dyn KeySource>>) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Keys::new(keys);
        if let Some(source) = source {
            *self.source.lock().unwrap_or_else(PoisonError::into_inner) = source;
        }
    }

    async fn renew(&self) -> Result<()> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = source.keys().await?;
        // For the same place, or for one that it lies in.
        let within = found.iter().filter(|keys| self.prefix.starts_with(&keys.prefix));
        let keys = within.max_by_key(|keys| keys.prefix.len()).ok_or_else(|| {
            let message = "the catalog hands out no keys for the store any more";
            Error::new(ErrorCode::LakeFailed, message).detail(self.prefix.clone())
        })?;
        self.replace(keys, None);
        Ok(())
    }
}

#[async_trait]
impl CredentialProvider for Held {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> StoreResult<Arc<AwsCredential>> {
        if self.keys().is_due() {
            let _one = self.renewing.lock().await;
            // Another request may have done it meanwhile.
            if self.keys().is_due()
                && let Err(error) = self.renew().await
            {
                if self.keys().is_over() {
                    return Err(object_store::Error::Generic { store: "S3", source: error.into() });
                }
                tracing::warn!("the store's keys cannot be renewed yet: {error}");
            }
        }
        Ok(self.keys().credential)
    }
}

impl fmt::Display for Vended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{} with vended keys", self.bucket.name)
    }
}

#[async_trait]
impl ObjectStore for Vended {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        self.store(location).put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.store(location).put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.store(location).get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        self.store(location).get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        let this = self.clone();
        let delete = move |path: StoreResult<Path>| {
            let this = this.clone();
            async move {
                let path = path?;
                this.store(&path).delete(&path).await?;
                Ok(path)
            }
        };
        locations.map(delete).buffered(DELETES_MAX).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.store(prefix.unwrap_or(&Path::default())).list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.store(prefix.unwrap_or(&Path::default())).list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.store(from).copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[derive(Debug, Default)]
    struct Source {
        next: Mutex<Vec<VendedKeys>>,
        asked: AtomicU64,
    }

    #[async_trait]
    impl KeySource for Source {
        async fn keys(&self) -> Result<Vec<VendedKeys>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Ok(self.next.lock().expect("next").clone())
        }
    }

    fn keys(prefix: &str, access_key: &str, life_ms: Option<i64>) -> VendedKeys {
        VendedKeys {
            prefix: prefix.to_owned(),
            access_key: access_key.to_owned(),
            secret_key: "secret".into(),
            session_token: None,
            expires_at_ms: life_ms.map(|life| Utc::now().timestamp_millis() + life),
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            region: Some("r".to_owned()),
            path_style: Some(true),
        }
    }

    fn vended() -> Vended {
        Vended::new("b", &S3Settings::default(), Arc::new(InMemory::new()))
    }

    fn take(vended: &Vended, keys: Vec<VendedKeys>, source: &Arc<Source>) {
        let source: Arc<dyn KeySource> = source.clone();
        vended.take(keys, &source).expect("taken");
    }

    async fn used(vended: &Vended, path: &str) -> Option<String> {
        let path = Path::from(path);
        let place = vended.place(|place| path.as_ref().starts_with(&place.prefix))?;
        Some(place.held.get_credential().await.expect("keys").key_id.clone())
    }

    #[tokio::test]
    async fn the_longest_prefix_counts_and_other_buckets_do_not() {
        let (vended, source) = (vended(), Arc::new(Source::default()));
        let all = vec![
            keys("s3://b/a", "a", None),
            keys("s3a://b/a/deep/", "deep", None),
            keys("s3://other/x", "other", None),
        ];
        take(&vended, all, &source);
        assert_eq!(used(&vended, "a/1").await.as_deref(), Some("a"));
        assert_eq!(used(&vended, "a/deep/1").await.as_deref(), Some("deep"));
        assert_eq!(used(&vended, "x/1").await, None);
        take(&vended, vec![keys("s3", "whole", None)], &source);
        assert_eq!(used(&vended, "x/1").await.as_deref(), Some("whole"));
        take(&vended, vec![keys("s3://b/a", "newer", None)], &source);
        assert_eq!(used(&vended, "a/1").await.as_deref(), Some("newer"));
        assert_eq!(source.asked.load(Ordering::Relaxed), 0);
        assert!(!format!("{vended:?}").contains("secret\""));
    }

    #[tokio::test]
    async fn keys_are_renewed_before_they_expire_and_only_then() {
        let (vended, source) = (vended(), Arc::new(Source::default()));
        take(&vended, vec![keys("s3://b/a", "one", Some(3_600_000))], &source);
        assert_eq!(used(&vended, "a/1").await.as_deref(), Some("one"));
        assert_eq!(source.asked.load(Ordering::Relaxed), 0);
        // Over at once: renewal is due, and fails as long as there are no keys.
        take(&vended, vec![keys("s3://b/a", "two", Some(-1))], &source);
        let path = Path::from("a/1");
        let place = vended.place(|place| path.as_ref().starts_with(&place.prefix)).expect("place");
        place.held.get_credential().await.expect_err("over");
        *source.next.lock().expect("next") = vec![keys("s3://b", "three", Some(3_600_000))];
        assert_eq!(used(&vended, "a/1").await.as_deref(), Some("three"));
        assert_eq!(used(&vended, "a/1").await.as_deref(), Some("three"));
        assert_eq!(source.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn prefixes_are_remembered_in_bounds() {
        let (vended, source) = (vended(), Arc::new(Source::default()));
        for number in 0..PLACES_MAX + 3 {
            let one = vec![keys(&format!("s3://b/{number}/"), "k", None)];
            take(&vended, one, &source);
            assert!(used(&vended, "0/1").await.is_some(), "it is in use");
        }
        assert_eq!(vended.bucket.places.read().expect("places").len(), PLACES_MAX);
        assert_eq!(used(&vended, "1/1").await, None);
    }
}
