//! Values as JSON text, for columns whose values have no common type.
//!
//! MongoDB's values become extended JSON v2 (specifications/extended-json), relaxed where that keeps
//! the value and canonical where it does not: numbers as JSON numbers, everything that JSON cannot
//! say as `{"$type": …}`. A member of a stored document that is itself called `$oid` and the like
//! reads the same as such a wrapper: that is extended JSON's own limit.
//! Values of JSON lines become plain JSON.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use polder_core::Result;

use super::raw::{Decimal, Element, Elements, Value, int32, kind, malformed, string, utf8};

/// Nesting of one value; MongoDB itself refuses more than 100 levels.
const DEPTH_MAX: usize = 256;

/// How values that JSON has no form for are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// MongoDB extended JSON.
    Extended,
    /// The values came from JSON and go back to it.
    Json,
}

/// Appends the value's text.
pub(super) fn write(out: &mut String, element: &Element<'_>, dialect: Dialect) -> Result<()> {
    write_at(out, element, dialect, 0)
}

fn write_at(out: &mut String, e: &Element<'_>, dialect: Dialect, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(malformed("a value is nested too deeply"));
    }
    match e.value() {
        Value::Null => out.push_str("null"),
        Value::Boolean(value) => out.push_str(if value { "true" } else { "false" }),
        Value::Int(value) => put(out, format_args!("{value}")),
        Value::Long(value) => put(out, format_args!("{value}")),
        Value::Double(value) if value.is_finite() => put(out, format_args!("{value:?}")),
        Value::Double(value) => {
            put(out, format_args!("{{\"$numberDouble\":\"{}\"}}", special(value)));
        }
        Value::Decimal(value) if dialect == Dialect::Json => write_decimal(out, value),
        Value::Decimal(value) => {
            out.push_str("{\"$numberDecimal\":\"");
            write_decimal(out, value);
            out.push_str("\"}");
        }
        Value::String(value) => quote(out, utf8(value)?),
        Value::Symbol(value) if dialect == Dialect::Json => out.push_str(utf8(value)?),
        Value::Symbol(value) => wrap_text(out, "$symbol", utf8(value)?),
        Value::ObjectId(value) => {
            out.push_str("{\"$oid\":\"");
            write_hex(out, value);
            out.push_str("\"}");
        }
        Value::Date(millis) => write_date(out, millis),
        Value::Binary(subtype, bytes) => write_binary(out, subtype, bytes),
        Value::Document(bytes) => write_document(out, bytes, dialect, depth)?,
        Value::Array(bytes) => {
            out.push('[');
            for (index, member) in Elements::new(bytes)?.enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_at(out, &member?, dialect, depth + 1)?;
            }
            out.push(']');
        }
        Value::Other => write_other(out, e, dialect, depth)?,
    }
    Ok(())
}

