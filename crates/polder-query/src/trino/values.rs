//! Rows as Trino's JSON has them → Arrow, digit by digit. A value that is not as its type says is an error,
//! which does not quote it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, FixedSizeBinaryBuilder, ListArray,
    NullArray, PrimitiveArray, RecordBatch, StringArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Fields, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, SchemaRef, Time64MicrosecondType, Time64NanosecondType,
    TimeUnit, TimestampMicrosecondType, TimestampNanosecondType,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{
    DateTime, Datelike, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Timelike, Utc,
};
use polder_core::{Error, ErrorCode, Result};
use serde_json::Value;
use uuid::Uuid;

/// The days of 1970-01-01 in chrono's count.
const EPOCH_DAY: i32 = 719_163;
/// What a row that is null has for its members.
static NULL: Value = Value::Null;
const DATE_TIME: &str = "%Y-%m-%d %H:%M:%S%.f";

/// # Errors
/// `query.failed` for rows that are not of the schema.
pub(super) fn batch(schema: &SchemaRef, rows: &[Vec<Value>]) -> Result<RecordBatch> {
    let width = schema.fields().len();
    if rows.iter().any(|row| row.len() != width) {
        return Err(unreadable("a row"));
    }
    let column = |(at, field): (usize, &Arc<Field>)| {
        let values: Vec<&Value> = rows.iter().map(|row| &row[at]).collect();
        array(&values, field.data_type())
            .map_err(|error| error.within(&format!("column {:?} of the answer", field.name())))
    };
    let columns = schema.fields().iter().enumerate().map(column).collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|cause| {
        Error::new(ErrorCode::Internal, "rows of Trino's are not as their schema").caused_by(cause)
    })
}

fn unreadable(what: &str) -> Error {
    Error::new(ErrorCode::QueryFailed, format!("{what} of Trino's answer cannot be read exactly"))
        .hint("cast the column to varchar, or a time to AT TIME ZONE 'UTC'")
}

fn array(values: &[&Value], data_type: &DataType) -> Result<ArrayRef> {
    Ok(match data_type {
        DataType::Null => Arc::new(NullArray::new(values.len())),
        DataType::Boolean => Arc::new(BooleanArray::from(read(values, Value::as_bool)?)),
        DataType::Int8 => integers::<Int8Type>(values)?,
        DataType::Int16 => integers::<Int16Type>(values)?,
        DataType::Int32 => integers::<Int32Type>(values)?,
        DataType::Int64 => integers::<Int64Type>(values)?,
        DataType::Float32 => primitive::<Float32Type>(values, single)?,
        DataType::Float64 => primitive::<Float64Type>(values, double)?,
        DataType::Decimal128(precision, scale) => {
            let unscaled = |value: &Value| decimal(value.as_str()?, (*scale).try_into().ok()?);
            let numbers = numbers::<Decimal128Type>(values, unscaled)?;
            let numbers = numbers.with_precision_and_scale(*precision, *scale);
            Arc::new(numbers.map_err(|_| unreadable("a decimal"))?)
        }
        DataType::Utf8 => Arc::new(StringArray::from(read(values, Value::as_str)?)),
        DataType::Binary => {
            let bytes = read(values, |value| STANDARD.decode(value.as_str()?).ok())?;
            Arc::new(bytes.into_iter().collect::<BinaryArray>())
        }
        DataType::FixedSizeBinary(16) => uuids(values)?,
        DataType::Date32 => primitive::<Date32Type>(values, |value| days(value.as_str()?))?,
        DataType::Time64(unit) => times(values, *unit)?,
        DataType::Timestamp(unit, zone) => timestamps(values, *unit, zone.as_ref())?,
        DataType::List(element) => list(values, element)?,
        DataType::Struct(fields) => members(values, fields)?,
        _ => return Err(unreadable("a value")),
    })
}

/// Every value by `one`; null stays null.
fn read<'a, T>(
    values: &[&'a Value],
    one: impl Fn(&'a Value) -> Option<T>,
) -> Result<Vec<Option<T>>> {
    let each = values.iter().map(|value| match value {
        Value::Null => Ok(None),
        value => one(value).map(Some).ok_or_else(|| unreadable("a value")),
    });
    each.collect()
}

fn numbers<T: ArrowPrimitiveType>(
    values: &[&Value],
    one: impl Fn(&Value) -> Option<T::Native>,
) -> Result<PrimitiveArray<T>> {
    Ok(read(values, one)?.into_iter().collect())
}

fn primitive<T: ArrowPrimitiveType>(
    values: &[&Value],
    one: impl Fn(&Value) -> Option<T::Native>,
) -> Result<ArrayRef> {
    Ok(Arc::new(numbers::<T>(values, one)?))
}

fn integers<T: ArrowPrimitiveType>(values: &[&Value]) -> Result<ArrayRef>
where
    T::Native: TryFrom<i64>,
{
    primitive::<T>(values, |value| value.as_i64()?.try_into().ok())
}

fn double(value: &Value) -> Option<f64> {
    match value.as_str() {
        None => value.as_f64(),
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some(_) => None,
    }
}

/// By its digits: rounded to a double first, it might be rounded twice.
fn single(value: &Value) -> Option<f32> {
    match value {
        Value::Number(number) => number.to_string().parse().ok(),
        value => double(value).map(|special| special as f32),
    }
}

/// `-12.50` with two digits after the point → -1250.
fn decimal(text: &str, scale: usize) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().all(|digit| digit.is_ascii_digit());
    (digits && fraction.len() <= scale)
        .then(|| format!("{whole}{fraction:0<scale$}").parse().ok())
        .flatten()
}

