//! One BSON value into one column type, exactly or not at all.
//!
//! Inferred columns only ever meet values that fit; the wider conversions here serve declared types
//! (`types:`), where a string may hold the number.

use polder_core::LakeType;

use super::raw::{Decimal, Value};
use super::types::DATE_MILLIS;
use crate::values::{self, Exact, Number, Unfit};

const MICROS_A_DAY: i64 = 86_400_000_000;

pub(super) fn boolean(value: Value<'_>) -> Exact<bool> {
    match value {
        Value::Boolean(value) => Ok(value),
        Value::String(bytes) => text(bytes).and_then(values::boolean).ok_or(Unfit::Malformed),
        _ => Err(Unfit::Malformed),
    }
}

pub(super) fn integer(value: Value<'_>, min: i64, max: i64) -> Exact<i64> {
    match value {
        Value::Int(value) => Ok(i64::from(value)),
        Value::Long(value) if (min..=max).contains(&value) => Ok(value),
        other => match number(other).ok_or(Unfit::Malformed)? {
            Numeric::Finite(number) => number.to_integer(min, max),
            Numeric::Infinite { negative } => {
                Err(Unfit::Inexact(Some(if negative { min } else { max })))
            }
            Numeric::NaN => Err(Unfit::Inexact(None)),
        },
    }
}

pub(super) fn double(value: Value<'_>) -> Exact<f64> {
    match value {
        Value::Double(value) => Ok(value),
        Value::Int(value) => Ok(f64::from(value)),
        Value::Long(value) if value.unsigned_abs() <= 1 << 53 => Ok(value as f64),
        Value::Long(value) => Err(Unfit::Inexact(Some(value as f64))),
        Value::Decimal(value) => {
            let mut digits = String::new();
            super::text::write_decimal(&mut digits, value);
            values::double(&digits)
        }
        Value::String(bytes) | Value::Symbol(bytes) => {
            values::double(text(bytes).ok_or(Unfit::Malformed)?)
        }
        _ => Err(Unfit::Malformed),
    }
}

pub(super) fn float(value: Value<'_>) -> Exact<f32> {
    let wide = match double(value) {
        Ok(wide) => wide,
        Err(Unfit::Inexact(nearest)) => return Err(Unfit::Inexact(nearest.map(narrowed))),
        Err(Unfit::Malformed) => return Err(Unfit::Malformed),
    };
    let narrow = narrowed(wide);
    let exact = wide.is_nan() || f64::from(narrow).to_bits() == wide.to_bits();
    if exact { Ok(narrow) } else { Err(Unfit::Inexact(Some(narrow))) }
}

/// The nearest float; finite for a finite double.
fn narrowed(wide: f64) -> f32 {
    let narrow = wide as f32;
    if wide.is_finite() { narrow.clamp(f32::MIN, f32::MAX) } else { narrow }
}

pub(super) fn decimal(value: Value<'_>, precision: u8, scale: u8) -> Exact<i128> {
    match number(value).ok_or(Unfit::Malformed)? {
        Numeric::Finite(number) => number.to_decimal(precision, scale),
        Numeric::Infinite { negative } => {
            let largest = 10_i128.pow(u32::from(precision)) - 1;
            Err(Unfit::Inexact(Some(if negative { -largest } else { largest })))
        }
        Numeric::NaN => Err(Unfit::Inexact(None)),
    }
}

/// What a value is as a number.
enum Numeric {
    Finite(Number),
    Infinite { negative: bool },
    NaN,
}

/// The number a value is; `None` for what is none.
fn number(value: Value<'_>) -> Option<Numeric> {
    Some(match value {
        Value::Int(value) => Numeric::Finite(Number::from_integer(i64::from(value))),
        Value::Long(value) => Numeric::Finite(Number::from_integer(value)),
        Value::Double(value) => match Number::from_double(value) {
            Some(number) => Numeric::Finite(number),
            None if value.is_nan() => Numeric::NaN,
            None => Numeric::Infinite { negative: value < 0.0 },
        },
        Value::Decimal(Decimal::Finite { negative, coefficient, exponent }) => {
            Numeric::Finite(Number::new(negative, coefficient, exponent))
        }
        Value::Decimal(Decimal::Infinity { negative }) => Numeric::Infinite { negative },
        Value::Decimal(Decimal::NaN) => Numeric::NaN,
        Value::String(bytes) | Value::Symbol(bytes) => {
            Numeric::Finite(values::number(text(bytes)?)?)
        }
        _ => return None,
    })
}

