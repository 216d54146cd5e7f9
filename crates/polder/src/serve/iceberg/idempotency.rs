//! `Idempotency-Key`: a request that changes something is carried out once, and whoever repeats it
//! with the same key gets the first one's answer.
//!
//! Answers are kept in this process for a while and within a size; a repetition after a restart is
//! carried out again, where a table's requirements keep a commit from being made twice. Answers that
//! say "try again" (5xx) are not kept.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use polder_lake::service::{Refusal, RefusalKind};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::reply::{Failure, Reply};
use super::{BODY_BYTES_MAX, Shared};
use crate::serve::clients::sha256;

const HEADER: &str = "idempotency-key";
/// How long an answer is kept; [`LIFETIME_TEXT`] says the same to clients.
const LIFETIME: Duration = Duration::from_mins(30);
/// ISO 8601.
pub(super) const LIFETIME_TEXT: &str = "PT30M";
/// Keys remembered. The oldest leaves first.
const KEYS_MAX: usize = 10_000;
/// What all kept answers may take. The oldest leaves first.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Answers by client and key.
#[derive(Default)]
pub(super) struct Replies {
    known: StdMutex<Known>,
}

#[derive(Default)]
struct Known {
    by_key: HashMap<Key, (Slot, usize)>,
    order: VecDeque<(Key, Instant)>,
    /// Of all answers.
    bytes: usize,
}

/// A client's key.
type Key = (Option<String>, Uuid);

/// Held while the request runs, so that a repetition waits for its answer.
type Slot = Arc<Mutex<Option<Kept>>>;

#[derive(Clone)]
struct Kept {
    /// The request it answers.
    request: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Replies {
    fn slot(&self, key: &Key) -> Slot {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let old = |at: &Instant| at.elapsed() > LIFETIME;
        while known.order.len() >= KEYS_MAX || known.order.front().is_some_and(|(_, at)| old(at)) {
            known.forget_oldest();
        }
        if let Some((slot, _)) = known.by_key.get(key) {
            return Arc::clone(slot);
        }
        known.order.push_back((key.clone(), Instant::now()));
        Arc::clone(&known.by_key.entry(key.clone()).or_default().0)
    }

    /// Counts an answer that was put into its slot.
    fn kept(&self, key: &Key, bytes: usize) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, size)) = known.by_key.get_mut(key) {
            *size = bytes;
            known.bytes += bytes;
        }
        while known.bytes > KEPT_BYTES_MAX && !known.order.is_empty() {
            known.forget_oldest();
        }
    }
}

impl Known {
    fn forget_oldest(&mut self) {
        let oldest = self.order.pop_front().and_then(|(key, _)| self.by_key.remove(&key));
        self.bytes -= oldest.map_or(0, |(_, bytes)| bytes);
    }
}

/// Carries a request with a key out once.
pub(super) async fn once(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let changes = matches!(*request.method(), Method::POST | Method::DELETE);
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
    let client = shared.caller(request.headers()).await?.client;
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|_| Refusal::invalid("The request is too long, or was cut off"))?;
    let mut text = format!("{}\n{}\n", parts.method, parts.uri).into_bytes();
    text.extend_from_slice(&body);
    let identity = sha256(&text);
    let key = (client, key);
    let slot = shared.replies.slot(&key);
    let mut kept = slot.lock().await;
    if let Some(kept) = &*kept {
        if kept.request != identity {
            let message = "The Idempotency-Key was used for another request";
            return Err(Refusal::new(RefusalKind::Unprocessable, message).into());
        }
        return Ok((kept.status, kept.headers.clone(), kept.body.clone()).into_response());
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.map_err(|_| unread())?;
    let (status, headers) = (parts.status, parts.headers);
    // A refused token is not the request's answer: with a good one it is carried out.
    let settled = !status.is_server_error() && status != StatusCode::UNAUTHORIZED;
    if settled {
        let (headers, body) = (headers.clone(), body.clone());
        shared.replies.kept(&key, body.len());
        *kept = Some(Kept { request: identity, status, headers, body });
    }
    Ok((status, headers, body).into_response())
}

fn unread() -> Failure {
    Refusal::new(RefusalKind::Internal, "The answer could not be read").into()
}
