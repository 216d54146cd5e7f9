//! Keys for some folders of the bucket, for a while: `AssumeRole` of AWS's Security Token Service, or
//! of a store that offers the same, with a session policy that names the folders.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use object_store::aws::AwsCredentialProvider;
use object_store::client::HttpClient;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use polder_core::{Error, ErrorCode, Result};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;

use crate::aws;
use crate::settings::S3Settings;

/// The service's name in signatures.
const SERVICE: &str = "sts";
const VERSION: &str = "2011-06-15";
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long keys are good for. AWS gives a role that was assumed from another one no more.
const KEYS_FOR: TimeDelta = TimeDelta::hours(1);
/// Keys with less time left are not handed out again: clients keep tables open for a while.
const TIME_LEFT_MIN: TimeDelta = TimeDelta::minutes(30);
/// Sets of keys remembered.
const KEYS_MAX: usize = 10_000;
/// What reading and writing a table's files takes, multipart uploads included.
const ON_OBJECTS: [&str; 5] = [
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
];
/// Characters that mean something else in a policy.
const WILD: [char; 3] = ['*', '?', '$'];

/// Keys that open some folders only.
#[derive(Debug)]
pub struct TemporaryKeys {
    pub access_key: String,
    pub secret_key: SecretString,
    pub token: SecretString,
    pub expires_at: DateTime<Utc>,
}

#[derive(Debug)]
pub(crate) struct TokenService {
    http: HttpClient,
    credentials: AwsCredentialProvider,
    endpoint: String,
    region: String,
    role: String,
    /// By the folders they open.
    known: Mutex<HashMap<Vec<String>, Arc<TemporaryKeys>>>,
}

impl TokenService {
    /// The service that the settings name; `None` if they name no role.
    ///
    /// # Errors
    /// `lake.failed` if the AWS environment cannot be understood.
    pub(crate) fn open(settings: &S3Settings) -> Result<Option<Self>> {
        let Some(role) = settings.role_arn.clone() else { return Ok(None) };
        let failed = |cause: object_store::Error| {
            Error::new(ErrorCode::LakeFailed, "cannot open the token service").caused_by(cause)
        };
        let region = settings.region.clone();
        let own = || format!("https://{SERVICE}.{region}.amazonaws.com");
        let endpoint = settings.sts_endpoint.clone().unwrap_or_else(own);
        let http = aws::transport(Some(&endpoint), TIMEOUT).map_err(failed)?;
        let (id, secret) = (settings.access_key.as_ref(), settings.secret_key.as_ref());
        let credentials = aws::credentials(id, secret, &region).map_err(failed)?;
        let known = Mutex::default();
        Ok(Some(Self { http, credentials, endpoint, region, role, known }))
    }

