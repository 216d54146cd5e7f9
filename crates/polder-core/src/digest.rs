//! Digests of rows: 64-bit words of a canonical form that a source's own SQL can make too, and a fast
//! hash for what only Polder itself computes.
//!
//! The canonical form (ADR 0017): a letter for the type, then
//!
//! | type | letter | value |
//! |---|---|---|
//! | boolean, int, long | `o` `i` `l` | its bytes, big endian, in hexadecimal |
//! | float, double | `f` `g` | its IEEE 754 bits, the same |
//! | date | `d` | days since 2000-01-01, the same |
//! | time, timestamp, timestamptz | `t` `p` `z` | microseconds, the last two since 2000-01-01 (UTC), the same |
//! | uuid | `u` | its 16 bytes, the same |
//! | decimal | `n` | digits with as many decimals as its scale, and `;` |
//! | string | `s` | length in bytes, `:`, the UTF-8 bytes |
//! | binary | `b` | length in bytes, `:`, the MD5 of the bytes in hexadecimal |
//! | list | `a` | number of elements, `:`, the elements |
//! | struct | `r` | the members |
//!
//! and null is the letter and `-`. A row is its columns in their order. A word is the first 64 bits of
//! the form's MD5, big endian.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray,
    PrimitiveArray, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type,
    Int64Type, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use md5::{Digest, Md5};
use twox_hash::XxHash3_64;

use crate::{Error, ErrorCode, Result, keys};

/// Days and microseconds from 1970-01-01 to 2000-01-01, from where PostgreSQL counts.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 10_957 * 86_400_000_000;

/// The word of a canonical form.
pub fn word(form: &[u8]) -> u64 {
    let whole = u128::from_be_bytes(<[u8; 16]>::from(Md5::digest(form)));
    (whole >> 64) as u64
}

/// Rows of a batch in their canonical form.
pub struct Canonical {
    columns: Vec<(String, Form)>,
    buffer: Vec<u8>,
}

impl Canonical {
    /// Takes the batch's columns of these names, in this order.
    ///
    /// # Errors
    /// `internal` for a column that the batch lacks, or a type outside
    /// [`LakeType::to_arrow`](crate::LakeType::to_arrow).
    pub fn new<'a>(
        records: &RecordBatch,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self> {
        let column = |name: &str| {
            let array = records.column_by_name(name).ok_or_else(|| {
                Error::new(ErrorCode::Internal, format!("a batch lacks column {name:?}"))
            })?;
            Ok((name.to_owned(), Form::new(array)?))
        };
        let columns = names.into_iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(Self { columns, buffer: Vec::new() })
    }

    /// The word of a row.
    pub fn row(&mut self, row: usize) -> u64 {
        self.buffer.clear();
        for (_, form) in &self.columns {
            form.write(row, &mut self.buffer);
        }
        word(&self.buffer)
    }

    /// A word for each column of a row.
    pub fn columns(&mut self, row: usize) -> Vec<u64> {
        let words = self.columns.iter().map(|(_, form)| {
            self.buffer.clear();
            form.write(row, &mut self.buffer);
            word(&self.buffer)
        });
        words.collect()
    }

    /// The row in words for people: `org=401, id=7`.
    pub fn name(&self, row: usize) -> String {
        let value = |form: &Form| keys::text(&form.array(), row);
        keys::name(self.columns.iter().map(|(name, form)| (&**name, value(form))))
            .unwrap_or_default()
    }
}

/// A column that is ready to be written.
enum Form {
    Boolean(BooleanArray),
    Int(PrimitiveArray<Int32Type>),
    Long(PrimitiveArray<Int64Type>),
    Float(PrimitiveArray<Float32Type>),
    Double(PrimitiveArray<Float64Type>),
    Decimal(PrimitiveArray<Decimal128Type>, u8),
    Date(PrimitiveArray<Date32Type>),
    Time(PrimitiveArray<Time64MicrosecondType>),
    Timestamp(PrimitiveArray<TimestampMicrosecondType>, u8),
    Text(StringArray),
    Uuid(FixedSizeBinaryArray),
    Binary(BinaryArray),
    List(ListArray, Box<Form>),
    Struct(StructArray, Vec<Form>),
}

