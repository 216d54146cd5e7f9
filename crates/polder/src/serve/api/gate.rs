//! What every request of the API passes: who calls, answers kept by `Idempotency-Key`, the audit log.

use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use polder_control::audit::{self, Event};
use polder_control::desired::Author;
use polder_control::idempotency::{self, Answer, Begun};
use polder_control::keys;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Right};

use super::problem::{Outcome, Problem, Reply};
use super::{Api, BODY_BYTES_MAX};
use crate::serve::clients::{Caller, sha256};
use crate::serve::kept;
use crate::telemetry;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
pub(super) const KEY_CHARS_MAX: usize = 255;
/// Changes nothing, though it is a POST: its answers are not kept.
const QUERY: &str = "/v1/query";
/// What `Cache-Control` says of answers that hold a secret: nobody keeps them, neither do we.
pub(super) const NO_STORE: &str = "no-store";
/// Why something is changed, in the words of whoever does, for the history.
pub(super) const REASON: &str = "polder-reason";

/// Who sent a request, with its headers.
pub(super) struct Who(pub(super) Caller, pub(super) HeaderMap);

/// What a handler tells the audit log, beside who called what. It goes with the answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Note {
    pub(super) org: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) detail: Option<String>,
}

impl Note {
    fn add_to(self, event: &mut Event) {
        event.org = self.org.or(event.org.take());
        event.subject = self.subject.or(event.subject.take());
        event.detail = self.detail.or(event.detail.take());
    }
}

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
        telemetry::note_org(&org);
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

pub(super) async fn gate(State(api): State<Api>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let response = pass(&api, request, next).await;
    // A stranger may send any word as a method: it is not to become a label.
    let known =
        [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let method = if known.contains(&method) { method.as_str() } else { "other" };
    api.metrics.answered(method, response.status().as_u16());
    response
}

/// Whether a request changes something: its answer is kept by `Idempotency-Key`, and it is in the audit log.
pub(super) fn changes(method: &str, path: &str) -> bool {
    !matches!(method, "GET" | "HEAD" | "OPTIONS") && path != QUERY
}

async fn pass(api: &Api, mut request: Request, next: Next) -> Response {
    let changes = changes(request.method().as_str(), request.uri().path());
    let mut event = event(&request);
    let shown = request.headers().contains_key(header::AUTHORIZATION);
    let caller = match api.clients.who(request.headers()).await {
        Ok(Some(caller)) => caller,
        // Whoever shows nothing leaves no trace: anybody could fill the log.
        Ok(None) if !shown => return unauthenticated().into_response(),
        Ok(None) => return stranger(api, request, event).await,
        Err(error) => return Problem::from(error).into_response(),
    };
    event.who = caller.who();
    if let Err(wait) = api.pace.take(&event.who, Instant::now()) {
        api.metrics.limited();
        return Problem::too_many(wait).into_response();
    }
    if !request.body().is_end_stream() && !is_json(request.headers()) {
        let response = Problem::not_json().into_response();
        return noted(api, event, changes, response).await;
    }
    request.extensions_mut().insert(caller.clone());
    if !changes {
        let response = next.run(request).await;
        return noted(api, event, changes, response).await;
    }
    let (parts, body) = request.into_parts();
    // Whole before it begins: who sends slowly takes no place.
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return noted(api, event, changes, Problem::too_large().into_response()).await;
    };
    let by = api.clone();
    let work = async move {
        let done = carry_out(&by, &caller, (parts, body), next).await;
        noted(&by, event, changes, done.unwrap_or_else(IntoResponse::into_response)).await
    };
    let lost = || {
        let error = Error::new(ErrorCode::Internal, "the request ended without an answer");
        Problem::from(error.hint("look whether it was carried out before you repeat it"))
    };
    api.changes.finish(work).await.unwrap_or_else(|| lost().into_response())
}

