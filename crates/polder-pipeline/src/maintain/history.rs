//! Rows of `maintenance_history`: what was done, when, and how large the table was before and after.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::{FutureExt, TryStreamExt};
use polder_core::management::MAINTENANCE_HISTORY;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use polder_lake::{CmpOp, Lake, Literal, Predicate, ScanRequest, TableSize};

use super::action::MaintainReport;

/// An action that came to its end.
pub(super) async fn ended(lake: &Lake, report: &MaintainReport) -> Result<()> {
    let outcome = if report.done.changed() { "done" } else { "nothing_to_do" };
    record(lake, report, outcome, report.done.document().to_string()).await
}

/// An action that failed; what it had done by then stays done.
pub(super) async fn failed(lake: &Lake, report: &MaintainReport, error: &Error) -> Result<()> {
    let document = serde_json::json!({ "code": error.code().as_str(), "message": error.message() });
    record(lake, report, "failed", document.to_string()).await
}

async fn record(lake: &Lake, report: &MaintainReport, outcome: &str, detail: String) -> Result<()> {
    let text = |text: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let number = |number: Option<u64>| -> ArrayRef {
        Arc::new(Int64Array::from(vec![number.map(|number| number as i64)]))
    };
    let started = vec![report.started_at.timestamp_micros()];
    let started = TimestampMicrosecondArray::from(started).with_timezone_utc();
    let mut columns: Vec<ArrayRef> = vec![
        text(Some(&report.org)),
        text(report.table.as_deref()),
        text(Some(&report.id.to_string())),
        text(Some(report.action)),
        text(Some(outcome)),
        Arc::new(started),
        number(Some(report.duration_ms)),
    ];
    for size in [report.before, report.after] {
        let of = |part: fn(TableSize) -> Option<u64>| number(size.and_then(part));
        columns.extend([
            of(|size| size.files),
            of(|size| size.bytes),
            of(|size| size.rows),
            of(|size| size.delete_files),
            of(|size| Some(size.snapshots)),
        ]);
    }
    columns.push(text(Some(&detail)));
    let rows = RecordBatch::try_new(MAINTENANCE_HISTORY.schema().to_arrow(), columns);
    let rows = rows.map_err(|cause| {
        Error::new(ErrorCode::Internal, "a row of maintenance_history is not as its table")
            .caused_by(cause)
    })?;
    // Polder writes it of its own accord, for whomever it worked.
    lake.record(&Principal::Operator, &MAINTENANCE_HISTORY, rows).boxed().await
}

/// One action on a table that came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaintenanceRecord {
    /// When it began, which action of which maintenance it was: no two records have the same.
    pub place: MaintenancePlace,
    /// `done`, `nothing_to_do` or `failed`.
    pub outcome: String,
    pub duration_ms: u64,
    /// How large the table was; `None` where that was not looked at.
    pub before: Option<TableSize>,
    pub after: Option<TableSize>,
    /// The report, or the error, as JSON.
    pub detail: String,
}

/// Where a record stands in a table's history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaintenancePlace {
    /// Microseconds since the epoch.
    pub started_us: i64,
    pub id: String,
    pub action: String,
}

/// What was done to a table before `before`, the newest first, at most `limit`. No more than that is held at
/// once.
///
/// # Errors
/// `lake.*` when the management table cannot be read.
pub async fn maintenance_history(
    lake: &Lake,
    org: &Authorized<OrgId>,
    table: &str,
    before: Option<&MaintenancePlace>,
    limit: usize,
) -> Result<Vec<MaintenanceRecord>> {
    let mut found = Vec::new();
    // The rows are filtered by the org that the caller was found entitled to.
    let history = lake.management_table(&Principal::Operator, MAINTENANCE_HISTORY.name).await?;
    let Some(history) = history.filter(|table| table.current_snapshot().is_some()) else {
        return Ok(found);
    };
    let is = |column: &str, text: &str| Predicate::Cmp {
        column: column.to_owned(),
        op: CmpOp::Eq,
        value: Literal::String(text.to_owned()),
    };
    let filter = is("org", org.get().as_str()).and(is("table_name", table));
    let scan = ScanRequest { snapshot: None, filter, columns: None };
    let mut batches = history.read(scan).await?;
    while let Some(batch) = batches.try_next().await? {
        for row in 0..batch.num_rows() {
            let is =
                |column: &str, wanted: &str| text(&batch, column, row).as_deref() == Some(wanted);
            if !is("org", org.get().as_str()) || !is("table_name", table) {
                continue;
            }
            let record = read(&batch, row).ok_or_else(unreadable)?;
            if before.is_none_or(|before| record.place < *before) {
                found.push(record);
            }
        }
        found.sort_unstable_by(|one, other| other.place.cmp(&one.place));
        found.truncate(limit);
    }
    Ok(found)
}

fn unreadable() -> Error {
    Error::new(ErrorCode::LakeCorrupt, "a row of maintenance_history lacks what all of them have")
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> Option<String> {
    let array = batch.column_by_name(column)?.as_string_opt::<i32>()?;
    array.is_valid(row).then(|| array.value(row).to_owned())
}

/// `None` for a row that is not as the table says.
fn read(batch: &RecordBatch, row: usize) -> Option<MaintenanceRecord> {
    let text = |column: &str| text(batch, column, row);
    let number = |column: &str| {
        let array = batch.column_by_name(column)?.as_primitive_opt::<Int64Type>()?;
        let number = array.is_valid(row).then(|| array.value(row))?;
        u64::try_from(number).ok()
    };
    let size = |when: &str| {
        let of = |part: &str| number(&format!("{part}_{when}"));
        Some(TableSize {
            files: of("files"),
            bytes: of("bytes"),
            rows: of("rows"),
            delete_files: of("delete_files"),
            snapshots: of("snapshots")?,
        })
    };
    let started = batch.column_by_name("started_at")?;
    let started = started.as_primitive_opt::<TimestampMicrosecondType>()?;
    let place = MaintenancePlace {
        started_us: started.is_valid(row).then(|| started.value(row))?,
        id: text("maintenance_id")?,
        action: text("action")?,
    };
    Some(MaintenanceRecord {
        place,
        outcome: text("outcome")?,
        duration_ms: number("duration_ms")?,
        before: size("before"),
        after: size("after"),
        detail: text("detail")?,
    })
}