fn uuids(values: &[&Value]) -> Result<ArrayRef> {
    let mut uuids = FixedSizeBinaryBuilder::with_capacity(values.len(), 16);
    for value in read(values, |value| Uuid::parse_str(value.as_str()?).ok())? {
        match value {
            // Sixteen bytes fit sixteen bytes.
            Some(id) => uuids.append_value(id.as_bytes()).map_err(|_| unreadable("a uuid"))?,
            None => uuids.append_null(),
        }
    }
    Ok(Arc::new(uuids.finish()))
}

fn days(text: &str) -> Option<i32> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    date.num_days_from_ce().checked_sub(EPOCH_DAY)
}

fn times(values: &[&Value], unit: TimeUnit) -> Result<ArrayRef> {
    let nanos = |value: &Value| {
        let time = NaiveTime::parse_from_str(value.as_str()?, "%H:%M:%S%.f").ok()?;
        Some(
            i64::from(time.num_seconds_from_midnight()) * 1_000_000_000
                + i64::from(time.nanosecond()),
        )
    };
    if unit == TimeUnit::Nanosecond {
        return primitive::<Time64NanosecondType>(values, nanos);
    }
    primitive::<Time64MicrosecondType>(values, |value| Some(nanos(value)? / 1000))
}

fn timestamps(values: &[&Value], unit: TimeUnit, zone: Option<&Arc<str>>) -> Result<ArrayRef> {
    let at = |value: &Value| match zone {
        Some(_) => instant(value.as_str()?),
        None => Some(NaiveDateTime::parse_from_str(value.as_str()?, DATE_TIME).ok()?.and_utc()),
    };
    if unit == TimeUnit::Nanosecond {
        let nanos = |value: &Value| at(value)?.timestamp_nanos_opt();
        let numbers = numbers::<TimestampNanosecondType>(values, nanos)?;
        return Ok(Arc::new(numbers.with_timezone_opt(zone.cloned())));
    }
    let micros = |value: &Value| Some(at(value)?.timestamp_micros());
    let numbers = numbers::<TimestampMicrosecondType>(values, micros)?;
    Ok(Arc::new(numbers.with_timezone_opt(zone.cloned())))
}

/// `2026-01-01 12:00:00.000 Europe/Berlin`. A local time that comes twice, when clocks go back, is none.
fn instant(text: &str) -> Option<DateTime<Utc>> {
    let (local, zone) = text.rsplit_once(' ')?;
    let local = NaiveDateTime::parse_from_str(local, DATE_TIME).ok()?;
    if zone == "UTC" {
        return Some(local.and_utc());
    }
    if let Ok(offset) = zone.parse::<FixedOffset>() {
        return Some(offset.from_local_datetime(&local).single()?.to_utc());
    }
    let zone: chrono_tz::Tz = zone.parse().ok()?;
    Some(zone.from_local_datetime(&local).single()?.to_utc())
}

fn list(values: &[&Value], element: &Arc<Field>) -> Result<ArrayRef> {
    let lists = read(values, Value::as_array)?;
    let valid = lists.iter().map(Option::is_some).collect::<NullBuffer>();
    let lengths = lists.iter().map(|list| list.map_or(0, Vec::len));
    let offsets = OffsetBuffer::from_lengths(lengths);
    let elements: Vec<&Value> = lists.iter().copied().flatten().flatten().collect();
    let elements = array(&elements, element.data_type())?;
    let list = ListArray::try_new(Arc::clone(element), offsets, elements, Some(valid));
    Ok(Arc::new(list.map_err(|_| unreadable("an array"))?))
}

