//! Where the files are: a local folder, or a bucket of an S3 store.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as StorePath;
use object_store::{ClientOptions, Error as StoreError, GetOptions, ObjectStore};
use polder_core::spec::{S3Config, StorageConfig};
use polder_core::{Error, ErrorCode, Result, SecretResolver};
use secrecy::ExposeSecret;

use super::object::{Content, Input, Object, changed, local_etag, no_room};
use crate::blocking;

/// Bytes asked for at once. Each request has a timeout of its own, so an object may be of any size.
const PART_BYTES: u64 = 16 << 20;
/// Small objects fetched at the same time.
const FETCHES: usize = 4;
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects looked at for one table.
const OBJECTS_MAX: usize = 1_000_000;
/// S3's error codes (API reference, *Error responses*) for keys and rights that do not do.
const DENIED: [&str; 4] = [
    "<Code>AccessDenied<",
    "<Code>InvalidAccessKeyId<",
    "<Code>SignatureDoesNotMatch<",
    "<Code>ExpiredToken<",
];
/// Folders within folders.
const DEPTH_MAX: usize = 64;

/// A folder or bucket with the right to read it.
#[derive(Clone, Debug)]
pub struct Place {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Local { root: PathBuf },
    S3 { store: Arc<AmazonS3>, bucket: String, prefix: String },
}

impl Place {
    /// Makes sense of `s3://bucket/prefix`, `file:///folder` or a folder relative to `base`; reads
    /// nothing yet.
    ///
    /// # Errors
    /// `spec.invalid` for an address that is none of these; `spec.secret`.
    pub fn open(
        url: &str,
        storage: &StorageConfig,
        secrets: &dyn SecretResolver,
        base: &Path,
    ) -> Result<Self> {
        let kind = if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let config = storage
                .s3
                .as_ref()
                .ok_or_else(|| invalid(url, "it needs [storage.s3] in polder.toml"))?;
            let store = s3(bucket, config, secrets)
                .map_err(|error| invalid(url, "the S3 settings do not fit").caused_by(error))??;
            let prefix = prefix.trim_matches('/').to_owned();
            Kind::S3 { store: Arc::new(store), bucket: bucket.to_owned(), prefix }
        } else if let Some(path) = url.strip_prefix("file://") {
            Kind::Local { root: base.join(path) }
        } else if url.contains("://") || url.is_empty() {
            return Err(invalid(url, "it is neither s3:// nor a folder"));
        } else {
            Kind::Local { root: base.join(url) }
        };
        Ok(Self { kind })
    }

    /// Looks whether the place is there; says what it is.
    pub(super) async fn check(&self) -> Result<String> {
        match &self.kind {
            Kind::Local { root } => {
                let root = root.clone();
                blocking::run(move || {
                    real_root(&root).map(|real| format!("folder {}", real.display()))
                })
                .await
            }
            Kind::S3 { store, bucket, prefix } => {
                let path = store_path(prefix)?;
                store
                    .list(Some(&path))
                    .next()
                    .await
                    .transpose()
                    .map_err(|error| store_error(error, bucket))?;
                Ok(format!("bucket {bucket}, prefix {prefix:?}"))
            }
        }
    }

    /// The objects in a folder, and in `depth` folders below it (any number if absent), that `wanted`
    /// takes, by key. Keys are relative to the root.
    pub(super) async fn list(
        &self,
        folder: &str,
        depth: Option<usize>,
        wanted: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Vec<Object>> {
        let mut objects = match &self.kind {
            Kind::Local { root } => {
                let (root, folder) = (root.clone(), folder.to_owned());
                blocking::run(move || list_local(&root, &folder, depth, &wanted)).await?
            }
            Kind::S3 { store, bucket, prefix } => {
                list_s3(store, bucket, prefix, folder, &wanted).await?
            }
        };
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Brings the objects' bytes to local disk, each read once and only as it was listed.
    pub(super) async fn fetch(&self, objects: Vec<Object>) -> Result<Vec<Input>> {
        match &self.kind {
            Kind::Local { root } => {
                let content = |object: &Object| Content::File(root.join(&object.key));
                Ok(objects
                    .into_iter()
                    .map(|object| Input { content: content(&object), object })
                    .collect())
            }
            Kind::S3 { store, bucket, prefix } => {
                Download { store, bucket, prefix }.all(objects).await
            }
        }
    }
}

fn s3(
    bucket: &str,
    config: &S3Config,
    secrets: &dyn SecretResolver,
) -> Result<Result<AmazonS3>, StoreError> {
    let client = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(config.endpoint.as_ref().is_some_and(|url| url.starts_with("http://")));
    let mut builder = match (&config.access_key, &config.secret_key) {
        (Some(access), Some(secret)) => {
            let (access, secret) = match (secrets.resolve(access), secrets.resolve(secret)) {
                (Ok(access), Ok(secret)) => (access, secret),
                (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
            };
            AmazonS3Builder::new()
                .with_access_key_id(access.expose_secret())
                .with_secret_access_key(secret.expose_secret())
        }
        // Without keys: what AWS's own tools would use (environment, web identity, instance).
        _ => AmazonS3Builder::from_env(),
    };
    builder = builder
        .with_bucket_name(bucket)
        .with_region(&config.region)
        .with_virtual_hosted_style_request(!config.path_style)
        .with_client_options(client);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder.build().map(Ok)
}

/// The root with every link resolved.
fn real_root(root: &Path) -> Result<PathBuf> {
    let missing = |error: std::io::Error| {
        Error::new(ErrorCode::SourceNotFound, format!("folder {} is not there", root.display()))
            .caused_by(error)
    };
    fs::canonicalize(root).map_err(missing)
}

fn list_local(
    root: &Path,
    folder: &str,
    depth_max: Option<usize>,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Object>> {
    let real = real_root(root)?;
    let start = if folder.is_empty() { root.to_owned() } else { root.join(folder) };
    match fs::canonicalize(&start) {
        Ok(start) if !start.starts_with(&real) => return Err(outside(folder)),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(folder, error)),
    }
    let mut objects = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let path = if folder.is_empty() { root.to_owned() } else { root.join(&folder) };
        let entries = fs::read_dir(&path).map_err(|error| unreadable(&folder, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&folder, error))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                let error = Error::new(ErrorCode::SourceMalformed, "a file's name is not UTF-8");
                return Err(error.detail(format!("in folder {folder:?}")));
            };
            let key = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let kind = entry.file_type().map_err(|error| unreadable(&key, error))?;
            // Folders behind links are not entered: they may lead out, or in circles.
            if kind.is_dir() && depth_max.is_none_or(|max| depth < max) {
                if depth == DEPTH_MAX {
                    return Err(too_deep(&key));
                }
                folders.push((key, depth + 1));
            } else if !kind.is_dir() && wanted(&key) {
                objects.extend(local_object(&real, &entry.path(), key)?);
                limit(objects.len())?;
            }
        }
    }
    Ok(objects)
}

