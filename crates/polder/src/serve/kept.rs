//! Answers as they are kept for whoever repeats a request with its `Idempotency-Key`.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use polder_control::idempotency::Answer;
use serde_json::{Map, Value};

/// Headers of an answer that are repeated with it.
static REPEATED: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];

/// The headers worth repeating, as [`Answer`] has them.
pub(super) fn headers(headers: &HeaderMap) -> String {
    let kept = REPEATED.iter().filter_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        Some((name.to_string(), Value::from(value)))
    });
    Value::Object(kept.collect()).to_string()
}

/// The answer again.
pub(super) fn repeated(answer: &Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, answer.body.clone()).into_response();
    let headers: Map<String, Value> = serde_json::from_str(&answer.headers).unwrap_or_default();
    response.headers_mut().remove(header::CONTENT_TYPE);
    for (name, value) in headers {
        let value = value.as_str().and_then(|value| HeaderValue::from_str(value).ok());
        if let (Ok(name), Some(value)) = (HeaderName::try_from(name), value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
