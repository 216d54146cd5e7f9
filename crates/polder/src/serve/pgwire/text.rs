//! Values as PostgreSQL writes them in text: dates, times, intervals, numbers, and arrays of them.

use std::fmt::Write;

use arrow::datatypes::IntervalMonthDayNano;
use chrono::{DateTime, Datelike, NaiveDate, Timelike};

const MICROS: i64 = 1_000_000;

/// The shortest digits that are read back as the same number.
pub(super) fn double(value: f64) -> String {
    number(value, &format!("{value:?}"))
}

/// As [`double`], in single precision.
pub(super) fn float(value: f32) -> String {
    number(f64::from(value), &format!("{value:?}"))
}

fn number(value: f64, digits: &str) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}Infinity");
    }
    digits.strip_suffix(".0").unwrap_or(digits).to_owned()
}

/// A date by its days since 1970; `None` where there is no such year.
pub(super) fn date(days: i32) -> Option<String> {
    let seconds = i64::from(days).checked_mul(86_400)?;
    Some(dated(DateTime::from_timestamp(seconds, 0)?.date_naive(), ""))
}

/// A time by its microseconds since midnight.
pub(super) fn time(micros: i64) -> String {
    let (seconds, part) = (micros.div_euclid(MICROS), micros.rem_euclid(MICROS));
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}{}", seconds % 60, fraction(part))
}

/// A moment by its microseconds since 1970, in UTC; `None` where there is no such year.
pub(super) fn timestamp(micros: i64, zoned: bool) -> Option<String> {
    let at = DateTime::from_timestamp_micros(micros)?;
    let seconds = i64::from(at.num_seconds_from_midnight());
    let of_day = time(seconds * MICROS + micros.rem_euclid(MICROS));
    let zone = if zoned { "+00" } else { "" };
    Some(dated(at.date_naive(), &format!(" {of_day}{zone}")))
}

/// There is no year 0: the year before 1 is 1 BC.
fn dated(date: NaiveDate, rest: &str) -> String {
    let (year, era) = match date.year() {
        year @ 1.. => (year, ""),
        year => (1 - year, " BC"),
    };
    format!("{year:04}-{:02}-{:02}{rest}{era}", date.month(), date.day())
}

/// A part of a second, without zeros at its end.
fn fraction(micros: i64) -> String {
    if micros == 0 {
        return String::new();
    }
    format!(".{micros:06}").trim_end_matches('0').to_owned()
}

/// An interval in PostgreSQL's own style: `1 year 2 mons -3 days +04:05:06`.
pub(super) fn interval(value: IntervalMonthDayNano) -> String {
    let mut text = String::new();
    let mut was_negative = false;
    let (years, months) = (value.months / 12, value.months % 12);
    for (count, unit) in [(years, "year"), (months, "mon"), (value.days, "day")] {
        if count == 0 {
            continue;
        }
        let space = if text.is_empty() { "" } else { " " };
        let sign = if was_negative && count > 0 { "+" } else { "" };
        let many = if count == 1 { "" } else { "s" };
        // Texts take all that is written.
        let _ = write!(text, "{space}{sign}{count} {unit}{many}");
        was_negative = count < 0;
    }
    let micros = value.nanoseconds / 1000;
    if micros != 0 || text.is_empty() {
        let sign = match (micros < 0, was_negative) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        let space = if text.is_empty() { "" } else { " " };
        let of_day = time(micros.saturating_abs());
        let _ = write!(text, "{space}{sign}{of_day}");
    }
    text
}

/// An array's element, in quotes where it would be taken for something else.
pub(super) fn element(text: &str, into: &mut String) {
    let is_special = |c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_whitespace();
    if !text.is_empty() && !text.contains(is_special) && !text.eq_ignore_ascii_case("null") {
        into.push_str(text);
        return;
    }
    into.push('"');
    for letter in text.chars() {
        if matches!(letter, '"' | '\\') {
            into.push('\\');
        }
        into.push(letter);
    }
    into.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_short_as_they_can_be() {
        let cases = [
            (0.1, "0.1"),
            (-1.0, "-1"),
            (-0.0, "-0"),
            (1e300, "1e300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
            (123_456_789.125, "123456789.125"),
        ];
        for (value, expected) in cases {
            assert_eq!(double(value), expected);
        }
        assert_eq!(float(0.1), "0.1");
        assert_eq!(float(f32::INFINITY), "Infinity");
    }

    #[test]
    fn times_are_as_postgresql_writes_them() {
        assert_eq!(date(0).as_deref(), Some("1970-01-01"));
        assert_eq!(date(-719_528).as_deref(), Some("0001-01-01 BC"));
        assert_eq!(date(2_932_897).as_deref(), Some("10000-01-01"));
        assert_eq!(date(i32::MAX), None);
        assert_eq!(time(14_706_000_100), "04:05:06.0001");
        assert_eq!(time(0), "00:00:00");
        assert_eq!(timestamp(-1, true).as_deref(), Some("1969-12-31 23:59:59.999999+00"));
        assert_eq!(timestamp(500_000, false).as_deref(), Some("1970-01-01 00:00:00.5"));
        assert_eq!(timestamp(i64::MIN, false), None);
    }

    #[test]
    fn intervals_keep_the_sign_of_each_part() {
        let micros = 14_706_000_000;
        let cases = [
            ((14, 3, micros), "1 year 2 mons 3 days 04:05:06"),
            ((-1, 3, -micros), "-1 mons +3 days -04:05:06"),
            ((0, -1, micros), "-1 days +04:05:06"),
            ((0, 0, 0), "00:00:00"),
            ((0, 1, 0), "1 day"),
        ];
        for ((months, days, micros), expected) in cases {
            let value = IntervalMonthDayNano::new(months, days, micros * 1000);
            assert_eq!(interval(value), expected);
        }
    }

    #[test]
    fn elements_are_quoted_where_they_have_to_be() {
        let cases = [
            ("a", "a"),
            ("", "\"\""),
            ("Null", "\"Null\""),
            ("a,b", "\"a,b\""),
            ("\\\"", "\"\\\\\\\"\""),
        ];
        for (text, expected) in cases {
            let mut written = String::new();
            element(text, &mut written);
            assert_eq!(written, expected);
        }
    }
}
