//! What is printed where: data on stdout, everything else on stderr.

use std::fmt::Write as _;
use std::io::Write;

use polder_core::{Error, Field, TableSchema};
use serde::Serialize;
use serde_json::{Value, json};

/// A line of data on stdout. A reader that closed its end is not an error of ours.
pub(crate) fn line(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

/// A line for people on stderr.
pub(crate) fn note(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// One JSON document on stdout.
pub(crate) fn document(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(error) => note(&format!("error: the answer cannot be written as JSON: {error}")),
    }
}

/// An error for people: what, where, why, what to do.
pub(crate) fn error(error: &Error) {
    note(&error_text(error));
}

fn error_text(error: &Error) -> String {
    let mut text = format!("error[{}]: {error}", error.code());
    if let Some(detail) = error.detail_text() {
        for line in detail.lines() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  {line}");
        }
    }
    for cause in error.causes() {
        let _ = write!(text, "\n  caused by: {cause}");
    }
    if let Some(hint) = error.hint_text() {
        let _ = write!(text, "\n  hint: {hint}");
    }
    text
}

/// The columns of a table for programs: name, type in Iceberg's notation, whether nulls may be there.
pub(crate) fn columns_json(schema: &TableSchema) -> Value {
    let column = |field: &Field| {
        json!({
            "name": field.name,
            "type": field.data_type.to_string(),
            "nullable": field.nullable,
        })
    };
    schema.fields.iter().map(column).collect()
}

/// An error for programs.
pub(crate) fn error_json(error: &Error) -> Value {
    json!({
        "code": error.code().as_str(),
        "message": error.message(),
        "detail": error.detail_text(),
        "hint": error.hint_text(),
        "causes": error.causes(),
        "retryable": error.retryable(),
    })
}

/// Rows of text under a header, in aligned columns. Columns whose name is in `right` hold numbers.
pub(crate) fn columns(header: &[&str], rows: &[Vec<String>], right: &[&str]) {
    let width = |index: usize| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
        cells.chain([header[index].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut all = vec![header.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()];
    all.extend_from_slice(rows);
    for row in all {
        let mut text = String::new();
        for ((cell, width), name) in row.iter().zip(&widths).zip(header) {
            let pad = " ".repeat(width - cell.chars().count());
            if right.contains(name) {
                let _ = write!(text, "{pad}{cell}  ");
            } else {
                let _ = write!(text, "{cell}{pad}  ");
            }
        }
        line(text.trim_end());
    }
}

/// `1234567` → `1,234,567`.
pub(crate) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the unit that reads best, to one decimal.
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let mut size = value as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// Milliseconds since the epoch → `2026-11-25 13:00:00Z`.
pub(crate) fn time(ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(ms);
    time.map_or_else(String::new, |time| time.format("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// A length of time as the configuration writes it.
pub(crate) fn span(seconds: i64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let whole = units.iter().find(|(unit, _)| seconds > 0 && seconds % unit == 0);
    whole.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

/// Milliseconds since the epoch → `2026-11-25T13:00:00.123Z`, for programs.
pub(crate) fn rfc3339(ms: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(ms);
    time.map_or_else(String::new, |time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_read_well() {
        let cases = [(0, "0", "0 B"), (999, "999", "999 B"), (1234, "1,234", "1.2 kB")];
        for (value, digits, size) in cases {
            assert_eq!((number(value).as_str(), bytes(value).as_str()), (digits, size));
        }
        assert_eq!(number(6_001_215), "6,001,215");
        assert_eq!(bytes(1_276_000_000_000), "1276.0 GB");
    }

    #[test]
    fn an_error_shows_each_part_once() {
        let cause = std::io::Error::other("refused");
        let error = Error::new(polder_core::ErrorCode::SourceUnavailable, "no answer")
            .detail("127.0.0.1:5432")
            .hint("start it")
            .caused_by(cause);
        let expected = "error[source.unavailable]: no answer\n  127.0.0.1:5432\n  \
                        caused by: refused\n  hint: start it";
        assert_eq!(error_text(&error), expected);
    }
}
