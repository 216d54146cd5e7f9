//! The keys that a table has: where to look for some, and reading them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::sort;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit,
    TimestampMicrosecondType,
};
use polder_core::evolution::continued;
use polder_core::{Error, ErrorCode, Result, TableSchema};
use polder_lake::{CmpOp, LakeTable, Literal, PlacedStream, Predicate, ScanRequest};
use uuid::Uuid;

use super::keys::{Bytes, Keys};
use crate::ingest::conform::widen;
use crate::ingest::known::{failed, found};

/// Ranges of values that files are chosen by, for each column of a key. More of them leave out more
/// files, and make the choice dearer.
const RANGES_MAX: usize = 32;

/// Where the columns of a merge's keys stand in a table.
pub(super) struct Stored<'a> {
    table: &'a LakeTable,
    keys: &'a Keys,
    /// The names that the columns have in the table as it is: the key's, then the cursor.
    names: Vec<String>,
    /// What they are brought to: names and types after the run.
    layout: SchemaRef,
}

impl<'a> Stored<'a> {
    pub(super) fn of(table: &'a LakeTable, schema: &TableSchema, keys: &'a Keys) -> Result<Self> {
        let present = table.schema();
        let (mut names, mut fields) = (Vec::new(), Vec::new());
        for name in keys.names() {
            let field = schema.field(&name);
            let stored = field.and_then(|field| continued(&present, field));
            let (Some(field), Some(stored)) = (field, stored) else {
                return Err(Error::new(ErrorCode::Internal, "the table lacks a column of the key")
                    .detail(format!("column {name:?}")));
            };
            names.push(stored.name.clone());
            fields.push(Field::new(&field.name, field.data_type.to_arrow(), true));
        }
        Ok(Self { table, keys, names, layout: Arc::new(Schema::new(fields)) })
    }

    /// True for at least the rows that have one of the keys.
    pub(super) fn among<'k>(
        &self,
        keys: impl ExactSizeIterator<Item = &'k Bytes>,
    ) -> Result<Predicate> {
        let mut filter = Predicate::True;
        for (column, name) in self.keys.decode(keys)?.iter().zip(&self.names) {
            filter = filter.and(ranges(column, name)?);
        }
        Ok(filter)
    }

    /// The rows, with their places, of files that may hold one that `filter` matches.
    pub(super) async fn read(&self, filter: Predicate) -> Result<PlacedStream> {
        let columns = Some(self.names.clone());
        self.table.read_placed(ScanRequest { snapshot: None, filter, columns }).await
    }

    /// A batch of the table's rows under the names and in the types after the run.
    pub(super) fn adapt(&self, records: &RecordBatch) -> Result<RecordBatch> {
        let columns = self
            .names
            .iter()
            .zip(self.layout.fields())
            .map(|(name, field)| widen(found(records, name)?, field.data_type()));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        RecordBatch::try_new(Arc::clone(&self.layout), columns)
            .map_err(|error| failed("bring stored keys into the layout of the run", error))
    }
}

/// The values of a column, as a few ranges with the gaps between them.
fn ranges(column: &ArrayRef, name: &str) -> Result<Predicate> {
    let sorted = sort(column, None).map_err(|error| failed("sort keys", error))?;
    let mut any: Option<Predicate> = None;
    let rows = sorted.len();
    let count = rows.min(RANGES_MAX);
    for range in 0..count {
        let (first, last) = (range * rows / count, (range + 1) * rows / count - 1);
        let (Some(first), Some(last)) = (literal(&sorted, first), literal(&sorted, last)) else {
            return Ok(Predicate::True);
        };
        let bound = |op, value| Predicate::Cmp { column: name.to_owned(), op, value };
        let within = bound(CmpOp::GtEq, first).and(bound(CmpOp::LtEq, last));
        any = Some(match any {
            Some(others) => Predicate::Or(Box::new(others), Box::new(within)),
            None => within,
        });
    }
    Ok(any.unwrap_or(Predicate::True))
}

/// A value as files are chosen by it; `None` for types that they are not chosen by.
fn literal(array: &ArrayRef, row: usize) -> Option<Literal> {
    Some(match array.data_type() {
        DataType::Int32 => Literal::Int(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => Literal::Long(array.as_primitive::<Int64Type>().value(row)),
        DataType::Date32 => Literal::Date(array.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
            if zone.is_some() { Literal::Timestamptz(micros) } else { Literal::Timestamp(micros) }
        }
        DataType::Utf8 => Literal::String(array.as_string::<i32>().value(row).to_owned()),
        DataType::FixedSizeBinary(16) => {
            Literal::Uuid(Uuid::from_slice(array.as_fixed_size_binary().value(row)).ok()?)
        }
        DataType::Decimal128(precision, scale) => Literal::Decimal {
            unscaled: array.as_primitive::<Decimal128Type>().value(row),
            precision: *precision,
            scale: u8::try_from(*scale).ok()?,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn wanted(filter: &Predicate, column: &str, values: ArrayRef) -> Vec<bool> {
        let batch = RecordBatch::try_from_iter([(column, values)]).expect("batch");
        filter.matches(&batch).expect("filter").iter().map(|found| found == Some(true)).collect()
    }

    #[test]
    fn ranges_hold_every_key_and_leave_gaps() {
        let keys: Vec<i64> =
            (0..100).map(|n| if n < 50 { n } else { 1_000_000 + n }).rev().collect();
        let all: ArrayRef = Arc::new(Int64Array::from(keys));
        let filter = ranges(&all, "id").expect("ranges");
        assert!(wanted(&filter, "id", all).into_iter().all(|found| found));
        let others: ArrayRef = Arc::new(Int64Array::from(vec![-1, 500, 999_999, 1_000_100]));
        assert_eq!(wanted(&filter, "id", others), [false; 4]);
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["b", "a", "z"]));
        let filter = ranges(&texts, "id").expect("ranges");
        let asked: ArrayRef = Arc::new(StringArray::from(vec!["a", "aa", "b", "z", "zz"]));
        assert_eq!(wanted(&filter, "id", asked), [true, false, true, true, false]);
    }
}
