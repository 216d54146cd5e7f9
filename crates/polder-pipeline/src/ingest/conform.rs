//! Brings a source's batches into the table's layout: columns by name, missing ones null, narrower
//! types widened. Nothing that could lose a value happens here: what does not fit is an error.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ListArray, RecordBatch, RecordBatchOptions, StructArray, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field as ArrowField, FieldRef, SchemaRef};
use polder_core::{Error, ErrorCode, Field, LakeType, Result, TableSchema};

/// How to bring batches of one schema into another. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Conform {
    from: SchemaRef,
    to: SchemaRef,
    /// The read column of each table column; `None` where the source has no such column.
    columns: Arc<[Option<usize>]>,
    same: bool,
}

impl Conform {
    /// # Errors
    /// `internal` when a column cannot be widened, or would get nulls that it may not have: the
    /// evolution rules let such a change through only by mistake.
    pub(crate) fn new(from: &TableSchema, to: &TableSchema) -> Result<Self> {
        // Of thousands of columns too, each is looked up once.
        let read: HashMap<&str, usize> =
            from.fields.iter().enumerate().map(|(at, field)| (field.name.as_str(), at)).collect();
        let position = |field: &Field| read.get(field.name.as_str()).copied();
        for field in &to.fields {
            let fits = match position(field) {
                Some(at) => widens(&from.fields[at], field),
                None => field.nullable,
            };
            if !fits {
                return Err(mismatch(&field.name));
            }
        }
        let kept: HashSet<&str> = to.fields.iter().map(|field| field.name.as_str()).collect();
        if let Some(extra) = from.fields.iter().find(|field| !kept.contains(field.name.as_str())) {
            return Err(mismatch(&extra.name));
        }
        let (from_arrow, to_arrow) = (from.to_arrow(), to.to_arrow());
        Ok(Self {
            same: from_arrow == to_arrow,
            columns: to.fields.iter().map(position).collect(),
            from: from_arrow,
            to: to_arrow,
        })
    }

    pub(crate) fn apply(&self, records: RecordBatch) -> Result<RecordBatch> {
        if *records.schema_ref() != self.from && !same_types(&records, &self.from) {
            return Err(Error::new(
                ErrorCode::Internal,
                "a batch does not have the layout its plan announced",
            ));
        }
        if self.same {
            return Ok(records);
        }
        let rows = records.num_rows();
        let columns = self.columns.iter().zip(self.to.fields()).map(|(index, field)| match index {
            Some(index) => widen(records.column(*index), field.data_type()),
            None => Ok(new_null_array(field.data_type(), rows)),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.to), columns, &options)
            .map_err(|error| failed("a batch cannot be brought into the table's layout", error))
    }
}

fn same_types(records: &RecordBatch, schema: &SchemaRef) -> bool {
    records.num_columns() == schema.fields().len()
        && records
            .schema_ref()
            .fields()
            .iter()
            .zip(schema.fields())
            .all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type())
}

fn widens(read: &Field, table: &Field) -> bool {
    let types = match (&read.data_type, &table.data_type) {
        (LakeType::List(a), LakeType::List(b)) => widens(a, b),
        (LakeType::Struct(a), LakeType::Struct(b)) => {
            let known = |field: &Field| b.iter().any(|t| t.name == field.name && widens(field, t));
            let filled = |field: &Field| field.nullable || a.iter().any(|r| r.name == field.name);
            a.iter().all(known) && b.iter().all(filled)
        }
        (a, b) => a.promotes_to(b),
    };
    types && (table.nullable || !read.nullable)
}

/// The same values as `to`: a wider type, or a list or struct of such, members by name.
pub(crate) fn widen(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    match to {
        to if array.data_type() == to => Ok(Arc::clone(array)),
        DataType::List(element) => widen_list(array, element),
        DataType::Struct(fields) => widen_struct(array, fields),
        to => {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(array, to, &options)
                .map_err(|error| failed("a column cannot be widened", error))
        }
    }
}

fn widen_list(array: &ArrayRef, element: &FieldRef) -> Result<ArrayRef> {
    let list = array.as_any().downcast_ref::<ListArray>().ok_or_else(|| mismatch("a list"))?;
    let values = widen(list.values(), element.data_type())?;
    let (offsets, nulls) = (list.offsets().clone(), list.nulls().cloned());
    let list = ListArray::try_new(Arc::clone(element), offsets, values, nulls)
        .map_err(|error| failed("a list cannot be widened", error))?;
    Ok(Arc::new(list))
}

fn widen_struct(array: &ArrayRef, fields: &[Arc<ArrowField>]) -> Result<ArrayRef> {
    let read = array.as_any().downcast_ref::<StructArray>().ok_or_else(|| mismatch("a struct"))?;
    let members = fields.iter().map(|field| match read.column_by_name(field.name()) {
        Some(member) => widen(member, field.data_type()),
        None => Ok(new_null_array(field.data_type(), read.len())),
    });
    let members = members.collect::<Result<Vec<_>>>()?;
    let wide = StructArray::try_new(fields.into(), members, read.nulls().cloned())
        .map_err(|error| failed("a struct cannot be widened", error))?;
    Ok(Arc::new(wide))
}

fn mismatch(column: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("column {column:?} does not fit the table's layout"))
}

fn failed(what: &str, error: arrow::error::ArrowError) -> Error {
    Error::new(ErrorCode::Internal, what).caused_by(error)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int32Array, StringArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn schema(fields: &[(&str, LakeType)]) -> TableSchema {
        TableSchema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone())).collect())
    }

    #[test]
    fn columns_go_by_name_widen_and_fill_with_nulls() {
        let nested = |fields: &[&str]| {
            LakeType::Struct(fields.iter().map(|n| Field::new(*n, LakeType::Int)).collect())
        };
        let from = schema(&[("s", nested(&["b"])), ("id", LakeType::Int)]);
        let to = schema(&[
            ("id", LakeType::Long),
            ("s", nested(&["a", "b"])),
            ("late", LakeType::String),
        ]);
        let ids: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
        let DataType::Struct(fields) = nested(&["b"]).to_arrow() else { panic!("struct") };
        let s: ArrayRef = Arc::new(StructArray::new(fields, vec![Arc::clone(&ids)], None));
        let records = RecordBatch::try_new(from.to_arrow(), vec![s, ids]).expect("batch");
        let out = Conform::new(&from, &to).expect("fits").apply(records).expect("conforms");
        assert_eq!(out.schema(), to.to_arrow());
        let id = out.column(0).as_primitive::<Int64Type>();
        assert_eq!((id.value(0), id.is_null(1)), (1, true));
        assert_eq!(out.column(1).as_struct().column(0).null_count(), 2);
        assert_eq!(out.column(2).null_count(), 2);
    }

    #[test]
    fn what_would_lose_values_is_refused() {
        let check = |from: LakeType, to: Field| {
            Conform::new(&schema(&[("a", from)]), &TableSchema::new(vec![to])).is_err()
        };
        assert!(check(LakeType::Long, Field::new("a", LakeType::Int)));
        assert!(check(LakeType::Int, Field::new("a", LakeType::String)));
        assert!(check(LakeType::Int, Field::new("a", LakeType::Int).required()));
        assert!(check(LakeType::Int, Field::new("b", LakeType::Int)));
        let from = schema(&[("a", LakeType::Int)]);
        let conform = Conform::new(&from, &from).expect("fits");
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        let wrong = RecordBatch::try_from_iter([("a", text)]).expect("batch");
        assert_eq!(conform.apply(wrong).expect_err("layout").code(), ErrorCode::Internal);
    }
}
