//! Arrays as the Parquet reader gives them to the plan's types, exactly or not at all.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, PrimitiveArray, RecordBatch, StructArray, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field as ArrowField, Time64MicrosecondType, Time64NanosecondType,
    TimeUnit, TimestampMicrosecondType, TimestampNanosecondType,
};
use arrow::error::ArrowError;
use polder_core::spec::OnUnrepresentable;
use polder_core::{ALTERED_KEYS_MAX, Error, ErrorCode, Field, LakeType, ReadRequest, Result};

use crate::keys;

/// Converts the columns of one batch.
pub(super) struct Conform<'a> {
    request: &'a ReadRequest,
    batch: &'a RecordBatch,
    altered: u64,
    /// The rows of the first few altered values, in the array at hand.
    rows: Vec<usize>,
}

impl<'a> Conform<'a> {
    pub(super) fn new(request: &'a ReadRequest, batch: &'a RecordBatch) -> Self {
        Self { request, batch, altered: 0, rows: Vec::new() }
    }

    /// A top-level column; counts the values that policy changed.
    pub(super) fn column(&mut self, array: &ArrayRef, field: &Field) -> Result<ArrayRef> {
        let converted = self.array(array, &field.data_type, &field.name);
        let progress = &self.request.progress;
        progress.add_altered(&field.name, std::mem::take(&mut self.altered));
        for row in std::mem::take(&mut self.rows) {
            if let Some(key) = self.key(row) {
                progress.add_altered_key(&field.name, key);
            }
        }
        converted
    }

    fn key(&self, row: usize) -> Option<String> {
        let value = |column: &String| keys::text(self.batch.column_by_name(column)?, row);
        keys::name(self.request.key.iter().map(|column| (&**column, value(column))))
    }

    /// Counts altered values of the array at hand, and remembers the first few of their rows.
    fn alter(&mut self, count: usize, rows: impl Iterator<Item = usize>) {
        self.altered += count as u64;
        self.rows.extend(rows.take(ALTERED_KEYS_MAX));
    }

    fn array(&mut self, array: &ArrayRef, target: &LakeType, path: &str) -> Result<ArrayRef> {
        match (array.data_type(), target) {
            (DataType::Null, to) => Ok(new_null_array(&to.to_arrow(), array.len())),
            (_, LakeType::List(element)) => self.list(array, element, path),
            (DataType::Struct(_), LakeType::Struct(members)) => {
                self.members(array.as_struct(), members, path)
            }
            (from, to) if *from == to.to_arrow() => Ok(array.clone()),
            (
                DataType::Timestamp(TimeUnit::Nanosecond, _),
                LakeType::Timestamp | LakeType::Timestamptz,
            ) => {
                let micros = self
                    .thousandths::<TimestampNanosecondType, TimestampMicrosecondType>(
                        array.as_primitive(),
                        path,
                    )?;
                Ok(Arc::new(micros.with_data_type(target.to_arrow())))
            }
            (DataType::Time64(TimeUnit::Nanosecond), LakeType::Time) => {
                let micros = self.thousandths::<Time64NanosecondType, Time64MicrosecondType>(
                    array.as_primitive(),
                    path,
                )?;
                Ok(Arc::new(micros))
            }
            _ => self.cast(array, &target.to_arrow(), path),
        }
    }

