//! Texts of the lake as views while a query runs, and as plain texts in its answer.
//!
//! A view is sixteen bytes: a short text itself, or the beginning of a longer one and where it lies. Of a file's
//! dictionary a column of them is made without copying a text for each row, and most comparisons look no further.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::error::Result;

/// A table's columns as its scans give them: texts are views, but for those inside of others.
pub(super) fn of(table: &SchemaRef) -> SchemaRef {
    with_fields(table, |field| match field.data_type() {
        DataType::Utf8 => typed(field, DataType::Utf8View),
        _ => Arc::clone(field),
    })
}

/// Whether `views` are those of `plain` values.
pub(super) fn is_of(views: &DataType, plain: &DataType) -> bool {
    matches!((views, plain), (DataType::Utf8View, DataType::Utf8))
}

/// The columns of an answer: no views of texts, at any depth.
pub(super) fn answered(schema: &SchemaRef) -> SchemaRef {
    with_fields(schema, plain_field)
}

fn with_fields(schema: &SchemaRef, field: impl Fn(&FieldRef) -> FieldRef) -> SchemaRef {
    let fields: Fields = schema.fields().iter().map(field).collect();
    if fields == *schema.fields() {
        return Arc::clone(schema);
    }
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn typed(field: &FieldRef, data_type: DataType) -> FieldRef {
    Arc::new(Field::clone(field).with_data_type(data_type))
}

fn plain_field(field: &FieldRef) -> FieldRef {
    typed(field, plain(field.data_type()))
}

/// The type of a value in an answer.
pub(super) fn plain(of: &DataType) -> DataType {
    match of {
        DataType::Utf8View => DataType::Utf8,
        DataType::List(item) => DataType::List(plain_field(item)),
        DataType::LargeList(item) => DataType::LargeList(plain_field(item)),
        DataType::FixedSizeList(item, length) => {
            DataType::FixedSizeList(plain_field(item), *length)
        }
        DataType::Struct(members) => DataType::Struct(members.iter().map(plain_field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(plain_field(entries), *sorted),
        other => other.clone(),
    }
}

/// A batch in the columns that [`answered`] has made of its own.
///
/// # Errors
/// Arrow's, for texts of more than 2 GB in one batch.
pub(super) fn answer(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    let one = |(column, field): (&ArrayRef, &FieldRef)| match column.data_type() {
        same if same == field.data_type() => Ok(Arc::clone(column)),
        _ => cast(column, field.data_type()),
    };
    let columns = batch.columns().iter().zip(schema.fields()).map(one);
    let columns = columns.collect::<Result<_, ArrowError>>()?;
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &rows)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, Int64Array, ListArray, StringViewArray};
    use arrow::buffer::OffsetBuffer;

    use super::*;

    #[test]
    fn an_answer_has_plain_texts_at_any_depth() {
        let texts = StringViewArray::from(vec![Some("a"), None, Some("longer than twelve bytes")]);
        let item = Arc::new(Field::new_list_field(DataType::Utf8View, true));
        let offsets = OffsetBuffer::from_lengths([2, 0, 1]);
        let lists = ListArray::new(item, offsets, Arc::new(texts.clone()), None);
        let batch = RecordBatch::try_from_iter([
            ("n", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
            ("t", Arc::new(texts)),
            ("l", Arc::new(lists)),
        ])
        .expect("a batch");
        let schema = answered(&batch.schema());
        let answer = answer(batch.clone(), &schema).expect("an answer");
        assert_eq!(answer.column(0), batch.column(0));
        let texts = answer.column(1).as_string::<i32>();
        assert_eq!((texts.value(0), texts.value(2)), ("a", "longer than twelve bytes"));
        assert!(texts.is_null(1));
        let first = answer.column(2).as_list::<i32>().value(0);
        assert_eq!(first.as_string::<i32>().value(0), "a");
        assert_eq!(of(&schema).field(1).data_type(), &DataType::Utf8View);
        assert!(Arc::ptr_eq(&answered(&schema), &schema), "nothing to do");
    }
}
