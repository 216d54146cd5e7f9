//! Rows named by their key, in errors and in the run's report: `id=7`, `org=401, id=7`.
//!
//! The values of key columns alone are shown, on one line and cut where they are long. Which row it
//! is, is found out by the source.

use std::fmt::Write;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use arrow::util::display::array_value_to_string;

/// Characters shown of one column's value.
const SHOWN_MAX: usize = 100;
/// Stands for a value that cannot be shown.
const HIDDEN: &str = "?";

/// The name of a row, of its key's columns and their values as text; `None` without a column.
pub fn name<'a>(columns: impl IntoIterator<Item = (&'a str, Option<String>)>) -> Option<String> {
    let mut name = String::new();
    for (column, value) in columns {
        if !name.is_empty() {
            name.push_str(", ");
        }
        let value = value.unwrap_or_else(|| HIDDEN.to_owned());
        let mut shown: String = value.chars().take(SHOWN_MAX).flat_map(one_line).collect();
        if value.chars().nth(SHOWN_MAX).is_some() {
            shown.push('…');
        }
        // Writing to a string cannot fail.
        let _ = write!(name, "{column}={shown}");
    }
    (!name.is_empty()).then_some(name)
}

fn one_line(letter: char) -> impl Iterator<Item = char> {
    let (plain, escaped) = if letter.is_control() {
        (None, Some(letter.escape_default()))
    } else {
        (Some(letter), None)
    };
    plain.into_iter().chain(escaped.into_iter().flatten())
}

/// A value of a column as text.
pub fn text(array: &dyn Array, row: usize) -> Option<String> {
    if array.is_null(row) {
        return Some("null".to_owned());
    }
    if *array.data_type() == DataType::FixedSizeBinary(16) {
        return array.as_fixed_size_binary().value(row).try_into().ok().map(uuid);
    }
    array_value_to_string(array, row).ok()
}

/// RFC 9562, section 4.
fn uuid(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, FixedSizeBinaryArray, Int32Array};

    use super::*;

    #[test]
    fn keys_are_short_and_on_one_line() {
        let named = |values: &[(&'static str, Option<&str>)]| {
            name(values.iter().map(|(column, value)| (*column, value.map(str::to_owned))))
        };
        assert_eq!(named(&[]), None);
        assert_eq!(named(&[("id", Some("7"))]).as_deref(), Some("id=7"));
        let both = named(&[("org", Some("é\nb")), ("id", None)]);
        assert_eq!(both.as_deref(), Some("org=é\\nb, id=?"));
        let long = named(&[("id", Some(&"ü".repeat(101)))]).expect("a name");
        assert_eq!(long, format!("id={}…", "ü".repeat(100)));
    }

    #[test]
    fn values_are_shown_as_people_write_them() {
        let numbers: ArrayRef = std::sync::Arc::new(Int32Array::from(vec![Some(-7), None]));
        assert_eq!(text(&numbers, 0).as_deref(), Some("-7"));
        assert_eq!(text(&numbers, 1).as_deref(), Some("null"));
        let bytes: Vec<u8> = (0..16).collect();
        let uuids = FixedSizeBinaryArray::try_from_iter(std::iter::once(bytes)).expect("array");
        let shown = text(&uuids, 0);
        assert_eq!(shown.as_deref(), Some("00010203-0405-0607-0809-0a0b0c0d0e0f"));
    }
}
