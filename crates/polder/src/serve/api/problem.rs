//! Answers that say what went wrong (RFC 9457): the one conversion of the API from `polder_core::Error`.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use polder_control::idempotency::Answer;
use polder_core::{Error, ErrorCode};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

/// What went wrong, where, and what to do about it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// `urn:polder:error:<code>`.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: &'static str,
    status: u16,
    /// What happened, and where.
    detail: String,
    /// A stable name for programs, such as `control.not_found`.
    code: &'static str,
    /// What to do about it.
    hint: Option<String>,
    /// Somebody was kept from something: for the audit log.
    #[serde(skip)]
    refused: bool,
    /// After how many seconds to come back.
    #[serde(skip)]
    retry_after: Option<u32>,
}

const PROBLEM_JSON: &str = "application/problem+json";

/// What handlers give.
pub(super) type Reply<T = Response> = Result<T, Problem>;

/// How a request ended, for the gate.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) code: &'static str,
    pub(super) refused: bool,
}

impl Problem {
    /// An org that is not there, or not the caller's: nobody can tell which.
    pub(super) fn no_org(id: &str) -> Self {
        Error::new(ErrorCode::ControlNotFound, format!("there is no org {id:?}"))
            .hint("GET /v1/orgs lists the orgs you may see")
            .into()
    }

    pub(super) fn no_table(table: &str) -> Self {
        Error::new(ErrorCode::ControlNotFound, format!("the org has no table {table:?}"))
            .hint("GET /v1/orgs/{org}/tables lists its tables")
            .into()
    }

    /// A key that is not there, or not the caller's to see: nobody can tell which.
    pub(super) fn no_key(id: &str) -> Self {
        Error::new(ErrorCode::ControlNotFound, format!("there is no key {id:?}"))
            .hint("GET /v1/keys lists the keys you may see, by what they begin with: plk_…")
            .into()
    }

    /// In place of an answer that holds a secret, for whoever repeats its request.
    pub(super) fn shown_once(place: &str) -> Self {
        let message = "this request was carried out; its answer held a secret and is not kept";
        Error::new(ErrorCode::ControlConflict, message)
            .detail(place)
            .hint(format!(
                "if it was lost: POST {place}/rotate makes another, DELETE {place} ends it"
            ))
            .into()
    }

    /// As it is kept for whoever repeats a request.
    pub(super) fn kept(&self) -> Answer {
        Answer {
            status: self.status,
            headers: json!({ "content-type": PROBLEM_JSON }).to_string(),
            // Texts and a number always become JSON.
            body: serde_json::to_string(self).unwrap_or_default(),
        }
    }

    /// A path parameter or a body that is not what it has to be.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorCode::SpecInvalid, message).into()
    }

    /// The same, as something that was kept from the caller.
    pub(super) fn refusing(mut self) -> Self {
        self.refused = true;
        self
    }

    fn of(status: StatusCode, code: &'static str, detail: String, hint: Option<String>) -> Self {
        Self {
            kind: format!("urn:polder:error:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail,
            code,
            hint,
            refused: matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN),
            retry_after: None,
        }
    }

    /// The caller comes too often.
    pub(super) fn too_many(retry_after: Duration) -> Self {
        let detail = "too many requests at once".to_owned();
        let hint = Some("wait as long as Retry-After says ([server] rate_limit)".to_owned());
        let problem = Self::of(StatusCode::TOO_MANY_REQUESTS, "http.too_many", detail, hint);
        // In whole seconds, and not too early.
        let seconds = u32::try_from(retry_after.as_secs() + 1).unwrap_or(u32::MAX);
        Self { retry_after: Some(seconds), ..problem }
    }

    /// The caller's address has shown too many keys that are no good.
    pub(super) fn too_many_tries(retry_after: Duration) -> Self {
        Self {
            detail: "too many requests without a good key came from this address".to_owned(),
            hint: Some(
                "send a key of `polder keys create`: a good one is taken at once".to_owned(),
            ),
            ..Self::too_many(retry_after)
        }
    }

    pub(super) fn not_json() -> Self {
        let detail = "the request's body is not said to be JSON".to_owned();
        let hint = Some("send it with Content-Type: application/json (curl --json)".to_owned());
        Self::of(StatusCode::UNSUPPORTED_MEDIA_TYPE, "http.not_json", detail, hint)
    }

    pub(super) fn too_large() -> Self {
        let detail = format!("the request is longer than {} bytes", super::BODY_BYTES_MAX);
        let hint = Some("send it in parts".to_owned());
        Self::of(StatusCode::PAYLOAD_TOO_LARGE, "http.too_large", detail, hint)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = status(error.code());
        let code = error.code().as_str();
        if !status.is_server_error() {
            let mut detail = error.message().to_owned();
            if let Some(place) = error.detail_text() {
                detail = format!("{detail} ({place})");
            }
            return Self::of(status, code, detail, Some(hint(&error)));
        }
        // Where it happened inside is for the operator.
        let (place, causes) = (error.detail_text().unwrap_or_default(), error.causes());
        tracing::error!(code, place, ?causes, "{error}");
        Self::of(status, code, error.message().to_owned(), Some(hint(&error)))
    }
}

