//! `POST /v1/churn`: the notice that an org leaves, as a Standard Webhook (standardwebhooks.com,
//! specification 1.0): `webhook-id`, `webhook-timestamp`, and `webhook-signature`, a list of
//! `v1,<base64 of the HMAC-SHA256 over id.timestamp.body>`. `GET /v1/churn/{id}` says how far it is.
//!
//! A notice is taken down and the org fenced before it is answered; the erasure follows by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use polder_control::audit::Event;
use polder_control::{Churn, Notice, churn};
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Notify;

use super::CHURN;
use super::clients::{Caller, Clients};
use super::ledger::Ledger;
use crate::cli::churn_document;
use crate::eraser::Eraser;

/// How far a notice's time may be from ours.
const TOLERANCE: Duration = Duration::from_mins(5);
/// The longest notice.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// The longest event id, and whoever asks and why.
const TEXT_CHARS_MAX: usize = 200;
/// Secrets shorter than this could be guessed.
const SECRET_BYTES_MIN: usize = 16;
/// What a notice says it is.
const TYPE: &str = "org.churned";

/// What notices are taken with.
pub(crate) struct Settings {
    /// Absent: none are taken.
    pub(crate) secret: Option<hmac::Key>,
    /// Who may ask how far it is: operators.
    pub(crate) clients: Arc<Clients>,
    pub(crate) eraser: Eraser,
    /// Told of every notice.
    pub(crate) wake: Arc<Notify>,
    /// Where notices, and what is refused, are written down.
    pub(crate) ledger: Arc<Ledger>,
}

type Shared = Arc<Settings>;

/// A notice's document.
#[derive(Deserialize)]
struct Document {
    r#type: String,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    org: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    asked_by: Option<String>,
}

/// The routes below `/v1/churn`.
pub(super) fn routes(settings: Settings) -> Router {
    Router::new()
        .route("/", post(take))
        .route("/{id}", get(show))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(settings))
}

/// The key of a secret: `whsec_` and base64, as the standard writes them.
///
/// # Errors
/// `spec.secret` for another text, naming the `setting`.
pub(crate) fn webhook_key(setting: &str, secret: &SecretString) -> Result<hmac::Key> {
    let text = secret.expose_secret();
    let bytes = text.strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
    let bytes = bytes.filter(|bytes| bytes.len() >= SECRET_BYTES_MIN).ok_or_else(|| {
        let message = format!("{setting}: this is no secret of a Standard Webhook");
        Error::new(ErrorCode::SpecSecret, message)
            .hint("make one: echo whsec_$(openssl rand -base64 32)")
    })?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

async fn take(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(key) = &shared.secret else {
        let text = "no notices are taken here: [governance] webhook_secret is not set";
        return problem(StatusCode::NOT_FOUND, "control.denied", text, None);
    };
    let event_id = match checked(key, &headers, &body, Utc::now().timestamp()) {
        Ok(id) => id,
        Err(text) => {
            if shared.clients.strangers().take_entry(Instant::now()) {
                let outcome = ErrorCode::ControlDenied.as_str().to_owned();
                let detail = Some(text.to_owned());
                shared.ledger.add(Event { who: "-".to_owned(), outcome, detail, ..notice_event() });
            }
            return problem(StatusCode::UNAUTHORIZED, "control.denied", text, None);
        }
    };
    let taken = taken(&shared, event_id, &body).await;
    let outcome = taken.as_ref().map_or_else(|error| error.code().as_str(), |_| "done").to_owned();
    shared.ledger.add(Event {
        outcome,
        org: taken.as_ref().ok().map(|churn| churn.org.to_string()),
        subject: Some(event_id.to_owned()),
        ..notice_event()
    });
    match taken {
        Ok(churn) => {
            shared.wake.notify_one();
            accepted(&churn)
        }
        Err(error) => refused(&error),
    }
}

/// A notice, in the audit log.
fn notice_event() -> Event {
    let (who, action) = ("webhook".to_owned(), format!("POST {CHURN}"));
    Event { who, action, ..Event::default() }
}

/// The event's id, if the notice is who it says it is and of now.
fn checked<'a>(
    key: &hmac::Key,
    headers: &'a HeaderMap,
    body: &[u8],
    now: i64,
) -> Result<&'a str, &'static str> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let id = header("webhook-id").ok_or("the header webhook-id is missing")?;
    let time = header("webhook-timestamp").ok_or("the header webhook-timestamp is missing")?;
    let given = header("webhook-signature").ok_or("the header webhook-signature is missing")?;
    let seconds: i64 = time.parse().map_err(|_| "the header webhook-timestamp is no time")?;
    if id.is_empty() || id.chars().count() > TEXT_CHARS_MAX {
        return Err("the header webhook-id is empty or too long");
    }
    let signed = [id.as_bytes(), b".", time.as_bytes(), b".", body].concat();
    let good = given.split(' ').filter_map(|one| one.strip_prefix("v1,")).any(|signature| {
        let bytes = STANDARD.decode(signature).unwrap_or_default();
        hmac::verify(key, &signed, &bytes).is_ok()
    });
    if !good {
        return Err("no signature is of this notice");
    }
    // After the signature: whoever has none learns nothing of our clock.
    if now.abs_diff(seconds) > TOLERANCE.as_secs() {
        return Err("the notice is too old, or of a time to come");
    }
    Ok(id)
}

