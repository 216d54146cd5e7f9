//! Glue's API: JSON over POST, signed with AWS's signature version 4 (ADR 0011).
//!
//! A call that changes something is sent once. What its failure says of it is an [`Outcome`].

use std::time::Duration;

use object_store::aws::{AwsCredential, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse};
use polder_core::{Error, ErrorCode, Result};
use rand::Rng;
use serde_json::{Value, json};

use crate::aws;
use crate::settings::GlueSettings;

/// The service's name in signatures.
const SERVICE: &str = "glue";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// One request with its answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Times a call that only reads is sent.
const READS_MAX: u32 = 4;
/// The pause before a call is repeated; it doubles, and a random part is left off.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// What a failure says of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Not carried out: the table or database is not there.
    Missing,
    /// Not carried out: it is there already.
    Exists,
    /// Not carried out: the table is no longer of the version named.
    Changed,
    /// Not carried out; the same call may succeed later.
    NotNow,
    /// Not carried out, and will not be.
    Refused,
    /// It may have been carried out.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    pub(super) error: Error,
}

#[derive(Debug)]
pub(super) struct Client {
    http: HttpClient,
    credentials: AwsCredentialProvider,
    endpoint: String,
    region: String,
    catalog_id: Option<String>,
}

impl Client {
    /// A client over `http`, which has to send every request once.
    pub(super) fn new(settings: &GlueSettings, http: HttpClient) -> Result<Self> {
        let region = settings.region.clone();
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let own = || format!("https://{SERVICE}.{region}.{domain}");
        Ok(Self {
            http,
            credentials: credentials(settings)?,
            endpoint: settings.endpoint.clone().unwrap_or_else(own),
            catalog_id: settings.catalog_id.clone(),
            region,
        })
    }

    /// The usual transport.
    pub(super) fn transport(settings: &GlueSettings) -> Result<HttpClient> {
        aws::transport(settings.endpoint.as_deref(), TIMEOUT).map_err(|cause| {
            Error::new(ErrorCode::LakeFailed, "cannot open AWS Glue").caused_by(cause)
        })
    }

    /// Calls an action that only reads; a passing trouble is waited out.
    pub(super) async fn read(&self, action: &str, body: Value) -> Result<Value, Failure> {
        let mut pause = PAUSE;
        for _ in 1..READS_MAX {
            match self.call(action, body.clone()).await {
                Err(failure) if matches!(failure.outcome, Outcome::NotNow | Outcome::Unknown) => {
                    tracing::debug!(action, "AWS Glue is asked again: {}", failure.error);
                }
                done => return done,
            }
            wait(pause).await;
            pause *= 2;
        }
        self.call(action, body).await
    }

    /// Calls an action, once.
    pub(super) async fn call(&self, action: &str, mut body: Value) -> Result<Value, Failure> {
        if let (Some(id), Some(fields)) = (&self.catalog_id, body.as_object_mut()) {
            fields.insert("CatalogId".to_owned(), json!(id));
        }
        let credential = self.credentials.get_credential().await.map_err(no_credentials)?;
        let request = self.request(action, &body, &credential)?;
        let answer = self.http.execute(request).await.map_err(|cause| lost(action, cause))?;
        read_answer(action, answer).await
    }

    fn request(
        &self,
        action: &str,
        body: &Value,
        credential: &AwsCredential,
    ) -> Result<HttpRequest, Failure> {
        let target = format!("AWSGlue.{action}");
        let headers = [("content-type", CONTENT_TYPE), ("x-amz-target", target.as_str())];
        let service = (SERVICE, self.region.as_str());
        let request = aws::post(&self.endpoint, &headers, body.to_string(), service, credential);
        request.ok_or_else(|| {
            let message = format!("{:?} cannot be AWS Glue's address", self.endpoint);
            let error = Error::new(ErrorCode::SpecInvalid, message);
            let hint = "check [catalog.glue] endpoint and the region in [lake] catalog";
            Failure { outcome: Outcome::Refused, error: error.hint(hint) }
        })
    }
}

/// Waits that long, less a random part.
pub(super) async fn wait(pause: Duration) {
    let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
    tokio::time::sleep(pause).await;
}

