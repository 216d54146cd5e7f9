//! AWS's APIs that are no store: requests that are signed and sent once, with what `object_store` has
//! for its own (ADR 0011).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, ReqwestConnector};
use object_store::{BackoffConfig, ClientOptions, RetryConfig, StaticCredentialProvider};
use secrecy::{ExposeSecret, SecretString};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the places are asked that may have keys.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(20);

/// A transport that sends every request once. Without TLS only where the address says so.
pub(crate) fn transport(
    address: Option<&str>,
    timeout: Duration,
) -> object_store::Result<HttpClient> {
    let plain = address.is_some_and(|address| address.starts_with("http:"));
    let options = ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout(timeout)
        .with_connect_timeout(CONNECT_TIMEOUT);
    ReqwestConnector::default().connect(&options)
}

/// The keys given, or whatever AWS's own tools would find (but for profiles in files).
pub(crate) fn credentials(
    access_key: Option<&SecretString>,
    secret_key: Option<&SecretString>,
    region: &str,
) -> object_store::Result<AwsCredentialProvider> {
    if let (Some(id), Some(secret)) = (access_key, secret_key) {
        let (key_id, secret_key) = (id.expose_secret().into(), secret.expose_secret().into());
        let credential = AwsCredential { key_id, secret_key, token: None };
        return Ok(Arc::new(StaticCredentialProvider::new(credential)));
    }
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 3,
        retry_timeout: CREDENTIALS_TIMEOUT,
    };
    // Only the credentials are used: the object store's own chain, which knows no other service.
    let builder = AmazonS3Builder::from_env().with_region(region).with_retry(retry);
    Ok(builder.with_bucket_name("none").build()?.credentials().clone())
}

/// A signed request; `None` for an address that cannot be one.
pub(crate) fn signed(
    (method, url): (&str, &str),
    headers: &[(&'static str, &str)],
    body: Bytes,
    (service, region): (&str, &str),
    credential: &AwsCredential,
) -> Option<HttpRequest> {
    let mut request = HttpRequest::new(body.into());
    *request.method_mut() = method.parse().ok()?;
    *request.uri_mut() = url.parse().ok()?;
    if !matches!(request.uri().scheme_str(), Some("http" | "https")) {
        return None;
    }
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().ok()?);
    }
    AwsAuthorizer::new(credential, service, region).authorize(&mut request, None);
    Some(request)
}

/// A signed POST; `None` for an address that cannot be one.
pub(crate) fn post(
    endpoint: &str,
    headers: &[(&'static str, &str)],
    body: String,
    target: (&str, &str),
    credential: &AwsCredential,
) -> Option<HttpRequest> {
    let url = format!("{}/", endpoint.trim_end_matches('/'));
    signed(("POST", &url), headers, body.into(), target, credential)
}
