//! Which rows of a batch go to which partition: Iceberg's transforms, column by column.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{
    ArrowNumericType, DataType, Date32Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType,
};
use arrow::row::{RowConverter, SortField};
use iceberg::arrow::{arrow_primitive_to_literal, type_to_arrow_type};
use iceberg::spec::{PartitionSpec, Schema, Struct, Transform, Type};
use iceberg::transform::{BoxedTransformFunction, create_transform_function};
use polder_core::{Error, ErrorCode, Result};

use crate::error;

const DAY_MICROS: i64 = 86_400_000_000;

#[derive(Debug)]
pub(crate) struct Partitioner {
    fields: Vec<PartitionColumn>,
}

#[derive(Debug)]
struct PartitionColumn {
    /// The source column's place in a batch.
    index: usize,
    transform: Transform,
    function: BoxedTransformFunction,
    result: Type,
}

impl PartitionColumn {
    fn apply(&self, source: &ArrayRef) -> Result<ArrayRef> {
        match (self.transform, source.data_type()) {
            // The crate's is a day late for fractions of the last second of days before 1970.
            (Transform::Day, DataType::Timestamp(TimeUnit::Microsecond, _)) => {
                let micros = source.as_primitive::<TimestampMicrosecondType>();
                let days = micros.unary::<_, Date32Type>(|v| v.div_euclid(DAY_MICROS) as i32);
                Ok(Arc::new(days))
            }
            (Transform::Truncate(width), DataType::Int32) => {
                let width = i64::from(width);
                let low =
                    |v: i32| i32::try_from(i64::from(v) - i64::from(v).rem_euclid(width)).ok();
                self.checked(source, below_all(source.as_primitive::<Int32Type>(), low))
            }
            (Transform::Truncate(width), DataType::Int64) => {
                let low = |v: i64| v.checked_sub(v.rem_euclid(i64::from(width)));
                self.checked(source, below_all(source.as_primitive::<Int64Type>(), low))
            }
            _ => self.by_the_crate(source),
        }
    }

    /// The crate's arithmetic wraps around at the least integers; a filter would then miss the rows.
    fn checked(&self, source: &ArrayRef, fits: bool) -> Result<ArrayRef> {
        if fits {
            return self.by_the_crate(source);
        }
        let message =
            format!("a value is too small for the partition transform {}", self.transform);
        Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint("partition by bucket(N, c), or by the column itself"))
    }

    fn by_the_crate(&self, source: &ArrayRef) -> Result<ArrayRef> {
        let values = self.function.transform(Arc::clone(source));
        values.map_err(|cause| error::iceberg("partition a batch", cause))
    }
}

/// Whether every value has a lower end of its interval.
fn below_all<T: ArrowNumericType>(
    values: &PrimitiveArray<T>,
    low: impl Fn(T::Native) -> Option<T::Native>,
) -> bool {
    arrow::compute::min(values).is_none_or(|least| low(least).is_some())
}

/// Rows of one partition.
pub(crate) struct Slice {
    /// Equal for equal partition values, within one partitioner.
    pub(crate) key: Box<[u8]>,
    pub(crate) values: Struct,
    pub(crate) rows: RecordBatch,
}

impl Partitioner {
    /// `None` for a spec without fields.
    pub(crate) fn new(spec: &PartitionSpec, schema: &Schema) -> Result<Option<Self>> {
        let failed = |cause| error::iceberg("prepare partitioning", cause);
        let columns = schema.as_struct().fields();
        let mut fields = Vec::new();
        for field in spec.fields() {
            let index = columns.iter().position(|column| column.id == field.source_id).ok_or_else(
                || {
                    let what = "a partition field of a column that is not at the top level";
                    Error::new(ErrorCode::LakeFailed, what).detail(field.name.clone())
                },
            )?;
            let result = field.transform.result_type(&columns[index].field_type).map_err(failed)?;
            let function = create_transform_function(&field.transform).map_err(failed)?;
            fields.push(PartitionColumn { index, transform: field.transform, function, result });
        }
        Ok((!fields.is_empty()).then_some(Self { fields }))
    }

