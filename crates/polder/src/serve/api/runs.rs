//! Runs, and the operations they belong to.

use std::slice::from_mut;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use polder_control::queue::{self, Asked, JobKind, Order, QueuedRun};
use polder_control::runs::{self as records, RunRecord, RunState};
use polder_control::{Store, usage};
use polder_core::spec::ValidateWhen;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Right};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::etag::{self, IfMatch};
use super::gate::Who;
use super::orgs::effective;
use super::paging::{Body, DryRun, Named, Paging, Params, answer, cursor};
use super::problem::{Problem, Reply};
use crate::output::rfc3339;
use crate::telemetry;

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
    /// What is done with the tables.
    #[serde(default)]
    kind: Kind,
}

/// What a run does with its table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// Brings it up to date with its source.
    #[default]
    Ingest,
    /// Holds it to its source; the report has the verdict.
    Validate,
    /// Looks after its files, versions and rows by its policies.
    Maintain,
}

impl From<Kind> for JobKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Ingest => Self::Ingest,
            Kind::Validate => Self::Validate,
            Kind::Maintain => Self::Maintain,
        }
    }
}

impl From<JobKind> for Kind {
    fn from(kind: JobKind) -> Self {
        match kind {
            JobKind::Ingest => Self::Ingest,
            JobKind::Validate => Self::Validate,
            JobKind::Maintain => Self::Maintain,
        }
    }
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
    kind: Kind,
    status: Status,
    /// Attempts that failed.
    failures: i64,
    /// When it is tried again, if it waits for that.
    #[schema(format = "date-time")]
    next_attempt_at: Option<String>,
    /// It does not begin before: its org has reached a limit of the day, or it is a validation that waits for
    /// the hours of its schedule.
    #[schema(format = "date-time")]
    waits_until: Option<String>,
    /// What a person has to do about a run that failed: nobody tries it again by itself.
    what_to_do: Option<String>,
    /// The operation it is part of; null for a run of `polder run`.
    #[schema(value_type = Option<String>, format = "uuid")]
    operation: Option<Uuid>,
    /// RFC 3339, as all times.
    #[schema(format = "date-time")]
    queued_at: String,
    #[schema(format = "date-time")]
    started_at: Option<String>,
    #[schema(format = "date-time")]
    finished_at: Option<String>,
    /// What it did, once it has succeeded.
    #[schema(value_type = Option<Object>)]
    report: Option<Value>,
    /// Why it ended otherwise, or why the last attempt failed: code, message, detail, hint.
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
    /// What a dry run would queue; empty otherwise.
    planned: Vec<PlannedRun>,
    #[schema(format = "date-time")]
    queued_at: Option<String>,
    #[schema(format = "date-time")]
    finished_at: Option<String>,
}

/// A run that would be queued: it has no id yet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlannedRun {
    table: String,
    kind: Kind,
    /// Everything would be reloaded, whatever the mode and the checkpoint.
    full_refresh: bool,
    /// A validation would follow.
    validate: bool,
}