/// Microseconds since the epoch, UTC.
pub(super) fn timestamptz(value: Value<'_>) -> Exact<i64> {
    match value {
        Value::Date(millis) if DATE_MILLIS.contains(&millis) => Ok(millis * 1000),
        Value::Date(millis) => {
            let nearest = millis.clamp(*DATE_MILLIS.start(), *DATE_MILLIS.end()) * 1000;
            Err(Unfit::Inexact(Some(nearest)))
        }
        Value::String(bytes) => timestamp_text(bytes, true),
        _ => Err(Unfit::Malformed),
    }
}

/// Microseconds since the epoch, without zone. MongoDB's dates are taken as UTC.
pub(super) fn timestamp(value: Value<'_>) -> Exact<i64> {
    match value {
        Value::String(bytes) => timestamp_text(bytes, false),
        other => timestamptz(other),
    }
}

fn timestamp_text(bytes: &[u8], zoned: bool) -> Exact<i64> {
    let micros = |time: values::Timestamp| (time.zoned == zoned).then_some(time.micros);
    match values::timestamp(bytes) {
        Ok(time) => micros(time).ok_or(Unfit::Malformed),
        Err(Unfit::Inexact(Some(time))) => match micros(time) {
            Some(micros) => Err(Unfit::Inexact(Some(micros))),
            None => Err(Unfit::Malformed),
        },
        Err(_) => Err(Unfit::Malformed),
    }
}

/// Days since the epoch.
pub(super) fn date(value: Value<'_>) -> Exact<i32> {
    match value {
        Value::String(bytes) => values::date(bytes).ok_or(Unfit::Malformed),
        Value::Date(_) => {
            let (micros, exact) = match timestamptz(value) {
                Ok(micros) => (micros, micros % MICROS_A_DAY == 0),
                Err(Unfit::Inexact(Some(micros))) => (micros, false),
                Err(_) => return Err(Unfit::Malformed),
            };
            // Four-digit years: the days fit.
            let days = micros.div_euclid(MICROS_A_DAY) as i32;
            if exact { Ok(days) } else { Err(Unfit::Inexact(Some(days))) }
        }
        _ => Err(Unfit::Malformed),
    }
}

/// Microseconds since midnight.
pub(super) fn time(value: Value<'_>) -> Exact<i64> {
    match value {
        Value::String(bytes) => values::time(bytes),
        _ => Err(Unfit::Malformed),
    }
}

pub(super) fn uuid(value: Value<'_>) -> Exact<[u8; 16]> {
    let bytes = match value {
        Value::Binary(4, bytes) => bytes.try_into().ok(),
        Value::String(bytes) => text(bytes).and_then(values::uuid),
        _ => None,
    };
    bytes.ok_or(Unfit::Malformed)
}

/// Bytes of the generic subtype; any other subtype would be forgotten.
pub(super) fn binary(value: Value<'_>) -> Exact<&[u8]> {
    match value {
        Value::Binary(0, bytes) => Ok(bytes),
        _ => Err(Unfit::Malformed),
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Bytes of Arrow data a null or fixed-width value of this type takes; nested ones summed.
pub(super) fn fixed_width(data_type: &LakeType) -> usize {
    match data_type {
        LakeType::Boolean => 1,
        LakeType::Int
        | LakeType::Float
        | LakeType::Date
        | LakeType::List(_)
        | LakeType::String
        | LakeType::Binary => 4,
        LakeType::Decimal { .. } | LakeType::Uuid => 16,
        LakeType::Struct(fields) => fields.iter().map(|field| fixed_width(&field.data_type)).sum(),
        _ => 8,
    }
}