async fn taken(shared: &Shared, event_id: &str, body: &[u8]) -> Result<Churn> {
    let document: Document = serde_json::from_slice(body).map_err(|cause| {
        Error::new(ErrorCode::SpecInvalid, "the notice cannot be understood")
            .hint(format!("send {{\"type\": \"{TYPE}\", \"data\": {{\"org\": \"401\"}}}}"))
            .caused_by(cause)
    })?;
    let Data { org, reason, asked_by } = document.data;
    if document.r#type != TYPE {
        let message = format!("a notice of type {:?} is not known", document.r#type);
        return Err(Error::new(ErrorCode::SpecInvalid, message).hint(format!("send {TYPE}")));
    }
    for text in reason.iter().chain(&asked_by) {
        if text.chars().count() > TEXT_CHARS_MAX {
            let message = format!("reason and asked_by have at most {TEXT_CHARS_MAX} characters");
            return Err(Error::new(ErrorCode::SpecInvalid, message));
        }
    }
    let eraser = &shared.eraser;
    let org = Principal::Operator.authorize(&org.parse::<OrgId>()?)?;
    let known =
        eraser.lake.knows(&org).await? || churn::latest(&eraser.store, &org).await?.is_some();
    if !known {
        let message = format!("the lake has no org {}", org.get());
        return Err(Error::new(ErrorCode::SpecUnknownName, message));
    }
    let notice = Notice {
        event_id: event_id.to_owned(),
        asked_by: asked_by.unwrap_or_else(|| "webhook".to_owned()),
        via: "webhook",
        reason,
        grace_ms: i64::try_from(eraser.grace.as_millis()).unwrap_or(i64::MAX),
    };
    eraser.take(&org, &notice).await
}

async fn show(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let caller = match shared.clients.who(&headers).await {
        Ok(caller) => caller,
        Err(error) => return refused(&error),
    };
    if caller.as_ref().map(|caller| &caller.principal) != Some(&Principal::Operator) {
        note_refusal(&shared, caller, headers.contains_key(AUTHORIZATION));
        let text = "an operator's token is needed";
        return problem(StatusCode::UNAUTHORIZED, "control.denied", text, None);
    }
    match churn::find(&shared.eraser.store, &id).await {
        Ok(Some(churn)) => json_response(StatusCode::OK, &churn_document(&churn)),
        Ok(None) => {
            let text = "there is no such event";
            problem(StatusCode::NOT_FOUND, "spec.unknown_name", text, None)
        }
        Err(error) => refused(&error),
    }
}

/// Whoever shows nothing leaves no trace: anybody could fill the log.
fn note_refusal(shared: &Settings, caller: Option<Caller>, shown: bool) {
    let (action, now) = (format!("GET {CHURN}/{{id}}"), Instant::now());
    let event = |who: String, code: ErrorCode| {
        let outcome = code.as_str().to_owned();
        Event { who, action, outcome, ..Event::default() }
    };
    match caller {
        Some(caller) => {
            shared.ledger.add_refusal(event(caller.who(), ErrorCode::ControlDenied), now);
        }
        None if shown && shared.clients.strangers().take_entry(now) => {
            shared.ledger.add(event("-".to_owned(), ErrorCode::ControlUnauthenticated));
        }
        None => {}
    }
}

fn accepted(churn: &Churn) -> Response {
    let mut response = json_response(StatusCode::ACCEPTED, &churn_document(churn));
    let encoded =
        percent_encoding::utf8_percent_encode(&churn.event_id, percent_encoding::NON_ALPHANUMERIC);
    if let Ok(place) = format!("/v1/churn/{encoded}").parse() {
        response.headers_mut().insert(LOCATION, place);
    }
    response
}

fn refused(error: &Error) -> Response {
    let status = match error.code() {
        ErrorCode::SpecUnknownName => StatusCode::NOT_FOUND,
        ErrorCode::LakeHeld | ErrorCode::LakeFenced | ErrorCode::ControlDenied => {
            StatusCode::CONFLICT
        }
        ErrorCode::SpecInvalid => StatusCode::UNPROCESSABLE_ENTITY,
        _ if error.retryable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if status.is_server_error() {
        tracing::error!(code = %error.code(), causes = ?error.causes(), "{error}");
    }
    let hint = error.hint_text();
    problem(status, error.code().as_str(), error.message(), hint)
}

/// RFC 9457.
fn problem(status: StatusCode, code: &str, detail: &str, hint: Option<&str>) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body = json!({
        "title": title, "status": status.as_u16(), "detail": detail, "code": code, "hint": hint,
    });
    let mut response = json_response(status, &body);
    if let Ok(kind) = "application/problem+json".parse() {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
