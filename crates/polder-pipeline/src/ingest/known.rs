//! Recognises rows that are read again: those at or above the checkpoint's low-water mark that the
//! table already holds, by (key, cursor), or by the whole row where the spec names no key or the
//! cursor is too coarse to tell two states of a row apart. Rows without a cursor value belong to them:
//! a source may read these again whatever the mark.
//!
//! Rows are counted, not just remembered: where a table has no key, two equal rows are two rows.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{filter_record_batch, max, max_string};
use arrow::datatypes::{
    DataType, Date32Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use arrow::row::{RowConverter, SortField};
use futures::TryStreamExt;
use polder_core::evolution::continued;
use polder_core::{CursorValue, Error, ErrorCode, LakeType, Result, TableSchema};
use polder_lake::{CmpOp, LakeTable, Literal, Predicate, ScanRequest};

use super::conform::widen;

/// The rows of the table at or above the low-water mark.
pub(super) struct Known(Option<Mutex<Rows>>);

struct Rows {
    /// What rows are told apart by, under the names and in the types that the table has after the run.
    columns: Vec<Compared>,
    converter: RowConverter,
    /// How often each row is stored and was not read again yet.
    unread: HashMap<Box<[u8]>, u64>,
}

struct Compared {
    name: String,
    data_type: DataType,
    /// Its name in the table as it is; `None` for a column that is new.
    stored: Option<String>,
}

impl Known {
    /// Nothing to recognise.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// The batch without the rows that are stored already.
    pub(super) fn without(&self, records: RecordBatch) -> Result<RecordBatch> {
        let Some(rows) = &self.0 else { return Ok(records) };
        let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.unread.is_empty() {
            return Ok(records);
        }
        let new = rows.mark(&records)?;
        filter_record_batch(&records, &new).map_err(|error| failed("filter known rows", error))
    }
}

/// Reads the rows of `table` whose cursor is at least `lower` or null. `schema` is the table's after
/// the run: its columns may have other names by then, or wider types. Rows are told apart by key and
/// cursor; by the whole row if `key` is empty.
pub(super) async fn load(
    table: &LakeTable,
    schema: &TableSchema,
    key: &[String],
    cursor: &str,
    lower: &CursorValue,
) -> Result<Known> {
    let present = table.schema();
    let in_key = |name: &str| key.is_empty() || name == cursor || key.iter().any(|k| k == name);
    let compared = schema.fields.iter().filter(|field| !field.retired && in_key(&field.name));
    let columns: Vec<Compared> = compared
        .map(|field| Compared {
            name: field.name.clone(),
            data_type: field.data_type.to_arrow(),
            stored: continued(&present, field).map(|stored| stored.name.clone()),
        })
        .collect();
    let stored_cursor = schema.field(cursor).and_then(|field| continued(&present, field));
    let Some(stored_cursor) = stored_cursor else {
        return Err(Error::new(ErrorCode::Internal, "the table has no cursor column")
            .detail(format!("column {cursor:?}")));
    };
    let fields = columns.iter().map(|column| SortField::new(column.data_type.clone())).collect();
    let converter =
        RowConverter::new(fields).map_err(|error| failed("compare rows of this type", error))?;
    let request = ScanRequest {
        snapshot: None,
        filter: Predicate::Or(
            Box::new(Predicate::Cmp {
                column: stored_cursor.name.clone(),
                op: CmpOp::GtEq,
                value: literal(lower, &stored_cursor.data_type),
            }),
            Box::new(Predicate::IsNull(stored_cursor.name.clone())),
        ),
        columns: Some(columns.iter().filter_map(|column| column.stored.clone()).collect()),
    };
    let mut rows = Rows { columns, converter, unread: HashMap::new() };
    let mut stored = table.read(request).await?;
    while let Some(records) = stored.try_next().await? {
        rows.remember(&records)?;
    }
    Ok(Known(Some(Mutex::new(rows))))
}

fn literal(value: &CursorValue, of: &LakeType) -> Literal {
    match value {
        // A mark below all values lies outside an int's range.
        CursorValue::Int(value) if *of == LakeType::Int => {
            Literal::Int((*value).clamp(i32::MIN.into(), i32::MAX.into()) as i32)
        }
        CursorValue::Int(value) => Literal::Long(*value),
        CursorValue::Date(days) => Literal::Date(*days),
        CursorValue::Timestamp(micros) => Literal::Timestamp(*micros),
        CursorValue::Timestamptz(micros) => Literal::Timestamptz(*micros),
        CursorValue::Text(text) => match (of, text.parse()) {
            (LakeType::Uuid, Ok(uuid)) => Literal::Uuid(uuid),
            _ => Literal::String(text.clone()),
        },
    }
}

impl Rows {
    fn encode(&self, columns: &[ArrayRef]) -> Result<arrow::row::Rows> {
        self.converter.convert_columns(columns).map_err(|error| failed("compare rows", error))
    }

    fn remember(&mut self, records: &RecordBatch) -> Result<()> {
        let columns = self.columns.iter().map(|column| match &column.stored {
            Some(name) => widen(found(records, name)?, &column.data_type),
            None => Ok(new_null_array(&column.data_type, records.num_rows())),
        });
        for row in &self.encode(&columns.collect::<Result<Vec<_>>>()?)? {
            *self.unread.entry(row.as_ref().into()).or_default() += 1;
        }
        Ok(())
    }

    /// True for each row that is new.
    fn mark(&mut self, records: &RecordBatch) -> Result<BooleanArray> {
        let columns = self.columns.iter().map(|column| found(records, &column.name).cloned());
        let rows = self.encode(&columns.collect::<Result<Vec<_>>>()?)?;
        let new = rows.iter().map(|row| match self.unread.get_mut(row.as_ref()) {
            None => Some(true),
            Some(1) => {
                self.unread.remove(row.as_ref());
                Some(false)
            }
            Some(times) => {
                *times -= 1;
                Some(false)
            }
        });
        Ok(new.collect())
    }
}

fn found<'a>(records: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    records
        .column_by_name(name)
        .ok_or_else(|| Error::new(ErrorCode::Internal, format!("the batch lacks column {name:?}")))
}