fn members(values: &[&Value], fields: &Fields) -> Result<ArrayRef> {
    let rows = read(values, |value| value.as_array().filter(|row| row.len() == fields.len()))?;
    let valid = rows.iter().map(Option::is_some).collect::<NullBuffer>();
    let member = |(at, field): (usize, &Arc<Field>)| {
        let values: Vec<&Value> =
            rows.iter().map(|row| row.map_or(&NULL, |row| &row[at])).collect();
        array(&values, field.data_type())
    };
    let columns = fields.iter().enumerate().map(member).collect::<Result<Vec<_>>>()?;
    let row = StructArray::try_new(fields.clone(), columns, Some(valid));
    Ok(Arc::new(row.map_err(|_| unreadable("a row"))?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Schema;
    use serde_json::json;

    use super::*;

    fn column(data_type: &DataType, values: &[Value]) -> Result<ArrayRef> {
        array(&values.iter().collect::<Vec<_>>(), data_type)
    }

    #[test]
    fn every_digit_arrives() {
        let long = column(&DataType::Int64, &[json!(i64::MIN), json!(i64::MAX), Value::Null]);
        let long = long.expect("longs");
        assert_eq!(long.as_primitive::<Int64Type>().values()[..2], [i64::MIN, i64::MAX]);
        assert!(long.is_null(2));
        let text = "99999999999999999999999999999999.999999";
        let decimals = column(&DataType::Decimal128(38, 6), &[json!(text), json!("-0.000001")]);
        let decimals = decimals.expect("decimals");
        let decimals = decimals.as_primitive::<Decimal128Type>();
        assert_eq!((decimals.value_as_string(0), decimals.value(1)), (text.to_owned(), -1));
        let parsed: Value =
            serde_json::from_str("[0.1, 123456.789e3, \"NaN\", 5e-324]").expect("JSON");
        let doubles =
            column(&DataType::Float64, parsed.as_array().expect("array")).expect("doubles");
        let doubles = doubles.as_primitive::<Float64Type>();
        assert_eq!((doubles.value(0), doubles.value(1)), (0.1, 123_456_789.0));
        assert!(doubles.value(2).is_nan() && doubles.value(3).to_bits() == 1);
        let singles =
            column(&DataType::Float32, &[json!(0.1), json!("-Infinity")]).expect("singles");
        let singles = singles.as_primitive::<Float32Type>();
        assert_eq!((singles.value(0), singles.value(1)), (0.1_f32, f32::NEG_INFINITY));
    }

    #[test]
    fn times_keep_their_digits_and_instants_their_moment() {
        let micros = |text: &str, zone: Option<&str>| {
            let zone = zone.map(Arc::from);
            let found = column(&DataType::Timestamp(TimeUnit::Microsecond, zone), &[json!(text)]);
            found.map(|found| found.as_primitive::<TimestampMicrosecondType>().value(0))
        };
        assert_eq!(micros("1969-12-31 23:59:59.999999", None).expect("before"), -1);
        assert_eq!(
            micros("9999-12-31 23:59:59.999999", None).expect("last"),
            253_402_300_799_999_999
        );
        let utc = Some("+00:00");
        let noon = micros("2026-07-01 12:00:00.000001 UTC", utc).expect("UTC");
        assert_eq!(micros("2026-07-01 14:00:00.000001 Europe/Berlin", utc).expect("zone"), noon);
        assert_eq!(micros("2026-07-01 14:00:00.000001 +02:00", utc).expect("offset"), noon);
        let twice = micros("2026-10-25 02:30:00.000000 Europe/Berlin", utc);
        assert_eq!(twice.expect_err("it comes twice").code(), ErrorCode::QueryFailed);
        let days =
            column(&DataType::Date32, &[json!("1970-01-02"), json!("0001-01-01")]).expect("days");
        assert_eq!(days.as_primitive::<Date32Type>().values()[..], [1, -719_162]);
        let time = column(&DataType::Time64(TimeUnit::Microsecond), &[json!("00:00:01.000002")]);
        assert_eq!(time.expect("time").as_primitive::<Time64MicrosecondType>().value(0), 1_000_002);
    }

    #[test]
    fn nested_values_keep_their_nulls() {
        let element = Arc::new(Field::new("element", DataType::Int64, true));
        let list = DataType::List(element);
        let lists = column(&list, &[json!([1, null]), Value::Null, json!([])]).expect("lists");
        let lists = lists.as_list::<i32>();
        assert_eq!((lists.value_length(0), lists.is_null(1), lists.value_length(2)), (2, true, 0));
        let fields =
            Fields::from(vec![Field::new("a", DataType::Utf8, true), Field::new("l", list, true)]);
        let rows =
            column(&DataType::Struct(fields), &[json!(["x", [1]]), Value::Null]).expect("rows");
        let rows = rows.as_struct();
        assert!(rows.is_valid(0) && rows.is_null(1));
        assert_eq!(rows.column(0).as_string::<i32>().value(0), "x");
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_quotes_nothing() {
        let cases = [
            (DataType::Int32, json!(3_000_000_000_i64)),
            (DataType::Int64, json!("Ann")),
            (DataType::Decimal128(4, 2), json!("1.234")),
            (DataType::Decimal128(4, 2), json!("Ann")),
            (DataType::Date32, json!("Ann")),
            (DataType::Utf8, json!(1)),
            (DataType::Binary, json!("Ann!")),
            (DataType::FixedSizeBinary(16), json!("Ann")),
        ];
        for (data_type, value) in cases {
            let error = column(&data_type, &[value]).expect_err("does not fit");
            assert!(!format!("{error:?}").contains("Ann"), "{data_type}");
        }
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        assert!(batch(&schema, &[vec![]]).is_err(), "a row without its column");
        assert_eq!(batch(&schema, &[]).expect("no rows").num_rows(), 0);
    }
}
