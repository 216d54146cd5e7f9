//! Values of parameters: bytes of the protocol, in text or in binary → what the engine binds.

use bytes::Buf;
use polder_query::postgres::Value;

use super::encode::{EPOCH_DAYS, EPOCH_MICROS};
use super::failure::{Failure, Outcome, state};
use super::types::{element, oid};
use super::{numeric, text};

/// Elements of an array.
const ELEMENTS_MAX: usize = 100_000;

/// The value of a parameter of this type; of 0 it is an untyped literal.
///
/// # Errors
/// 22P02 for text that is no value of the type, 08P01 for bytes that are none, 0A000 for a type that
/// parameters do not have.
pub(super) fn value(of: u32, binary: bool, bytes: &[u8]) -> Outcome<Value> {
    if binary {
        return in_binary(of, bytes);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Failure::new("22021", "the text of a parameter is no UTF-8"))?;
    in_text(of, text)
}

fn bad(of: u32) -> Failure {
    Failure::new(state::BAD_VALUE, format!("a parameter is no value of its type (oid {of})"))
}

fn unsupported(of: u32) -> Failure {
    Failure::new(state::UNSUPPORTED, format!("no parameter has the type with oid {of}"))
        .hint("send it as text, and cast it in SQL")
}

fn in_text(of: u32, text: &str) -> Outcome<Value> {
    let owned = || text.to_owned();
    Ok(match of {
        oid::BOOL => Value::Boolean(boolean(text).ok_or_else(|| bad(of))?),
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => {
            Value::Integer(text.trim().parse().map_err(|_| bad(of))?)
        }
        oid::FLOAT4 => {
            let value: f32 = text.trim().parse().map_err(|_| bad(of))?;
            Value::Double(f64::from(value))
        }
        oid::FLOAT8 => Value::Double(text.trim().parse().map_err(|_| bad(of))?),
        oid::NUMERIC => Value::Decimal(plain(text.trim()).ok_or_else(|| bad(of))?),
        oid::BYTEA => Value::Bytes(unhex(text).ok_or_else(|| bad(of))?),
        oid::UUID => {
            let id = uuid::Uuid::try_parse(text.trim()).map_err(|_| bad(of))?;
            Value::Text(id.to_string())
        }
        oid::DATE => Value::Date(owned()),
        oid::TIME => Value::Time(owned()),
        oid::TIMESTAMP => Value::Timestamp(owned()),
        oid::TIMESTAMPTZ => Value::Timestamptz(owned()),
        oid::INTERVAL => return Err(unsupported(of)),
        _ => match element(of) {
            Some(inner) => list_in_text(inner, text)?,
            None => Value::Text(owned()),
        },
    })
}

fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "t" | "true" | "yes" | "y" | "on" | "1" => Some(true),
        "f" | "false" | "no" | "n" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Digits without an exponent: `1.5E+3` is 1500.
