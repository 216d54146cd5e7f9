//! The order of rows in a table's files: `created_at`, `id desc nulls last`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, ErrorCode, Result};

/// One column of a table's order (Iceberg spec, *Sorting*), by its own value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SortField {
    pub column: String,
    pub descending: bool,
    pub nulls_first: bool,
}

impl FromStr for SortField {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let is = |word: &str, wanted: &str| word.eq_ignore_ascii_case(wanted);
        let mut nulls_first = None;
        if let [_, .., nulls, place] = words[..]
            && is(nulls, "nulls")
        {
            nulls_first = Some(match place {
                place if is(place, "first") => true,
                place if is(place, "last") => false,
                _ => return Err(invalid(text)),
            });
            words.truncate(words.len() - 2);
        }
        let mut descending = false;
        if let [_, .., direction] = words[..]
            && (is(direction, "asc") || is(direction, "desc"))
        {
            descending = is(direction, "desc");
            words.pop();
        }
        let column = words.join(" ");
        if column.is_empty() || column.contains(['(', ')', ',']) {
            return Err(invalid(text));
        }
        // As Spark and Trino have it: nulls are below every value.
        Ok(Self { column, descending, nulls_first: nulls_first.unwrap_or(!descending) })
    }
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, format!("{text:?} is not a column to sort by"))
        .hint("write a column, with asc or desc and nulls first or nulls last: id desc nulls last")
}

impl fmt::Display for SortField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.column)?;
        if self.descending {
            f.write_str(" desc")?;
        }
        if self.nulls_first != self.descending {
            return Ok(());
        }
        f.write_str(if self.nulls_first { " nulls first" } else { " nulls last" })
    }
}

impl Serialize for SortField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SortField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::pipeline::parse_text(deserializer)
    }
}

impl JsonSchema for SortField {
    fn schema_name() -> Cow<'static, str> {
        "SortField".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A column, with asc or desc, and nulls first or nulls last.",
            "examples": ["created_at", "id desc nulls last"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_read_back_what_they_print() {
        let cases = [
            ("created_at", "created_at", (false, true)),
            (" id  DESC Nulls Last ", "id desc", (true, false)),
            ("id desc nulls first", "id desc nulls first", (true, true)),
            ("id asc nulls last", "id nulls last", (false, false)),
            ("id nulls first", "id", (false, true)),
            ("two words desc", "two words desc", (true, false)),
            ("desc", "desc", (false, true)),
            ("nulls desc", "nulls desc", (true, false)),
        ];
        for (text, printed, (descending, nulls_first)) in cases {
            let field: SortField = text.parse().expect(text);
            assert_eq!(field.to_string(), printed);
            assert_eq!((field.descending, field.nulls_first), (descending, nulls_first), "{text}");
            assert_eq!(printed.parse::<SortField>().expect(printed), field);
            let written = serde_json::to_value(&field).expect("JSON");
            assert_eq!(serde_json::from_value::<SortField>(written).expect("back"), field);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_way_out() {
        for text in ["", "  ", "month(created_at)", "a, b", "id nulls middle", "id desc nulls no"] {
            let error = text.parse::<SortField>().expect_err(text);
            assert!(error.hint_text().expect("hint").contains("desc nulls last"));
        }
    }
}
