//! Answers that say what went wrong (RFC 9457): the one conversion of the API from `polder_core::Error`.

use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use polder_core::{Error, ErrorCode};
use serde::Serialize;
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
    code: String,
    /// What to do about it.
    hint: Option<String>,
    /// Somebody was kept from something: for the audit log.
    #[serde(skip)]
    refused: bool,
}

/// What handlers give.
pub(super) type Reply<T = Response> = Result<T, Problem>;

/// How a request ended, for the gate.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) code: String,
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

    /// A path parameter or a body that is not what it has to be.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorCode::SpecInvalid, message).into()
    }

    /// The same, as something that was kept from the caller.
    pub(super) fn refusing(mut self) -> Self {
        self.refused = true;
        self
    }

    fn of(status: StatusCode, code: &str, detail: String, hint: Option<String>) -> Self {
        Self {
            kind: format!("urn:polder:error:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail,
            code: code.to_owned(),
            hint,
            refused: matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN),
        }
    }

    pub(super) fn too_large() -> Self {
        let detail = format!("the request is longer than {} bytes", super::BODY_BYTES_MAX);
        Self::of(StatusCode::PAYLOAD_TOO_LARGE, "http.too_large", detail, None)
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
            return Self::of(status, code, detail, error.hint_text().map(str::to_owned));
        }
        // Where it happened inside is for the operator.
        let (place, causes) = (error.detail_text().unwrap_or_default(), error.causes());
        tracing::error!(code, place, ?causes, "{error}");
        Self::of(status, code, error.message().to_owned(), error.hint_text().map(str::to_owned))
    }
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
        | ErrorCode::LakeSchemaRefused => StatusCode::CONFLICT,
        ErrorCode::ControlStale => StatusCode::PRECONDITION_FAILED,
        ErrorCode::SpecUnknownName | ErrorCode::SourceNotFound | ErrorCode::QueryLimit => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        ErrorCode::SourceUnavailable
        | ErrorCode::LakeUnavailable
        | ErrorCode::LakeUnknownOutcome
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
        let content = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (status, content, body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
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
