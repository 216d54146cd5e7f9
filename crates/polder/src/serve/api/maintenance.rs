//! What maintenance did to a table: its rows of `maintenance_history`.

use axum::extract::State;
use axum::http::StatusCode;
use polder_core::Right;
use polder_lake::TableSize;
use polder_pipeline::{MaintenancePlace, MaintenanceRecord, maintenance_history};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Api;
use super::gate::Who;
use super::orgs::effective;
use super::paging::{Named, Paging, Params, answer, cursor};
use super::problem::{Problem, Reply};
use crate::output::rfc3339;

/// One action on a table that came to its end.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Maintained {
    /// The same for the actions of one maintenance.
    id: String,
    /// `optimize`, `expire`, …
    action: String,
    /// `done`, `nothing_to_do` or `failed`.
    outcome: String,
    #[schema(format = "date-time")]
    started_at: String,
    duration_ms: u64,
    /// How large the table was before; null where that was not looked at.
    before: Option<MaintainedSize>,
    after: Option<MaintainedSize>,
    /// What was done, or why it failed: code and message; null where there was nothing to say.
    #[schema(value_type = Option<Object>)]
    detail: Value,
}

/// How large a table was; null where its last snapshot did not say.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MaintainedSize {
    files: Option<u64>,
    bytes: Option<u64>,
    /// Deleted rows included.
    rows: Option<u64>,
    delete_files: Option<u64>,
    snapshots: u64,
}

/// A page of a table's maintenance, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MaintenancePage {
    items: Vec<Maintained>,
    next_cursor: Option<String>,
}

impl From<TableSize> for MaintainedSize {
    fn from(size: TableSize) -> Self {
        let TableSize { files, bytes, rows, delete_files, snapshots } = size;
        Self { files, bytes, rows, delete_files, snapshots }
    }
}

impl From<MaintenanceRecord> for Maintained {
    fn from(record: MaintenanceRecord) -> Self {
        Self {
            id: record.place.id,
            action: record.place.action,
            outcome: record.outcome,
            started_at: rfc3339(record.place.started_us.div_euclid(1000)),
            duration_ms: record.duration_ms,
            before: record.before.map(MaintainedSize::from),
            after: record.after.map(MaintainedSize::from),
            detail: serde_json::from_str(&record.detail).unwrap_or_default(),
        }
    }
}

/// Where a page ended, as its cursor says it.
fn place(after: &str) -> Reply<Option<MaintenancePlace>> {
    if after.is_empty() {
        return Ok(None);
    }
    let read = || {
        let (started, rest) = after.split_once(' ')?;
        let (id, action) = rest.split_once(' ')?;
        let started_us = started.parse().ok()?;
        Some(MaintenancePlace { started_us, id: id.to_owned(), action: action.to_owned() })
    };
    let found = read().map(Some);
    found.ok_or_else(|| Problem::invalid("cursor is no next_cursor of an earlier answer"))
}

/// List what maintenance did to a table, the newest first: its rows of
/// `lake.polder_management.maintenance_history`.
#[utoipa::path(get, path = "/v1/orgs/{org}/tables/{table}/maintenance",
    operation_id = "list_maintenance", tag = "lake",
    params(("org" = String, Path, description = "The org's id."),
           ("table" = String, Path, description = "The table's name."), Paging),
    responses((status = 200, body = MaintenancePage)))]
pub(super) async fn list(
    State(api): State<Api>,
    who: Who,
    Named((org, table)): Named<(String, String)>,
    Params(paging): Params<Paging>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    let (limit, before) = (paging.limit()?, place(&paging.after()?)?);
    let found = maintenance_history(&api.lake, &org, &table, before.as_ref(), limit + 1);
    let mut found = Box::pin(found).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|last| {
        let MaintenancePlace { started_us, id, action } = &last.place;
        cursor(&format!("{started_us} {id} {action}"))
    });
    let items = found.into_iter().map(Maintained::from).collect();
    Ok(answer(StatusCode::OK, &MaintenancePage { items, next_cursor }))
}
