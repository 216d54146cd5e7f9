//! Digests of rows: 64-bit words that a PostgreSQL server can make too, and a fast hash for what only Polder
//! itself computes.
//!
//! A word is the server's own hash of the record it would send (ADR 0035): of the row's columns, in their
//! order, as these types, in the binary form of the protocol:
//!
//! | lake type | sent as |
//! |---|---|
//! | boolean, int, long | `bool`, `int4`, `int8` |
//! | float, double | `float4`, `float8`: their bits |
//! | date, time, timestamp, timestamptz, uuid | the same |
//! | decimal | `numeric`, with as many decimals as its scale |
//! | string, binary | `text` in UTF-8, `bytea`; beyond [`LONG`] bytes their MD5, as hexadecimal digits |
//! | list, struct | `text`: the canonical form, likewise |
//!
//! The canonical form (ADR 0017) of a list, a struct and what is in them: a letter for the type, then
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
//! and null is the letter and `-`.

mod content;
mod record;

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray,
    PrimitiveArray, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use md5::{Digest, Md5};

pub use self::content::{Hashes, bytes, content};
use self::record::oid;
use crate::{Error, ErrorCode, Result, keys};

/// Days and microseconds from 1970-01-01 to 2000-01-01, from where PostgreSQL counts.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 10_957 * 86_400_000_000;

/// Bytes beyond which a text or binary value counts by its MD5: twice a record, in hexadecimal digits, has to
/// fit into the gigabyte that a value may have in PostgreSQL.
pub const LONG: usize = 1 << 20;

/// The word of what a record is sent as.
pub fn word(sent: &[u8]) -> u64 {
    record::hash(sent)
}

/// Rows of a batch as a server sends them.
pub struct Records {
    columns: Vec<(String, Form)>,
    buffer: Vec<u8>,
}

impl Records {
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
        self.buffer.extend_from_slice(&(self.columns.len() as u32).to_be_bytes());
        for (_, form) in &self.columns {
            form.send(row, &mut self.buffer);
        }
        word(&self.buffer)
    }

    /// A word for each column of a row.
    pub fn columns(&mut self, row: usize) -> Vec<u64> {
        let words = self.columns.iter().map(|(_, form)| {
            self.buffer.clear();
            self.buffer.extend_from_slice(&1_u32.to_be_bytes());
            form.send(row, &mut self.buffer);
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

    /// Adds the value as a column of a record.
    fn send(&self, row: usize, out: &mut Vec<u8>) {
        // What is sent in the canonical form has one for null, too.
        let by_form = matches!(self, Self::List(..) | Self::Struct(..));
        let null = !by_form && self.head(row).1;
        record::column(self.oid(), null, |out| self.send_value(row, out), out);
    }

    fn oid(&self) -> u32 {
        match self {
            Self::Boolean(_) => oid::BOOL,
            Self::Int(_) => oid::INT4,
            Self::Long(_) => oid::INT8,
            Self::Float(_) => oid::FLOAT4,
            Self::Double(_) => oid::FLOAT8,
            Self::Decimal(..) => oid::NUMERIC,
            Self::Date(_) => oid::DATE,
            Self::Time(_) => oid::TIME,
            Self::Timestamp(_, b'z') => oid::TIMESTAMPTZ,
            Self::Timestamp(..) => oid::TIMESTAMP,
            Self::Uuid(_) => oid::UUID,
            Self::Binary(_) => oid::BYTEA,
            Self::Text(_) | Self::List(..) | Self::Struct(..) => oid::TEXT,
        }
    }

    fn send_value(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Boolean(array) => out.push(array.value(row).into()),
            Self::Int(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Long(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Float(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Double(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Decimal(array, scale) => record::numeric(array.value(row), *scale, out),
            Self::Date(array) => {
                out.extend_from_slice(&array.value(row).wrapping_sub(EPOCH_DAYS).to_be_bytes());
            }
            Self::Time(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Timestamp(array, _) => {
                out.extend_from_slice(&array.value(row).wrapping_sub(EPOCH_MICROS).to_be_bytes());
            }
            Self::Text(array) => put_short(array.value(row).as_bytes(), out),
            Self::Uuid(array) => out.extend_from_slice(array.value(row)),
            Self::Binary(array) => put_short(array.value(row), out),
            Self::List(..) | Self::Struct(..) => {
                let at = out.len();
                self.write(row, out);
                if out.len() - at > LONG {
                    let form = out.split_off(at);
                    put_short(&form, out);
                }
            }
        }
    }

    /// Adds the value in the canonical form.
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
    out.extend(bytes.iter().flat_map(|byte| hex_pair(*byte).to_le_bytes()));
}

/// A byte's two hexadecimal digits, the higher one in the lower byte.
fn hex_pair(byte: u8) -> u16 {
    const PAIRS: [u16; 256] = {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let (mut pairs, mut at) = ([0; 256], 0);
        while at < 256 {
            pairs[at] = u16::from_le_bytes([DIGITS[at >> 4], DIGITS[at & 15]]);
            at += 1;
        }
        pairs
    };
    PAIRS[usize::from(byte)]
}

/// Adds the bytes, or the MD5 of many.
fn put_short(bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.len() > LONG {
        put_hex(&<[u8; 16]>::from(Md5::digest(bytes)), out);
    } else {
        out.extend_from_slice(bytes);
    }
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

    /// What PostgreSQL 15.18 prints for `hashtextextended(encode(record_send(ROW(…)), 'hex') COLLATE "C", 0)`.
    #[test]
    fn words_of_rows_are_the_servers() {
        let words = |array: ArrayRef| {
            let records =
                RecordBatch::try_from_iter_with_nullable([("a", array, true)]).expect("a");
            let mut forms = Records::new(&records, ["a"]).expect("forms");
            (0..records.num_rows()).map(|row| forms.row(row) as i64).collect::<Vec<_>>()
        };
        assert_eq!(
            words(Arc::new(Int32Array::from(vec![Some(1), None]))),
            [83_089_310_846_758_691, 4_039_756_212_447_439_989]
        );
        assert_eq!(
            words(Arc::new(StringArray::from(vec!["é:", ""]))),
            [-9_202_608_979_027_502_566, 2_564_902_295_041_560_756]
        );
    }

    #[test]
    fn of_long_values_the_md5_counts() {
        let (mut out, long) = (Vec::new(), vec![b'a'; LONG + 1]);
        put_short(&long[1..], &mut out);
        assert_eq!(out.len(), LONG);
        out.clear();
        put_short(&long, &mut out);
        assert_eq!(out, hex(&<[u8; 16]>::from(Md5::digest(&long))).as_bytes());
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
                let mut forms = Records::new(records, ["a", "b"]).expect("forms");
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
        let mut forms = Records::new(&right, ["a", "b"]).expect("forms");
        assert_eq!(forms.name(1), "a=2, b=2");
        let (one, text) = (b"\0\0\0\x17\0\0\0\x04\0\0\0\x01", b"\0\0\0\x19\0\0\0\x011");
        let record =
            |count: u8, columns: &[&[u8]]| word(&[&[0, 0, 0, count], &*columns.concat()].concat());
        assert_eq!(forms.columns(0), [record(1, &[one]), record(1, &[text])]);
        assert_eq!(forms.row(0), record(2, &[one, text]));
        assert!(Records::new(&right, ["c"]).is_err());
    }
}