    /// Splits a batch; the slices hold no memory of the batch unless there is one slice only.
    pub(crate) fn split(&self, batch: &RecordBatch) -> Result<Vec<Slice>> {
        let failed = |cause| error::arrow("partition a batch", cause);
        let values = self.transformed(batch)?;
        let fields = values.iter().map(|array| SortField::new(array.data_type().clone()));
        let converter = RowConverter::new(fields.collect()).map_err(failed)?;
        let keys = converter.convert_columns(&values).map_err(failed)?;
        let mut groups: Vec<Vec<u32>> = Vec::new();
        let mut by_key: HashMap<&[u8], usize> = HashMap::new();
        let mut last: Option<(&[u8], usize)> = None;
        for row in 0..batch.num_rows() {
            let key = keys.row(row).data();
            // Rows often come in runs of one partition.
            let group = match last {
                Some((known, group)) if known == key => group,
                _ => *by_key.entry(key).or_insert_with(|| {
                    groups.push(Vec::new());
                    groups.len() - 1
                }),
            };
            last = Some((key, group));
            groups[group].push(row as u32);
        }
        let whole = groups.len() == 1;
        let mut slices = Vec::with_capacity(groups.len());
        for rows in groups {
            let first = rows.first().map_or(0, |row| *row as usize);
            let rows = if whole {
                batch.clone()
            } else {
                take_record_batch(batch, &UInt32Array::from(rows)).map_err(failed)?
            };
            let key = keys.row(first).data().into();
            slices.push(Slice { key, values: self.literals(&values, first)?, rows });
        }
        Ok(slices)
    }

    fn transformed(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.fields.iter().map(|field| field.apply(batch.column(field.index))).collect()
    }

    /// The partition values of one row, as metadata holds them.
    fn literals(&self, values: &[ArrayRef], row: usize) -> Result<Struct> {
        let failed = |cause| error::iceberg("name a partition", cause);
        let mut literals = Vec::with_capacity(values.len());
        for (array, field) in values.iter().zip(&self.fields) {
            let one = array.slice(row, 1);
            if one.is_null(0) {
                literals.push(None);
                continue;
            }
            // The crate reads literals from its own layout of the type.
            let layout = type_to_arrow_type(&field.result).map_err(failed)?;
            let one = arrow::compute::cast(&one, &layout)
                .map_err(|cause| error::arrow("name a partition", cause))?;
            let found = arrow_primitive_to_literal(&one, &field.result).map_err(failed)?;
            literals.push(found.into_iter().next().flatten());
        }
        Ok(Struct::from_iter(literals))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, TimestampMicrosecondArray};
    use chrono::{DateTime, Datelike};
    use iceberg::spec::PrimitiveType;
    use proptest::prelude::*;

    use super::*;

    fn column(transform: Transform, source: PrimitiveType) -> PartitionColumn {
        let result = transform.result_type(&Type::Primitive(source)).expect("result");
        let function = create_transform_function(&transform).expect("function");
        PartitionColumn { index: 0, transform, function, result }
    }

    /// The spec's own words (*Partition Transforms*): years, months, days, hours from 1970-01-01.
    fn expected(transform: Transform, micros: i64) -> i64 {
        let time = DateTime::from_timestamp_micros(micros).expect("time");
        let years = i64::from(time.year()) - 1970;
        match transform {
            Transform::Year => years,
            Transform::Month => years * 12 + i64::from(time.month0()),
            Transform::Day => micros.div_euclid(DAY_MICROS),
            _ => micros.div_euclid(DAY_MICROS / 24),
        }
    }

    proptest! {
        #[test]
        fn times_go_where_the_spec_says(
            near in -3 * DAY_MICROS..3 * DAY_MICROS,
            far in -62_135_596_800_000_000_i64..253_402_300_799_999_999,
            fraction in 0..1_000_000_i64,
        ) {
            let before = -DAY_MICROS * 40 - fraction;
            for micros in [near, far, before, -fraction, DAY_MICROS - 1, -1] {
                let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![micros]));
                for transform in [Transform::Year, Transform::Month, Transform::Day, Transform::Hour] {
                    let found = column(transform, PrimitiveType::Timestamp).apply(&times);
                    let found = arrow::compute::cast(&found.expect("value"), &DataType::Int32);
                    let found = found.expect("int").as_primitive::<Int32Type>().value(0);
                    prop_assert_eq!(i64::from(found), expected(transform, micros), "{} of {}", transform, micros);
                }
            }
        }

        #[test]
        fn numbers_are_cut_downwards_or_refused(value in any::<i32>(), width in 1..1000_u32) {
            for value in [value, i32::MIN, i32::MAX, -1, 0] {
                let numbers: ArrayRef = Arc::new(Int32Array::from(vec![value]));
                let found = column(Transform::Truncate(width), PrimitiveType::Int).apply(&numbers);
                let low = i64::from(value).div_euclid(i64::from(width)) * i64::from(width);
                if let Ok(low) = i32::try_from(low) {
                    let found = found.expect("value").as_primitive::<Int32Type>().value(0);
                    prop_assert_eq!(found, low);
                } else {
                    prop_assert_eq!(found.expect_err("too small").code(), ErrorCode::SpecInvalid);
                }
            }
        }
    }
}
