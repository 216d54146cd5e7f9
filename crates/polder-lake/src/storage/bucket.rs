//! What S3 can do and `object_store` does not: versions, delete markers and unfinished uploads listed
//! and removed, many keys in one request. Signed as everything else is (ADR 0011, ADR 0019).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use object_store::aws::AwsCredentialProvider;
use object_store::client::HttpClient;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use polder_core::{Error, ErrorCode, Result};
use rand::Rng;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::aws;
use crate::settings::S3Settings;

/// Keys that one request removes, at most (S3's API reference, `DeleteObjects`).
pub(super) const KEYS_MAX: usize = 1000;
const SERVICE: &str = "s3";
const TIMEOUT: Duration = Duration::from_mins(1);
/// Times a request is sent; each of them may be repeated.
const TRIES_MAX: u32 = 5;
/// The pause before the second; it doubles, and a random part is left off.
const PAUSE: Duration = Duration::from_millis(200);
/// Pages of one listing. A server that sends more is broken.
const PAGES_MAX: usize = 1_000_000;
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// A key, in a bucket with versions one version of it.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) key: String,
    pub(super) version: Option<String>,
}

/// A bucket of S3, for what has no other way.
#[derive(Debug)]
pub(super) struct Bucket {
    http: HttpClient,
    credentials: AwsCredentialProvider,
    /// The bucket's address, without a slash at the end.
    url: String,
    region: String,
}