fn plain(text: &str) -> Option<String> {
    let Some((digits, exponent)) = text.split_once(['e', 'E']) else {
        return Some(text.to_owned());
    };
    let exponent: i64 = exponent.parse().ok()?;
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits.strip_prefix('+').unwrap_or(digits)),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all = format!("{whole}{part}");
    if all.is_empty() || all.len() > 100 || !all.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let point = i64::try_from(whole.len()).ok()? + exponent;
    match point {
        ..=-100 | 101.. => None,
        ..=0 => {
            let zeros = "0".repeat(usize::try_from(-point).ok()?);
            Some(format!("{sign}0.{zeros}{all}"))
        }
        _ => {
            let point = usize::try_from(point).ok()?;
            let padded = format!("{all:0<point$}");
            let (whole, part) = padded.split_at(point);
            let dot = if part.is_empty() { "" } else { "." };
            Some(format!("{sign}{whole}{dot}{part}"))
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let hex = text.strip_prefix("\\x")?;
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

/// `{1,NULL,"a b"}`: of one dimension.
fn list_in_text(of: u32, text: &str) -> Outcome<Value> {
    let inner = text.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let inner = inner.ok_or_else(|| bad(of))?;
    let mut values = Vec::new();
    if inner.trim().is_empty() {
        return Ok(Value::List(values));
    }
    for part in elements(inner).ok_or_else(|| bad(of))? {
        if values.len() == ELEMENTS_MAX {
            return Err(too_many());
        }
        values.push(match part {
            Some(text) => in_text(of, &text)?,
            None => Value::Null(None),
        });
    }
    Ok(Value::List(values))
}

fn too_many() -> Failure {
    let message = format!("an array has {ELEMENTS_MAX} elements at most");
    Failure::new("54000", message)
}

/// The elements between the braces; `None` for NULL. Nothing where quotes and braces do not fit.
fn elements(inner: &str) -> Option<Vec<Option<String>>> {
    let mut found = Vec::new();
    let (mut word, mut was_quoted, mut inside) = (String::new(), false, false);
    let mut letters = inner.chars();
    loop {
        let letter = letters.next();
        match letter {
            Some('\\') => word.push(letters.next()?),
            Some('"') => {
                if !was_quoted && word.trim().is_empty() {
                    word.clear();
                }
                inside = !inside;
                was_quoted = true;
            }
            Some('{' | '}') if !inside => return None,
            Some(',') | None if !inside => {
                let text = std::mem::take(&mut word);
                let plain = text.trim();
                found.push(match (was_quoted, plain.eq_ignore_ascii_case("null")) {
                    (true, _) => Some(text),
                    (false, true) => None,
                    (false, false) if plain.is_empty() => return None,
                    (false, false) => Some(plain.to_owned()),
                });
                was_quoted = false;
                if letter.is_none() {
                    return Some(found);
                }
            }
            Some(letter) if inside || !was_quoted || !letter.is_whitespace() => word.push(letter),
            Some(_) => {}
            None => return None,
        }
    }
}

fn in_binary(of: u32, mut bytes: &[u8]) -> Outcome<Value> {
    let malformed = || Failure::protocol(format!("a parameter's bytes are no value of oid {of}"));
    let far = || Failure::new(state::BAD_VALUE, "a date or time is outside of the years there are");
    let width = match of {
        oid::BOOL => Some(1),
        oid::INT2 => Some(2),
        oid::INT4 | oid::OID | oid::FLOAT4 | oid::DATE => Some(4),
        oid::INT8 | oid::FLOAT8 | oid::TIME | oid::TIMESTAMP | oid::TIMESTAMPTZ => Some(8),
        oid::UUID => Some(16),
        _ => None,
    };
    if width.is_some_and(|width| width != bytes.len()) {
        return Err(malformed());
    }
    let plain = |bytes: &[u8]| -> Outcome<Value> {
        let text = std::str::from_utf8(bytes).map_err(|_| malformed())?;
        Ok(Value::Text(text.to_owned()))
    };
    Ok(match of {
        oid::BOOL => Value::Boolean(bytes.get_u8() != 0),
        oid::INT2 => Value::Integer(i64::from(bytes.get_i16())),
        oid::INT4 => Value::Integer(i64::from(bytes.get_i32())),
        oid::OID => Value::Integer(i64::from(bytes.get_u32())),
        oid::INT8 => Value::Integer(bytes.get_i64()),
        oid::FLOAT4 => Value::Double(f64::from(bytes.get_f32())),
        oid::FLOAT8 => Value::Double(bytes.get_f64()),
        oid::NUMERIC => Value::Decimal(numeric::read(bytes).ok_or_else(malformed)?),
        oid::BYTEA => Value::Bytes(bytes.to_vec()),
        oid::UUID => {
            let id = uuid::Uuid::from_slice(bytes).map_err(|_| malformed())?;
            Value::Text(id.to_string())
        }
        oid::DATE => {
            let days = bytes.get_i32().checked_add(EPOCH_DAYS);
            Value::Date(days.and_then(text::date).ok_or_else(far)?)
        }
        oid::TIME => Value::Time(text::time(bytes.get_i64())),
        oid::TIMESTAMP | oid::TIMESTAMPTZ => {
            let micros = bytes.get_i64().checked_add(EPOCH_MICROS);
            let zoned = of == oid::TIMESTAMPTZ;
            let at = micros.and_then(|micros| text::timestamp(micros, zoned)).ok_or_else(far)?;
            if zoned { Value::Timestamptz(at) } else { Value::Timestamp(at) }
        }
        oid::JSONB => match bytes.split_first() {
            Some((1, rest)) => plain(rest)?,
            _ => return Err(malformed()),
        },
        0 | oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::JSON => plain(bytes)?,
        _ => match element(of) {
            Some(inner) => list_in_binary(inner, bytes)?,
            None => return Err(unsupported(of)),
        },
    })
}

/// An array of one dimension.
fn list_in_binary(of: u32, mut bytes: &[u8]) -> Outcome<Value> {
    let malformed = || Failure::protocol(format!("a parameter's bytes are no array of oid {of}"));
    if bytes.len() < 12 {
        return Err(malformed());
    }
    let (dimensions, _, inner) = (bytes.get_i32(), bytes.get_i32(), bytes.get_u32());
    if dimensions == 0 {
        return Ok(Value::List(Vec::new()));
    }
    if dimensions != 1 || bytes.len() < 8 {
        return Err(malformed());
    }
    let (count, _) = (bytes.get_i32(), bytes.get_i32());
    let count = usize::try_from(count).map_err(|_| malformed())?;
    if count > ELEMENTS_MAX {
        return Err(too_many());
    }
    let mut values = Vec::new();
    for _ in 0..count {
        if bytes.len() < 4 {
            return Err(malformed());
        }
        let Ok(length) = usize::try_from(bytes.get_i32()) else {
            values.push(Value::Null(None));
            continue;
        };
        let (one, rest) = bytes.split_at_checked(length).ok_or_else(malformed)?;
        // No array is an array's element.
        if element(inner).is_some() {
            return Err(malformed());
        }
        values.push(in_binary(inner, one)?);
        bytes = rest;
    }
    Ok(Value::List(values))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn shown(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn parameters_in_text() {
        let list = Value::List(vec![shown("a b"), Value::Null(None), shown("null"), shown("\"")]);
        let cases = [
            (0, "x", shown("x")),
            (oid::VARCHAR, "x", shown("x")),
            (oid::BOOL, "true", Value::Boolean(true)),
            (oid::INT8, "-5", Value::Integer(-5)),
            (oid::FLOAT8, "1e3", Value::Double(1000.0)),
            (oid::NUMERIC, "-1.50", Value::Decimal("-1.50".into())),
            (oid::NUMERIC, "1.5E+3", Value::Decimal("1500".into())),
            (oid::NUMERIC, "-15e-3", Value::Decimal("-0.015".into())),
            (oid::NUMERIC, "1.25e1", Value::Decimal("12.5".into())),
            (oid::BYTEA, "\\x00ff", Value::Bytes(vec![0, 255])),
            (oid::DATE, "2026-01-02", Value::Date("2026-01-02".into())),
            (1009, "{ \"a b\" , NULL,\"null\",\"\\\"\"}", list),
            (1016, "{}", Value::List(Vec::new())),
            (1016, "{1, 2}", Value::List(vec![Value::Integer(1), Value::Integer(2)])),
        ];
        for (of, text, expected) in cases {
            assert_eq!(value(of, false, text.as_bytes()).expect(text), expected, "{text}");
        }
        for (of, text) in [
            (oid::INT4, "x"),
            (oid::BOOL, "maybe"),
            (oid::BYTEA, "00"),
            (oid::NUMERIC, "1e999"),
            (1016, "{1,,2}"),
            (1016, "{{1},{2}}"),
            (1009, "{\"a}"),
            (oid::INTERVAL, "1 day"),
        ] {
            assert!(value(of, false, text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn parameters_in_binary() {
        let mut number = BytesMut::new();
        numeric::put("-12345.678", &mut number);
        let list = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1];
        let list = [&list[..], &[0, 0, 0, 4, 0, 0, 0, 7], &[255, 255, 255, 255]].concat();
        let cases = [
            (oid::INT2, vec![255, 255], Value::Integer(-1)),
            (oid::NUMERIC, number.to_vec(), Value::Decimal("-12345.678".into())),
            (oid::DATE, vec![0, 0, 0, 1], Value::Date("2000-01-02".into())),
            (oid::TIMESTAMPTZ, vec![0; 8], Value::Timestamptz("2000-01-01 00:00:00+00".into())),
            (oid::UUID, vec![7; 16], shown("07070707-0707-0707-0707-070707070707")),
            (oid::JSONB, vec![1, b'{', b'}'], shown("{}")),
            (1007, list.clone(), Value::List(vec![Value::Integer(7), Value::Null(None)])),
        ];
        for (of, bytes, expected) in cases {
            assert_eq!(value(of, true, &bytes).expect("value"), expected);
            // Whatever is cut off is an error, and no panic.
            for length in 0..bytes.len() {
                let _ = value(of, true, &bytes[..length]);
            }
        }
        assert!(value(1007, true, &list[..list.len() - 1]).is_err());
        assert!(value(oid::INT8, true, &[1]).is_err());
        assert!(value(oid::INTERVAL, true, &[0; 16]).is_err());
    }
}
