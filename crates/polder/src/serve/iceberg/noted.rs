//! What every request below `/iceberg` passes: who sends it, how often, and whether it may change anything;
//! and the audit log's entries of changes and of refusals. Reads that are allowed leave none.

use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use polder_control::audit::Event;
use polder_core::{OrgId, Principal};
use polder_lake::service::Refusal;
use serde::Deserialize;
use serde_json::json;

use super::names::Target;
use super::reply::{Failure, Refused, json_response};
use super::{BODY_BYTES_MAX, Shared, changes, may_write, unauthorized};
use crate::serve::ICEBERG;
use crate::serve::clients::Caller;
use crate::serve::ledger::Ledger;

/// Tables that an entry names, at most.
const NAMED_MAX: usize = 20;
/// How a change ended whose client hung up: it may have been made.
const UNKNOWN: &str = "unknown";

/// In the extensions of an answer of which the log has its entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted;

/// A request, as the log tells of it.
#[derive(Debug)]
struct Asked {
    method: Method,
    uri: Uri,
    route: Option<MatchedPath>,
}

/// A namespace, and what of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Place {
    namespace: Vec<String>,
    name: String,
}

impl Place {
    fn org(&self) -> Option<OrgId> {
        self.namespace.first().and_then(|name| OrgId::from_namespace(name))
    }

    fn text(&self) -> String {
        let names = self.namespace.iter().chain((!self.name.is_empty()).then_some(&self.name));
        names.map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

/// What requests name in their bodies, where their paths do not.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Named {
    name: String,
    namespace: Vec<String>,
    source: Option<Place>,
    destination: Option<Place>,
    table_changes: Vec<Changed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Changed {
    identifier: Place,
}

impl Asked {
    fn of(request: &Request) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
        }
    }

    /// What the path names; nothing for a path without a namespace.
    fn place(&self) -> Place {
        Target::parse(self.uri.path()).map_or_else(
            |_| Place::default(),
            |Target { namespace, name }| Place {
                namespace: namespace.into_iter().filter(|level| !level.is_empty()).collect(),
                name,
            },
        )
    }

    /// What the request is about: what its path names, with what its body adds to that.
    fn places(&self, body: &[u8]) -> Vec<Place> {
        let place = self.place();
        if !place.name.is_empty() || self.method == Method::DELETE {
            return vec![place];
        }
        // What cannot be read is refused by whoever carries it out.
        let named: Named = serde_json::from_slice(body).unwrap_or_default();
        let moved = named.source.into_iter().chain(named.destination);
        let changed = named.table_changes.into_iter().map(|change| change.identifier);
        let mut places: Vec<Place> = moved.chain(changed).take(NAMED_MAX).collect();
        if places.is_empty() {
            let inside = !place.namespace.is_empty();
            let namespace = if inside { place.namespace } else { named.namespace };
            places.push(Place { namespace, name: named.name });
        }
        places
    }

    fn event(&self, who: String, places: &[Place]) -> Event {
        let path = self.uri.path();
        let route = self.route.as_ref().map_or(path, MatchedPath::as_str);
        let route = route.strip_prefix(ICEBERG).unwrap_or(route);
        let mut orgs = places.iter().filter_map(Place::org);
        // Of a change of several orgs' tables it is in the subject.
        let org = orgs.next().filter(|first| orgs.all(|org| org == *first));
        let subject = places.iter().map(Place::text).collect::<Vec<_>>().join(" ");
        Event {
            who,
            action: format!("{} {ICEBERG}{route}", self.method),
            org: org.map(|org| org.to_string()),
            subject: Some(if subject.is_empty() { path.to_owned() } else { subject }),
            outcome: String::new(),
            detail: self.uri.query().map(str::to_owned),
        }
    }
}

/// Finds out who sends a request and whether it may come now, and writes down what is refused.
pub(super) async fn admit(
    State(shared): State<Shared>,
    mut request: Request,
    next: Next,
) -> Response {
    let now = Instant::now();
    let asked = Asked::of(&request);
    let caller = match shared.clients.who(request.headers()).await {
        Ok(Some(caller)) => caller,
        Ok(None) => return stranger(&shared, &request, &asked, now),
        Err(error) => return Failure::from(Refusal::from(error)).into_response(),
    };
    let who = caller.who();
    if let Err(wait) = shared.pace.take(&who, now) {
        return too_many(wait);
    }
    let changes = changes(request.method(), request.extensions());
    let principal = caller.principal.clone();
    let allowed = if changes { may_write(&principal) } else { Ok(()) };
    let response = match allowed {
        Ok(()) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => Failure::from(refusal).into_response(),
    };
    let is_noted = response.extensions().get::<Noted>().is_some();
    let place = || asked.place();
    let refused = match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => true,
        // An org of others is not there.
        StatusCode::NOT_FOUND => is_foreign(&principal, &place()),
        status => changes && !status.is_success(),
    };
    if refused && !is_noted {
        let mut event = asked.event(who, &[place()]);
        event.outcome = outcome(&response);
        shared.ledger.add_refusal(event, now);
    }
    response
}