fn credentials(settings: &GlueSettings) -> Result<AwsCredentialProvider> {
    let (id, secret) = (settings.access_key.as_ref(), settings.secret_key.as_ref());
    aws::credentials(id, secret, &settings.region).map_err(|cause| {
        Error::new(ErrorCode::LakeFailed, "the AWS environment cannot be understood")
            .caused_by(cause)
    })
}

fn no_credentials(cause: object_store::Error) -> Failure {
    let error = Error::new(ErrorCode::LakeFailed, "no AWS credentials for Glue were found")
        .hint("name access_key and secret_key under [catalog.glue], or give the process a role")
        .caused_by(cause);
    Failure { outcome: Outcome::Refused, error }
}

/// No whole answer came.
fn lost(action: &str, cause: HttpError) -> Failure {
    let outcome = match cause.kind() {
        HttpErrorKind::Connect => Outcome::NotNow,
        _ => Outcome::Unknown,
    };
    let error = Error::new(ErrorCode::LakeUnavailable, format!("AWS Glue did not answer {action}"))
        .hint("check the network, the region in [lake] catalog and [catalog.glue] endpoint")
        .caused_by(cause);
    Failure { outcome, error }
}

async fn read_answer(action: &str, answer: HttpResponse) -> Result<Value, Failure> {
    let status = answer.status().as_u16();
    let kind = answer.headers().get("x-amzn-errortype").and_then(|kind| kind.to_str().ok());
    let kind = kind.map(str::to_owned);
    let bytes = answer.into_body().bytes().await.map_err(|cause| lost(action, cause))?;
    let document: Option<Value> =
        if bytes.is_empty() { Some(json!({})) } else { serde_json::from_slice(&bytes).ok() };
    match (status, document) {
        (200..=299, Some(document)) => Ok(document),
        (200..=299, None) => Err(not_glue(action, status)),
        (_, document) => Err(refusal(action, status, kind, &document.unwrap_or_default())),
    }
}

/// Something else answered, before the request reached Glue or instead of Glue's answer.
fn not_glue(action: &str, status: u16) -> Failure {
    let message = format!("AWS Glue's answer to {action} (status {status}) is no document");
    let error = Error::new(ErrorCode::LakeUnavailable, message)
        .hint("check [catalog.glue] endpoint, and proxies on the way");
    Failure { outcome: Outcome::Unknown, error }
}

fn refusal(action: &str, status: u16, kind: Option<String>, document: &Value) -> Failure {
    let text = |name: &str| document.get(name).and_then(Value::as_str).map(str::to_owned);
    // `com.amazonaws.glue#EntityNotFoundException`, `EntityNotFoundException:http://…`
    let kind = kind.or_else(|| text("__type")).unwrap_or_default();
    let kind = kind.rsplit('#').next().unwrap_or_default();
    let kind = kind.split(':').next().unwrap_or_default();
    let outcome = outcome(status, kind);
    let code = match outcome {
        Outcome::NotNow | Outcome::Unknown => ErrorCode::LakeUnavailable,
        Outcome::Missing => ErrorCode::LakeNotFound,
        Outcome::Exists | Outcome::Changed => ErrorCode::LakeConflict,
        Outcome::Refused => ErrorCode::LakeFailed,
    };
    let shown = if kind.is_empty() { format!("status {status}") } else { kind.to_owned() };
    let error = Error::new(code, format!("AWS Glue refused {action} ({shown})"));
    let error = match kind {
        "AccessDeniedException" => error.hint(
            "let these keys use the catalog, its databases and tables (see the how-to on external \
             catalogs); where Lake Formation is in use, grant it there as well",
        ),
        _ if is_about_keys(kind) => error.hint(
            "check the keys ([catalog.glue] or the AWS environment), the region in [lake] catalog \
             and this machine's clock",
        ),
        _ => error,
    };
    // What Glue says of a signature repeats the request's headers, a session's token among them.
    match text("message").or_else(|| text("Message")) {
        Some(said) if !is_about_keys(kind) => Failure { outcome, error: error.detail(said) },
        _ => Failure { outcome, error },
    }
}

