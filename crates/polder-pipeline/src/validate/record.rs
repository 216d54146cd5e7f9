//! Reports as rows of the management table `validation_results`, one for each check; and what they say
//! of each table last.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::builder::{ListBuilder, StringBuilder};
use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, SchemaRef, TimestampMicrosecondType};
use futures::TryStreamExt;
use polder_core::management::{ORG_COLUMN, VALIDATION_RESULTS};
use polder_core::schema::LIST_ELEMENT;
use polder_core::validation::{Check, Verdict};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use polder_lake::{CmpOp, Lake, Literal, Predicate, ScanRequest};
use serde::Serialize;

use super::ValidationReport;

/// The rows of some reports, in the layout of [`VALIDATION_RESULTS`].
///
/// # Errors
/// `internal` if the layout is another one.
pub fn results(reports: &[ValidationReport]) -> Result<RecordBatch> {
    let rows: Vec<(&ValidationReport, &Check)> = reports
        .iter()
        .flat_map(|report| report.checks.iter().map(move |check| (report, check)))
        .collect();
    let schema: SchemaRef = VALIDATION_RESULTS.schema().to_arrow();
    let text = |of: &dyn Fn(&(&ValidationReport, &Check)) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<StringArray>())
    };
    let number = |of: &dyn Fn(&(&ValidationReport, &Check)) -> Option<i64>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<Int64Array>())
    };
    let started: TimestampMicrosecondArray =
        rows.iter().map(|(_, check)| Some(check.started_ms * 1000)).collect();
    let columns: Vec<ArrayRef> = vec![
        text(&|(report, _)| Some(report.org.clone())),
        text(&|(report, _)| Some(report.table.clone())),
        text(&|(report, _)| Some(report.id.to_string())),
        text(&|(report, _)| report.version.clone()),
        number(&|(report, _)| report.snapshot_id),
        text(&|(report, _)| report.source_snapshot.clone()),
        text(&|(_, check)| Some(check.check.to_string())),
        text(&|(_, check)| check.column.clone()),
        text(&|(_, check)| Some(check.verdict.to_string())),
        text(&|(_, check)| Some(check.expected.clone())),
        text(&|(_, check)| Some(check.observed.clone())),
        samples(&rows),
        text(&|(report, _)| Some(report.verdict.to_string())),
        Arc::new(started.with_timezone("+00:00")),
        number(&|(_, check)| i64::try_from(check.duration_ms).ok()),
    ];
    RecordBatch::try_new(schema, columns).map_err(|error| {
        Error::new(ErrorCode::Internal, "results do not fit their table").caused_by(error)
    })
}

fn samples(rows: &[(&ValidationReport, &Check)]) -> ArrayRef {
    let element = Field::new(LIST_ELEMENT, DataType::Utf8, true);
    let mut lists = ListBuilder::new(StringBuilder::new()).with_field(element);
    for (_, check) in rows {
        for sample in &check.samples {
            lists.values().append_value(sample);
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}

/// What the last validation of a table said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastVerdict {
    pub verdict: Verdict,
    /// The state of the table that it was said of.
    pub snapshot_id: Option<i64>,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
}

/// The last verdicts, by org and table; none where nothing was validated yet.
///
/// # Errors
/// `lake.*` when the management table cannot be read.
pub async fn last_verdicts(
    lake: &Lake,
    principal: &Principal,
) -> Result<HashMap<(String, String), LastVerdict>> {
    verdicts(lake, principal, Predicate::True).await
}

/// The last verdicts on one org's tables, by table; none where nothing was validated yet.
///
/// # Errors
/// As [`last_verdicts`].
pub async fn last_verdicts_of(
    lake: &Lake,
    org: &Authorized<OrgId>,
) -> Result<HashMap<String, LastVerdict>> {
    let value = Literal::String(org.get().to_string());
    let own = Predicate::Cmp { column: ORG_COLUMN.to_owned(), op: CmpOp::Eq, value };
    // The table holds rows of all orgs; the predicate lets through this one's alone.
    let found = verdicts(lake, &Principal::Operator, own).await?;
    Ok(found.into_iter().map(|((_, table), verdict)| (table, verdict)).collect())
}

async fn verdicts(
    lake: &Lake,
    principal: &Principal,
    filter: Predicate,
) -> Result<HashMap<(String, String), LastVerdict>> {
    let mut last = HashMap::new();
    let Some(table) = lake.management_table(principal, VALIDATION_RESULTS.name).await? else {
        return Ok(last);
    };
    let columns = ["org", "table", "table_verdict", "snapshot_id", "started_at"];
    let scan =
        ScanRequest { snapshot: None, filter, columns: Some(columns.map(str::to_owned).to_vec()) };
    let mut batches = table.read(scan).await?;
    while let Some(batch) = batches.try_next().await? {
        take_newer(&batch, &mut last);
    }
    Ok(last)
}

fn take_newer(batch: &RecordBatch, last: &mut HashMap<(String, String), LastVerdict>) {
    let text = |column: usize| batch.column(column).as_string::<i32>();
    let (orgs, tables, verdicts) = (text(0), text(1), text(2));
    let snapshots = batch.column(3).as_primitive::<Int64Type>();
    let started = batch.column(4).as_primitive::<TimestampMicrosecondType>();
    for row in 0..batch.num_rows() {
        let Some(verdict) = Verdict::parse(verdicts.value(row)) else { continue };
        let found = LastVerdict {
            verdict,
            snapshot_id: snapshots.is_valid(row).then(|| snapshots.value(row)),
            at_ms: started.value(row) / 1000,
        };
        let table = (orgs.value(row).to_owned(), tables.value(row).to_owned());
        let known = last.entry(table).or_insert_with(|| found.clone());
        if found.at_ms > known.at_ms {
            *known = found;
        }
    }
}
