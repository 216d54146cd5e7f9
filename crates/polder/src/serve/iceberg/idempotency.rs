//! `Idempotency-Key`: a request that changes something is carried out once, and whoever repeats it
//! with the same key gets the first one's answer, from any server of the store.
//!
//! An answer is written once the request has been carried out, before the client gets it. A
//! repetition that comes to the same server meanwhile waits. One that comes to another server, or
//! after a crash between the two, is carried out again: it is the requirements that refuse a commit
//! then. Answers that say "try again" (5xx) are not kept.
//!
//! Nothing that opens files is kept: no signed request, no keys. Of an answer that holds a table it is the metadata file's
//! location, of which the answer is made again, with keys of that moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use polder_control::Store;
use polder_control::idempotency::{Answer, Answers, Found};
use polder_core::{Error, Principal};
use polder_lake::service::{Refusal, RefusalKind};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use super::noted::Noted;
use super::reply::{Failure, Reply};
use super::tables::{self, Shown};
use super::{BODY_BYTES_MAX, Shared, changes, unauthorized};
use crate::serve::clients::{Caller, sha256};
use crate::serve::kept;
use crate::serve::tasks::Tasks;

pub(super) const HEADER: &str = "idempotency-key";
/// How long an answer is kept; [`LIFETIME_TEXT`] says the same to clients.
const LIFETIME: Duration = Duration::from_mins(30);
/// ISO 8601.
pub(super) const LIFETIME_TEXT: &str = "PT30M";
/// Slots beyond which those that nobody holds are looked for.
const SLOTS: usize = 1024;

/// Requests with a key: those under way here, and the answers of all servers.
pub(super) struct Once {
    answers: Answers,
    slots: StdMutex<HashMap<String, Weak<Mutex<()>>>>,
    tasks: Arc<Tasks>,
}

/// Held while the request runs, so that a repetition waits for its answer.
type Slot = OwnedMutexGuard<()>;

/// A client's key and what it is used for, as the store knows them.
struct Keyed {
    id: String,
    request: String,
}

/// What is kept of an answer's body.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kept {
    Text(String),
    Table(Shown),
}

impl Once {
    pub(super) fn new(store: Store, tasks: Arc<Tasks>) -> Self {
        Self { answers: Answers::new(store, LIFETIME), slots: StdMutex::default(), tasks }
    }

    async fn slot(&self, id: &str) -> Slot {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if slots.len() >= SLOTS {
                slots.retain(|_, slot| slot.strong_count() > 0);
            }
            slots.get(id).and_then(Weak::upgrade).unwrap_or_else(|| {
                let slot = Arc::default();
                slots.insert(id.to_owned(), Arc::downgrade(&slot));
                slot
            })
        };
        slot.lock_owned().await
    }
}

impl Keyed {
    fn new(caller: &Caller, key: Uuid, parts: &Parts, body: &[u8]) -> Self {
        let mut text = format!("{}\n{}\n", parts.method, parts.uri).into_bytes();
        text.extend_from_slice(body);
        let id = sha256(format!("{}\n{key}", caller.who()).as_bytes());
        // Keys of `/v1` are others.
        Self { id: format!("iceberg:{id}"), request: sha256(&text) }
    }
}

/// Carries a request with a key out once.
pub(super) async fn once(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let changes = changes(request.method(), request.extensions());
    let Some(key) = request.headers().get(HEADER).filter(|_| changes) else {
        return next.run(request).await;
    };
    let key = key.to_str().ok().and_then(|text| Uuid::try_parse(text).ok());
    match keyed(&shared, key, request, next).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn keyed(shared: &Shared, key: Option<Uuid>, request: Request, next: Next) -> Reply {
    let key = key.ok_or_else(|| Refusal::invalid("Invalid Idempotency-Key: not a UUID"))?;
    let caller = request.extensions().get::<Caller>().cloned().ok_or_else(unauthorized)?;
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|_| Refusal::invalid("The request is too long, or was cut off"))?;
    let keyed = Keyed::new(&caller, key, &parts, &body);
    let slot = shared.once.slot(&keyed.id).await;
    // Without the store nobody knows whether it was carried out: it is not, for now.
    let found = shared.once.answers.find(&keyed.id, &keyed.request).await.map_err(unavailable)?;
    match found {
        Found::Answered(answer) => {
            return repeated(shared, caller.principal, parts.headers, answer).await;
        }
        Found::AnotherRequest => {
            let message = "The Idempotency-Key was used for another request";
            return Err(Refusal::new(RefusalKind::Unprocessable, message).into());
        }
        Found::Nothing | Found::UnderWay => {}
    }
    let (by, request) = (shared.clone(), Request::from_parts(parts, Body::from(body)));
    // A client that has hung up asks again.
    let work = async move {
        let reply = carried_out(&by, &keyed, caller.principal, request, next).await;
        drop(slot);
        reply
    };
    shared.once.tasks.finish(work).await.unwrap_or_else(|| Err(unread()))
}

