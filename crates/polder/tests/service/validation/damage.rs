//! Ways to alter rows of a batch.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray, PrimitiveArray,
    RecordBatch, StringArray, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::Int32Type;

/// The batch with another column of a name.
pub(super) fn with(batch: &RecordBatch, name: &str, array: ArrayRef) -> RecordBatch {
    let index = batch.schema().index_of(name).unwrap();
    let mut columns = batch.columns().to_vec();
    columns[index] = array;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

pub(super) fn ids(batch: &RecordBatch) -> Vec<i32> {
    batch.column_by_name("id").unwrap().as_primitive::<Int32Type>().values().to_vec()
}

/// The place of the row with an id.
pub(super) fn place(batch: &RecordBatch, id: i32) -> usize {
    ids(batch).iter().position(|found| *found == id).unwrap()
}

/// The rows whose ids fulfil a condition, in their order.
pub(super) fn only(batch: &RecordBatch, keep: impl Fn(i32) -> bool) -> RecordBatch {
    let ids = ids(batch);
    let kept = (0..ids.len() as u32).filter(|row| keep(ids[*row as usize]));
    take_record_batch(batch, &kept.collect::<UInt32Array>()).unwrap()
}

/// Alters the numbers of some rows.
pub(super) fn numbers<T: ArrowPrimitiveType>(
    batch: &RecordBatch,
    name: &str,
    of: impl Fn(i32) -> bool,
    alter: impl Fn(T::Native) -> Option<T::Native>,
) -> RecordBatch {
    let array = batch.column_by_name(name).unwrap().as_primitive::<T>();
    let ids = ids(batch);
    let values = array.iter().zip(ids);
    let altered: PrimitiveArray<T> =
        values.map(|(value, id)| if of(id) { value.and_then(&alter) } else { value }).collect();
    with(batch, name, Arc::new(altered.with_data_type(array.data_type().clone())))
}

/// Alters the texts of some rows, nulls included.
pub(super) fn texts(
    batch: &RecordBatch,
    name: &str,
    of: impl Fn(i32) -> bool,
    alter: impl Fn(Option<&str>) -> Option<String>,
) -> RecordBatch {
    let array = batch.column_by_name(name).unwrap().as_string::<i32>();
    let values = array.iter().zip(ids(batch));
    let altered: StringArray = values
        .map(|(value, id)| if of(id) { alter(value) } else { value.map(str::to_owned) })
        .collect();
    with(batch, name, Arc::new(altered))
}

pub(super) fn booleans(
    batch: &RecordBatch,
    name: &str,
    of: impl Fn(i32) -> bool,
    alter: impl Fn(bool) -> Option<bool>,
) -> RecordBatch {
    let array = batch.column_by_name(name).unwrap().as_boolean();
    let values = array.iter().zip(ids(batch));
    let altered: BooleanArray =
        values.map(|(value, id)| if of(id) { value.and_then(&alter) } else { value }).collect();
    with(batch, name, Arc::new(altered))
}

pub(super) fn bytes(
    batch: &RecordBatch,
    name: &str,
    of: impl Fn(i32) -> bool,
    alter: impl Fn(&[u8]) -> Vec<u8>,
) -> RecordBatch {
    let array = batch.column_by_name(name).unwrap().as_binary::<i32>();
    let values = array.iter().zip(ids(batch));
    let altered: Vec<Option<Vec<u8>>> = values
        .map(|(value, id)| value.map(|value| if of(id) { alter(value) } else { value.to_vec() }))
        .collect();
    let altered: BinaryArray = altered.iter().map(Option::as_deref).collect();
    with(batch, name, Arc::new(altered))
}

/// Gives a column of some row what another row has there.
pub(super) fn taken_from(batch: &RecordBatch, name: &str, to: i32, from: i32) -> RecordBatch {
    let rows = batch.num_rows() as u32;
    let (to, from) = (place(batch, to) as u32, place(batch, from) as u32);
    let places: UInt32Array = (0..rows).map(|row| if row == to { from } else { row }).collect();
    let column = batch.column_by_name(name).unwrap();
    with(batch, name, arrow::compute::take(column, &places, None).unwrap())
}