fn is_about_keys(kind: &str) -> bool {
    matches!(
        kind,
        "ExpiredTokenException"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "SignatureDoesNotMatch"
            | "UnrecognizedClientException"
    )
}

/// By the errors of Glue's API reference and those common to all of AWS.
fn outcome(status: u16, kind: &str) -> Outcome {
    match kind {
        "EntityNotFoundException" => Outcome::Missing,
        "AlreadyExistsException" => Outcome::Exists,
        "ConcurrentModificationException" | "VersionMismatchException" => Outcome::Changed,
        "ResourceNotReadyException"
        | "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "TooManyRequestsException" => Outcome::NotNow,
        "InternalFailure"
        | "InternalServiceException"
        | "OperationTimeoutException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => Outcome::Unknown,
        _ if status == 429 => Outcome::NotNow,
        _ if status == 408 || !(400..500).contains(&status) => Outcome::Unknown,
        _ => Outcome::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> GlueSettings {
        GlueSettings {
            region: "eu-west-1".to_owned(),
            access_key: Some("id".to_owned().into()),
            secret_key: Some("secret".to_owned().into()),
            ..GlueSettings::default()
        }
    }

    #[test]
    fn what_was_not_carried_out_is_told_from_what_may_have_been() {
        use Outcome::{Changed, Exists, Missing, NotNow, Refused, Unknown};
        let cases = [
            (400, "EntityNotFoundException", Missing),
            (400, "AlreadyExistsException", Exists),
            (400, "ConcurrentModificationException", Changed),
            (400, "ThrottlingException", NotNow),
            (429, "", NotNow),
            (400, "InvalidInputException", Refused),
            (400, "AccessDeniedException", Refused),
            (403, "", Refused),
            (400, "OperationTimeoutException", Unknown),
            (500, "InternalServiceException", Unknown),
            (502, "", Unknown),
            (302, "", Unknown),
        ];
        for (status, kind, expected) in cases {
            assert_eq!(outcome(status, kind), expected, "{status} {kind}");
        }
    }

    #[test]
    fn an_error_says_what_glue_said_but_for_signatures() {
        let said = json!({ "__type": "com.amazonaws.glue#InvalidInputException", "Message": "x" });
        let failure = refusal("UpdateTable", 400, None, &said);
        assert_eq!(failure.error.message(), "AWS Glue refused UpdateTable (InvalidInputException)");
        assert_eq!(failure.error.detail_text(), Some("x"));
        let said = json!({ "message": "the token abc" });
        let kind = Some("InvalidSignatureException:http://x".to_owned());
        let failure = refusal("GetTable", 400, kind, &said);
        assert_eq!((failure.outcome, failure.error.detail_text()), (Outcome::Refused, None));
        assert!(failure.error.hint_text().is_some_and(|hint| hint.contains("clock")));
    }

    #[test]
    fn a_request_is_signed_for_the_region_and_names_the_action() {
        let http = Client::transport(&settings()).expect("transport");
        let client = Client::new(&settings(), http).expect("client");
        let (key_id, secret_key) = ("id".to_owned(), "secret".to_owned());
        let credential = AwsCredential { key_id, secret_key, token: None };
        let request = client.request("GetTable", &json!({}), &credential).expect("request");
        assert_eq!(request.uri().to_string(), "https://glue.eu-west-1.amazonaws.com/");
        let header = |name: &str| request.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(header("x-amz-target"), "AWSGlue.GetTable");
        assert!(header("authorization").contains("/eu-west-1/glue/aws4_request"));
        assert!(!header("authorization").contains("secret"));
    }

    #[test]
    fn an_address_that_is_none_is_the_configurations_fault() {
        for endpoint in ["", "glue", "http://", "not an address"] {
            let settings = GlueSettings { endpoint: Some(endpoint.to_owned()), ..settings() };
            let http = Client::transport(&settings).expect("transport");
            let client = Client::new(&settings, http).expect("client");
            let (key_id, secret_key) = ("id".to_owned(), "secret".to_owned());
            let credential = AwsCredential { key_id, secret_key, token: None };
            let failure = client.request("GetTable", &json!({}), &credential).expect_err(endpoint);
            assert_eq!(failure.error.code(), ErrorCode::SpecInvalid, "{endpoint}");
        }
    }
}
