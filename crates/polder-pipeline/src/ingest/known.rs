//! Recognises rows that are read again: those at or above the checkpoint's low-water mark that the
//! table already holds, by (key, cursor), or by the whole row where the spec names no key or the
//! cursor is too coarse to tell two states of a row apart. Rows without a cursor value belong to them:
//! a source may read these again whatever the mark.
//!
//! Rows that are added are counted, not just remembered: where a table has no key, two equal rows are
//! two rows. In a merge one row stands for its key, however often it is read.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{filter_record_batch, max, max_string, not};
use arrow::datatypes::{
    DataType, Date32Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use arrow::row::{RowConverter, SortField};
use futures::TryStreamExt;
use polder_core::evolution::continued;
use polder_core::{CursorValue, Error, ErrorCode, LakeType, Result, TableSchema};
use polder_lake::{CmpOp, LakeTable, Literal, Predicate, ScanRequest};

use super::conform::widen;
use super::merge::Keys;

/// The rows of the table at or above the low-water mark.
#[derive(Default)]
pub(super) struct Known {
    rows: Vec<Mutex<Rows>>,
    /// In a merge whose keys may stand twice in the source: the keys of recognised rows.
    again: Option<Again>,
}

struct Again {
    keys: Arc<Keys>,
    met: Mutex<HashSet<Box<[u8]>>>,
}

struct Rows {
    /// What rows are told apart by, under the names and in the types that the table has after the run.
    columns: Vec<Compared>,
    converter: RowConverter,
    /// How often each row is stored and was not read again yet.
    unread: HashMap<Box<[u8]>, u64>,
    /// Whether a stored row is recognised once only.
    once: bool,
}

struct Compared {
    name: String,
    data_type: DataType,
    /// Its name in the table as it is; `None` for a column that is new.
    stored: Option<String>,
}

/// The rows of a table that may be read again.
#[derive(Clone, Copy)]
pub(super) struct Overlap<'a> {
    pub(super) table: &'a LakeTable,
    /// The table's after the run: its columns may have other names by then, or wider types.
    pub(super) schema: &'a TableSchema,
    pub(super) cursor: &'a str,
    pub(super) lower: &'a CursorValue,
}

/// Which of them, by their cursor.
#[derive(Clone, Copy, PartialEq)]
enum Which {
    /// At least the low-water mark.
    Since,
    /// None.
    Null,
    Either,
}

impl Known {
    /// For rows that are added: told apart by key and cursor; by the whole row if `key` is empty.
    pub(super) async fn of_append(overlap: Overlap<'_>, key: &[String]) -> Result<Self> {
        let rows = overlap.load(key, Which::Either, true).await?;
        Ok(Self { rows: vec![Mutex::new(rows)], again: None })
    }

    /// For rows that are merged. Those without a cursor value, and all if it is `coarse`, are told
    /// apart by the whole row: their cursor does not tell a change. `unique`: see
    /// [`polder_core::ReadPlan::key_is_unique`].
    pub(super) async fn of_merge(
        overlap: Overlap<'_>,
        keys: &Arc<Keys>,
        coarse: bool,
        unique: bool,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        if coarse {
            rows.push(Mutex::new(overlap.load(&[], Which::Either, false).await?));
        } else {
            rows.push(Mutex::new(overlap.load(keys.columns(), Which::Since, false).await?));
            rows.push(Mutex::new(overlap.load(&[], Which::Null, false).await?));
        }
        let again = (!unique).then(|| Again { keys: Arc::clone(keys), met: Mutex::default() });
        Ok(Self { rows, again })
    }

    /// The batch without the rows that are stored already.
    pub(super) fn without(&self, mut records: RecordBatch) -> Result<RecordBatch> {
        let split = |error| failed("filter known rows", error);
        for rows in &self.rows {
            let new = {
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                if rows.unread.is_empty() {
                    continue;
                }
                rows.mark(&records)?
            };
            if let Some(Again { keys, met }) = &self.again {
                let known = not(&new).map_err(split)?;
                let known = keys.of(&filter_record_batch(&records, &known).map_err(split)?)?;
                let mut met = met.lock().unwrap_or_else(PoisonError::into_inner);
                met.extend(known.iter().map(|key| Box::from(key.as_ref())));
            }
            records = filter_record_batch(&records, &new).map_err(split)?;
        }
        Ok(records)
    }

    /// The keys of the rows that were recognised, where they may stand twice in the source.
    pub(super) fn take_again(&self) -> HashSet<Box<[u8]>> {
        self.again.as_ref().map_or_else(HashSet::new, |again| {
            std::mem::take(&mut again.met.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }
}

impl Overlap<'_> {
    async fn load(self, key: &[String], which: Which, once: bool) -> Result<Rows> {
        let Overlap { table, schema, cursor, lower } = self;
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
        let fields = columns.iter().map(|column| SortField::new(column.data_type.clone()));
        let converter = RowConverter::new(fields.collect())
            .map_err(|error| failed("compare rows of this type", error))?;
        let since = || Predicate::Cmp {
            column: stored_cursor.name.clone(),
            op: CmpOp::GtEq,
            value: literal(lower, &stored_cursor.data_type),
        };
        let null = || Predicate::IsNull(stored_cursor.name.clone());
        let request = ScanRequest {
            snapshot: None,
            filter: match which {
                Which::Since => since(),
                Which::Null => null(),
                Which::Either => Predicate::Or(Box::new(since()), Box::new(null())),
            },
            columns: Some(columns.iter().filter_map(|column| column.stored.clone()).collect()),
        };
        let mut rows = Rows { columns, converter, unread: HashMap::new(), once };
        let mut stored = table.read(request).await?;
        while let Some(records) = stored.try_next().await? {
            rows.remember(&records)?;
        }
        Ok(rows)
    }
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
            Some(_) if !self.once => Some(false),
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

pub(super) fn found<'a>(records: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
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

pub(super) fn failed(what: &str, error: arrow::error::ArrowError) -> Error {
    Error::new(ErrorCode::Internal, format!("cannot {what}")).caused_by(error)
}