impl Status {
    pub(super) fn of(state: RunState, in_queue: bool) -> Self {
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
pub(super) fn told(status: Status, report: Option<&str>) -> (Option<Value>, Option<Value>) {
    let mut document: Option<Value> = report.and_then(|text| serde_json::from_str(text).ok());
    match status {
        Status::Succeeded => {
            document.as_mut().into_iter().for_each(tell_times);
            (document, None)
        }
        _ => (None, document),
    }
}

/// Reports of validations, and the checks in them, are kept with milliseconds; the API tells times by RFC 3339.
fn tell_times(report: &mut Value) {
    let Some(fields) = report.as_object_mut() else { return };
    if let Some(ms) = fields.remove("started_ms").and_then(|ms| ms.as_i64()) {
        fields.insert("started_at".to_owned(), rfc3339(ms).into());
    }
    let checks = fields.get_mut("checks").and_then(Value::as_array_mut);
    checks.into_iter().flatten().for_each(tell_times);
}

/// What a failed run waits for. It is not tried again until a person says so.
fn what_to_do(status: Status, in_queue: bool, run: Uuid, error: Option<&Value>) -> Option<String> {
    if status != Status::Failed {
        return None;
    }
    let error = error?;
    let hint = error["hint"].as_str().unwrap_or("look at the error and mend its cause");
    let again = if in_queue {
        format!("then POST …/runs/{run}/retry")
    } else {
        "then run the table again".to_owned()
    };
    Some(format!("{hint}; {again}"))
}

impl From<&QueuedRun> for Run {
    fn from(run: &QueuedRun) -> Self {
        let status = Status::of(run.state, true);
        let (report, error) = told(status, run.report.as_deref());
        let waits = status == Status::Queued && run.failures > 0;
        let put_off = status == Status::Queued
            && run.off_peak
            && run.failures == 0
            && run.due_ms > run.enqueued_ms;
        Self {
            id: run.run_id,
            org: run.org.to_string(),
            table: run.table.clone(),
            kind: run.kind.into(),
            failures: run.failures,
            next_attempt_at: waits.then(|| rfc3339(run.due_ms)),
            waits_until: put_off.then(|| rfc3339(run.due_ms)),
            what_to_do: what_to_do(status, true, run.run_id, error.as_ref()),
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
        let in_queue = run.operation.is_some();
        let status = Status::of(run.state, in_queue);
        let (report, error) = told(status, run.report.as_deref());
        let due = run.due_ms.filter(|_| status == Status::Queued && run.failures > 0);
        Self {
            id: run.run_id,
            org: run.org.to_string(),
            table: run.table.clone(),
            kind: run.kind.into(),
            failures: run.failures,
            next_attempt_at: due.map(rfc3339),
            waits_until: None,
            what_to_do: what_to_do(status, in_queue, run.run_id, error.as_ref()),
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

impl Run {
    pub(super) fn has_ended(&self) -> bool {
        self.status.has_ended()
    }

    /// An org that has reached a limit of the day would keep it waiting.
    fn may_be_limited(&self) -> bool {
        self.status == Status::Queued && self.kind == Kind::Ingest
    }
}

/// The tag covers where the run is in its life: each attempt and each end is another state, and how long one
/// waits is not.
pub(super) fn tag(run: &Run) -> String {
    etag::of(&(run.id, run.status, run.failures, &run.started_at))
}

pub(super) fn shown(status: StatusCode, run: &Run) -> Response {
    etag::tagged(answer(status, run), &tag(run))
}

/// Says of an org's runs that they wait for the next day, where they do.
pub(super) async fn waiting(
    store: &Store,
    org: &Authorized<OrgId>,
    runs: &mut [Run],
) -> polder_core::Result<()> {
    if !runs.iter().any(Run::may_be_limited) {
        return Ok(());
    }
    let until = usage::waits_until_ms(store, org).await?.map(rfc3339);
    for run in runs.iter_mut().filter(|run| run.may_be_limited()) {
        run.waits_until.clone_from(&until);
    }
    Ok(())
}

impl Operation {
    /// What a dry run would ask for: not there yet.
    pub(super) fn planned(org: &OrgId, order: &Order<'_>) -> Self {
        let planned = |asked: &Asked| PlannedRun {
            table: asked.table.clone(),
            kind: order.kind.into(),
            full_refresh: order.full_refresh,
            validate: asked.validate,
        };
        Self {
            id: None,
            org: org.to_string(),
            status: Status::Queued,
            runs: Vec::new(),
            planned: order.tables.iter().map(planned).collect(),
            queued_at: None,
            finished_at: None,
        }
    }

    pub(super) fn of(id: Uuid, runs: &[QueuedRun]) -> Option<Self> {
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
            planned: Vec::new(),
            queued_at: Some(rfc3339(first.enqueued_ms)),
            finished_at: finished.filter(|_| all.has_ended()).map(rfc3339),
        })
    }
}

/// Bring tables up to date, validate or maintain them. Answers at once; the operation says how far it is.
#[utoipa::path(post, path = "/v1/orgs/{org}/runs", operation_id = "trigger_runs", tag = "runs",
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
    let (asked_by, traceparent) = (who.0.who(), telemetry::traceparent());
    let asked = |name: &String| {
        let spec = &effective.table(name)?.spec;
        let schedule = spec.schedule.as_ref();
        Some(Asked {
            table: name.clone(),
            source: spec.source.clone(),
            validate: request.kind == Kind::Ingest
                && schedule.is_some_and(|schedule| schedule.validate == ValidateWhen::AfterRun),
        })
    };
    let tables: Vec<Asked> = tables.iter().filter_map(asked).collect();
    let order = Order {
        kind: request.kind.into(),
        tables: &tables,
        full_refresh: request.full_refresh,
        asked_by: &asked_by,
        traceparent: traceparent.as_deref(),
    };
    if dry_run {
        return Ok(answer(StatusCode::OK, &Operation::planned(org.get(), &order)));
    }
    let id = queue::submit(&api.store, &org, order).await?;
    api.wake.notify_one();
    let runs = queue::operation(&api.store, id).await?;
    let mut document = Operation::of(id, &runs).ok_or_else(|| no_operation(&id.to_string()))?;
    waiting(&api.store, &org, &mut document.runs).await?;
    Ok(placed(answer(StatusCode::ACCEPTED, &document), id))
}

pub(super) fn placed(mut response: Response, operation: Uuid) -> Response {
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/operations/{operation}")) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// The last id of the page before; `None` at the beginning.
pub(super) fn before(after: &str) -> Reply<Option<Uuid>> {
    if after.is_empty() {
        return Ok(None);
    }
    let id = Uuid::try_parse(after);
    id.map(Some).map_err(|_| Problem::invalid("cursor is no next_cursor of an earlier answer"))
}

/// List an org's runs, the newest first.
#[utoipa::path(get, path = "/v1/orgs/{org}/runs", operation_id = "list_runs", tag = "runs",
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
    let (limit, before) = (paging.limit()?, before(&paging.after()?)?);
    let mut found = records::page(&api.store, &org, before, limit as u16 + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|run| cursor(&run.run_id.to_string()));
    let mut items: Vec<Run> = found.iter().map(Run::from).collect();
    waiting(&api.store, &org, &mut items).await?;
    Ok(answer(StatusCode::OK, &Runs { items, next_cursor }))
}

/// Read one run.
#[utoipa::path(get, path = "/v1/orgs/{org}/runs/{run}", operation_id = "read_run", tag = "runs",
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
    let mut run = Run::from(&found.ok_or_else(|| no_run(&run))?);
    waiting(&api.store, &org, from_mut(&mut run)).await?;
    Ok(shown(StatusCode::OK, &run))
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
    let wanted = IfMatch::of(&who.1);
    let check = |now: &QueuedRun| wanted.check(&tag(&Run::from(now)));
    if dry.wanted()? {
        let found = queue::run(&api.store, &org, id).await?.ok_or_else(|| no_run(&run))?;
        check(&found)?;
        found.check_open()?;
        return Ok(shown(StatusCode::OK, &Run::from(&found)));
    }
    let asked = queue::cancel_if(&api.store, &org, id, check).await?;
    Ok(shown(StatusCode::ACCEPTED, &Run::from(&asked)))
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
    let first = runs.first().ok_or_else(|| no_operation(&operation))?;
    let Ok(org) = who.0.principal.authorize(&first.org) else {
        tracing::debug!(org = %first.org, "an operation of another org was asked for");
        return Err(no_operation(&operation).refusing());
    };
    let mut document = Operation::of(id, &runs).ok_or_else(|| no_operation(&operation))?;
    waiting(&api.store, &org, &mut document.runs).await?;
    Ok(answer(StatusCode::OK, &document))
}

pub(super) fn no_run(run: &str) -> Problem {
    let message = format!("the org has no run {run:?}");
    let error = Error::new(ErrorCode::ControlNotFound, message);
    error.hint("GET /v1/orgs/{org}/runs lists its runs").into()
}

pub(super) fn no_operation(operation: &str) -> Problem {
    Error::new(ErrorCode::ControlNotFound, format!("there is no operation {operation:?}")).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_that_is_kept_with_milliseconds_is_told_by_rfc_3339() {
        let kept = json!({ "verdict": "verified", "started_ms": 1_800_000_000_000_i64, "duration_ms": 7,
                           "checks": [{ "check": "rows", "started_ms": 1_800_000_000_001_i64 }] });
        let (report, error) = told(Status::Succeeded, Some(&kept.to_string()));
        let shown = json!({ "verdict": "verified", "started_at": "2027-01-15T08:00:00.000Z",
                            "duration_ms": 7,
                            "checks": [{ "check": "rows", "started_at": "2027-01-15T08:00:00.001Z" }] });
        assert_eq!((report, error), (Some(shown), None));
        assert_eq!(told(Status::Succeeded, Some("[1]")).0, Some(json!([1])), "as it is");
    }
}
