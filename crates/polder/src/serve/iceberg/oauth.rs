//! `POST /v1/oauth/tokens`: OAuth 2.0's client credentials grant (RFC 6749, 4.4) and the exchange of
//! a good token for a later one (RFC 8693), as Iceberg's clients ask for them.

use std::time::{Duration, Instant};

use axum::extract::{Form, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, RETRY_AFTER};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use polder_control::audit::Event;
use serde::Deserialize;
use serde_json::json;

use super::Shared;
use super::reply::json_response;
use crate::serve::ICEBERG;
use crate::serve::clients::TOKEN_SECONDS;

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

#[derive(Deserialize)]
pub(super) struct TokenRequest {
    grant_type: String,
    client_id: Option<String>,
    client_secret: Option<String>,
    subject_token: Option<String>,
}

pub(super) async fn token(
    State(shared): State<Shared>,
    from: Extensions,
    headers: HeaderMap,
    Form(request): Form<TokenRequest>,
) -> Response {
    let clients = &shared.clients;
    let token = match request.grant_type.as_str() {
        "client_credentials" => {
            let given = basic(&headers).or(request.client_id.zip(request.client_secret));
            given.and_then(|(id, secret)| clients.token(&id, &secret))
        }
        EXCHANGE => request.subject_token.and_then(|token| clients.renew(&token)),
        _ => {
            let error = ("unsupported_grant_type", "use client_credentials");
            return refused(StatusCode::BAD_REQUEST, error);
        }
    };
    let Some(token) = token else {
        let (strangers, now) = (clients.strangers(), Instant::now());
        if let Err(wait) = strangers.failed(&from, now) {
            strangers.leave_out();
            return slow_down(wait);
        }
        let error = ("invalid_client", "the client or its secret is not known");
        if strangers.take_entry(now) {
            shared.ledger.add(Event {
                who: "-".to_owned(),
                action: format!("POST {ICEBERG}/v1/oauth/tokens"),
                outcome: error.0.to_owned(),
                ..Event::default()
            });
        }
        return refused(StatusCode::UNAUTHORIZED, error);
    };
    let body = json!({
        "access_token": token,
        "token_type": "bearer",
        "expires_in": TOKEN_SECONDS,
        "issued_token_type": ACCESS_TOKEN,
    });
    let mut response = json_response(StatusCode::OK, &body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn slow_down(wait: Duration) -> Response {
    let error = ("slow_down", "too many tries came from this address");
    let mut response = refused(StatusCode::TOO_MANY_REQUESTS, error);
    // In whole seconds, and not too early.
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    response
}

/// RFC 6749, 5.2.
fn refused(status: StatusCode, (error, description): (&str, &str)) -> Response {
    json_response(status, &json!({ "error": error, "error_description": description }))
}

/// Id and secret of a `Basic` header (RFC 7617).
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    text.split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned()))
}