impl Form {
    fn new(array: &ArrayRef) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::Boolean => Self::Boolean(array.as_boolean().clone()),
            DataType::Int32 => Self::Int(array.as_primitive().clone()),
            DataType::Int64 => Self::Long(array.as_primitive().clone()),
            DataType::Float32 => Self::Float(array.as_primitive().clone()),
            DataType::Float64 => Self::Double(array.as_primitive().clone()),
            DataType::Decimal128(_, scale) => {
                Self::Decimal(array.as_primitive().clone(), scale.unsigned_abs())
            }
            DataType::Date32 => Self::Date(array.as_primitive().clone()),
            DataType::Time64(TimeUnit::Microsecond) => Self::Time(array.as_primitive().clone()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                let letter = if zone.is_some() { b'z' } else { b'p' };
                Self::Timestamp(array.as_primitive().clone(), letter)
            }
            DataType::Utf8 => Self::Text(array.as_string().clone()),
            DataType::FixedSizeBinary(16) => Self::Uuid(array.as_fixed_size_binary().clone()),
            DataType::Binary => Self::Binary(array.as_binary().clone()),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                Self::List(list.clone(), Box::new(Self::new(list.values())?))
            }
            DataType::Struct(_) => {
                let members = array.as_struct();
                let forms = members.columns().iter().map(Self::new).collect::<Result<_>>()?;
                Self::Struct(members.clone(), forms)
            }
            other => {
                let message = format!("a column of type {other} has no canonical form");
                return Err(Error::new(ErrorCode::Internal, message));
            }
        })
    }

    fn array(&self) -> ArrayRef {
        match self {
            Self::Boolean(array) => Arc::new(array.clone()),
            Self::Int(array) => Arc::new(array.clone()),
            Self::Long(array) => Arc::new(array.clone()),
            Self::Float(array) => Arc::new(array.clone()),
            Self::Double(array) => Arc::new(array.clone()),
            Self::Decimal(array, _) => Arc::new(array.clone()),
            Self::Date(array) => Arc::new(array.clone()),
            Self::Time(array) => Arc::new(array.clone()),
            Self::Timestamp(array, _) => Arc::new(array.clone()),
            Self::Text(array) => Arc::new(array.clone()),
            Self::Uuid(array) => Arc::new(array.clone()),
            Self::Binary(array) => Arc::new(array.clone()),
            Self::List(array, _) => Arc::new(array.clone()),
            Self::Struct(array, _) => Arc::new(array.clone()),
        }
    }

    /// The letter of the type, and whether the value is null.
    fn head(&self, row: usize) -> (u8, bool) {
        match self {
            Self::Boolean(array) => (b'o', array.is_null(row)),
            Self::Int(array) => (b'i', array.is_null(row)),
            Self::Long(array) => (b'l', array.is_null(row)),
            Self::Float(array) => (b'f', array.is_null(row)),
            Self::Double(array) => (b'g', array.is_null(row)),
            Self::Decimal(array, _) => (b'n', array.is_null(row)),
            Self::Date(array) => (b'd', array.is_null(row)),
            Self::Time(array) => (b't', array.is_null(row)),
            Self::Timestamp(array, letter) => (*letter, array.is_null(row)),
            Self::Text(array) => (b's', array.is_null(row)),
            Self::Uuid(array) => (b'u', array.is_null(row)),
            Self::Binary(array) => (b'b', array.is_null(row)),
            Self::List(array, _) => (b'a', array.is_null(row)),
            Self::Struct(array, _) => (b'r', array.is_null(row)),
        }
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) {
        let (letter, null) = self.head(row);
        out.push(letter);
        if null {
            return out.push(b'-');
        }
        match self {
            Self::Boolean(array) => put_hex(&[u8::from(array.value(row))], out),
            Self::Int(array) => put_hex(&array.value(row).to_be_bytes(), out),
            Self::Long(array) => put_hex(&array.value(row).to_be_bytes(), out),
            Self::Float(array) => put_hex(&array.value(row).to_be_bytes(), out),
            Self::Double(array) => put_hex(&array.value(row).to_be_bytes(), out),
            Self::Decimal(array, scale) => decimal(array.value(row), *scale, out),
            Self::Date(array) => {
                put_hex(&array.value(row).wrapping_sub(EPOCH_DAYS).to_be_bytes(), out);
            }
            Self::Time(array) => put_hex(&array.value(row).to_be_bytes(), out),
            Self::Timestamp(array, _) => {
                put_hex(&array.value(row).wrapping_sub(EPOCH_MICROS).to_be_bytes(), out);
            }
            Self::Text(array) => {
                let text = array.value(row).as_bytes();
                length(text.len(), out);
                out.extend_from_slice(text);
            }
            Self::Uuid(array) => put_hex(array.value(row), out),
            Self::Binary(array) => {
                let bytes = array.value(row);
                length(bytes.len(), out);
                put_hex(&<[u8; 16]>::from(Md5::digest(bytes)), out);
            }
            Self::List(array, elements) => {
                let ends = array.value_offsets();
                let (from, to) = (ends[row] as usize, ends[row + 1] as usize);
                length(to - from, out);
                (from..to).for_each(|element| elements.write(element, out));
            }
            Self::Struct(_, members) => members.iter().for_each(|member| member.write(row, out)),
        }
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len() * 2);
    put_hex(bytes, &mut out);
    out.into_iter().map(char::from).collect()
}

