//! The self-serve API at `/v1`: orgs, tables, runs, sources. Routes, who may call them and what is
//! answered; what they change is `polder_control`'s, what they read the lake's.
//!
//! Every request passes the gate (`gate.rs`), which finds out who calls, keeps answers of requests
//! with an `Idempotency-Key`, and writes the audit log. Handlers turn an org's name into an
//! `Authorized<OrgId>` by `Who::org`, which hides orgs that are not the caller's.

mod bootstrap;
mod etag;
mod gate;
mod lake;
mod openapi;
mod orgs;
mod paging;
mod problem;
mod query;
mod resolve;
mod runs;
mod sources;
mod tables;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use polder_control::Store;
use polder_lake::Lake;
use polder_query::DataFusionEngine;
use tokio::sync::Notify;

use super::clients::Clients;
use crate::app::App;
use crate::bootstrap::Bootstraps;

pub(crate) use openapi::document as api_description;
pub(crate) use tables::encoded as path_segment;

/// The longest request.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What the API is served with.
pub(crate) struct Settings {
    pub(crate) app: Arc<App>,
    pub(crate) store: Store,
    pub(crate) lake: Lake,
    /// For queries.
    pub(crate) engine: Arc<DataFusionEngine>,
    pub(crate) bootstraps: Bootstraps,
    pub(crate) clients: Arc<Clients>,
    /// Told when there is something to run.
    pub(crate) wake: Arc<Notify>,
}

/// What all handlers share.
#[derive(Clone)]
struct Api(Arc<Settings>);

impl std::ops::Deref for Api {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.0
    }
}

/// What callers without a good key are told.
pub(super) fn unauthenticated() -> Response {
    gate::unauthenticated().into_response()
}

/// An error as the API tells it.
pub(super) fn refusal(error: polder_core::Error) -> Response {
    problem::Problem::from(error).into_response()
}

/// The routes of `/v1`, and the document that describes them.
pub(super) fn routes(settings: Arc<Settings>) -> Router {
    let api = Api(settings);
    let org = "/v1/orgs/{org}";
    let table = "/v1/orgs/{org}/tables/{table}";
    let of = |base: &str, rest: &str| format!("{base}{rest}");
    Router::new()
        .route("/v1/orgs", get(orgs::list).post(orgs::create))
        .route(org, get(orgs::read).patch(orgs::update).delete(orgs::disable))
        .route(&of(org, "/history"), get(orgs::history))
        .route(&of(org, "/bootstrap"), get(bootstrap::bootstrap))
        .route(&of(org, "/tables"), get(tables::list).post(tables::add))
        .route(table, get(tables::read).patch(tables::update).delete(tables::remove))
        .route(&of(table, "/schema"), get(lake::schema))
        .route(&of(table, "/sample"), get(lake::sample))
        .route(&of(table, "/versions"), get(lake::versions))
        .route(&of(table, "/rollback"), post(lake::rollback))
        .route(&of(org, "/runs"), get(runs::list).post(runs::trigger))
        .route(&of(org, "/runs/{run}"), get(runs::read))
        .route(&of(org, "/runs/{run}/cancel"), post(runs::cancel))
        .route("/v1/operations/{operation}", get(runs::operation))
        .route("/v1/query", post(query::query))
        .route("/v1/sources", get(sources::list))
        .route("/v1/sources/{source}/tables", get(sources::discover))
        .method_not_allowed_fallback(problem::no_method)
        .layer(middleware::from_fn_with_state(api.clone(), gate::gate))
        // Outside of the gate: they say nothing of any org.
        .route("/openapi.json", get(openapi::serve))
        .fallback(problem::no_route)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}
