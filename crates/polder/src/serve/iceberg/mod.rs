//! The Iceberg REST catalog over HTTP: routes, headers and status codes. What the operations do is
//! [`polder_lake::service`].

mod config;
mod etag;
mod idempotency;
mod names;
mod namespaces;
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
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::middleware;
use axum::routing::{get, post};
use polder_core::{Principal, Right};
use polder_lake::service::{Answer, IcebergCatalog, Refusal, RefusalKind};

use super::clients::{Caller, Clients};
use idempotency::Replies;
use reply::Failure;

/// The longest request: a commit that adds very many snapshots or a very wide schema.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the catalog is served with.
pub(crate) struct Settings {
    pub(crate) catalog: IcebergCatalog,
    pub(crate) clients: Arc<Clients>,
}

/// What all handlers share.
#[derive(Clone)]
struct Shared(Arc<State>);

struct State {
    catalog: IcebergCatalog,
    clients: Arc<Clients>,
    replies: Replies,
}

impl std::ops::Deref for Shared {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl State {
    /// Who sent a request with these headers.
    ///
    /// # Errors
    /// `NotAuthorized`.
    async fn caller(&self, headers: &HeaderMap) -> Answer<Caller> {
        let refused =
            || Refusal::new(RefusalKind::NotAuthorized, "Not authorized: no valid token was given");
        self.clients.who(headers).await?.ok_or_else(refused)
    }
}

/// Whether a request asks for a change: all but reading, telling what was measured, and having
/// requests signed, which looks at each of them.
fn changes(parts: &Parts) -> bool {
    let path = parts.uri.path();
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    !reads && !path.ends_with("/metrics") && !path.ends_with("/sign")
}

/// The principal of a request, for handlers.
struct As(Principal);

impl FromRequestParts<Shared> for As {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Failure> {
        let principal = shared.caller(&parts.headers).await?.principal;
        if changes(parts) {
            may_write(&principal)?;
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

/// The routes below `/iceberg`.
pub(super) fn routes(settings: Settings) -> Router {
    let Settings { catalog, clients } = settings;
    let shared = Shared(Arc::new(State { catalog, clients, replies: Replies::default() }));
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
        .layer(middleware::from_fn_with_state(shared.clone(), idempotency::once));
    catalog
        // Outside of the layer above: who asks for a token has none yet.
        .route("/v1/oauth/tokens", post(oauth::token))
        .fallback(reply::no_route)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}