struct Answer {
    status: u16,
    body: Bytes,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Versioning {
    #[serde(default)]
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Versions {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: Option<String>,
    #[serde(default)]
    next_version_id_marker: Option<String>,
    #[serde(default)]
    version: Vec<Version>,
    #[serde(default)]
    delete_marker: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    key: String,
    #[serde(rename = "VersionId")]
    id: String,
    #[serde(default)]
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Uploads {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: Option<String>,
    #[serde(default)]
    next_upload_id_marker: Option<String>,
    #[serde(default)]
    upload: Vec<Upload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Deleted {
    #[serde(default)]
    error: Vec<NotDeleted>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NotDeleted {
    #[serde(default)]
    key: String,
    #[serde(default)]
    code: String,
}

impl Bucket {
    /// With the credentials of the object store, and its way to find the bucket.
    pub(super) fn open(
        bucket: &str,
        settings: &S3Settings,
        credentials: AwsCredentialProvider,
    ) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let region = Some(settings.region.clone()).filter(|region| !region.is_empty());
        let region = region
            .or_else(|| variable("AWS_REGION"))
            .or_else(|| variable("AWS_DEFAULT_REGION"))
            .unwrap_or_else(|| "us-east-1".to_owned());
        let endpoint = settings.endpoint.clone();
        let endpoint = endpoint
            .or_else(|| variable("AWS_ENDPOINT_URL_S3"))
            .or_else(|| variable("AWS_ENDPOINT_URL"))
            .or_else(|| variable("AWS_ENDPOINT"));
        let url = match (&endpoint, settings.path_style) {
            (Some(endpoint), true) => format!("{}/{bucket}", endpoint.trim_end_matches('/')),
            (Some(endpoint), false) => endpoint.trim_end_matches('/').to_owned(),
            (None, true) => format!("https://s3.{region}.amazonaws.com/{bucket}"),
            (None, false) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
        };
        let http = aws::transport(Some(&url), TIMEOUT).map_err(|cause| {
            Error::new(ErrorCode::LakeFailed, "cannot open the bucket").caused_by(cause)
        })?;
        Ok(Self { http, credentials, url, region })
    }

    /// Whether objects have, or may have, older versions.
    pub(super) async fn is_versioned(&self) -> Result<bool> {
        let answer = self.call("GET", "", "versioning=", Bytes::new()).await?;
        // Stores without versions know no such question.
        if matches!(answer.status, 400 | 404 | 405 | 501) {
            return Ok(false);
        }
        let found: Versioning = understood("ask whether the bucket keeps versions", &answer)?;
        Ok(found.status.is_some())
    }

    /// Every version and delete marker (`true`) below a prefix, with its bytes.
    pub(super) async fn versions(
        &self,
        prefix: &str,
        mut each: impl FnMut(Named, u64, bool),
    ) -> Result<()> {
        let what = "list the versions of objects";
        let mut after = String::new();
        for _ in 0..PAGES_MAX {
            let query = format!("versions=&prefix={}{after}", encode(prefix));
            let answer = self.call("GET", "", &query, Bytes::new()).await?;
            let page: Versions = understood(what, &answer)?;
            let marked = page.delete_marker.into_iter().map(|version| (version, true));
            for (version, marker) in page.version.into_iter().map(|v| (v, false)).chain(marked) {
                let Version { key, id, size } = version;
                each(Named { key, version: Some(id) }, size, marker);
            }
            let (true, Some(key)) = (page.is_truncated, page.next_key_marker) else {
                return Ok(());
            };
            let version = page.next_version_id_marker.unwrap_or_default();
            after = format!("&key-marker={}&version-id-marker={}", encode(&key), encode(&version));
        }
        Err(endless(what))
    }

    /// Every multipart upload below a prefix that nobody has finished: key and id.
    pub(super) async fn uploads(
        &self,
        prefix: &str,
        mut each: impl FnMut(String, String),
    ) -> Result<()> {
        let what = "list unfinished uploads";
        let mut after = String::new();
        for _ in 0..PAGES_MAX {
            let query = format!("uploads=&prefix={}{after}", encode(prefix));
            let answer = self.call("GET", "", &query, Bytes::new()).await?;
            let page: Uploads = understood(what, &answer)?;
            for Upload { key, upload_id } in page.upload {
                each(key, upload_id);
            }
            let (true, Some(key)) = (page.is_truncated, page.next_key_marker) else {
                return Ok(());
            };
            let upload = page.next_upload_id_marker.unwrap_or_default();
            after = format!("&key-marker={}&upload-id-marker={}", encode(&key), encode(&upload));
        }
        Err(endless(what))
    }

    /// Removes up to [`KEYS_MAX`] keys. Returns those that the store keeps, with its reason.
    pub(super) async fn delete(&self, named: &[Named]) -> Result<Vec<(String, String)>> {
        let what = "remove objects";
        let mut body = String::from("<Delete><Quiet>true</Quiet>");
        for Named { key, version } in named {
            body.push_str("<Object><Key>");
            body.push_str(&quick_xml::escape::escape(key.as_str()));
            body.push_str("</Key>");
            if let Some(version) = version {
                body.push_str("<VersionId>");
                body.push_str(&quick_xml::escape::escape(version.as_str()));
                body.push_str("</VersionId>");
            }
            body.push_str("</Object>");
        }
        body.push_str("</Delete>");
        let answer = self.call("POST", "", "delete=", body.into()).await?;
        let deleted: Deleted = understood(what, &answer)?;
        let mut kept = Vec::new();
        for NotDeleted { key, code } in deleted.error {
            match code.as_str() {
                "NoSuchKey" | "NoSuchVersion" => {}
                "InternalError" | "SlowDown" | "ServiceUnavailable" => {
                    let message = format!("the store could not remove an object now ({code})");
                    return Err(Error::new(ErrorCode::LakeUnavailable, message));
                }
                _ => kept.push((key, code)),
            }
        }
        Ok(kept)
    }

    /// Gives up an upload; one that is gone counts as given up.
    pub(super) async fn abort(&self, key: &str, id: &str) -> Result<()> {
        let path = format!("/{}", utf8_percent_encode(key, PATH));
        let query = format!("uploadId={}", encode(id));
        let answer = self.call("DELETE", &path, &query, Bytes::new()).await?;
        match answer.status {
            200..=299 | 404 => Ok(()),
            _ => Err(refused("give up an upload", &answer)),
        }
    }

    /// Sends a request, again while the store does not answer.
    async fn call(&self, method: &str, path: &str, query: &str, body: Bytes) -> Result<Answer> {
        let mut pause = PAUSE;
        for _ in 1..TRIES_MAX {
            match self.send(method, path, query, body.clone()).await {
                Ok(answer) if answer.status < 500 && answer.status != 429 => return Ok(answer),
                Ok(Answer { status: 501, body }) => return Ok(Answer { status: 501, body }),
                Err(error) if !error.retryable() => return Err(error),
                _ => {}
            }
            let part = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(part)).await;
            pause *= 2;
        }
        self.send(method, path, query, body).await
    }

    async fn send(&self, method: &str, path: &str, query: &str, body: Bytes) -> Result<Answer> {
        let credential = self.credentials.get_credential().await.map_err(|cause| {
            Error::new(ErrorCode::LakeFailed, "no keys for the bucket were found")
                .hint("name access_key and secret_key under [storage.s3]")
                .caused_by(cause)
        })?;
        let checksum = STANDARD.encode(digest(&SHA256, &body));
        let mut headers = vec![];
        if !body.is_empty() {
            headers.push(("content-type", "application/xml"));
            headers.push(("x-amz-sdk-checksum-algorithm", "SHA256"));
            headers.push(("x-amz-checksum-sha256", checksum.as_str()));
        }
        let url = format!("{}{path}?{query}", self.url);
        let target = (SERVICE, self.region.as_str());
        let request = aws::signed((method, &url), &headers, body, target, &credential);
        let request = request.ok_or_else(|| {
            let message = format!("{:?} cannot be the address of a bucket", self.url);
            Error::new(ErrorCode::SpecInvalid, message).hint("check [storage.s3] endpoint")
        })?;
        let lost = |cause: object_store::client::HttpError| {
            Error::new(ErrorCode::LakeUnavailable, "the store does not answer")
                .hint("check that the store is up and that [storage.s3] endpoint is right")
                .caused_by(cause)
        };
        let answer = self.http.execute(request).await.map_err(lost)?;
        let status = answer.status().as_u16();
        let body = answer.into_body().bytes().await.map_err(lost)?;
        Ok(Answer { status, body })
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}

fn understood<T: DeserializeOwned>(what: &str, answer: &Answer) -> Result<T> {
    if !(200..=299).contains(&answer.status) {
        return Err(refused(what, answer));
    }
    let text = String::from_utf8_lossy(&answer.body);
    quick_xml::de::from_str(&text).map_err(|cause| {
        let message = format!("cannot {what}: the store's answer cannot be understood");
        Error::new(ErrorCode::LakeFailed, message).caused_by(cause)
    })
}

fn refused(what: &str, answer: &Answer) -> Error {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Refusal {
        #[serde(default)]
        code: String,
    }
    let text = String::from_utf8_lossy(&answer.body);
    let code = quick_xml::de::from_str(&text).map_or_else(|_| String::new(), |r: Refusal| r.code);
    let passing = answer.status >= 500 || answer.status == 429;
    let kind = if passing { ErrorCode::LakeUnavailable } else { ErrorCode::LakeFailed };
    Error::new(kind, format!("cannot {what}: the store refuses it"))
        .detail(format!("status {} {code}", answer.status))
        .hint("check the keys under [storage.s3] and what they may do in the bucket")
}

fn endless(what: &str) -> Error {
    Error::new(ErrorCode::LakeFailed, format!("cannot {what}: the listing has no end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_markers_come_in_any_order() {
        let text = "<ListVersionsResult><IsTruncated>true</IsTruncated>\
            <NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v</NextVersionIdMarker>\
            <Version><Key>a</Key><VersionId>1</VersionId><Size>7</Size></Version>\
            <DeleteMarker><Key>a</Key><VersionId>2</VersionId></DeleteMarker>\
            <Version><Key>b</Key><VersionId>3</VersionId><Size>8</Size></Version>\
            </ListVersionsResult>";
        let page: Versions = quick_xml::de::from_str(text).expect("page");
        assert!(page.is_truncated && page.next_version_id_marker.as_deref() == Some("v"));
        let sizes: Vec<_> = page.version.iter().map(|found| found.size).collect();
        assert_eq!((sizes, page.delete_marker.len()), (vec![7, 8], 1));
        let none: Versions = quick_xml::de::from_str("<ListVersionsResult/>").expect("empty");
        assert!(!none.is_truncated && none.version.is_empty());
    }

    #[test]
    fn what_is_not_removed_says_why() {
        let text = "<DeleteResult><Error><Key>a&amp;b</Key><Code>AccessDenied</Code></Error>\
            <Deleted><Key>c</Key></Deleted></DeleteResult>";
        let found: Deleted = quick_xml::de::from_str(text).expect("answer");
        assert_eq!(
            (found.error[0].key.as_str(), found.error[0].code.as_str()),
            ("a&b", "AccessDenied")
        );
        let versioning = "<VersioningConfiguration/>";
        let found: Versioning = quick_xml::de::from_str(versioning).expect("answer");
        assert!(found.status.is_none());
    }
}
