//! The self-serve API at `/v1`: orgs, templates, tables, runs, sources, keys. Routes, who may call them and what is
//! answered; what they change is `polder_control`'s, what they read the lake's.
//!
//! Every request passes the gate (`gate.rs`), which finds out who calls, keeps answers of requests
//! with an `Idempotency-Key`, and writes the audit log. Handlers turn an org's name into an
//! `Authorized<OrgId>` by `Who::org`, which hides orgs that are not the caller's.

mod bootstrap;
mod etag;
mod events;
mod gate;
mod headers;
mod health;
mod keys;
mod lake;
mod logs;
mod maintenance;
mod openapi;
mod orgs;
mod paging;
mod problem;
mod query;
mod resolve;
mod runs;
mod scheduling;
mod sources;
mod tables;
mod templates;
#[cfg(test)]
mod tests;
mod usage;
mod validations;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use polder_control::Store;
use polder_core::Engine;
use polder_lake::Lake;
use polder_query::TrinoEngine;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::clients::Clients;
use super::ledger::Ledger;
use super::metrics::Metrics;
use super::pace::Pace;
use super::tasks::Tasks;
use crate::app::App;
use crate::bootstrap::Bootstraps;

pub(crate) use events::Watchers;
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
    pub(crate) engine: Arc<dyn Engine>,
    /// For queries that name it.
    pub(crate) trino: Option<Arc<TrinoEngine>>,
    pub(crate) bootstraps: Bootstraps,
    pub(crate) clients: Arc<Clients>,
    /// Told when there is something to run.
    pub(crate) wake: Arc<Notify>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where other doors write down what they refuse.
    pub(crate) ledger: Arc<Ledger>,
    /// Changes that are under way.
    pub(crate) changes: Arc<Tasks>,
    pub(crate) pace: Pace,
    /// Those who watch runs.
    pub(crate) watchers: Arc<Watchers>,
    /// The server is about to end.
    pub(crate) stop: CancellationToken,
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

/// What callers are told who come too often.
pub(super) fn too_many(wait: Duration) -> Response {
    problem::Problem::too_many(wait).into_response()
}

/// The routes of `/v1`, and the document that describes them.
pub(super) fn routes(settings: Arc<Settings>) -> Router {
    let api = Api(settings);
    let org = "/v1/orgs/{org}";
    let table = "/v1/orgs/{org}/tables/{table}";
    let (template, key) = ("/v1/templates/{template}", "/v1/keys/{key}");
    let of = |base: &str, rest: &str| format!("{base}{rest}");
    let health = get(health::read).fallback(problem::no_method);
    let health = health.with_state(health::Checks::of(api.clone()));
    Router::new()
        .route("/v1/orgs", get(orgs::list).post(orgs::create))
        .route(org, get(orgs::read).patch(orgs::update).delete(orgs::disable))
        .route(&of(org, "/history"), get(orgs::history))
        .route(&of(org, "/usage"), get(usage::read))
        .route(&of(org, "/schedules"), get(scheduling::list))
        .route(&of(org, "/pause"), post(scheduling::pause_org))
        .route(&of(org, "/resume"), post(scheduling::resume_org))
        .route(&of(table, "/pause"), post(scheduling::pause_table))
        .route(&of(table, "/resume"), post(scheduling::resume_table))
        .route(&of(org, "/bootstrap"), get(bootstrap::bootstrap))
        .route(&of(org, "/tables"), get(tables::list).post(tables::add))
        .route(table, get(tables::read).patch(tables::update).delete(tables::remove))
        .route(&of(table, "/undo"), post(tables::undo))
        .route(&of(table, "/schema"), get(lake::schema))
        .route(&of(table, "/sample"), get(lake::sample))
        .route(&of(table, "/versions"), get(lake::versions))
        .route(&of(table, "/maintenance"), get(maintenance::list))
        .route(&of(table, "/rollback"), post(lake::rollback))
        .route(&of(table, "/validations"), get(validations::list).post(validations::trigger))
        .route(&of(table, "/validations/{validation}"), get(validations::read))
        .route(&of(org, "/runs"), get(runs::list).post(runs::trigger))
        .route(&of(org, "/runs/{run}"), get(runs::read))
        .route(&of(org, "/runs/{run}/cancel"), post(runs::cancel))
        .route(&of(org, "/runs/{run}/retry"), post(scheduling::retry))
        .route(&of(org, "/runs/{run}/events"), get(events::watch))
        .route(&of(org, "/runs/{run}/logs"), get(logs::read))
        .route("/v1/operations/{operation}", get(runs::operation))
        .route("/v1/templates", get(templates::list))
        .route(
            template,
            get(templates::read)
                .put(templates::put)
                .patch(templates::update)
                .delete(templates::remove),
        )
        .route(&of(template, "/history"), get(templates::history))
        .route("/v1/keys", get(keys::list).post(keys::create))
        .route(key, get(keys::read).delete(keys::revoke))
        .route(&of(key, "/rotate"), post(keys::rotate))
        .route("/v1/query", post(query::query))
        .route("/v1/sources", get(sources::list))
        .route("/v1/sources/{source}", get(scheduling::read_source))
        .route("/v1/sources/{source}/tables", get(sources::discover))
        .route("/v1/sources/{source}/pause", post(scheduling::pause_source))
        .route("/v1/sources/{source}/resume", post(scheduling::resume_source))
        .method_not_allowed_fallback(problem::no_method)
        .layer(middleware::from_fn_with_state(api.clone(), gate::gate))
        // Outside of the gate: they say nothing of any org.
        .route("/openapi.json", get(openapi::serve))
        .route("/v1/health", health)
        .fallback(problem::no_route)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}
