//! Rows of `maintenance_history`: what was done, when, and how large the table was before and after.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use futures::FutureExt;
use polder_core::management::MAINTENANCE_HISTORY;
use polder_core::{Error, ErrorCode, Principal, Result};
use polder_lake::{Lake, TableSize};

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
