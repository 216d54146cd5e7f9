//! `GET /v1/health`: whether the store and the catalog answer. That the process lives is `/healthz`'s to say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use polder_control::desired;
use polder_core::{Error, ErrorCode, Principal, Result, Role};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::Api;
use super::paging::answer;

/// How long a part may take to answer.
const TIME_MAX: Duration = Duration::from_secs(3);
/// How long an answer stands: whoever asks in between gets the same, so that nobody keeps store and catalog
/// busy by asking.
const STANDS: Duration = Duration::from_secs(1);

/// `ok`, or `degraded`: something that requests need does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum HealthStatus {
    Ok,
    Degraded,
}

impl HealthStatus {
    fn of(parts: &[&HealthPart]) -> Self {
        let ok = parts.iter().all(|part| part.status == Self::Ok);
        if ok { Self::Ok } else { Self::Degraded }
    }

    fn code(self) -> StatusCode {
        match self {
            Self::Ok => StatusCode::OK,
            Self::Degraded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Whether the server can work.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Health {
    status: HealthStatus,
    /// The control store; for operators alone.
    store: Option<HealthPart>,
    /// The lake's catalog; for operators alone.
    catalog: Option<HealthPart>,
}

impl Health {
    /// Whether its parts are the caller's to see. A store that does not answer is not asked who that is.
    async fn is_for(&self, api: &Api, headers: &HeaderMap) -> bool {
        if self.store.as_ref().is_none_or(|store| store.status != HealthStatus::Ok) {
            return false;
        }
        let caller = api.clients.who(headers).await;
        matches!(&caller, Ok(Some(caller)) if caller.principal.role() == Role::Operator)
    }
}

/// How one part is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct HealthPart {
    status: HealthStatus,
    /// How long it took to answer.
    duration_ms: u64,
    /// The code of the error, where there is one; the server's log says more.
    code: Option<String>,
    message: Option<String>,
}

/// What was found last.
type Last = Arc<Mutex<Option<(Instant, Health)>>>;

/// What the route has.
#[derive(Clone)]
pub(super) struct Checks {
    api: Api,
    last: Last,
}

impl Checks {
    pub(super) fn of(api: Api) -> Self {
        Self { api, last: Last::default() }
    }

    /// One at a time looks; the others wait for what it finds.
    async fn look(&self) -> Health {
        let mut last = self.last.lock().await;
        if let Some((at, health)) = last.as_ref()
            && at.elapsed() < STANDS
        {
            return health.clone();
        }
        let store = async { desired::revision(&self.api.store).await.map(drop) };
        // There is none of this name: asking for it reads no metadata.
        let table = self.api.lake.management_table(&Principal::Operator, "health");
        let catalog = async { Box::pin(table).await.map(drop) };
        let (store, catalog) = tokio::join!(part("store", store), part("catalog", catalog));
        let status = HealthStatus::of(&[&store, &catalog]);
        let health = Health { status, store: Some(store), catalog: Some(catalog) };
        *last = Some((Instant::now(), health.clone()));
        health
    }
}

async fn part(name: &str, asked: impl Future<Output = Result<()>>) -> HealthPart {
    let since = Instant::now();
    let found = tokio::time::timeout(TIME_MAX, asked).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s", TIME_MAX.as_secs());
        Err(Error::new(ErrorCode::ControlBusy, message))
    });
    let error = found.err();
    if let Some(error) = &error {
        tracing::warn!(part = name, "not healthy: {error}");
    }
    HealthPart {
        status: if error.is_some() { HealthStatus::Degraded } else { HealthStatus::Ok },
        duration_ms: since.elapsed().as_millis() as u64,
        code: error.as_ref().map(|error| error.code().as_str().to_owned()),
        message: error.map(|error| error.message().to_owned()),
    }
}

/// Whether the store and the catalog answer: 503 if one of them does not. Nobody has to show who they are;
/// what is wrong is told to operators alone. An answer stands for a second.
#[utoipa::path(get, path = "/v1/health", operation_id = "read_health", tag = "health",
    security((), ("key" = [])),
    responses((status = 200, body = Health), (status = 503, body = Health,
               description = "The store or the catalog does not answer.")))]
pub(super) async fn read(State(checks): State<Checks>, headers: HeaderMap) -> Response {
    let mut health = checks.look().await;
    let code = health.status.code();
    if !health.is_for(&checks.api, &headers).await {
        (health.store, health.catalog) = (None, None);
    }
    answer(code, &health)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_part_that_does_not_answer_is_enough() {
        let good = part("store", async { Ok(()) }).await;
        let refused = Error::new(ErrorCode::ControlStore, "the store cannot be read");
        let bad = part("store", async { Err(refused) }).await;
        assert_eq!(HealthStatus::of(&[&good, &good]).code(), StatusCode::OK);
        assert_eq!(HealthStatus::of(&[&good, &bad]).code(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((good.code, bad.code.as_deref()), (None, Some("control.store")));
        assert_eq!(bad.message.as_deref(), Some("the store cannot be read"));
    }
}
