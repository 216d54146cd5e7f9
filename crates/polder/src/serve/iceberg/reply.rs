//! Answers and Iceberg's error model.

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use polder_lake::service::{Answer, Refusal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// What a request was refused with, for the audit log: a `type` of Iceberg's error model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused(pub(super) &'static str);

/// A refusal on its way to the client.
#[derive(Debug)]
pub(super) struct Failure(Refusal);

/// What handlers give.
pub(super) type Reply<T = Response> = Result<T, Failure>;

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Refusal { kind, message, cause } = self.0;
        if let Some(error) = &cause {
            let causes = error.causes();
            let detail = error.detail_text().unwrap_or_default();
            if kind.status() >= 500 {
                tracing::error!(code = %error.code(), detail, ?causes, "{message}");
            } else {
                tracing::debug!(code = %error.code(), detail, ?causes, "{message}");
            }
        }
        let code = kind.status();
        let body = json!({
            "error": { "message": message, "type": kind.type_name(), "code": code },
        });
        // Every status of the kinds is one.
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(status, &body);
        response.extensions_mut().insert(Refused(kind.type_name()));
        response
    }
}

/// A JSON document that is text already.
pub(super) fn json_text(status: StatusCode, text: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// A JSON document.
pub(super) fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(text) => json_text(status, text),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// `200` with a document.
pub(super) fn ok(body: &impl Serialize) -> Response {
    json_response(StatusCode::OK, body)
}

/// `204`.
pub(super) fn nothing() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// A request's document.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::invalid(format!("Cannot parse the request: {error}")))
}

/// What is asked for does not exist in this protocol.
pub(super) async fn no_route(uri: Uri) -> Response {
    let message = format!("No route for request: {}", uri.path());
    let body = json!({
        "error": { "message": message, "type": "NotFoundException", "code": 404 },
    });
    json_response(StatusCode::NOT_FOUND, &body)
}