fn put_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    out.extend(bytes.iter().flat_map(digits));
}

fn length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b':');
}

/// As PostgreSQL prints a `numeric(p, s)`.
fn decimal(unscaled: i128, scale: u8, out: &mut Vec<u8>) {
    if unscaled < 0 {
        out.push(b'-');
    }
    let scale = usize::from(scale);
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    out.extend_from_slice(whole.as_bytes());
    if scale > 0 {
        out.push(b'.');
        out.extend_from_slice(fraction.as_bytes());
    }
    out.push(b';');
}

/// Stands for null in [`content`].
const NULL: u64 = 0x9e37_79b9_7f4a_7c15;
/// An odd number with bits everywhere: `PRIME_MX2` of `XXH3`.
const PRIME: u64 = 0x9fb2_1c65_1e98_df25;

/// The sum, modulo 2⁶⁴, of a fast hash of each row, with its columns in their order. Equal rows in
/// whatever order and batches have an equal sum. Lists and structs go by their canonical form.
///
/// # Errors
/// As [`Canonical::new`].
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
    use arrow::array::{Int32Array, Int64Array, UInt32Array};
    use arrow::compute::{concat_batches, take_record_batch};
    use proptest::prelude::*;

    use super::*;

    fn form(array: &ArrayRef, row: usize) -> String {
        let mut out = Vec::new();
        Form::new(array).expect("a form").write(row, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn values_are_written_as_the_table_says() {
        let decimals = |values: Vec<i128>, scale| {
            let array = PrimitiveArray::<Decimal128Type>::from_iter_values(values);
            Arc::new(array.with_precision_and_scale(38, scale).expect("decimal")) as ArrayRef
        };
        let micros = |value: i64| PrimitiveArray::<TimestampMicrosecondType>::from(vec![value]);
        let cases: Vec<(ArrayRef, &str)> = vec![
            (Arc::new(BooleanArray::from(vec![true])), "o01"),
            (Arc::new(Int32Array::from(vec![-2])), "ifffffffe"),
            (Arc::new(Int64Array::from(vec![1])), "l0000000000000001"),
            (Arc::new(Int64Array::from(vec![None])), "l-"),
            (Arc::new(PrimitiveArray::<Float64Type>::from(vec![-0.0])), "g8000000000000000"),
            (Arc::new(PrimitiveArray::<Date32Type>::from(vec![10_958])), "d00000001"),
            (Arc::new(micros(EPOCH_MICROS - 1)), "pffffffffffffffff"),
            (Arc::new(micros(EPOCH_MICROS).with_timezone("+00:00")), "z0000000000000000"),
            (Arc::new(StringArray::from(vec!["é:"])), "s3:é:"),
            (Arc::new(StringArray::from(vec![""])), "s0:"),
            (Arc::new(BinaryArray::from(vec![&b"a"[..]])), "b1:0cc175b9c0f1b6a831c399e269772661"),
            (decimals(vec![-5], 1), "n-0.5;"),
            (decimals(vec![0], 2), "n0.00;"),
            (decimals(vec![12_345], 2), "n123.45;"),
            (decimals(vec![7], 0), "n7;"),
        ];
        for (array, expected) in cases {
            assert_eq!(form(&array, 0), expected);
        }
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1), None]),
            None,
            Some(vec![]),
        ]);
        let list: ArrayRef = Arc::new(list);
        assert_eq!(form(&list, 0), "a2:i00000001i-");
        assert_eq!(form(&list, 1), "a-");
        assert_eq!(form(&list, 2), "a0:");
    }

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

    #[test]
    fn a_word_is_the_beginning_of_md5() {
        // RFC 1321's own example.
        assert_eq!(word(b"abc"), 0x9001_5098_3cd2_4fb0);
    }

    fn batch(rows: &[(Option<i32>, Option<String>)]) -> RecordBatch {
        let numbers: Int32Array = rows.iter().map(|(number, _)| *number).collect();
        let texts: StringArray = rows.iter().map(|(_, text)| text.clone()).collect();
        let columns: [(&str, ArrayRef); 2] = [("a", Arc::new(numbers)), ("b", Arc::new(texts))];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true)))
            .expect("batch")
    }

    proptest! {
        /// Sums of words and contents go by the rows alone, and one changed value changes both.
        #[test]
        fn sums_go_by_rows(
            rows in prop::collection::vec((any::<Option<i32>>(), any::<Option<String>>()), 1..40),
            cut in 0..40_usize,
            at in 0..40_usize,
        ) {
            let whole = batch(&rows);
            let sum = |records: &RecordBatch| {
                let mut forms = Canonical::new(records, ["a", "b"]).expect("forms");
                (0..records.num_rows()).fold(0_u64, |sum, row| sum.wrapping_add(forms.row(row)))
            };
            let back: Vec<u32> = (0..rows.len() as u32).rev().collect();
            let turned = take_record_batch(&whole, &UInt32Array::from(back)).expect("rows");
            prop_assert_eq!(content(&whole).expect("sum"), content(&turned).expect("sum"));
            prop_assert_eq!(sum(&whole), sum(&turned));
            let cut = cut.min(rows.len());
            let parts = [whole.slice(0, cut), whole.slice(cut, rows.len() - cut)];
            let of_parts = parts.iter().map(|part| content(part).expect("sum"));
            prop_assert_eq!(of_parts.fold(0, u64::wrapping_add), content(&whole).expect("sum"));
            let joined = concat_batches(&whole.schema(), &parts).expect("batch");
            prop_assert_eq!(sum(&joined), sum(&whole));
            let mut other = rows.clone();
            let row = at % rows.len();
            other[row].1 = match other[row].1.take() {
                Some(text) => Some(text + "x"),
                None => Some(String::new()),
            };
            prop_assert_ne!(content(&batch(&other)).expect("sum"), content(&whole).expect("sum"));
            prop_assert_ne!(sum(&batch(&other)), sum(&whole));
        }
    }

    #[test]
    fn columns_do_not_run_into_each_other() {
        let swapped = batch(&[(Some(1), Some("2".into())), (Some(2), Some("1".into()))]);
        let right = batch(&[(Some(1), Some("1".into())), (Some(2), Some("2".into()))]);
        assert_ne!(content(&swapped).expect("sum"), content(&right).expect("sum"));
        let mut forms = Canonical::new(&right, ["a", "b"]).expect("forms");
        assert_eq!(forms.name(1), "a=2, b=2");
        assert_eq!(forms.columns(0), [word(b"i00000001"), word(b"s1:1")]);
        assert_eq!(forms.row(0), word(b"i00000001s1:1"));
        assert!(Canonical::new(&right, ["c"]).is_err());
    }
}
