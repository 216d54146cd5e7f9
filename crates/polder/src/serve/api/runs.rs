//! Runs, and the operations they belong to.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use polder_control::queue::{self, Order, QueuedRun};
use polder_control::runs::{self as records, RunRecord, RunState};
use polder_core::{Error, ErrorCode, Right};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::gate::Who;
use super::orgs::effective;
use super::paging::{Body, DryRun, Named, Paging, Params, answer, cursor};
use super::problem::{Problem, Reply};
use crate::output::rfc3339;

/// Which tables to bring up to date.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RunRequest {
    /// Tables of the org's pipeline; all that are switched on when absent.
    #[serde(default)]
    tables: Option<Vec<String>>,
    /// Reload everything, whatever the mode and the checkpoint.
    #[serde(default)]
    full_refresh: bool,
}

/// Where something is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

/// One run of one table.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Run {
    #[schema(value_type = String, format = "uuid")]
    id: Uuid,
    org: String,
    table: String,
    status: Status,
    /// The operation it is part of; null for a run of `polder run`.
    #[schema(value_type = Option<String>, format = "uuid")]
    operation: Option<Uuid>,
    /// RFC 3339, as all times.
    queued_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    /// What it did, once it has succeeded.
    #[schema(value_type = Option<Object>)]
    report: Option<Value>,
    /// Why it ended otherwise: code, message, detail, hint.
    #[schema(value_type = Option<Object>)]
    error: Option<Value>,
}

/// A page of runs, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Runs {
    items: Vec<Run>,
    next_cursor: Option<String>,
}

/// Work that takes time: the runs that one request asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Operation {
    #[schema(value_type = Option<String>, format = "uuid")]
    id: Option<Uuid>,
    org: String,
    /// Of all its runs together: failed if one has failed, once all have ended.
    status: Status,
    runs: Vec<Run>,
    queued_at: Option<String>,
    finished_at: Option<String>,
}

impl Status {
    fn of(state: RunState, in_queue: bool) -> Self {
        match state {
            // `polder run` begins at once.
            RunState::Queued if !in_queue => Self::Running,
            RunState::Queued => Self::Queued,
            RunState::Running => Self::Running,
            RunState::Succeeded => Self::Succeeded,
            RunState::Cancelled => Self::Cancelled,
            RunState::Failed | RunState::Interrupted => Self::Failed,
        }
    }

    fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    fn of_all(states: &[Self]) -> Self {
        let any = |wanted| states.contains(&wanted);
        if states.iter().all(|state| state.has_ended()) {
            return if any(Self::Failed) {
                Self::Failed
            } else if any(Self::Cancelled) {
                Self::Cancelled
            } else {
                Self::Succeeded
            };
        }
        if states.iter().all(|state| *state == Self::Queued) { Self::Queued } else { Self::Running }
    }
}

/// The report of a success, the error of anything else.
fn told(status: Status, report: Option<&str>) -> (Option<Value>, Option<Value>) {
    let document: Option<Value> = report.and_then(|text| serde_json::from_str(text).ok());
    match status {
        Status::Succeeded => (document, None),
        _ => (None, document),
    }
}

impl From<&QueuedRun> for Run {
    fn from(run: &QueuedRun) -> Self {
        let status = Status::of(run.state, true);
        let (report, error) = told(status, run.report.as_deref());
        Self {
            id: run.run_id,
            org: run.org.to_string(),
            table: run.table.clone(),
            status,
            operation: Some(run.operation),
            queued_at: rfc3339(run.enqueued_ms),
            started_at: run.started_ms.map(rfc3339),
            finished_at: run.finished_ms.map(rfc3339),
            report,
            error,
        }
    }
}

impl From<&RunRecord> for Run {
    fn from(run: &RunRecord) -> Self {
        let status = Status::of(run.state, run.operation.is_some());
        let (report, error) = told(status, run.report.as_deref());
        Self {
            id: run.run_id,
            org: run.org.to_string(),
            table: run.table.clone(),
            status,
            operation: run.operation,
            queued_at: rfc3339(run.enqueued_ms),
            started_at: run.started_ms.map(rfc3339),
            finished_at: run.finished_ms.map(rfc3339),
            report,
            error,
        }
    }
}

impl Operation {
    fn of(id: Uuid, runs: &[QueuedRun]) -> Option<Self> {
        let first = runs.first()?;
        let shown: Vec<Run> = runs.iter().map(Run::from).collect();
        let states: Vec<Status> = shown.iter().map(|run| run.status).collect();
        let all = Status::of_all(&states);
        let finished = runs.iter().filter_map(|run| run.finished_ms).max();
        Some(Self {
            id: Some(id),
            org: first.org.to_string(),
            status: all,
            runs: shown,
            queued_at: Some(rfc3339(first.enqueued_ms)),
            finished_at: finished.filter(|_| all.has_ended()).map(rfc3339),
        })
    }
}

/// Bring tables up to date. Answers at once; the operation says how far it is.
#[utoipa::path(post, path = "/v1/orgs/{org}/runs", tag = "runs",
    params(("org" = String, Path, description = "The org's id."), DryRun),
    request_body = RunRequest,
    responses((status = 202, body = Operation,
               headers(("Location" = String, description = "/v1/operations/<id>"))),
              (status = 200, body = Operation, description = "A dry run: nothing is queued.")))]