/// The highest value of the cursor column, nulls aside.
///
/// # Errors
/// `spec.invalid` when the column's type cannot be a cursor.
pub(super) fn cursor_max(records: &RecordBatch, cursor: &str) -> Result<Option<CursorValue>> {
    let column = records.column_by_name(cursor).ok_or_else(|| {
        Error::new(ErrorCode::SpecUnknownName, format!("the source table has no column {cursor:?}"))
    })?;
    Ok(match column.data_type() {
        DataType::Int32 => {
            max(column.as_primitive::<Int32Type>()).map(|v| CursorValue::Int(v.into()))
        }
        DataType::Int64 => max(column.as_primitive::<Int64Type>()).map(CursorValue::Int),
        DataType::Date32 => max(column.as_primitive::<Date32Type>()).map(CursorValue::Date),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let micros = max(column.as_primitive::<TimestampMicrosecondType>());
            let kind: fn(i64) -> CursorValue =
                if zone.is_some() { CursorValue::Timestamptz } else { CursorValue::Timestamp };
            micros.map(kind)
        }
        DataType::Utf8 => {
            max_string(column.as_string::<i32>()).map(|v| CursorValue::Text(v.to_owned()))
        }
        DataType::FixedSizeBinary(16) => uuid_max(column),
        other => {
            return Err(Error::new(
                ErrorCode::SpecInvalid,
                format!("column {cursor:?} of type {other} cannot be a cursor"),
            )
            .hint("use a column of an integer, date, timestamp, text or uuid type"));
        }
    })
}

fn uuid_max(column: &ArrayRef) -> Option<CursorValue> {
    let column = column.as_fixed_size_binary();
    let values = (0..column.len()).filter(|row| column.is_valid(*row)).map(|row| column.value(row));
    let highest = uuid::Uuid::from_slice(values.max()?).ok()?;
    Some(CursorValue::Text(highest.to_string()))
}

fn failed(what: &str, error: arrow::error::ArrowError) -> Error {
    Error::new(ErrorCode::Internal, format!("cannot {what}")).caused_by(error)
}