    fn list(&mut self, array: &ArrayRef, element: &Field, path: &str) -> Result<ArrayRef> {
        let target: Arc<ArrowField> = Arc::new(element.to_arrow());
        let (offsets, values, nulls) = match array.data_type() {
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                (list.offsets().clone(), list.values().clone(), list.nulls().cloned())
            }
            DataType::Map(..) => {
                let map = array.as_map();
                let entries: ArrayRef = Arc::new(map.entries().clone());
                (map.offsets().clone(), entries, map.nulls().cloned())
            }
            DataType::LargeList(inner) | DataType::FixedSizeList(inner, _) => {
                let list = cast(array, &DataType::List(inner.clone()), path)?;
                return self.list(&list, element, path);
            }
            other => return Err(refused(path, other, &DataType::List(target))),
        };
        let known = self.rows.len();
        let values = self.array(&values, &element.data_type, path)?;
        for row in &mut self.rows[known..] {
            *row = offsets.partition_point(|&start| start as usize <= *row) - 1;
        }
        let list = ListArray::try_new(target, offsets, values, nulls);
        Ok(Arc::new(list.map_err(|error| unbuilt(path, error))?))
    }

    fn members(&mut self, array: &StructArray, members: &[Field], path: &str) -> Result<ArrayRef> {
        let fields: Vec<ArrowField> = members.iter().map(Field::to_arrow).collect();
        let columns = members.iter().zip(&fields).map(|(member, field)| {
            match array.column_by_name(&member.name) {
                Some(column) => {
                    self.array(column, &member.data_type, &format!("{path}.{}", member.name))
                }
                None => Ok(new_null_array(field.data_type(), array.len())),
            }
        });
        let columns: Vec<_> = columns.collect::<Result<_>>()?;
        let built = StructArray::try_new(fields.into(), columns, array.nulls().cloned());
        Ok(Arc::new(built.map_err(|error| unbuilt(path, error))?))
    }

    /// Nanoseconds as microseconds, where nothing is below them.
    fn thousandths<From, To>(
        &mut self,
        array: &PrimitiveArray<From>,
        path: &str,
    ) -> Result<PrimitiveArray<To>>
    where
        From: ArrowPrimitiveType<Native = i64>,
        To: ArrowPrimitiveType<Native = i64>,
    {
        let is_uneven = |value: i64| value % 1000 != 0;
        let uneven = array.iter().flatten().filter(|value| is_uneven(*value)).count();
        if uneven == 0 {
            return Ok(array.unary(|value| value / 1000));
        }
        let rows = array.iter().enumerate().filter(|(_, value)| value.is_some_and(is_uneven));
        let rows = rows.map(|(row, _)| row);
        match self.request.on_unrepresentable {
            OnUnrepresentable::Clamp => {
                self.alter(uneven, rows);
                Ok(array.unary(|value: i64| value.div_euclid(1000)))
            }
            OnUnrepresentable::Null => {
                self.alter(uneven, rows);
                Ok(array.unary_opt(|value: i64| (value % 1000 == 0).then_some(value / 1000)))
            }
            OnUnrepresentable::Error | OnUnrepresentable::Text => {
                Err(unrepresentable(path, "times have digits below the microsecond"))
            }
        }
    }

    /// Casts and casts back: what does not come back the same was not held exactly.
    fn cast(&mut self, array: &ArrayRef, target: &DataType, path: &str) -> Result<ArrayRef> {
        let exact = cast(array, target, path);
        if let Ok(to) = &exact {
            let back = cast(to, array.data_type(), path);
            if back.is_ok_and(|back| back.to_data() == array.to_data()) {
                return exact;
            }
        }
        if self.request.on_unrepresentable != OnUnrepresentable::Null {
            let from = array.data_type();
            return Err(unrepresentable(
                path,
                &format!("{from} values do not fit {target} exactly"),
            ));
        }
        self.cast_or_null(array, target, path)
    }

    fn cast_or_null(
        &mut self,
        array: &ArrayRef,
        target: &DataType,
        path: &str,
    ) -> Result<ArrayRef> {
        let lenient = CastOptions { safe: true, ..CastOptions::default() };
        let failed = |_| refused(path, array.data_type(), target);
        let to = cast_with_options(array, target, &lenient).map_err(failed)?;
        let back = cast_with_options(&to, array.data_type(), &lenient).map_err(failed)?;
        let differs = arrow::compute::kernels::cmp::distinct(&back, array).map_err(failed)?;
        self.alter(differs.true_count(), differs.values().set_indices());
        arrow::compute::nullif(&to, &differs).map_err(failed)
    }
}

fn cast(array: &ArrayRef, target: &DataType, path: &str) -> Result<ArrayRef> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, target, &strict).map_err(|_| refused(path, array.data_type(), target))
}

fn refused(path: &str, from: &DataType, to: &DataType) -> Error {
    // The library's message would repeat the value.
    unrepresentable(path, &format!("{from} values cannot become {to}"))
}

fn unrepresentable(path: &str, why: &str) -> Error {
    let message = format!("a value of column {path} does not fit its type exactly");
    Error::new(ErrorCode::SourceUnrepresentable, message)
        .detail(why)
        .hint("set `on_unrepresentable: null`, or declare another type under `types:`")
}

fn unbuilt(path: &str, error: ArrowError) -> Error {
    let message = format!("column {path} could not be built");
    Error::new(ErrorCode::Internal, message).caused_by(error)
}