pub(super) async fn trigger(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(dry): Params<DryRun>,
    body: Body,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    let (dry_run, request) = (dry.wanted()?, body.parse::<RunRequest>()?);
    let effective = effective(&api, &org).await?;
    if !effective.enabled {
        let message = format!("org {} is switched off", org.get());
        let error = Error::new(ErrorCode::ControlConflict, message);
        return Err(error.hint("an operator can switch it on: PATCH {\"enabled\": true}").into());
    }
    let pipeline = effective.pipeline();
    let mut tables = request
        .tables
        .unwrap_or_else(|| pipeline.tables.iter().map(|table| table.name.clone()).collect());
    tables.sort_unstable();
    tables.dedup();
    for name in &tables {
        let table = effective.table(name).ok_or_else(|| Problem::no_table(name))?;
        if !table.spec.enabled {
            let message = format!("table {name:?} is switched off");
            let error = Error::new(ErrorCode::ControlConflict, message);
            return Err(error.hint("switch it on: PATCH {\"enabled\": true}").into());
        }
    }
    if tables.is_empty() {
        return Err(Problem::invalid("there is no table to run"));
    }
    if dry_run {
        let (id, org, runs) = (None, org.get().to_string(), Vec::new());
        let status = Status::Queued;
        let document = Operation { id, org, status, runs, queued_at: None, finished_at: None };
        return Ok(answer(StatusCode::OK, &document));
    }
    let asked_by = who.0.who();
    let order = Order { tables: &tables, full_refresh: request.full_refresh, asked_by: &asked_by };
    let id = queue::submit(&api.store, &org, order).await?;
    api.wake.notify_one();
    let runs = queue::operation(&api.store, id).await?;
    let document = Operation::of(id, &runs).ok_or_else(|| no_operation(&id.to_string()))?;
    Ok(placed(answer(StatusCode::ACCEPTED, &document), id))
}

fn placed(mut response: Response, operation: Uuid) -> Response {
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/operations/{operation}")) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// List an org's runs, the newest first.
#[utoipa::path(get, path = "/v1/orgs/{org}/runs", tag = "runs",
    params(("org" = String, Path, description = "The org's id."), Paging),
    responses((status = 200, body = Runs)))]
pub(super) async fn list(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(paging): Params<Paging>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    let (limit, after) = (paging.limit()?, paging.after()?);
    let before = match after.as_str() {
        "" => None,
        text => Some(
            Uuid::try_parse(text)
                .map_err(|_| Problem::invalid("cursor is no next_cursor of an earlier answer"))?,
        ),
    };
    let mut found = records::page(&api.store, &org, before, limit as u16 + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|run| cursor(&run.run_id.to_string()));
    let items = found.iter().map(Run::from).collect();
    Ok(answer(StatusCode::OK, &Runs { items, next_cursor }))
}

/// Read one run.
#[utoipa::path(get, path = "/v1/orgs/{org}/runs/{run}", tag = "runs",
    params(("org" = String, Path, description = "The org's id."),
           ("run" = String, Path, description = "The run's id.")),
    responses((status = 200, body = Run)))]
pub(super) async fn read(
    State(api): State<Api>,
    who: Who,
    Named((org, run)): Named<(String, String)>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    let found = match Uuid::try_parse(&run) {
        Ok(id) => records::find(&api.store, &org, id).await?,
        Err(_) => None,
    };
    let found = found.ok_or_else(|| no_run(&run))?;
    Ok(answer(StatusCode::OK, &Run::from(&found)))
}

/// Ask for a run to stop. One that waits ends at once; one that works ends at its next batch, unless
/// its commit has begun.
#[utoipa::path(post, path = "/v1/orgs/{org}/runs/{run}/cancel", tag = "runs",
    params(("org" = String, Path, description = "The org's id."),
           ("run" = String, Path, description = "The run's id."), DryRun),
    responses((status = 202, body = Run), (status = 200, body = Run, description = "A dry run.")))]
pub(super) async fn cancel(
    State(api): State<Api>,
    who: Who,
    Named((org, run)): Named<(String, String)>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    effective(&api, &org).await?;
    let id = Uuid::try_parse(&run).map_err(|_| no_run(&run))?;
    if dry.wanted()? {
        let found = records::find(&api.store, &org, id).await?.ok_or_else(|| no_run(&run))?;
        return Ok(answer(StatusCode::OK, &Run::from(&found)));
    }
    let asked = queue::cancel(&api.store, &org, id).await?;
    Ok(answer(StatusCode::ACCEPTED, &Run::from(&asked)))
}

/// Read an operation: how far the runs are that one request asked for.
#[utoipa::path(get, path = "/v1/operations/{operation}", tag = "runs",
    params(("operation" = String, Path, description = "The operation's id.")),
    responses((status = 200, body = Operation)))]
pub(super) async fn operation(
    State(api): State<Api>,
    who: Who,
    Named(operation): Named<String>,
) -> Reply {
    let id = Uuid::try_parse(&operation).map_err(|_| no_operation(&operation))?;
    let runs = queue::operation(&api.store, id).await?;
    let own = |run: &&QueuedRun| who.0.principal.authorize(&run.org).is_ok();
    if let Some(foreign) = runs.first().filter(|run| !own(run)) {
        tracing::debug!(org = %foreign.org, "an operation of another org was asked for");
        return Err(no_operation(&operation).refusing());
    }
    let document = Operation::of(id, &runs).ok_or_else(|| no_operation(&operation))?;
    Ok(answer(StatusCode::OK, &document))
}

fn no_run(run: &str) -> Problem {
    let message = format!("the org has no run {run:?}");
    let error = Error::new(ErrorCode::ControlNotFound, message);
    error.hint("GET /v1/orgs/{org}/runs lists its runs").into()
}

fn no_operation(operation: &str) -> Problem {
    Error::new(ErrorCode::ControlNotFound, format!("there is no operation {operation:?}")).into()
}
