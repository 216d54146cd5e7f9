//! Reports as rows of the management table `validation_results`, one for each check.

use std::sync::Arc;

use arrow::array::builder::{ListBuilder, StringBuilder};
use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, SchemaRef};
use polder_core::management::VALIDATION_RESULTS;
use polder_core::schema::LIST_ELEMENT;
use polder_core::validation::Check;
use polder_core::{Error, ErrorCode, Result};

use super::ValidationReport;

/// The rows of some reports, in the layout of [`VALIDATION_RESULTS`].
///
/// # Errors
/// `internal` if the layout is another one.
pub(super) fn results(reports: &[ValidationReport]) -> Result<RecordBatch> {
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
        text(&|(_, check)| check.name.clone()),
        Arc::new(rows.iter().map(|(report, _)| Some(report.staged)).collect::<BooleanArray>()),
        text(&|(report, _)| report.source_state.clone()),
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