fn write_document(out: &mut String, bytes: &[u8], dialect: Dialect, depth: usize) -> Result<()> {
    out.push('{');
    for (index, member) in Elements::new(bytes)?.enumerate() {
        let member = member?;
        if index > 0 {
            out.push(',');
        }
        quote(out, utf8(member.key)?);
        out.push(':');
        write_at(out, &member, dialect, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

fn write_other(out: &mut String, e: &Element<'_>, dialect: Dialect, depth: usize) -> Result<()> {
    let bytes = e.bytes;
    match e.kind {
        kind::UNDEFINED => out.push_str("{\"$undefined\":true}"),
        kind::MIN_KEY => out.push_str("{\"$minKey\":1}"),
        kind::MAX_KEY => out.push_str("{\"$maxKey\":1}"),
        kind::JAVASCRIPT => wrap_text(out, "$code", utf8(string(bytes))?),
        kind::TIMESTAMP => {
            let (increment, time) = (int32(bytes).cast_unsigned(), int32(&bytes[4..]));
            let time = time.cast_unsigned();
            put(out, format_args!("{{\"$timestamp\":{{\"t\":{time},\"i\":{increment}}}}}"));
        }
        kind::REGEX => {
            let mut parts = bytes.split(|b| *b == 0);
            let pattern = utf8(parts.next().unwrap_or_default())?;
            let options = utf8(parts.next().unwrap_or_default())?;
            out.push_str("{\"$regularExpression\":{\"pattern\":");
            quote(out, pattern);
            out.push_str(",\"options\":");
            quote(out, options);
            out.push_str("}}");
        }
        kind::DB_POINTER => {
            let (name, id) = bytes.split_at(bytes.len() - 12);
            out.push_str("{\"$dbPointer\":{\"$ref\":");
            quote(out, utf8(string(name))?);
            out.push_str(",\"$id\":{\"$oid\":\"");
            write_hex(out, id);
            out.push_str("\"}}}");
        }
        kind::JAVASCRIPT_WITH_SCOPE => {
            let rest = &bytes[4..];
            let size = usize::try_from(int32(rest)).ok().and_then(|size| size.checked_add(4));
            let size = size.filter(|size| (5..rest.len()).contains(size));
            let size = size.ok_or_else(|| malformed("code's length is wrong"))?;
            out.push_str("{\"$code\":");
            quote(out, utf8(string(&rest[..size]))?);
            out.push_str(",\"$scope\":");
            write_document(out, &rest[size..], dialect, depth + 1)?;
            out.push('}');
        }
        _ => return Err(malformed("a value has an unknown type")),
    }
    Ok(())
}

/// The digits of a decimal as MongoDB prints them: plain where the exponent allows, else scientific
/// (General Decimal Arithmetic, *to-scientific-string*).
pub(super) fn write_decimal(out: &mut String, value: Decimal) {
    let (negative, coefficient, exponent) = match value {
        Decimal::NaN => return out.push_str("NaN"),
        Decimal::Infinity { negative } => {
            return out.push_str(if negative { "-Infinity" } else { "Infinity" });
        }
        Decimal::Finite { negative, coefficient, exponent } => (negative, coefficient, exponent),
    };
    if negative {
        out.push('-');
    }
    let digits = coefficient.to_string();
    let count = digits.len() as i32;
    let adjusted = exponent + count - 1;
    if exponent > 0 || adjusted < -6 {
        out.push_str(&digits[..1]);
        if count > 1 {
            out.push('.');
            out.push_str(&digits[1..]);
        }
        put(out, format_args!("E{adjusted:+}"));
    } else if exponent == 0 {
        out.push_str(&digits);
    } else if count > -exponent {
        let point = (count + exponent) as usize;
        put(out, format_args!("{}.{}", &digits[..point], &digits[point..]));
    } else {
        let zeros = (-exponent - count) as usize;
        put(out, format_args!("0.{}{digits}", "0".repeat(zeros)));
    }
}

pub(super) fn write_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

fn write_date(out: &mut String, millis: i64) {
    /// Relaxed extended JSON writes the years 1970 to 9999 as text.
    const RELAXED: std::ops::Range<i64> = 0..253_402_300_800_000;
    match DateTime::<Utc>::from_timestamp_millis(millis) {
        Some(time) if RELAXED.contains(&millis) => {
            let form = if millis % 1000 == 0 { "%FT%TZ" } else { "%FT%T%.3fZ" };
            put(out, format_args!("{{\"$date\":\"{}\"}}", time.format(form)));
        }
        _ => put(out, format_args!("{{\"$date\":{{\"$numberLong\":\"{millis}\"}}}}")),
    }
}

fn write_binary(out: &mut String, subtype: u8, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // The old binary subtype repeats the length inside; extended JSON leaves it out.
    let bytes = if subtype == 2 { bytes.get(4..).unwrap_or_default() } else { bytes };
    out.push_str("{\"$binary\":{\"base64\":\"");
    for chunk in bytes.chunks(3) {
        let mut group = [0_u8; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for position in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * position)) as usize & 63];
            out.push(if position <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    put(out, format_args!("\",\"subType\":\"{subtype:02x}\"}}}}"));
}

fn wrap_text(out: &mut String, name: &str, text: &str) {
    put(out, format_args!("{{\"{name}\":"));
    quote(out, text);
    out.push('}');
}

/// A JSON string (RFC 8259, section 7), escaping what has to be.
pub(super) fn quote(out: &mut String, text: &str) {
    out.push('"');
    let mut start = 0;
    for (index, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&text[start..index]);
        start = index + 1;
        if escape.is_empty() {
            put(out, format_args!("\\u{byte:04x}"));
        } else {
            out.push_str(escape);
        }
    }
    out.push_str(&text[start..]);
    out.push('"');
}

fn special(value: f64) -> &'static str {
    match value {
        value if value.is_nan() => "NaN",
        value if value > 0.0 => "Infinity",
        _ => "-Infinity",
    }
}

fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(arguments);
}