/// Somebody who shows a key that is no good.
async fn stranger(api: &Api, request: Request, event: Event) -> Response {
    let (strangers, now) = (api.clients.strangers(), Instant::now());
    if let Err(wait) = strangers.failed(request.extensions(), now) {
        strangers.leave_out();
        api.metrics.limited();
        return Problem::too_many_tries(wait).into_response();
    }
    drop(request);
    let response = unauthenticated().into_response();
    if strangers.take_entry(now) { noted(api, event, false, response).await } else { response }
}

/// Writes the audit log's entry of what changes something, and of what is refused.
async fn noted(api: &Api, mut event: Event, changes: bool, response: Response) -> Response {
    if let Some(note) = response.extensions().get::<Note>() {
        note.clone().add_to(&mut event);
    }
    let outcome = response.extensions().get::<Outcome>().cloned();
    if changes || outcome.as_ref().is_some_and(|outcome| outcome.refused) {
        outcome.map_or("done", |outcome| outcome.code).clone_into(&mut event.outcome);
        if let Err(error) = audit::record(&api.store, &event).await {
            tracing::error!(action = event.action, "an audit entry was lost: {error}");
        }
    }
    response
}

/// Whether the body is what it has to be. A page of a browser cannot say so to another server without
/// having asked it first.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

fn event(request: &Request) -> Event {
    let path = request.uri().path();
    let matched = request.extensions().get::<MatchedPath>().map_or(path, MatchedPath::as_str);
    let org = path.strip_prefix("/v1/orgs/").and_then(|rest| rest.split('/').next());
    Event {
        who: "-".to_owned(),
        action: format!("{} {matched}", request.method()),
        org: org.filter(|org| !org.is_empty()).map(str::to_owned),
        subject: Some(path.split('/').map(keys::shown_part).collect::<Vec<_>>().join("/")),
        outcome: String::new(),
        detail: request.uri().query().map(str::to_owned),
    }
}

/// Carries a change out; one with a key once.
async fn carry_out(api: &Api, caller: &Caller, (parts, body): (Parts, Bytes), next: Next) -> Reply {
    let Some(key) = parts.headers.get(IDEMPOTENCY_KEY) else {
        return Ok(next.run(Request::from_parts(parts, Body::from(body))).await);
    };
    let key = key.to_str().ok().filter(|key| (1..=KEY_CHARS_MAX).contains(&key.len()));
    let key = key.ok_or_else(|| {
        Problem::invalid(format!("Idempotency-Key has to be 1 to {KEY_CHARS_MAX} characters"))
    })?;
    let id = sha256(format!("{}\n{key}", caller.who()).as_bytes());
    let mut text = format!("{}\n{}\n", parts.method, parts.uri).into_bytes();
    text.extend_from_slice(&body);
    match idempotency::begin(&api.store, &id, &sha256(&text)).await? {
        Begun::Answered(answer) => {
            let mut response = kept::repeated(&answer);
            // The first one has its own entry in the audit log.
            response.extensions_mut().insert(Outcome { code: "repeated", refused: false });
            return Ok(response);
        }
        Begun::New => {}
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_else(|_| Bytes::new());
    let kept = if parts.status.is_server_error() {
        idempotency::forget(&api.store, &id).await
    } else {
        let secret = parts.headers.get(header::CACHE_CONTROL).is_some_and(|said| said == NO_STORE);
        let answer = if secret {
            let place = parts.headers.get(header::LOCATION).and_then(|place| place.to_str().ok());
            Problem::shown_once(place.unwrap_or_default()).kept()
        } else {
            Answer {
                status: parts.status.as_u16(),
                headers: kept::headers(&parts.headers),
                body: String::from_utf8_lossy(&body).into_owned(),
            }
        };
        idempotency::keep(&api.store, &id, &answer).await
    };
    // Carried out it is, or is not: that is what the client has to know.
    if let Err(error) = kept {
        tracing::error!("the answer to a request with a key was not kept: {error}");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}
