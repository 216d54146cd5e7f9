//! Keys and cursors as bytes that compare like the values, so that rows of any key types are told
//! apart in the same way in the source, in staged files and in the table.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::row::{RowConverter, Rows, SortField};
use polder_core::spec::TableSpec;
use polder_core::{Error, ErrorCode, LakeType, Result, TableSchema};

use crate::ingest::known::{failed, found};

/// The bytes of one key, or of one cursor value.
pub(super) type Bytes = Box<[u8]>;

/// The columns that a merge goes by, under the names and in the types that the table has after the
/// run.
pub(crate) struct Keys {
    pub(super) columns: Vec<String>,
    pub(super) cursor: String,
    deleted_at: Option<String>,
    key_rows: RowConverter,
    cursor_rows: RowConverter,
}

/// The keys and cursors of a batch's rows.
pub(super) struct Encoded {
    pub(super) keys: Rows,
    pub(super) cursors: Rows,
}

impl Keys {
    /// # Errors
    /// `spec.invalid` for a key of a type whose values are not told apart exactly, or no cursor;
    /// `spec.unknown_name` for a column that the schema lacks.
    pub(crate) fn new(spec: &TableSpec, schema: &TableSchema) -> Result<Self> {
        let column = |name: &String| {
            schema.field(name).ok_or_else(|| {
                let message = format!("the source table has no column {name:?}");
                Error::new(ErrorCode::SpecUnknownName, message)
            })
        };
        let mut key_fields = Vec::with_capacity(spec.key.len());
        for name in &spec.key {
            let field = column(name)?;
            if !tells_apart(&field.data_type) {
                let message =
                    format!("column {name:?} of type {} cannot be a key", field.data_type);
                return Err(Error::new(ErrorCode::SpecInvalid, message).hint(
                    "a merge needs integers, decimals, texts, uuids, dates, times or bytes",
                ));
            }
            key_fields.push(SortField::new(field.data_type.to_arrow()));
        }
        let (Some(cursor), false) = (&spec.cursor, key_fields.is_empty()) else {
            return Err(Error::new(ErrorCode::SpecInvalid, "mode: merge needs a key and a cursor")
                .hint("name them: key: [id], cursor: updated_at"));
        };
        let of = |fields| RowConverter::new(fields).map_err(|error| failed("compare keys", error));
        Ok(Self {
            columns: spec.key.clone(),
            cursor: cursor.clone(),
            // Where it is not known, no row has a value there.
            deleted_at: spec.deleted_at.clone().filter(|name| schema.field(name).is_some()),
            key_rows: of(key_fields)?,
            cursor_rows: of(vec![SortField::new(column(cursor)?.data_type.to_arrow())])?,
        })
    }

    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The key's columns, then the cursor if it is none of them.
    pub(super) fn names(&self) -> Vec<String> {
        let cursor = Some(&self.cursor).filter(|cursor| !self.columns.contains(cursor));
        self.columns.iter().chain(cursor).cloned().collect()
    }

    /// # Errors
    /// `source.unrepresentable` for a row without a value in a key column.
    pub(crate) fn check(&self, records: &RecordBatch) -> Result<()> {
        for name in &self.columns {
            if found(records, name)?.null_count() > 0 {
                let message = format!("a row has no value in the key column {name:?}");
                return Err(Error::new(ErrorCode::SourceUnrepresentable, message).hint(
                    "rows are merged by their key: leave such rows out by `filter`, or name a \
                     key that every row has",
                ));
            }
        }
        Ok(())
    }

    /// The column that marks rows as deleted, in a batch.
    pub(crate) fn marks<'a>(&self, records: &'a RecordBatch) -> Result<Option<&'a ArrayRef>> {
        self.deleted_at.as_ref().map(|name| found(records, name)).transpose()
    }

    /// Of a batch that has the columns under their names.
    pub(super) fn encode(&self, records: &RecordBatch) -> Result<Encoded> {
        let cursor = found(records, &self.cursor)?;
        let cursors = self.cursor_rows.convert_columns(std::slice::from_ref(cursor));
        Ok(Encoded {
            keys: self.of(records)?,
            cursors: cursors.map_err(|error| failed("compare cursors", error))?,
        })
    }

    /// The keys of a batch's rows.
    pub(crate) fn of(&self, records: &RecordBatch) -> Result<Rows> {
        let keys = self.columns.iter().map(|name| found(records, name).cloned());
        let keys: Vec<ArrayRef> = keys.collect::<Result<_>>()?;
        self.key_rows.convert_columns(&keys).map_err(|error| failed("compare keys", error))
    }

    /// The values of keys, a column each.
    pub(super) fn decode<'a>(
        &self,
        keys: impl Iterator<Item = &'a Bytes>,
    ) -> Result<Vec<ArrayRef>> {
        let parser = self.key_rows.parser();
        let rows = keys.map(|key| parser.parse(key));
        self.key_rows.convert_rows(rows).map_err(|error| failed("read keys", error))
    }
}

/// Whether equal values of the type are equal bytes. Zero has two signs in a float.
fn tells_apart(data_type: &LakeType) -> bool {
    !matches!(
        data_type,
        LakeType::Float | LakeType::Double | LakeType::List(_) | LakeType::Struct(_)
    )
}

/// One of several parts that keys fall into, whatever their order.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) index: u64,
    pub(super) of: u64,
}

impl Part {
    pub(super) fn has(self, key: &[u8]) -> bool {
        // Of one hasher for all parts; its keys are fixed.
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        self.of == 1 || hasher.hash_one(key) % self.of == self.index
    }
}

/// Rows that are marked as deleted, by their keys, with the newest cursor of each.
pub(super) type Marked = HashMap<Bytes, Bytes>;