async fn carried_out(
    shared: &Shared,
    keyed: &Keyed,
    principal: Principal,
    request: Request,
    next: Next,
) -> Reply {
    let headers = request.headers().clone();
    let (parts, body) = next.run(request).await.into_parts();
    let body = to_bytes(body, usize::MAX).await.map_err(|_| unread())?;
    let status = parts.status;
    // A refused token is not the request's answer: with a good one it is carried out.
    let settled = !status.is_server_error() && status != StatusCode::UNAUTHORIZED;
    if settled {
        let kept = match parts.extensions.get::<Shown>() {
            Some(table) => Kept::Table(table.clone()),
            None => Kept::Text(String::from_utf8_lossy(&body).into_owned()),
        };
        let answer = Answer {
            status: status.as_u16(),
            headers: kept::headers(&parts.headers),
            body: serde_json::to_string(&kept).map_err(|_| unread())?,
        };
        if let Some(other) = standing(shared, keyed, answer).await
            && let Ok(response) = repeated(shared, principal, headers, other).await
        {
            return Ok(response);
        }
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// Keeps an answer. Gives the one of another server where that stands instead.
async fn standing(shared: &Shared, keyed: &Keyed, answer: Answer) -> Option<Answer> {
    let answers = &shared.once.answers;
    match answers.keep(&keyed.id, &keyed.request, answer).await {
        Ok(false) => match answers.find(&keyed.id, &keyed.request).await {
            Ok(Found::Answered(other)) => Some(other),
            _ => None,
        },
        // What could not be kept is in the log; carried out it is.
        Ok(true) | Err(_) => None,
    }
}

/// An answer that was given before.
async fn repeated(
    shared: &Shared,
    principal: Principal,
    headers: HeaderMap,
    answer: Answer,
) -> Reply {
    let kept: Kept = serde_json::from_str(&answer.body).map_err(|_| unread())?;
    let mut response = match kept {
        Kept::Table(table) => tables::again(shared, principal, headers, table).await?,
        Kept::Text(body) => kept::repeated(&Answer { body, ..answer }),
    };
    // Of the first one.
    response.extensions_mut().insert(Noted);
    Ok(response)
}

fn unavailable(error: Error) -> Failure {
    let message = error.message().to_owned();
    Refusal { kind: RefusalKind::Unavailable, message, cause: Some(error) }.into()
}

fn unread() -> Failure {
    Refusal::new(RefusalKind::Internal, "The answer could not be read").into()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use serde_json::json;

    use super::*;
    use crate::serve::clients::Identity;

    #[test]
    fn a_key_is_its_clients_own_and_of_one_request() {
        let caller = |id: &str| Caller {
            id: Identity::Client(id.to_owned()),
            principal: Principal::Operator,
        };
        let keyed = |client: &str, key: u128, path: &str, body: &str| {
            let (parts, ()) = Request::post(path).body(()).expect("request").into_parts();
            let keyed = Keyed::new(&caller(client), Uuid::from_u128(key), &parts, body.as_bytes());
            (keyed.id, keyed.request)
        };
        let (id, request) = keyed("a", 1, "/v1/x", "{}");
        assert_eq!(keyed("a", 1, "/v1/x", "{}"), (id.clone(), request.clone()));
        assert_ne!(keyed("b", 1, "/v1/x", "{}").0, id);
        assert_ne!(keyed("a", 2, "/v1/x", "{}").0, id);
        assert_ne!(keyed("a", 1, "/v1/y", "{}").1, request);
        assert_ne!(keyed("a", 1, "/v1/x", "{ }").1, request);
    }

    #[test]
    fn of_a_table_its_file_is_kept() {
        let shown = json!({ "table": {
            "namespace": ["org_1"], "name": "t", "state": { "file": "s3://b/t/1.json" },
        } });
        let kept: Kept = serde_json::from_value(shown.clone()).expect("kept");
        assert_eq!(serde_json::to_value(&kept).expect("json"), shown);
    }
}
