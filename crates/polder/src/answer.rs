//! Rows of answers as people and programs outside Arrow read them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use polder_core::{Error, ErrorCode, Result};
use serde_json::Value;

/// UUIDs as people write them instead of 16 bytes in hex, and keys of maps as texts: JSON has no others.
pub(crate) fn readable(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        DataType::FixedSizeBinary(16) => Ok(uuid_text(column)),
        map @ DataType::Map(..) => cast(column, &with_text_keys(map)),
        _ => Ok(Arc::clone(column)),
    });
    let columns = columns.collect::<std::result::Result<_, _>>().map_err(failed)?;
    RecordBatch::try_new(readable_schema(batch.schema_ref()), columns).map_err(failed)
}

pub(crate) fn readable_schema(schema: &SchemaRef) -> SchemaRef {
    let field = |field: &Arc<Field>| match field.data_type() {
        DataType::FixedSizeBinary(16) => {
            Field::new(field.name(), DataType::Utf8, field.is_nullable())
        }
        map @ DataType::Map(..) => {
            Field::new(field.name(), with_text_keys(map), field.is_nullable())
        }
        _ => field.as_ref().clone(),
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn with_text_keys(map: &DataType) -> DataType {
    let DataType::Map(entries, sorted) = map else { return map.clone() };
    let DataType::Struct(members) = entries.data_type() else { return map.clone() };
    let text = |(at, member): (usize, &Arc<Field>)| match at {
        0 => Arc::new(member.as_ref().clone().with_data_type(DataType::Utf8)),
        _ => Arc::clone(member),
    };
    let members = DataType::Struct(members.iter().enumerate().map(text).collect());
    DataType::Map(Arc::new(entries.as_ref().clone().with_data_type(members)), *sorted)
}

fn uuid_text(column: &ArrayRef) -> ArrayRef {
    let values = column.as_fixed_size_binary().iter();
    let texts = values
        .map(|value| value.and_then(|v| uuid::Uuid::from_slice(v).ok()).map(|id| id.to_string()));
    Arc::new(texts.collect::<StringArray>())
}

/// A batch as JSON objects, one a row, nulls included. Decimals are texts: a JSON number is a double to
/// most who read it, and to us.
pub(crate) fn objects(batch: &RecordBatch) -> Result<Vec<Value>> {
    let mut text = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(&mut text);
    let batch = exact(&readable(batch)?)?;
    writer.write(&batch).and_then(|()| writer.finish()).map_err(failed)?;
    drop(writer);
    serde_json::from_slice(&text)
        .map_err(|cause| Error::new(ErrorCode::Internal, "the answer is no JSON").caused_by(cause))
}

/// A batch as JSON objects, one a line, as [`objects`] has them.
pub(crate) fn lines(batch: &RecordBatch) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::LineDelimited>(&mut text);
    let batch = exact(&readable(batch)?)?;
    writer.write(&batch).and_then(|()| writer.finish()).map_err(failed)?;
    drop(writer);
    Ok(text)
}

/// A batch as JSON arrays, one a row, in the columns' order: names may be there twice.
pub(crate) fn arrays(batch: &RecordBatch) -> Result<Vec<Value>> {
    let name = |(at, field): (usize, &Arc<Field>)| {
        Field::new(at.to_string(), field.data_type().clone(), field.is_nullable())
    };
    let fields: Vec<Field> = batch.schema_ref().fields().iter().enumerate().map(name).collect();
    let columns = fields.len();
    let numbered = RecordBatch::try_new_with_options(
        Arc::new(Schema::new(fields)),
        batch.columns().to_vec(),
        &RecordBatchOptions::new().with_row_count(Some(batch.num_rows())),
    );
    let rows = objects(&numbered.map_err(failed)?)?.into_iter();
    Ok(rows.map(|mut row| (0..columns).map(|at| row[at.to_string()].take()).collect()).collect())
}

/// Bytes of a batch's values, whatever memory they share with others: columns that came as one message do.
pub(crate) fn bytes(batch: &RecordBatch) -> usize {
    let column = |column: &ArrayRef| {
        let counted = column.to_data().get_slice_memory_size();
        counted.unwrap_or_else(|_| column.get_array_memory_size())
    };
    batch.columns().iter().map(column).sum()
}

/// Decimals as texts, also inside of lists and structs.
fn exact(batch: &RecordBatch) -> Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let wanted = without_decimals(field.data_type());
        let same = wanted == *field.data_type();
        columns.push(if same {
            Arc::clone(column)
        } else {
            cast(column, &wanted).map_err(failed)?
        });
        fields.push(Field::new(field.name(), wanted, field.is_nullable()));
    }
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &rows).map_err(failed)
}

fn without_decimals(data_type: &DataType) -> DataType {
    let of = |field: &Arc<Field>| {
        let inner = without_decimals(field.data_type());
        Arc::new(Field::new(field.name(), inner, field.is_nullable()))
    };
    match data_type {
        DataType::Decimal128(..) | DataType::Decimal256(..) => DataType::Utf8,
        DataType::List(element) => DataType::List(of(element)),
        DataType::Struct(members) => DataType::Struct(members.iter().map(of).collect()),
        other => other.clone(),
    }
}

/// An answer cut off by its reader (`| head`) is not an error.
pub(crate) fn failed(error: ArrowError) -> Error {
    Error::new(ErrorCode::QueryFailed, "the answer cannot be printed").caused_by(error)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Decimal128Array, Int32Builder, Int64Array, Int64Builder, ListArray, MapBuilder,
    };
    use arrow::datatypes::Int32Type;
    use serde_json::json;

    use super::*;

    #[test]
    fn no_digit_of_a_decimal_is_lost() {
        let decimal = Decimal128Array::from(vec![Some(12_345_678_901_234_567_890_123_456), None])
            .with_precision_and_scale(38, 6)
            .expect("fits");
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1), None]),
            None,
        ]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("n", Arc::new(Int64Array::from(vec![i64::MAX, 0]))),
            ("n", Arc::new(decimal)),
            ("l", Arc::new(lists)),
        ];
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
            .collect();
        let columns = columns.into_iter().map(|(_, column)| column).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("batch");
        let expected =
            [json!([i64::MAX, "12345678901234567890.123456", [1, null]]), json!([0, null, null])];
        assert_eq!(arrays(&batch).expect("rows"), expected);
    }

    #[test]
    fn maps_are_objects_whatever_their_keys_are() {
        let mut maps = MapBuilder::new(None, Int32Builder::new(), Int64Builder::new());
        maps.keys().append_value(7);
        maps.values().append_value(1);
        maps.append(true).expect("a map");
        maps.append(false).expect("no map");
        let maps: ArrayRef = Arc::new(maps.finish());
        let batch = RecordBatch::try_from_iter_with_nullable([("m", maps, true)]).expect("batch");
        let expected = [json!({"m": {"7": 1}}), json!({"m": null})];
        assert_eq!(objects(&batch).expect("rows"), expected);
    }
}