fn is_foreign(principal: &Principal, place: &Place) -> bool {
    match place.org() {
        Some(org) => principal.authorize(&org).is_err(),
        None => *principal != Principal::Operator && !place.namespace.is_empty(),
    }
}

/// Somebody without a good token. Whoever shows none leaves no trace: anybody could fill the log.
fn stranger(shared: &Shared, request: &Request, asked: &Asked, now: Instant) -> Response {
    let refused = Failure::from(unauthorized()).into_response();
    if !request.headers().contains_key(AUTHORIZATION) {
        return refused;
    }
    let strangers = shared.clients.strangers();
    if let Err(wait) = strangers.failed(request.extensions(), now) {
        strangers.leave_out();
        return too_many(wait);
    }
    if strangers.take_entry(now) {
        let mut event = asked.event("-".to_owned(), &[asked.place()]);
        event.outcome = outcome(&refused);
        shared.ledger.add(event);
    }
    refused
}

/// The caller comes too often. Iceberg's clients wait as long as they are told, and ask again.
pub(super) fn too_many(wait: Duration) -> Response {
    let status = StatusCode::TOO_MANY_REQUESTS;
    let body = json!({ "error": {
        "message": "Too many requests at once: come back after Retry-After",
        "type": "TooManyRequestsException", "code": status.as_u16(),
    } });
    let mut response = json_response(status, &body);
    // In whole seconds, and not too early.
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    response
}

/// How a request ended: `done`, or with which error.
fn outcome(response: &Response) -> String {
    let status = response.status();
    match response.extensions().get::<Refused>() {
        Some(Refused(kind)) => (*kind).to_owned(),
        None if status.is_success() => "done".to_owned(),
        None => format!("http.{}", status.as_u16()),
    }
}

/// An entry that is written whatever becomes of the request.
struct Pending<'a> {
    ledger: &'a Ledger,
    event: Option<Event>,
}

impl Pending<'_> {
    fn end(mut self, outcome: String) {
        let Some(mut event) = self.event.take() else { return };
        let done = outcome == "done";
        event.outcome = outcome;
        if done {
            self.ledger.add(event);
        } else {
            self.ledger.add_refusal(event, Instant::now());
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // The server drops the work of a client that hangs up, wherever it is.
        if let Some(mut event) = self.event.take() {
            UNKNOWN.clone_into(&mut event.outcome);
            self.ledger.add(event);
        }
    }
}

/// Writes down what a request changed, or why it did not.
pub(super) async fn changed(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    if !changes(request.method(), request.extensions()) {
        return next.run(request).await;
    }
    let asked = Asked::of(&request);
    let (parts, body) = request.into_parts();
    let who = parts.extensions.get::<Caller>().map_or_else(|| "-".to_owned(), Caller::who);
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        let refusal = Refusal::invalid("The request is too long, or was cut off");
        return Failure::from(refusal).into_response();
    };
    let event = asked.event(who, &asked.places(&body));
    let pending = Pending { ledger: &shared.ledger, event: Some(event) };
    let mut response = next.run(Request::from_parts(parts, Body::from(body))).await;
    pending.end(outcome(&response));
    response.extensions_mut().insert(Noted);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, uri: &'static str) -> Asked {
        Asked { method, uri: Uri::from_static(uri), route: None }
    }

    #[test]
    fn an_entry_names_what_the_request_is_about() {
        let commit = r#"{"requirements":[],"updates":[{"action":"x","name":"no"}]}"#;
        let rename = r#"{"source":{"namespace":["org_1"],"name":"a"},
                         "destination":{"namespace":["org_1"],"name":"b"}}"#;
        let both = r#"{"table-changes":[{"identifier":{"namespace":["org_1"],"name":"a"}},
                       {"identifier":{"namespace":["org_2"],"name":"b"}}]}"#;
        let table = "/v1/namespaces/org_1/tables/t";
        let of_org_1 = "/v1/namespaces/org_1/tables";
        for (method, path, body, org, subject) in [
            (Method::POST, table, commit, Some("1"), "org_1.t"),
            (Method::DELETE, table, "", Some("1"), "org_1.t"),
            (Method::POST, of_org_1, r#"{"name":"n"}"#, Some("1"), "org_1.n"),
            (Method::DELETE, "/v1/namespaces/free", "", None, "free"),
            (Method::POST, "/v1/namespaces", r#"{"namespace":["org_9"]}"#, Some("9"), "org_9"),
            (Method::POST, "/v1/tables/rename", rename, Some("1"), "org_1.a org_1.b"),
            (Method::POST, "/v1/transactions/commit", both, None, "org_1.a org_2.b"),
            (Method::POST, "/v1/tables/rename", "[", None, "/v1/tables/rename"),
        ] {
            let asked = asked(method, path);
            let event = asked.event("x".to_owned(), &asked.places(body.as_bytes()));
            let said = (event.org.as_deref(), event.subject.as_deref());
            assert_eq!(said, (org, Some(subject)), "{path} {body}");
            assert_eq!(event.action, format!("{} /iceberg{path}", asked.method));
        }
    }
}
