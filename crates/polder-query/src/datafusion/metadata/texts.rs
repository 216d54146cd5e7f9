//! Bounds as Trino shows them: the texts of Iceberg's Java library (`Transform.toHumanString`), which
//! are those of Java's own types.

use std::fmt::{Debug, UpperExp};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, NaiveTime, Timelike};
use polder_core::Literal;

/// Below this exponent decimals are written with one (Java, `BigDecimal.toString`).
const PLAIN_EXPONENT_MIN: i64 = -6;

/// `None` for a time beyond the years that can be written.
pub(super) fn text(value: &Literal) -> Option<String> {
    Some(match value {
        Literal::Boolean(value) => value.to_string(),
        Literal::Int(value) => value.to_string(),
        Literal::Long(value) => value.to_string(),
        Literal::Float(value) => float(*value, f64::from(*value)),
        Literal::Double(value) => float(*value, *value),
        Literal::Decimal { unscaled, scale, .. } => decimal(*unscaled, *scale),
        Literal::Date(days) => {
            DateTime::from_timestamp(i64::from(*days) * 86_400, 0)?.date_naive().to_string()
        }
        Literal::Time(micros) => {
            let micros = u64::try_from(*micros).ok()?;
            let seconds = u32::try_from(micros / 1_000_000).ok()?;
            let nanos = u32::try_from(micros % 1_000_000).ok()? * 1000;
            clock(NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanos)?)
        }
        Literal::Timestamp(micros) => moment(*micros)?,
        Literal::Timestamptz(micros) => format!("{}Z", moment(*micros)?),
        Literal::String(value) => value.clone(),
        Literal::Uuid(value) => value.to_string(),
        Literal::Binary(value) => STANDARD.encode(value),
    })
}

/// As `Double.toString` writes numbers, and `Float.toString` those of 32 bits; `size` is the number.
fn float<T: Copy + Debug + UpperExp>(value: T, size: f64) -> String {
    if size.is_nan() {
        return "NaN".to_owned();
    }
    if size.is_infinite() {
        return if size > 0.0 { "Infinity".to_owned() } else { "-Infinity".to_owned() };
    }
    if size == 0.0 || (1e-3..1e7).contains(&size.abs()) {
        return format!("{value:?}");
    }
    let text = format!("{value:E}");
    match text.split_once('E') {
        Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0E{exponent}"),
        _ => text,
    }
}

/// As `BigDecimal.toString` writes it.
fn decimal(unscaled: i128, scale: u8) -> String {
    let sign = if unscaled < 0 { "-" } else { "" };
    let digits = unscaled.unsigned_abs().to_string();
    let exponent = digits.len() as i64 - 1 - i64::from(scale);
    if exponent < PLAIN_EXPONENT_MIN {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        return format!("{sign}{first}{point}{rest}E{exponent}");
    }
    let scale = usize::from(scale);
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    let point = if part.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{part}")
}

fn moment(micros: i64) -> Option<String> {
    let moment = DateTime::from_timestamp_micros(micros)?.naive_utc();
    Some(format!("{}T{}", moment.date(), clock(moment.time())))
}

/// As `LocalTime.toString` writes it: without seconds that are zero, and the fraction in groups of three
/// digits.
fn clock(time: NaiveTime) -> String {
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    match (second, time.nanosecond() / 1000) {
        (0, 0) => format!("{hour:02}:{minute:02}"),
        (_, 0) => format!("{hour:02}:{minute:02}:{second:02}"),
        (_, micros) if micros % 1000 == 0 => {
            format!("{hour:02}:{minute:02}:{second:02}.{:03}", micros / 1000)
        }
        (_, micros) => format!("{hour:02}:{minute:02}:{second:02}.{micros:06}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_java() {
        let decimal = |unscaled, scale| text(&Literal::Decimal { unscaled, precision: 38, scale });
        let cases = [
            (text(&Literal::Long(-7)), "-7"),
            (text(&Literal::Double(0.5)), "0.5"),
            (text(&Literal::Double(-0.0)), "-0.0"),
            (text(&Literal::Double(100.0)), "100.0"),
            (text(&Literal::Double(1e7)), "1.0E7"),
            (text(&Literal::Double(1.25e-4)), "1.25E-4"),
            (text(&Literal::Double(f64::NEG_INFINITY)), "-Infinity"),
            (text(&Literal::Float(0.1)), "0.1"),
            (decimal(12_345, 2), "123.45"),
            (decimal(-5, 3), "-0.005"),
            (decimal(7, 0), "7"),
            (decimal(0, 2), "0.00"),
            (decimal(1, 10), "1E-10"),
            (decimal(-123, 12), "-1.23E-10"),
            (text(&Literal::Date(20_468)), "2026-01-15"),
            (text(&Literal::Time(0)), "00:00"),
            (text(&Literal::Time(86_399_999_999)), "23:59:59.999999"),
            (text(&Literal::Timestamp(1_500_000)), "1970-01-01T00:00:01.500"),
            (text(&Literal::Timestamptz(-1)), "1969-12-31T23:59:59.999999Z"),
            (text(&Literal::Timestamptz(0)), "1970-01-01T00:00Z"),
            (text(&Literal::String("naïve".to_owned())), "naïve"),
            (text(&Literal::Binary(vec![0, 255])), "AP8="),
        ];
        for (found, expected) in cases {
            assert_eq!(found.as_deref(), Some(expected));
        }
        assert_eq!(text(&Literal::Timestamp(i64::MIN)), None);
    }
}
