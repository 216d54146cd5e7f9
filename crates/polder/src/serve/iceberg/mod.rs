//! The Iceberg REST catalog over HTTP: routes, headers and status codes. What the operations do is
//! [`polder_lake::service`].

mod config;
mod etag;
mod idempotency;
mod names;
mod namespaces;
mod noted;
mod oauth;
mod paging;
mod reply;
mod sign;
mod storage;
mod tables;
#[cfg(test)]
mod tests;
mod views;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, MatchedPath};
use axum::http::request::Parts;
use axum::http::{Extensions, Method};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use polder_control::Store;
use polder_core::{Principal, Right};
use polder_lake::service::{Answer, IcebergCatalog, Refusal, RefusalKind};

use super::clients::{Caller, Clients};
use super::ledger::Ledger;
use super::pace::Pace;
use super::tasks::Tasks;
use crate::telemetry;
use idempotency::Once;
use reply::Failure;

/// The longest request: a commit that adds very many snapshots or a very wide schema.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the catalog is served with.
pub(crate) struct Settings {
    pub(crate) catalog: IcebergCatalog,
    pub(crate) clients: Arc<Clients>,
    /// Where answers are kept for those who repeat a request.
    pub(crate) store: Store,
    /// Where changes and refusals are written down.
    pub(crate) ledger: Arc<Ledger>,
    /// How many requests one caller may send.
    pub(crate) pace: Pace,
}

/// What all handlers share.
#[derive(Clone)]
struct Shared(Arc<State>);

struct State {
    catalog: IcebergCatalog,
    clients: Arc<Clients>,
    once: Once,
    ledger: Arc<Ledger>,
    pace: Pace,
}

impl std::ops::Deref for Shared {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

/// What callers without a good token are told.
fn unauthorized() -> Refusal {
    Refusal::new(RefusalKind::NotAuthorized, "Not authorized: no valid token was given")
}

/// Whether a request asks for a change: all but reading, telling what was measured, and having
/// requests signed, which looks at each of them.
fn changes(method: &Method, extensions: &Extensions) -> bool {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    // By the route: a table may be called `sign`.
    let route = extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    !reads && !route.ends_with("/{table}/metrics") && !route.ends_with("/{table}/sign")
}

/// The principal of a request, for handlers.
struct As(Principal);

impl FromRequestParts<Shared> for As {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        // `noted::admit` has put it there, and looked whether it may change anything.
        let caller = parts.extensions.get::<Caller>().ok_or_else(unauthorized)?;
        let principal = caller.principal.clone();
        if let Principal::Org(org) = &principal {
            telemetry::note_org(org);
        }
        Ok(Self(principal))
    }
}

/// # Errors
/// `Forbidden` for readers.
fn may_write(principal: &Principal) -> Answer<()> {
    if principal.role().has(Right::Write) {
        return Ok(());
    }
    let message = format!("A {} may not change anything", principal.role().as_str());
    Err(Refusal::new(RefusalKind::Forbidden, message))
}

/// A refusal of whatever was asked for.
pub(super) fn forbidden(message: String) -> Response {
    Failure::from(Refusal::new(RefusalKind::Forbidden, message)).into_response()
}

/// The routes below `/iceberg`. Requests with a key are carried out among the `tasks`, to their end.
pub(super) fn routes(settings: Settings, tasks: Arc<Tasks>) -> Router {
    let Settings { catalog, clients, store, ledger, pace } = settings;
    let once = Once::new(store, tasks);
    let shared = Shared(Arc::new(State { catalog, clients, once, ledger, pace }));
    let namespace = "/v1/namespaces/{namespace}";
    let of = |rest: &str| format!("{namespace}{rest}");
    let catalog = Router::new()
        .route("/v1/config", get(config::config))
        .route("/v1/namespaces", get(namespaces::list).post(namespaces::create))
        .route(namespace, get(namespaces::load).head(namespaces::exists).delete(namespaces::drop))
        .route(&of("/properties"), post(namespaces::update_properties))
        .route(&of("/register"), post(tables::register))
        .route(&of("/tables"), get(tables::list).post(tables::create))
        .route(
            &of("/tables/{table}"),
            get(tables::load).post(tables::commit).head(tables::exists).delete(tables::drop),
        )
        .route(&of("/tables/{table}/metrics"), post(tables::metrics))
        .route(&of("/tables/{table}/credentials"), get(tables::credentials))
        .route(&of("/tables/{table}/sign"), post(sign::sign))
        .route("/v1/tables/rename", post(tables::rename))
        .route("/v1/transactions/commit", post(tables::transaction))
        .route(&of("/register-view"), post(views::register))
        .route(&of("/views"), get(views::list).post(views::create))
        .route(
            &of("/views/{view}"),
            get(views::load).post(views::commit).head(views::exists).delete(views::drop),
        )
        .route("/v1/views/rename", post(views::rename))
        // The last one is the first that a request passes.
        .layer(middleware::from_fn_with_state(shared.clone(), noted::changed))
        .layer(middleware::from_fn_with_state(shared.clone(), idempotency::once))
        .layer(middleware::from_fn_with_state(shared.clone(), noted::admit));
    catalog
        // Outside of the layer above: who asks for a token has none yet.
        .route("/v1/oauth/tokens", post(oauth::token))
        .fallback(reply::no_route)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}