/// A file, or a link to one within the root; `None` for pipes, sockets and links to folders.
fn local_object(real_root: &Path, path: &Path, key: String) -> Result<Option<Object>> {
    let real = fs::canonicalize(path).map_err(|error| unreadable(&key, error))?;
    if !real.starts_with(real_root) {
        return Err(outside(&key));
    }
    let metadata = fs::metadata(&real).map_err(|error| unreadable(&key, error))?;
    Ok(metadata.is_file().then(|| Object {
        key,
        etag: local_etag(&metadata),
        size: metadata.len(),
    }))
}

async fn list_s3(
    store: &AmazonS3,
    bucket: &str,
    prefix: &str,
    folder: &str,
    wanted: &(impl Fn(&str) -> bool + Send),
) -> Result<Vec<Object>> {
    let path = store_path(&join(prefix, folder))?;
    let mut found = store.list(Some(&path));
    let mut objects = Vec::new();
    while let Some(meta) = found.next().await {
        let meta = meta.map_err(|error| store_error(error, bucket))?;
        let key = meta.location.as_ref();
        let key = if prefix.is_empty() { Some(key) } else { key.strip_prefix(prefix) };
        let Some(key) = key.map(|key| key.trim_start_matches('/')) else { continue };
        if wanted(key) {
            let dated = || format!("{}-{}", meta.size, meta.last_modified.timestamp_micros());
            let etag = meta.e_tag.clone().unwrap_or_else(dated);
            objects.push(Object { key: key.to_owned(), etag, size: meta.size });
            limit(objects.len())?;
        }
    }
    Ok(objects)
}

/// Objects of a bucket on their way to disk.
struct Download<'a> {
    store: &'a AmazonS3,
    bucket: &'a str,
    prefix: &'a str,
}

