//! Validations: asking for one, and the reports of those that were carried out.

use axum::extract::State;
use axum::http::StatusCode;
use polder_control::queue::{self, Asked, JobKind, Order};
use polder_control::runs::{self as records, RunRecord};
use polder_core::validation::Verdict;
use polder_core::{Error, ErrorCode, Right};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::gate::Who;
use super::orgs::effective;
use super::paging::{DryRun, Named, Paging, Params, answer, cursor};
use super::problem::{Problem, Reply};
use super::runs::{Operation, Status, before, no_operation, placed, told};
use crate::output::rfc3339;
use crate::telemetry;

/// One validation of one table.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Validation {
    /// The id of the run that carried it out.
    #[schema(value_type = String, format = "uuid")]
    id: Uuid,
    /// The operation it is part of; null for one of `polder validate`.
    #[schema(value_type = Option<String>, format = "uuid")]
    operation: Option<Uuid>,
    org: String,
    table: String,
    status: Status,
    /// `verified`, `warning`, `stale` or `failed`, once it was carried out.
    #[schema(value_type = Option<String>)]
    verdict: Option<Verdict>,
    asked_by: String,
    /// RFC 3339, as all times.
    #[schema(format = "date-time")]
    queued_at: String,
    #[schema(format = "date-time")]
    started_at: Option<String>,
    #[schema(format = "date-time")]
    finished_at: Option<String>,
    /// Every check with what it expected and saw, once it was carried out.
    #[schema(value_type = Option<Object>)]
    report: Option<Value>,
    /// Why it could not be carried out: code, message, detail, hint.
    #[schema(value_type = Option<Object>)]
    error: Option<Value>,
}

/// A page of validations, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Validations {
    items: Vec<Validation>,
    next_cursor: Option<String>,
}

impl From<&RunRecord> for Validation {
    fn from(found: &RunRecord) -> Self {
        let status = Status::of(found.state, found.operation.is_some());
        let (report, error) = told(status, found.report.as_deref());
        let verdict = report.as_ref().and_then(|report| report["verdict"].as_str());
        Self {
            id: found.run_id,
            operation: found.operation,
            org: found.org.to_string(),
            table: found.table.clone(),
            status,
            verdict: verdict.and_then(Verdict::parse),
            asked_by: found.asked_by.clone(),
            queued_at: rfc3339(found.enqueued_ms),
            started_at: found.started_ms.map(rfc3339),
            finished_at: found.finished_ms.map(rfc3339),
            report,
            error,
        }
    }
}

/// Ask for a validation of a table. Answers at once; the operation says how far it is. One that waits
/// already is given instead of another one.
#[utoipa::path(post, path = "/v1/orgs/{org}/tables/{table}/validations",
    operation_id = "trigger_validation", tag = "validations",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), DryRun),
    responses((status = 202, body = Operation,
               headers(("Location" = String, description = "/v1/operations/<id>"))),
              (status = 200, body = Operation, description = "A dry run: nothing is queued.")))]
pub(super) async fn trigger(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(dry): Params<DryRun>,
) -> Reply {
    let org = who.org(&org, Right::Write)?;
    let dry_run = dry.wanted()?;
    let effective = effective(&api, &org).await?;
    let found = effective.table(&table).ok_or_else(|| Problem::no_table(&table))?;
    if !effective.enabled || !found.spec.enabled {
        let message = format!("table {table:?} is switched off, or its org is");
        return Err(Error::new(ErrorCode::ControlConflict, message)
            .hint("switch it on: PATCH {\"enabled\": true}")
            .into());
    }
    let (source, asked_by) = (found.spec.source.clone(), who.0.who());
    let asked = [Asked { table, source, validate: false }];
    let traceparent = telemetry::traceparent();
    let order = Order {
        kind: JobKind::Validate,
        tables: &asked,
        full_refresh: false,
        asked_by: &asked_by,
        traceparent: traceparent.as_deref(),
    };
    if dry_run {
        return Ok(answer(StatusCode::OK, &Operation::planned(org.get(), &order)));
    }
    let table = &asked[0].table;
    let id = match queue::waiting(&api.store, &org, table, JobKind::Validate).await? {
        Some(waiting) => {
            // Whoever asks wants it now, whatever the hours of its schedule.
            queue::at_once(&api.store, &org, waiting.run_id).await?;
            waiting.operation
        }
        None => queue::submit(&api.store, &org, order).await?,
    };
    api.wake.notify_one();
    let runs = queue::operation(&api.store, id).await?;
    let document = Operation::of(id, &runs).ok_or_else(|| no_operation(&id.to_string()))?;
    Ok(placed(answer(StatusCode::ACCEPTED, &document), id))
}

/// List a table's validations, the newest first. The last 200 are kept here; all are rows of
/// `lake.polder_management.validation_results`.
#[utoipa::path(get, path = "/v1/orgs/{org}/tables/{table}/validations",
    operation_id = "list_validations", tag = "validations",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), Paging),
    responses((status = 200, body = Validations)))]
pub(super) async fn list(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(paging): Params<Paging>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    let (limit, before) = (paging.limit()?, before(&paging.after()?)?);
    let mut found = {
        let of = (&*table, JobKind::Validate);
        records::page_of_table(&api.store, &org, of, before, limit as u16 + 1).await?
    };
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|last| cursor(&last.run_id.to_string()));
    let items = found.iter().map(Validation::from).collect();
    Ok(answer(StatusCode::OK, &Validations { items, next_cursor }))
}

/// Read one validation, with its report.
#[utoipa::path(get, path = "/v1/orgs/{org}/tables/{table}/validations/{validation}",
    operation_id = "read_validation",
    tag = "validations",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."),
           ("validation" = String, Path, description = "The validation's id.")),
    responses((status = 200, body = Validation)))]
pub(super) async fn read(
    State(api): State<Api>,
    who: Who,
    Named((org, table, validation)): Named<(String, String, String)>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    let found = match Uuid::try_parse(&validation) {
        Ok(id) => records::find(&api.store, &org, id).await?,
        Err(_) => None,
    };
    let own = |found: &RunRecord| found.table == table && found.kind == JobKind::Validate;
    let found = found.filter(own).ok_or_else(|| {
        let message = format!("the table has no validation {validation:?}");
        let error = Error::new(ErrorCode::ControlNotFound, message);
        Problem::from(error.hint("GET /v1/orgs/{org}/tables/{table}/validations lists them"))
    })?;
    Ok(answer(StatusCode::OK, &Validation::from(&found)))
}
