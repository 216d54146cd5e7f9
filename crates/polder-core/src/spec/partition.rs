//! Partition fields of a table spec: `month(created_at)`, `bucket(16, id)`, `region`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, ErrorCode, Result};

/// Iceberg's partition transforms (spec, *Partition Transforms*), without `void`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transform {
    Identity,
    Year,
    Month,
    Day,
    Hour,
    Bucket(u32),
    Truncate(u32),
}

/// One field of a table's partition spec.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartitionField {
    pub transform: Transform,
    pub column: String,
}

impl FromStr for PartitionField {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let Some((name, rest)) = text.split_once('(') else {
            return column(text, text)
                .map(|column| Self { transform: Transform::Identity, column });
        };
        let inner = rest.strip_suffix(')').ok_or_else(|| invalid(text))?.trim();
        let name = name.trim().to_ascii_lowercase();
        if let "bucket" | "truncate" = name.as_str() {
            let (width, of) = inner.split_once(',').ok_or_else(|| invalid(text))?;
            let width: u32 = width.trim().parse().map_err(|_| invalid(text))?;
            if width == 0 || width > i32::MAX as u32 {
                return Err(invalid(text));
            }
            let bucket = name == "bucket";
            let transform =
                if bucket { Transform::Bucket(width) } else { Transform::Truncate(width) };
            return column(of, text).map(|column| Self { transform, column });
        }
        let transform = match name.as_str() {
            "identity" => Transform::Identity,
            "year" => Transform::Year,
            "month" => Transform::Month,
            "day" => Transform::Day,
            "hour" => Transform::Hour,
            _ => return Err(invalid(text)),
        };
        column(inner, text).map(|column| Self { transform, column })
    }
}

fn column(name: &str, whole: &str) -> Result<String> {
    let name = name.trim();
    if name.is_empty() || name.contains(['(', ')']) {
        return Err(invalid(whole));
    }
    Ok(name.to_owned())
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, format!("{text:?} is not a partition field"))
        .hint("write a column, year(c), month(c), day(c), hour(c), bucket(N, c) or truncate(W, c)")
}

impl fmt::Display for PartitionField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = &self.column;
        match self.transform {
            Transform::Identity => f.write_str(column),
            Transform::Year => write!(f, "year({column})"),
            Transform::Month => write!(f, "month({column})"),
            Transform::Day => write!(f, "day({column})"),
            Transform::Hour => write!(f, "hour({column})"),
            Transform::Bucket(buckets) => write!(f, "bucket({buckets}, {column})"),
            Transform::Truncate(width) => write!(f, "truncate({width}, {column})"),
        }
    }
}

impl Serialize for PartitionField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PartitionField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::pipeline::parse_text(deserializer)
    }
}

impl JsonSchema for PartitionField {
    fn schema_name() -> Cow<'static, str> {
        "PartitionField".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A column, year(c), month(c), day(c), hour(c), bucket(N, c) or truncate(W, c).",
            "examples": ["month(created_at)", "bucket(16, id)", "region"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_read_back_what_they_print() {
        let cases = [
            ("month(created_at)", "month(created_at)"),
            (" Bucket( 16 , id ) ", "bucket(16, id)"),
            ("truncate(4, name)", "truncate(4, name)"),
            ("identity(region)", "region"),
            ("Région", "Région"),
        ];
        for (text, printed) in cases {
            let field: PartitionField = text.parse().expect(text);
            assert_eq!(field.to_string(), printed);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_way_out() {
        for text in ["", "month()", "month(a", "week(a)", "bucket(id)", "bucket(0, id)", "f(g(x))"]
        {
            let error = text.parse::<PartitionField>().expect_err(text);
            assert!(error.hint_text().expect("hint").contains("bucket(N, c)"));
        }
    }
}