impl Download<'_> {
    async fn all(&self, objects: Vec<Object>) -> Result<Vec<Input>> {
        let spill = tempfile::tempfile().map_err(no_room)?;
        let spill = Arc::new(spill);
        let mut offset = 0;
        // Each object's first part is fetched ahead; the rest of a large one when its turn comes.
        let firsts = objects.into_iter().map(|object| async {
            let first = self.part(&object, 0).await?;
            Ok::<_, Error>((object, first))
        });
        let mut firsts = stream::iter(firsts).buffered(FETCHES);
        let mut inputs = Vec::new();
        while let Some((object, first)) = firsts.try_next().await? {
            let start = offset;
            let mut part = first;
            loop {
                offset += part.len() as u64;
                let file = spill.clone();
                blocking::run(move || (&*file).write_all(&part).map_err(no_room)).await?;
                if offset - start >= object.size {
                    break;
                }
                part = self.part(&object, offset - start).await?;
            }
            let content =
                Content::Spilled { file: spill.clone(), offset: start, length: object.size };
            inputs.push(Input { object, content });
        }
        Ok(inputs)
    }

    /// The next part of an object, if it is still the one that was listed.
    async fn part(&self, object: &Object, from: u64) -> Result<bytes::Bytes> {
        if object.size == 0 {
            return Ok(bytes::Bytes::new());
        }
        let path = store_path(&join(self.prefix, &object.key))?;
        let to = object.size.min(from + PART_BYTES);
        let options = GetOptions {
            if_match: Some(object.etag.clone()),
            range: Some((from..to).into()),
            ..GetOptions::default()
        };
        let failed = |error| match error {
            StoreError::Precondition { .. } => changed(&object.key),
            StoreError::NotFound { .. } => {
                Error::new(ErrorCode::SourceNotFound, format!("file {} is gone", object.key))
            }
            error => store_error(error, self.bucket),
        };
        let result = self.store.get_opts(&path, options).await.map_err(failed)?;
        let whole = result.meta.size;
        let bytes = result.bytes().await.map_err(failed)?;
        // A store that ignores the condition or the range is not trusted either.
        if whole != object.size || bytes.len() as u64 != to - from {
            return Err(changed(&object.key));
        }
        Ok(bytes)
    }
}

fn join(prefix: &str, rest: &str) -> String {
    match (prefix, rest) {
        ("", rest) => rest.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, rest) => format!("{prefix}/{rest}"),
    }
}

fn store_path(key: &str) -> Result<StorePath> {
    StorePath::parse(key).map_err(|error| {
        Error::new(ErrorCode::SourceMalformed, format!("{key:?} is no object key this reads"))
            .caused_by(error)
    })
}

fn limit(objects: usize) -> Result<()> {
    if objects <= OBJECTS_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorCode::SourceFailed, "the glob matches too many files")
        .detail(format!("the limit is {OBJECTS_MAX}"))
        .hint("make the glob narrower"))
}

fn too_deep(key: &str) -> Error {
    Error::new(ErrorCode::SourceFailed, format!("{key:?} lies in too many folders"))
        .detail(format!("the limit is {DEPTH_MAX} folders within folders"))
        .hint("make the glob narrower")
}

fn store_error(error: StoreError, bucket: &str) -> Error {
    // A refused listing arrives as a generic error that quotes the answer's code.
    let answer = error.to_string();
    let says = |codes: &[&str]| codes.iter().any(|code| answer.contains(code));
    let failure = match &error {
        StoreError::Unauthenticated { .. } | StoreError::PermissionDenied { .. } => denied(bucket),
        StoreError::NotFound { .. } => missing(bucket),
        StoreError::InvalidPath { .. } => {
            let message = format!("bucket {bucket} has keys this cannot read");
            Error::new(ErrorCode::SourceMalformed, message)
                .hint("rename objects whose keys have an empty, \".\" or \"..\" segment")
        }
        _ if says(&["<Code>NoSuchBucket<"]) => missing(bucket),
        _ if says(&DENIED) => denied(bucket),
        // After the client's own retries.
        _ => Error::new(ErrorCode::SourceUnavailable, format!("bucket {bucket} cannot be read"))
            .hint("check the endpoint in [storage.s3], the network and that the server runs"),
    };
    failure.caused_by(error)
}

fn denied(bucket: &str) -> Error {
    Error::new(ErrorCode::SourceDenied, format!("bucket {bucket} refused the access"))
        .hint("check the keys in [storage.s3] and the bucket's policy")
}

fn missing(bucket: &str) -> Error {
    Error::new(ErrorCode::SourceNotFound, format!("bucket {bucket} is not there"))
        .hint("check the address of the source and the endpoint in [storage.s3]")
}

fn outside(key: &str) -> Error {
    Error::new(ErrorCode::SourceDenied, format!("{key:?} is a link out of the source's folder"))
        .hint("move the file into the folder; links may point within it only")
}

fn unreadable(key: &str, error: std::io::Error) -> Error {
    let code = match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorCode::SourceDenied,
        std::io::ErrorKind::NotFound => ErrorCode::SourceNotFound,
        _ => ErrorCode::SourceFailed,
    };
    Error::new(code, format!("{key:?} cannot be read")).caused_by(error)
}

fn invalid(url: &str, why: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, format!("{url:?} is no address of files")).detail(why)
}
