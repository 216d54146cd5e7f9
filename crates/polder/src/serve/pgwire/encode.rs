//! Columns of an answer → values of the protocol, in text or in binary.
//!
//! An array is cast once to the type that its kind is written from; a value that does not fit is an error,
//! never another value. Nanoseconds are the exception: PostgreSQL has microseconds, and the rest is cut off.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Decimal256Type, DecimalType, Field, Float32Type,
    Float64Type, Int16Type, Int32Type, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType,
    Schema, SchemaRef, Time64MicrosecondType, TimestampMicrosecondType,
};
use bytes::{BufMut, BytesMut};
use pgwire::messages::data::{FORMAT_CODE_BINARY, FieldDescription};
use polder_core::digest::hex;
use polder_core::{Error, ErrorCode, Result};

use super::types::{Kind, element};
use super::{numeric, text};

/// Days and microseconds from 1970 to 2000, where PostgreSQL counts from.
pub(super) const EPOCH_DAYS: i32 = 10_957;
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// How the columns of an answer are written.
pub(super) struct Encoder {
    columns: Vec<(String, Kind, i16)>,
}

impl Encoder {
    /// For columns in these formats: one for each, one for all, or none for text.
    ///
    /// # Errors
    /// `query.invalid` for formats that do not fit the columns, or that there are not.
    pub(super) fn new(schema: &SchemaRef, formats: &[i16]) -> Result<Self> {
        let fields = schema.fields();
        let fits = formats.len() <= 1 || formats.len() == fields.len();
        if !fits || formats.iter().any(|format| !(0..=FORMAT_CODE_BINARY).contains(format)) {
            let message = "the formats asked for do not fit the answer's columns";
            return Err(Error::new(ErrorCode::QueryInvalid, message));
        }
        let format = |at: usize| match formats {
            [] => 0,
            [one] => *one,
            all => all[at],
        };
        let column = |(at, field): (usize, &Arc<Field>)| {
            (field.name().clone(), Kind::of(field.data_type()), format(at))
        };
        Ok(Self { columns: fields.iter().enumerate().map(column).collect() })
    }

    pub(super) fn described(&self) -> Vec<FieldDescription> {
        self.columns.iter().map(|(name, kind, format)| kind.described(name, *format)).collect()
    }

    /// A batch as it is written from.
    ///
    /// # Errors
    /// `query.failed` for a value that does not fit PostgreSQL's type.
    pub(super) fn prepare(&self, batch: &RecordBatch) -> Result<Rows> {
        let columns = self.columns.iter().zip(batch.columns());
        let columns = columns.map(|((_, kind, _), array)| match &kind.canonical {
            Some(canonical) if canonical == array.data_type() => Ok(Arc::clone(array)),
            Some(canonical) => {
                let exactly = CastOptions { safe: false, ..CastOptions::default() };
                cast_with_options(array, canonical, &exactly).map_err(|_| unfit(kind.oid))
            }
            None => json(array),
        });
        Ok(Rows { arrays: columns.collect::<Result<_>>()?, rows: batch.num_rows() })
    }

    /// The values of one row, each after its length.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub(super) fn row(&self, rows: &Rows, at: usize) -> Result<BytesMut> {
        let mut out = BytesMut::new();
        for ((_, kind, format), array) in self.columns.iter().zip(&rows.arrays) {
            value(array, at, (kind.oid, *format == FORMAT_CODE_BINARY), &mut out)?;
        }
        Ok(out)
    }

    pub(super) fn width(&self) -> usize {
        self.columns.len()
    }
}

/// The rows of a batch, ready to be written.
pub(super) struct Rows {
    arrays: Vec<ArrayRef>,
    pub(super) rows: usize,
}

fn unfit(oid: u32) -> Error {
    let message = format!("a value does not fit PostgreSQL's type (oid {oid})");
    Error::new(ErrorCode::QueryFailed, message).hint("CAST(… AS text) gives it as text")
}

/// Values that PostgreSQL has no type for, as JSON.
fn json(array: &ArrayRef) -> Result<ArrayRef> {
    let field = Field::new("value", array.data_type().clone(), true);
    let schema = Arc::new(Schema::new(vec![field]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(array)]);
    let rows = crate::answer::arrays(&batch.map_err(crate::answer::failed)?)?;
    let texts =
        rows.iter().enumerate().map(|(at, row)| array.is_valid(at).then(|| row[0].to_string()));
    Ok(Arc::new(texts.collect::<StringArray>()))
}

