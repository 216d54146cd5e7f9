//! A fast hash of rows, for what only Polder itself computes.

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type,
    Int64Type, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use twox_hash::XxHash3_64;

use super::Form;
use crate::Result;

/// Stands for null in [`content`].
const NULL: u64 = 0x9e37_79b9_7f4a_7c15;
/// An odd number with bits everywhere: `PRIME_MX2` of `XXH3`.
const PRIME: u64 = 0x9fb2_1c65_1e98_df25;

/// The sum, modulo 2⁶⁴, of a fast hash of each row, with its columns in their order. Equal rows in
/// whatever order and batches have an equal sum. Lists and structs go by their canonical form.
///
/// # Errors
/// As [`Records::new`](super::Records::new).
pub fn content(records: &RecordBatch) -> Result<u64> {
    let mut rows = vec![0_u64; records.num_rows()];
    for (index, array) in records.columns().iter().enumerate() {
        let seed = (index as u64 + 1).wrapping_mul(PRIME);
        add_column(array, seed, &mut rows)?;
    }
    Ok(rows.into_iter().map(mix).fold(0, u64::wrapping_add))
}

fn add_column(array: &ArrayRef, seed: u64, rows: &mut [u64]) -> Result<()> {
    macro_rules! numbers {
        ($type:ty, $bits:expr) => {
            add_numbers(array.as_primitive::<$type>(), $bits, seed, rows)
        };
    }
    match array.data_type() {
        DataType::Int32 => numbers!(Int32Type, |value| i64::from(value) as u64),
        DataType::Int64 => numbers!(Int64Type, |value| value as u64),
        DataType::Float32 => numbers!(Float32Type, |value| u64::from(value.to_bits())),
        DataType::Float64 => numbers!(Float64Type, f64::to_bits),
        DataType::Date32 => numbers!(Date32Type, |value| i64::from(value) as u64),
        DataType::Time64(TimeUnit::Microsecond) => {
            numbers!(Time64MicrosecondType, |value| value as u64);
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            numbers!(TimestampMicrosecondType, |value| value as u64);
        }
        DataType::Decimal128(..) => {
            numbers!(Decimal128Type, |value| (value as u64) ^ mix((value >> 64) as u64));
        }
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            let hash = |text: &str| XxHash3_64::oneshot_with_seed(seed, text.as_bytes());
            for (value, row) in array.iter().zip(rows) {
                add(value.map_or(NULL ^ seed, hash), row);
            }
        }
        DataType::Boolean => {
            let hash = |form: &[u8]| XxHash3_64::oneshot_with_seed(seed, form);
            let (no, yes, null) = (hash(b"o00"), hash(b"o01"), hash(b"o-"));
            for (value, row) in array.as_boolean().iter().zip(rows) {
                add(value.map_or(null, |value| if value { yes } else { no }), row);
            }
        }
        _ => by_form(array, seed, rows)?,
    }
    Ok(())
}

#[inline]
fn add(hash: u64, row: &mut u64) {
    *row = (row.rotate_left(23) ^ hash).wrapping_mul(PRIME);
}

#[inline]
fn add_numbers<T: ArrowPrimitiveType>(
    array: &PrimitiveArray<T>,
    bits: impl Fn(T::Native) -> u64,
    seed: u64,
    rows: &mut [u64],
) {
    let numbers = array.values().iter().zip(rows);
    let Some(nulls) = array.nulls().filter(|nulls| nulls.null_count() > 0) else {
        return numbers.for_each(|(value, row)| add(mix(bits(*value) ^ seed), row));
    };
    for ((value, row), valid) in numbers.zip(nulls) {
        // Both are made, so that nothing waits for what is guessed of the null.
        let hash = mix(bits(*value) ^ seed);
        add(if valid { hash } else { NULL ^ seed }, row);
    }
}

fn by_form(array: &ArrayRef, seed: u64, rows: &mut [u64]) -> Result<()> {
    let form = Form::new(array)?;
    let mut buffer = Vec::new();
    for (index, row) in rows.iter_mut().enumerate() {
        buffer.clear();
        form.write(index, &mut buffer);
        add(XxHash3_64::oneshot_with_seed(seed, &buffer), row);
    }
    Ok(())
}

/// The finaliser of `MurmurHash3`: every bit of the input reaches every bit of the result.
fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Int32Array};

    use super::*;

    #[test]
    fn booleans_are_their_canonical_form() {
        let array: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]));
        let (mut fast, mut slow) = ([7, 8, 9], [7, 8, 9]);
        add_column(&array, 5, &mut fast).expect("added");
        by_form(&array, 5, &mut slow).expect("added");
        assert_eq!(fast, slow);
    }

    #[test]
    fn what_lies_below_a_null_does_not_count() {
        let below = |value: i32| {
            let nulls = Some(vec![true, false].into());
            Arc::new(Int32Array::new(vec![1, value].into(), nulls)) as ArrayRef
        };
        let sum = |array: ArrayRef| {
            content(&RecordBatch::try_from_iter([("a", array)]).expect("batch")).expect("sum")
        };
        assert_eq!(sum(below(2)), sum(below(3)));
        assert_ne!(sum(below(2)), sum(Arc::new(Int32Array::from(vec![1, 2]))));
    }
}
