//! Rows by their age: which are older than a moment, in whatever type their column has.

use std::collections::HashSet;

use arrow::array::RecordBatch;
use arrow::compute::filter_record_batch;
use polder_core::{Error, ErrorCode, LakeType, Result, TableSchema};

use crate::error;
use crate::scan::ScanRequest;
use crate::schema;
use crate::table::LakeTable;
use crate::{CmpOp, Literal, Predicate};

const DAY_MICROS: i64 = 86_400_000_000;

/// Rows whose date or timestamp in a column lies before a moment. Those without a value do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsBefore {
    pub column: String,
    /// Microseconds since the epoch; UTC for columns that know no zone.
    pub micros: i64,
}

impl RowsBefore {
    /// True for such rows.
    ///
    /// # Errors
    /// `spec.unknown_name` if there is no such column; `spec.invalid` if it holds no times.
    pub fn older(&self, columns: &TableSchema) -> Result<Predicate> {
        self.compare(CmpOp::Lt, columns)
    }

    /// True for all other rows.
    ///
    /// # Errors
    /// As [`Self::older`].
    pub fn others(&self, columns: &TableSchema) -> Result<Predicate> {
        let younger = self.compare(CmpOp::GtEq, columns)?;
        let none = Predicate::IsNull(self.column.clone());
        Ok(Predicate::Or(Box::new(younger), Box::new(none)))
    }

    /// The other rows of a batch.
    ///
    /// # Errors
    /// As [`Self::older`].
    pub fn without(&self, columns: &TableSchema, batch: &RecordBatch) -> Result<RecordBatch> {
        let wanted = self.others(columns)?.matches(batch)?;
        filter_record_batch(batch, &wanted)
            .map_err(|cause| error::arrow("leave out rows that are too old", cause))
    }

    fn compare(&self, op: CmpOp, columns: &TableSchema) -> Result<Predicate> {
        let field = columns.field(&self.column).ok_or_else(|| {
            let message = format!("retention goes by column {:?}, which is not there", self.column);
            let names: Vec<&str> = columns.fields.iter().map(|field| field.name.as_str()).collect();
            Error::new(ErrorCode::SpecUnknownName, message)
                .hint(format!("the table's columns are: {}", names.join(", ")))
        })?;
        let value = literal(&field.data_type, self.micros).ok_or_else(|| {
            let message =
                format!("retention goes by column {:?}, which holds no times", self.column);
            Error::new(ErrorCode::SpecInvalid, message)
                .hint("choose a column of type date, timestamp or timestamptz")
        })?;
        Ok(Predicate::Cmp { column: self.column.clone(), op, value })
    }

    /// The snapshots of a table whose files hold such rows, or may: deleted rows are held, too.
    pub(crate) async fn held_by(&self, table: &LakeTable) -> Result<HashSet<i64>> {
        let mut found = HashSet::new();
        let now = table.iceberg_schema(None)?;
        let Some(id) = now.field_id_by_name(&self.column) else { return Ok(found) };
        for snapshot in table.metadata().snapshots().map(|snapshot| snapshot.snapshot_id()) {
            // The column may have had another name and type then, or not been there.
            let schema = table.iceberg_schema(Some(snapshot))?;
            let Some(then) = schema.as_struct().field_by_id(id) else { continue };
            let Some(value) = literal(&schema::lake_type(&then.field_type)?, self.micros) else {
                continue;
            };
            let filter = Predicate::Cmp { column: then.name.clone(), op: CmpOp::Lt, value };
            let scan = ScanRequest { snapshot: Some(snapshot), filter, columns: None };
            if !table.plan(scan).await?.files.is_empty() {
                found.insert(snapshot);
            }
        }
        Ok(found)
    }
}

/// The moment in a column's type; of a date column the day that begins then or after.
fn literal(data_type: &LakeType, micros: i64) -> Option<Literal> {
    Some(match data_type {
        LakeType::Date => {
            let days = micros.div_euclid(DAY_MICROS) + i64::from(micros % DAY_MICROS != 0);
            Literal::Date(i32::try_from(days).unwrap_or(i32::MIN))
        }
        LakeType::Timestamp => Literal::Timestamp(micros),
        LakeType::Timestamptz => Literal::Timestamptz(micros),
        _ => return None,
    })
}