/// Writes one value after its length; -1 for null.
fn value(
    array: &ArrayRef,
    at: usize,
    (oid, binary): (u32, bool),
    out: &mut BytesMut,
) -> Result<()> {
    if array.is_null(at) {
        out.put_i32(-1);
        return Ok(());
    }
    let begin = out.len();
    out.put_i32(0);
    if binary {
        in_binary(array, at, oid, out)?;
    } else {
        out.put_slice(in_text(array, at)?.as_bytes());
    }
    let length = i32::try_from(out.len() - begin - 4).map_err(|_| unfit(oid))?;
    out[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn in_text(array: &ArrayRef, at: usize) -> Result<String> {
    let far = || {
        let message = "a date or time is outside of the years that can be written";
        Error::new(ErrorCode::QueryFailed, message).hint("CAST(… AS bigint) gives it as a number")
    };
    Ok(match array.data_type() {
        DataType::Boolean => String::from(if array.as_boolean().value(at) { "t" } else { "f" }),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(at).to_string(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(at).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(at).to_string(),
        DataType::Float32 => text::float(array.as_primitive::<Float32Type>().value(at)),
        DataType::Float64 => text::double(array.as_primitive::<Float64Type>().value(at)),
        DataType::Decimal128(..) | DataType::Decimal256(..) => decimal(array, at),
        DataType::Utf8 => array.as_string::<i32>().value(at).to_owned(),
        DataType::Binary => format!("\\x{}", hex(array.as_binary::<i32>().value(at))),
        DataType::FixedSizeBinary(16) => uuid(array, at)?.to_string(),
        DataType::Date32 => {
            text::date(array.as_primitive::<Date32Type>().value(at)).ok_or_else(far)?
        }
        DataType::Time64(_) => text::time(array.as_primitive::<Time64MicrosecondType>().value(at)),
        DataType::Timestamp(_, zone) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(at);
            text::timestamp(micros, zone.is_some()).ok_or_else(far)?
        }
        DataType::Interval(_) => text::interval(span(array, at)),
        DataType::List(_) => list_in_text(&array.as_list::<i32>().value(at))?,
        other => return Err(unknown(other)),
    })
}

fn list_in_text(elements: &ArrayRef) -> Result<String> {
    let mut list = String::from("{");
    for at in 0..elements.len() {
        if at > 0 {
            list.push(',');
        }
        if elements.is_null(at) {
            list.push_str("NULL");
        } else {
            text::element(&in_text(elements, at)?, &mut list);
        }
    }
    list.push('}');
    Ok(list)
}

fn in_binary(array: &ArrayRef, at: usize, oid: u32, out: &mut BytesMut) -> Result<()> {
    match array.data_type() {
        DataType::Boolean => out.put_u8(u8::from(array.as_boolean().value(at))),
        DataType::Int16 => out.put_i16(array.as_primitive::<Int16Type>().value(at)),
        DataType::Int32 => out.put_i32(array.as_primitive::<Int32Type>().value(at)),
        DataType::Int64 => out.put_i64(array.as_primitive::<Int64Type>().value(at)),
        DataType::Float32 => out.put_f32(array.as_primitive::<Float32Type>().value(at)),
        DataType::Float64 => out.put_f64(array.as_primitive::<Float64Type>().value(at)),
        DataType::Decimal128(..) | DataType::Decimal256(..) => {
            numeric::put(&decimal(array, at), out);
        }
        DataType::Utf8 => out.put_slice(array.as_string::<i32>().value(at).as_bytes()),
        DataType::Binary => out.put_slice(array.as_binary::<i32>().value(at)),
        DataType::FixedSizeBinary(16) => out.put_slice(array.as_fixed_size_binary().value(at)),
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().value(at);
            out.put_i32(days.checked_sub(EPOCH_DAYS).ok_or_else(|| unfit(oid))?);
        }
        DataType::Time64(_) => out.put_i64(array.as_primitive::<Time64MicrosecondType>().value(at)),
        DataType::Timestamp(..) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(at);
            out.put_i64(micros.checked_sub(EPOCH_MICROS).ok_or_else(|| unfit(oid))?);
        }
        DataType::Interval(_) => {
            let span = span(array, at);
            out.put_i64(span.nanoseconds / 1000);
            out.put_i32(span.days);
            out.put_i32(span.months);
        }
        DataType::List(_) => list_in_binary(&array.as_list::<i32>().value(at), oid, out)?,
        other => return Err(unknown(other)),
    }
    Ok(())
}

/// One dimension, counted from 1; none without elements.
fn list_in_binary(elements: &ArrayRef, oid: u32, out: &mut BytesMut) -> Result<()> {
    let of = element(oid).ok_or_else(|| unfit(oid))?;
    let length = i32::try_from(elements.len()).map_err(|_| unfit(oid))?;
    out.put_i32(i32::from(length > 0));
    out.put_i32(i32::from(elements.null_count() > 0));
    out.put_u32(of);
    if length > 0 {
        out.put_i32(length);
        out.put_i32(1);
    }
    for at in 0..elements.len() {
        value(elements, at, (of, true), out)?;
    }
    Ok(())
}

fn decimal(array: &ArrayRef, at: usize) -> String {
    match array.data_type() {
        DataType::Decimal256(precision, scale) => {
            let value = array.as_primitive::<Decimal256Type>().value(at);
            Decimal256Type::format_decimal(value, *precision, *scale)
        }
        DataType::Decimal128(precision, scale) => {
            let value = array.as_primitive::<Decimal128Type>().value(at);
            Decimal128Type::format_decimal(value, *precision, *scale)
        }
        _ => String::new(),
    }
}

