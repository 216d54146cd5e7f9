//! A fast hash of rows, for what only Polder itself computes.

use std::collections::HashMap;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, PrimitiveArray, RecordBatch, StringArray,
};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type,
    Int64Type, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use twox_hash::XxHash3_64;

use super::Form;
use crate::{Error, ErrorCode, Result};

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
    let rows = Hashes::default().of(records.columns(), records.num_rows())?;
    Ok(rows.into_iter().fold(0, u64::wrapping_add))
}

/// The hashes of rows that [`content`] sums up, over batches of the same columns.
///
/// Texts may be views or dictionaries, as a Parquet file has them: their hashes are those of the texts, and
/// each dictionary is hashed once.
#[derive(Debug, Default)]
pub struct Hashes {
    dictionaries: HashMap<usize, Dictionary>,
}

/// The values of a dictionary, and their hashes.
#[derive(Debug)]
struct Dictionary {
    values: StringArray,
    hashes: Vec<u64>,
}

impl Hashes {
    /// A hash for each of so many rows.
    ///
    /// # Errors
    /// As [`Records::new`](super::Records::new).
    pub fn of(&mut self, columns: &[ArrayRef], rows: usize) -> Result<Vec<u64>> {
        let mut hashes = vec![0_u64; rows];
        for (index, array) in columns.iter().enumerate() {
            let seed = (index as u64 + 1).wrapping_mul(PRIME);
            match array.as_dictionary_opt::<Int32Type>() {
                Some(array) => self.add_dictionary(index, array, seed, &mut hashes)?,
                None => add_column(array, seed, &mut hashes)?,
            }
        }
        hashes.iter_mut().for_each(|hash| *hash = mix(*hash));
        Ok(hashes)
    }

    fn add_dictionary(
        &mut self,
        index: usize,
        array: &DictionaryArray<Int32Type>,
        seed: u64,
        rows: &mut [u64],
    ) -> Result<()> {
        let values = array.values().as_string_opt::<i32>().ok_or_else(|| {
            let message = format!("a dictionary of {} has no hashes", array.values().data_type());
            Error::new(ErrorCode::Internal, message)
        })?;
        let known = self.dictionaries.get(&index).is_some_and(|known| known.is_of(values));
        if !known {
            self.dictionaries.insert(index, Dictionary::new(values, seed));
        }
        let Some(Dictionary { hashes, .. }) = self.dictionaries.get(&index) else { return Ok(()) };
        let keys = array.keys();
        let hash = |key: &i32| hashes.get(*key as usize).copied().unwrap_or(NULL ^ seed);
        if let Some(nulls) = keys.nulls().filter(|nulls| nulls.null_count() > 0) {
            for ((key, row), valid) in keys.values().iter().zip(rows).zip(nulls) {
                // Below a null there may be any key.
                add(if valid { hash(key) } else { NULL ^ seed }, row);
            }
        } else {
            keys.values().iter().zip(rows).for_each(|(key, row)| add(hash(key), row));
        }
        Ok(())
    }
}

impl Dictionary {
    fn new(values: &StringArray, seed: u64) -> Self {
        let hash = |text: Option<&str>| text.map_or(NULL ^ seed, |text| of_text(text, seed));
        Self { values: values.clone(), hashes: values.iter().map(hash).collect() }
    }

    /// Whether these are the very values, and not only their like: as they are held here, nothing else
    /// can lie where they are.
    fn is_of(&self, values: &StringArray) -> bool {
        self.values.len() == values.len()
            && self.values.value_offsets().as_ptr() == values.value_offsets().as_ptr()
            && self.values.value_data().as_ptr() == values.value_data().as_ptr()
    }
}

/// A fast hash of bytes, to tell accidents.
pub fn bytes(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

fn of_text(text: &str, seed: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, text.as_bytes())
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
            numbers!(Decimal128Type, |value| {
                let high = (value >> 64) as u64;
                // What `mix` makes of zero is zero.
                (value as u64) ^ if high == 0 { 0 } else { mix(high) }
            });
        }
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            for (value, row) in array.iter().zip(rows) {
                add(value.map_or(NULL ^ seed, |text| of_text(text, seed)), row);
            }
        }
        DataType::Utf8View => {
            for (value, row) in array.as_string_view().iter().zip(rows) {
                add(value.map_or(NULL ^ seed, |text| of_text(text, seed)), row);
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
    use arrow::compute::cast;

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
    fn views_and_dictionaries_are_their_texts() {
        let texts =
            |texts: [Option<&str>; 5]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
        let coded = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let mut hashes = Hashes::default();
        let batches = [
            texts([Some("b"), None, Some("a"), Some("b"), Some("")]),
            texts([Some("a"), Some("b"), Some("c"), Some("a"), None]),
            texts([None; 5]),
        ];
        for plain in batches {
            let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..5));
            let dictionary = cast(&plain, &coded).expect("a dictionary");
            let views = cast(&plain, &DataType::Utf8View).expect("views");
            let expected = Hashes::default().of(&[numbers.clone(), plain], 5).expect("hashes");
            let found = Hashes::default().of(&[numbers.clone(), views], 5).expect("hashes");
            assert_eq!(found, expected);
            // The second time what is known of the dictionary is used.
            for _ in 0..2 {
                let found = hashes.of(&[numbers.clone(), dictionary.clone()], 5).expect("hashes");
                assert_eq!(found, expected);
            }
            let part = hashes.of(&[numbers.slice(1, 3), dictionary.slice(1, 3)], 3);
            assert_eq!(part.expect("hashes"), expected[1..4]);
        }
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