    /// Keys for `folders` (`s3://bucket/folder`) and what is below them. `session` names the use in
    /// the service's logs: 2 to 64 letters, digits and `-`. `None` if no policy can name a folder.
    ///
    /// # Errors
    /// `lake.unavailable` if the service does not answer; `lake.failed` if it refuses.
    pub(crate) async fn keys(
        &self,
        folders: Vec<String>,
        session: &str,
    ) -> Result<Option<Arc<TemporaryKeys>>> {
        let Some(policy) = policy(self.partition(), &folders) else { return Ok(None) };
        let now = Utc::now();
        if let Some(known) = self.known().get(&folders)
            && known.expires_at - now >= TIME_LEFT_MIN
        {
            return Ok(Some(Arc::clone(known)));
        }
        let keys = Arc::new(self.assume(&policy, session).await?);
        let mut known = self.known();
        if known.len() >= KEYS_MAX {
            known.retain(|_, keys| keys.expires_at - now >= TIME_LEFT_MIN);
        }
        if known.len() < KEYS_MAX {
            known.insert(folders, Arc::clone(&keys));
        }
        Ok(Some(keys))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<String>, Arc<TemporaryKeys>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `aws`, `aws-cn`, …: the second part of an ARN.
    fn partition(&self) -> &str {
        self.role.split(':').nth(1).unwrap_or("aws")
    }

    async fn assume(&self, policy: &str, session: &str) -> Result<TemporaryKeys> {
        let credential = self.credentials.get_credential().await.map_err(|cause| {
            Error::new(ErrorCode::LakeFailed, "no AWS credentials for the token service were found")
                .caused_by(cause)
        })?;
        let seconds = KEYS_FOR.num_seconds().to_string();
        let form = [
            ("Action", "AssumeRole"),
            ("Version", VERSION),
            ("RoleArn", &self.role),
            ("RoleSessionName", session),
            ("DurationSeconds", &seconds),
            ("Policy", policy),
        ];
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let form: Vec<String> =
            form.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
        let kind = [("content-type", "application/x-www-form-urlencoded")];
        let target = (SERVICE, self.region.as_str());
        let request = aws::post(&self.endpoint, &kind, form.join("&"), target, &credential);
        let request = request.ok_or_else(|| {
            let message = format!("{:?} cannot be the token service's address", self.endpoint);
            Error::new(ErrorCode::SpecInvalid, message).hint("check [storage.s3] sts_endpoint")
        })?;
        let lost = |cause: object_store::client::HttpError| {
            Error::new(ErrorCode::LakeUnavailable, "the token service does not answer")
                .hint("check [storage.s3] sts_endpoint and the network")
                .caused_by(cause)
        };
        let answer = self.http.execute(request).await.map_err(lost)?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(lost)?;
        let text = String::from_utf8_lossy(&body);
        if status.is_success() { given(&text) } else { Err(refused(status.as_u16(), &text)) }
    }
}

/// The session policy: the folders' objects, and listing them.
fn policy(partition: &str, folders: &[String]) -> Option<String> {
    let mut statements = Vec::new();
    for folder in folders {
        let (bucket, folder) = folder.strip_prefix("s3://")?.split_once('/')?;
        let folder = folder.trim_end_matches('/');
        if folder.is_empty() || folder.contains(WILD) || bucket.contains(WILD) {
            return None;
        }
        statements.push(json!({
            "Effect": "Allow",
            "Action": ON_OBJECTS,
            "Resource": format!("arn:{partition}:s3:::{bucket}/{folder}/*"),
        }));
        statements.push(json!({
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": format!("arn:{partition}:s3:::{bucket}"),
            "Condition": { "StringLike": { "s3:prefix": format!("{folder}/*") } },
        }));
    }
    Some(json!({ "Version": "2012-10-17", "Statement": statements }).to_string())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssumeRoleResponse {
    assume_role_result: AssumeRoleResult,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssumeRoleResult {
    credentials: Credentials,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    expiration: DateTime<Utc>,
}

fn given(text: &str) -> Result<TemporaryKeys> {
    // The answer holds keys, so neither it nor the parser's words are shown.
    let answer: AssumeRoleResponse = quick_xml::de::from_str(text).map_err(|_| {
        Error::new(ErrorCode::LakeFailed, "the token service's answer cannot be understood")
    })?;
    let found = answer.assume_role_result.credentials;
    Ok(TemporaryKeys {
        access_key: found.access_key_id,
        secret_key: found.secret_access_key.into(),
        token: found.session_token.into(),
        expires_at: found.expiration,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorResponse {
    error: Refused,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refused {
    code: String,
    #[serde(default)]
    message: String,
}

fn refused(status: u16, text: &str) -> Error {
    let busy = status == 429 || status >= 500;
    let code = if busy { ErrorCode::LakeUnavailable } else { ErrorCode::LakeFailed };
    let error = Error::new(code, format!("the token service refuses keys (status {status})"))
        .hint("check [storage.s3] role_arn, and that its trust policy names the lake's account");
    match quick_xml::de::from_str::<ErrorResponse>(text) {
        Ok(ErrorResponse { error: Refused { code, message } }) => {
            error.detail(format!("{code}: {message}"))
        }
        Err(_) => error,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_policy_names_folders_and_nothing_beside_them() {
        let text = policy("aws-cn", &["s3://lake/o/t/".to_owned()]).expect("a policy");
        let policy: serde_json::Value = serde_json::from_str(&text).expect("json");
        let statements = &policy["Statement"];
        assert_eq!(statements[0]["Resource"], "arn:aws-cn:s3:::lake/o/t/*");
        assert_eq!(statements[1]["Resource"], "arn:aws-cn:s3:::lake");
        assert_eq!(statements[1]["Condition"]["StringLike"]["s3:prefix"], "o/t/*");
        assert_eq!(statements.as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn no_policy_is_made_for_what_it_would_open_too_much_of() {
        for folder in ["s3://lake", "s3://lake/", "s3://lake/o/*", "s3://lake/o/${x}", "file:///a"]
        {
            assert_eq!(policy("aws", &[folder.to_owned()]), None, "{folder}");
        }
    }

    #[test]
    fn answers_are_understood() {
        let text = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">
            <AssumeRoleResult><Credentials><AccessKeyId>A</AccessKeyId>
            <SecretAccessKey>S</SecretAccessKey><SessionToken>T</SessionToken>
            <Expiration>2026-01-02T03:04:05Z</Expiration></Credentials></AssumeRoleResult>
            <ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></AssumeRoleResponse>";
        let keys = given(text).expect("keys");
        assert_eq!((keys.access_key.as_str(), keys.token.expose_secret()), ("A", "T"));
        assert_eq!(keys.expires_at.to_rfc3339(), "2026-01-02T03:04:05+00:00");
        let text = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>
            <Message>no</Message></Error><RequestId>r</RequestId></ErrorResponse>";
        let error = refused(403, text);
        assert_eq!(error.detail_text(), Some("AccessDenied: no"));
        assert_eq!(error.code(), ErrorCode::LakeFailed);
        assert!(refused(503, "").retryable());
    }
}