fn uuid(array: &ArrayRef, at: usize) -> Result<uuid::Uuid> {
    let bytes = array.as_fixed_size_binary().value(at);
    uuid::Uuid::from_slice(bytes).map_err(|_| unfit(super::types::oid::UUID))
}

fn span(array: &ArrayRef, at: usize) -> IntervalMonthDayNano {
    array.as_primitive::<IntervalMonthDayNanoType>().value(at)
}

fn unknown(data_type: &DataType) -> Error {
    Error::new(ErrorCode::Internal, format!("{data_type} is not written by this protocol"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Int64Array, ListArray,
        StructArray, TimestampMicrosecondArray, TimestampSecondArray,
    };

    use super::*;

    fn rows(array: ArrayRef, format: i16) -> Result<Vec<Option<Vec<u8>>>> {
        let field = Field::new("c", array.data_type().clone(), true);
        let schema = Arc::new(Schema::new(vec![field]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![array]).expect("batch");
        let encoder = Encoder::new(&schema, &[format])?;
        let prepared = encoder.prepare(&batch)?;
        (0..prepared.rows)
            .map(|at| {
                let row = encoder.row(&prepared, at)?;
                let length = i32::from_be_bytes([row[0], row[1], row[2], row[3]]);
                assert_eq!(row.len(), 4 + usize::try_from(length).unwrap_or_default());
                Ok((length >= 0).then(|| row[4..].to_vec()))
            })
            .collect()
    }

    fn texts(array: ArrayRef) -> Vec<Option<String>> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        rows(array, 0).expect("rows").into_iter().map(|row| row.map(text)).collect()
    }

    fn decimals() -> ArrayRef {
        let values = Decimal128Array::from(vec![Some(-1_234_567), Some(0), None]);
        Arc::new(values.with_precision_and_scale(38, 3).expect("fits"))
    }

    #[test]
    fn values_in_text() {
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
        assert_eq!(texts(flags), [Some("t".to_owned()), Some("f".to_owned()), None]);
        assert_eq!(
            texts(decimals()),
            [Some("-1234.567".to_owned()), Some("0.000".to_owned()), None]
        );
        let id = FixedSizeBinaryArray::try_from_iter([[7_u8; 16]].into_iter()).expect("id");
        assert_eq!(texts(Arc::new(id)), [Some("07070707-0707-0707-0707-070707070707".to_owned())]);
        let zoned = TimestampMicrosecondArray::from(vec![0]).with_timezone("+00:00");
        assert_eq!(texts(Arc::new(zoned)), [Some("1970-01-01 00:00:00+00".to_owned())]);
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(vec![
            Some(vec![Some(1), None, Some(-3)]),
            Some(vec![]),
            None,
        ]);
        assert_eq!(
            texts(Arc::new(lists)),
            [Some("{1,NULL,-3}".to_owned()), Some("{}".to_owned()), None]
        );
        let field = Arc::new(Field::new("n", decimals().data_type().clone(), true));
        let point = StructArray::from(vec![(field, decimals())]);
        let expected =
            [Some(r#"{"n":"-1234.567"}"#.to_owned()), Some(r#"{"n":"0.000"}"#.to_owned())];
        assert_eq!(texts(Arc::new(point))[..2], expected);
    }

    #[test]
    fn values_in_binary() {
        let found = rows(decimals(), 1).expect("rows");
        let first = [0, 2, 0, 0, 0x40, 0, 0, 3, 0x04, 0xD2, 0x16, 0x26];
        assert_eq!(found[0].as_deref(), Some(&first[..]));
        assert_eq!(found[1].as_deref(), Some(&[0, 0, 0, 0, 0, 0, 0, 3][..]));
        assert_eq!(found[2], None);
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![EPOCH_DAYS + 1]));
        assert_eq!(rows(dates, 1).expect("rows")[0].as_deref(), Some(&[0, 0, 0, 1][..]));
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![EPOCH_MICROS - 1]));
        assert_eq!(rows(times, 1).expect("rows")[0].as_deref(), Some(&[255; 8][..]));
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1), None]),
            Some(vec![]),
        ]);
        let found = rows(Arc::new(lists), 1).expect("rows");
        let header = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1];
        let elements = [0, 0, 0, 4, 0, 0, 0, 1, 255, 255, 255, 255];
        assert_eq!(found[0].as_deref(), Some(&[&header[..], &elements[..]].concat()[..]));
        assert_eq!(found[1].as_deref(), Some(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23][..]));
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_no_other_value() {
        let far: ArrayRef = Arc::new(TimestampSecondArray::from(vec![i64::MAX]));
        assert!(rows(far, 1).is_err());
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![i32::MIN]));
        assert!(rows(Arc::clone(&dates), 1).is_err() && rows(dates, 0).is_err());
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        for format in [-1, 2] {
            assert!(rows(Arc::clone(&numbers), format).is_err());
        }
    }
}