/// What to do: in the error's own words, or what there is to do about all of its kind.
fn hint(error: &Error) -> String {
    let of_kind = match error.code() {
        ErrorCode::SpecInvalid | ErrorCode::SpecUnknownName => {
            "GET /openapi.json says what the request has to look like"
        }
        ErrorCode::QueryInvalid | ErrorCode::QueryFailed => "change the query",
        ErrorCode::QueryLimit => "ask for less: fewer rows, columns or orgs",
        ErrorCode::ControlUnauthenticated => "send a key as Authorization: Bearer plk_…",
        ErrorCode::ControlDenied => "ask the operator for a key of another role",
        ErrorCode::ControlNotFound | ErrorCode::LakeNotFound => {
            "look at the name: the listings of /v1 have what you may see"
        }
        ErrorCode::ControlStale => "read it again, and send the ETag that it has now",
        ErrorCode::ControlConflict | ErrorCode::LakeConflict | ErrorCode::LakeSchemaRefused => {
            "look at the state it is in now, and ask for what that allows"
        }
        ErrorCode::LakeFenced => {
            "the org has left or is leaving: nothing of it is changed any more"
        }
        ErrorCode::LakeHeld => "ask the operator why it is held",
        ErrorCode::ControlBusy
        | ErrorCode::ControlIssuer
        | ErrorCode::ControlOrchestrator
        | ErrorCode::ControlStore
        | ErrorCode::LakeUnavailable
        | ErrorCode::LakeUnknownOutcome
        | ErrorCode::SourceUnavailable => {
            "repeat the request in a moment; if it stays so, tell the operator"
        }
        ErrorCode::SourceNotFound => "GET /v1/sources lists the sources",
        ErrorCode::SourceDenied
        | ErrorCode::SourceFailed
        | ErrorCode::SourceMalformed
        | ErrorCode::SourceUnrepresentable => "tell the operator: it is the source's answer",
        _ => "tell the operator: the server's log has the reason",
    };
    error.hint_text().unwrap_or(of_kind).to_owned()
}

fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::SpecInvalid | ErrorCode::QueryInvalid => StatusCode::BAD_REQUEST,
        ErrorCode::ControlUnauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::ControlDenied => StatusCode::FORBIDDEN,
        ErrorCode::ControlNotFound | ErrorCode::LakeNotFound => StatusCode::NOT_FOUND,
        ErrorCode::ControlConflict
        | ErrorCode::ControlBusy
        | ErrorCode::LakeConflict
        | ErrorCode::LakeSchemaRefused
        | ErrorCode::LakeFenced
        | ErrorCode::LakeHeld => StatusCode::CONFLICT,
        ErrorCode::ControlStale => StatusCode::PRECONDITION_FAILED,
        // What a query does not survive while it runs are its own rows: a division by zero.
        ErrorCode::SpecUnknownName
        | ErrorCode::SourceNotFound
        | ErrorCode::QueryLimit
        | ErrorCode::QueryFailed => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::SourceUnavailable
        | ErrorCode::LakeUnavailable
        | ErrorCode::LakeUnknownOutcome
        | ErrorCode::ControlIssuer
        | ErrorCode::ControlOrchestrator
        | ErrorCode::ControlStore => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::SourceDenied
        | ErrorCode::SourceFailed
        | ErrorCode::SourceMalformed
        | ErrorCode::SourceUnrepresentable => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Texts and a number always become JSON.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let content = [(header::CONTENT_TYPE, PROBLEM_JSON)];
        let mut response = (status, content, body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        let outcome = Outcome { code: self.code, refused: self.refused };
        response.extensions_mut().insert(outcome);
        response
    }
}

pub(super) async fn no_route(uri: Uri) -> Problem {
    let message = format!("there is nothing at {}", uri.path());
    Error::new(ErrorCode::ControlNotFound, message).hint("GET /openapi.json lists what is").into()
}

pub(super) async fn no_method() -> Problem {
    let detail = "this path has no such method".to_owned();
    let hint = Some("GET /openapi.json lists what there is".to_owned());
    Problem::of(StatusCode::METHOD_NOT_ALLOWED, "http.method_not_allowed", detail, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_what_to_do_whoever_made_it() {
        for code in [ErrorCode::SpecInvalid, ErrorCode::ControlConflict, ErrorCode::Internal] {
            let problem = Problem::from(Error::new(code, "no"));
            assert!(problem.hint.is_some_and(|hint| !hint.is_empty()), "{code:?}");
        }
        let own = Problem::from(Error::new(ErrorCode::ControlStale, "no").hint("do this"));
        assert_eq!(own.hint.as_deref(), Some("do this"));
        assert!(Problem::too_large().hint.is_some());
    }
}
