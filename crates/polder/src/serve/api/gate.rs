//! What every request of the API passes: who calls, answers kept by `Idempotency-Key`, the audit log.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use polder_control::audit::{self, Event};
use polder_control::desired::Author;
use polder_control::idempotency::{self, Answer, Begun};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Right};
use serde_json::{Map, Value};

use super::problem::{Outcome, Problem, Reply};
use super::{Api, BODY_BYTES_MAX};
use crate::serve::clients::{Caller, sha256};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const KEY_CHARS_MAX: usize = 255;
/// Changes nothing, though it is a POST: its answers are not kept.
const QUERY: &str = "/v1/query";
/// Headers of an answer that are repeated with it.
static REPEATED: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];
/// Why something is changed, in the words of whoever does, for the history.
const REASON: &str = "polder-reason";

/// Who sent a request, with its headers.
pub(super) struct Who(pub(super) Caller, pub(super) HeaderMap);

impl FromRequestParts<Api> for Who {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Problem> {
        // The gate has put it there.
        let caller = parts.extensions.get::<Caller>().cloned().ok_or_else(unauthenticated)?;
        Ok(Self(caller, parts.headers.clone()))
    }
}

impl Who {
    /// The org that a path names, if the caller has the right there.
    ///
    /// # Errors
    /// 404 for an org that is not the caller's, as for one that is not there; 403 where the caller's
    /// role lacks the right.
    pub(super) fn org(&self, id: &str, right: Right) -> Reply<Authorized<OrgId>> {
        let org: OrgId = id.parse().map_err(|_: Error| Problem::no_org(id))?;
        let principal = &self.0.principal;
        principal.authorize(&org).map_err(|_| Problem::no_org(id).refusing())?;
        Ok(principal.authorize_to(right, &org)?)
    }

    /// # Errors
    /// 403 for a role that lacks the right everywhere.
    pub(super) fn require(&self, right: Right) -> Reply<()> {
        let role = self.0.principal.role();
        if role.has(right) {
            return Ok(());
        }
        let message = format!("a {} may not do this", role.as_str());
        let error = Error::new(ErrorCode::ControlDenied, message);
        Err(error.hint("ask the operator").into())
    }

    /// Who changes something, for the history, with the reason the request gives.
    pub(super) fn author(&self) -> Author {
        let why = self.1.get(REASON).and_then(|value| value.to_str().ok());
        Author { who: self.0.who(), why: why.map(str::to_owned) }
    }
}

pub(super) fn unauthenticated() -> Problem {
    Error::new(ErrorCode::ControlUnauthenticated, "no valid key was given")
        .hint("send a key of `polder keys create` as Authorization: Bearer plk_…")
        .into()
}

pub(super) async fn gate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        || request.uri().path() == QUERY;
    let changes = !reads;
    let mut event = event(&request);
    let shown = request.headers().contains_key(header::AUTHORIZATION);
    let response = match api.clients.who(request.headers()).await {
        Ok(Some(caller)) => {
            event.who = caller.who();
            request.extensions_mut().insert(caller.clone());
            match request.headers().get(IDEMPOTENCY_KEY).filter(|_| changes).cloned() {
                Some(key) => match once(&api, &caller, &key, request, next).await {
                    Ok(response) => response,
                    Err(problem) => problem.into_response(),
                },
                None => next.run(request).await,
            }
        }
        // Whoever shows nothing leaves no trace: anybody could fill the log.
        Ok(None) if !shown => return unauthenticated().into_response(),
        Ok(None) => unauthenticated().into_response(),
        Err(error) => return Problem::from(error).into_response(),
    };
    let outcome = response.extensions().get::<Outcome>();
    if changes || outcome.is_some_and(|outcome| outcome.refused) {
        event.outcome = outcome.map_or_else(|| "done".to_owned(), |outcome| outcome.code.clone());
        if let Err(error) = audit::record(&api.store, &event).await {
            tracing::error!(action = event.action, "an audit entry was lost: {error}");
        }
    }
    response
}

fn event(request: &Request) -> Event {
    let path = request.uri().path();
    let matched = request.extensions().get::<MatchedPath>().map_or(path, MatchedPath::as_str);
    let org = path.strip_prefix("/v1/orgs/").and_then(|rest| rest.split('/').next());
    Event {
        who: "-".to_owned(),
        action: format!("{} {matched}", request.method()),
        org: org.filter(|org| !org.is_empty()).map(str::to_owned),
        subject: Some(path.to_owned()),
        outcome: String::new(),
        detail: request.uri().query().map(str::to_owned),
    }
}

/// Carries a request with a key out once.
async fn once(
    api: &Api,
    caller: &Caller,
    key: &HeaderValue,
    request: Request,
    next: Next,
) -> Reply {
    let key = key.to_str().ok().filter(|key| (1..=KEY_CHARS_MAX).contains(&key.len()));
    let key = key.ok_or_else(|| {
        Problem::invalid(format!("Idempotency-Key has to be 1 to {KEY_CHARS_MAX} characters"))
    })?;
    let id = sha256(format!("{}\n{key}", caller.who()).as_bytes());
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| Problem::too_large())?;
    let mut text = format!("{}\n{}\n", parts.method, parts.uri).into_bytes();
    text.extend_from_slice(&body);
    match idempotency::begin(&api.store, &id, &sha256(&text)).await? {
        Begun::Answered(answer) => return Ok(repeated(&answer)),
        Begun::New => {}
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_else(|_| Bytes::new());
    if parts.status.is_server_error() {
        idempotency::forget(&api.store, &id).await?;
    } else {
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: headers_json(&parts.headers).to_string(),
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        idempotency::keep(&api.store, &id, &answer).await?;
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn headers_json(headers: &HeaderMap) -> Value {
    let kept = REPEATED.iter().filter_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        Some((name.to_string(), Value::from(value)))
    });
    Value::Object(kept.collect())
}

fn repeated(answer: &Answer) -> Response {
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
