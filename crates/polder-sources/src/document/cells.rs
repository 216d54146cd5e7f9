//! Columns filled cell by cell from texts, for CSV, and whether declared types take a line's values.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use polder_core::spec::OnUnrepresentable;
use polder_core::{LakeType, Result, RunProgress, TableSchema};

use super::column::{Column, Stored};
use super::convert;
use super::raw::{Elements, Value, utf8};
use crate::values::Unfit;

/// Builds batches from rows of texts.
pub(crate) struct TextColumns {
    schema: SchemaRef,
    columns: Vec<Column>,
    rows: usize,
    policy: OnUnrepresentable,
    /// The columns with altered values in the present row, as long as their rows are remembered.
    altered: Vec<String>,
}

/// Why a text is no value of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It cannot be read as the column's type at all.
    Malformed,
    /// It can, but not exactly, and the policy says error.
    Inexact,
}

impl Refusal {
    /// What is wrong with a line that has such a value.
    pub(crate) fn reason(self, column: &str, data_type: &LakeType) -> String {
        match self {
            Self::Malformed => format!("column {column} is no {data_type}"),
            Self::Inexact => format!("column {column} does not fit {data_type} exactly"),
        }
    }
}

impl TextColumns {
    pub(crate) fn new(schema: &TableSchema, policy: OnUnrepresentable) -> Self {
        let columns = schema.fields.iter().map(|field| Column::new(field, "")).collect();
        Self { schema: schema.to_arrow(), columns, rows: 0, policy, altered: Vec::new() }
    }

    /// Sets a column's value in the present row. Columns without one become null.
    pub(crate) fn set(&mut self, column: usize, text: &[u8]) -> Result<ControlFlow<Refusal>> {
        let column = &mut self.columns[column];
        column.pad(self.rows);
        Ok(match column.append_text(text, self.policy, &mut self.altered)? {
            Stored::Malformed => ControlFlow::Break(Refusal::Malformed),
            Stored::Inexact => ControlFlow::Break(Refusal::Inexact),
            Stored::Exactly | Stored::Altered => ControlFlow::Continue(()),
        })
    }

    /// Returns the columns with altered values, while their rows are to be remembered.
    pub(crate) fn end_row(&mut self) -> Vec<String> {
        self.rows += 1;
        std::mem::take(&mut self.altered)
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn finish(&mut self, progress: &RunProgress) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        let arrays: Result<Vec<_>> =
            self.columns.iter_mut().map(|column| column.finish(rows, progress)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays?, &options)
            .map_err(super::column::internal)
    }
}

/// Whether a declared type takes this text under the policy.
pub(crate) fn accepts(
    data_type: &LakeType,
    text: &[u8],
    policy: OnUnrepresentable,
) -> std::result::Result<(), Refusal> {
    takes(data_type, Value::String(text), policy)
}

/// What is wrong with a document's values in columns of declared types, if something is.
pub(crate) fn refusal(
    document: &[u8],
    declared: &BTreeMap<String, LakeType>,
    policy: OnUnrepresentable,
) -> Result<Option<String>> {
    if declared.is_empty() {
        return Ok(None);
    }
    for element in Elements::new(document)? {
        let element = element?;
        let name = utf8(element.key)?;
        let Some(data_type) = declared.get(name).filter(|_| element.value() != Value::Null) else {
            continue;
        };
        if let Err(refusal) = takes(data_type, element.value(), policy) {
            return Ok(Some(refusal.reason(name, data_type)));
        }
    }
    Ok(None)
}

fn takes(
    data_type: &LakeType,
    value: Value<'_>,
    policy: OnUnrepresentable,
) -> std::result::Result<(), Refusal> {
    match data_type {
        LakeType::Boolean => judge(convert::boolean(value), policy),
        LakeType::Int => {
            let (min, max) = (i64::from(i32::MIN), i64::from(i32::MAX));
            judge(convert::integer(value, min, max), policy)
        }
        LakeType::Long => judge(convert::integer(value, i64::MIN, i64::MAX), policy),
        LakeType::Float => judge(convert::float(value), policy),
        LakeType::Double => judge(convert::double(value), policy),
        LakeType::Decimal { precision, scale } => {
            judge(convert::decimal(value, *precision, *scale), policy)
        }
        LakeType::Date => judge(convert::date(value), policy),
        LakeType::Time => judge(convert::time(value), policy),
        LakeType::Timestamp => judge(convert::timestamp(value), policy),
        LakeType::Timestamptz => judge(convert::timestamptz(value), policy),
        LakeType::Uuid => judge(convert::uuid(value), policy),
        LakeType::String => Ok(()),
        LakeType::Binary | LakeType::List(_) | LakeType::Struct(_) => Err(Refusal::Malformed),
    }
}

fn judge<T>(
    converted: std::result::Result<T, Unfit<T>>,
    policy: OnUnrepresentable,
) -> std::result::Result<(), Refusal> {
    match converted {
        Ok(_) => Ok(()),
        Err(Unfit::Malformed) => Err(Refusal::Malformed),
        Err(unfit) => unfit.resolve(policy).map(|_| ()).ok_or(Refusal::Inexact),
    }
}
