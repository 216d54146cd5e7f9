//! Rows of answers as people and programs outside Arrow read them.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use polder_core::{Error, ErrorCode, Result};
use serde_json::Value;

/// UUIDs as people write them instead of 16 bytes in hex.
pub(crate) fn readable(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        DataType::FixedSizeBinary(16) => uuid_text(column),
        _ => Arc::clone(column),
    });
    RecordBatch::try_new(readable_schema(batch.schema_ref()), columns.collect()).map_err(failed)
}

pub(crate) fn readable_schema(schema: &SchemaRef) -> SchemaRef {
    let field = |field: &Arc<Field>| match field.data_type() {
        DataType::FixedSizeBinary(16) => {
            Field::new(field.name(), DataType::Utf8, field.is_nullable())
        }
        _ => field.as_ref().clone(),
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn uuid_text(column: &ArrayRef) -> ArrayRef {
    let values = column.as_fixed_size_binary().iter();
    let texts = values
        .map(|value| value.and_then(|v| uuid::Uuid::from_slice(v).ok()).map(|id| id.to_string()));
    Arc::new(texts.collect::<StringArray>())
}

/// A batch as JSON objects, one a row, nulls included.
pub(crate) fn objects(batch: &RecordBatch) -> Result<Vec<Value>> {
    let mut text = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(&mut text);
    writer.write(&readable(batch)?).and_then(|()| writer.finish()).map_err(failed)?;
    drop(writer);
    serde_json::from_slice(&text)
        .map_err(|cause| Error::new(ErrorCode::Internal, "the answer is no JSON").caused_by(cause))
}

/// An answer cut off by its reader (`| head`) is not an error.
pub(crate) fn failed(error: ArrowError) -> Error {
    Error::new(ErrorCode::QueryFailed, "the answer cannot be printed").caused_by(error)
}
