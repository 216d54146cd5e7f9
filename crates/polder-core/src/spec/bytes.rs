//! Numbers of bytes, as the configuration writes them: `50 GB`, or the number.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, ErrorCode, Result};

/// A number of bytes. Written as the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ByteCount(pub u64);

impl FromStr for ByteCount {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::new(ErrorCode::SpecInvalid, format!("{text:?} is no number of bytes"))
                .hint("write a whole number and MB, GB or TB: 50 GB; or the number of bytes")
        };
        let (number, unit) = match text.find(|c: char| !c.is_ascii_digit() && c != '_') {
            Some(end) => text.split_at(end),
            None => (text, ""),
        };
        let bytes: u64 = match unit.trim() {
            "" | "B" => 1,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(invalid()),
        };
        let number: u64 = number.replace('_', "").parse().map_err(|_| invalid())?;
        number.checked_mul(bytes).map(Self).ok_or_else(invalid)
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByteCountVisitor;
        impl Visitor<'_> for ByteCountVisitor {
            type Value = ByteCount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as 50 GB")
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteCount, E> {
                Ok(ByteCount(bytes))
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteCount, E> {
                let bytes = u64::try_from(bytes);
                bytes.map(ByteCount).map_err(|_| E::custom("a number of bytes is not below 0"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteCount, E> {
                text.parse().map_err(|error: Error| {
                    E::custom(format!("{error}; {}", error.hint_text().unwrap_or_default()))
                })
            }
        }
        deserializer.deserialize_any(ByteCountVisitor)
    }
}

impl JsonSchema for ByteCount {
    fn schema_name() -> Cow<'static, str> {
        "ByteCount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes, or a whole number and MB, GB or TB.",
            "oneOf": [
                { "type": "integer", "minimum": 1 },
                { "type": "string", "pattern": "^[0-9]+ ?(MB|GB|TB)$" }
            ],
            "examples": ["50 GB"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_a_number_or_a_text_and_written_as_the_number() {
        for (said, bytes) in [
            (serde_json::json!(7), 7),
            (serde_json::json!("50 GB"), 50_000_000_000),
            (serde_json::json!("3MB"), 3_000_000),
            (serde_json::json!("2 TB"), 2_000_000_000_000),
            (serde_json::json!("1_000"), 1_000),
        ] {
            let read: ByteCount = serde_json::from_value(said.clone()).expect("bytes");
            assert_eq!(read, ByteCount(bytes), "{said}");
            assert_eq!(serde_json::to_value(read).expect("number"), serde_json::json!(bytes));
        }
        for said in ["50 gb", "1.5 GB", "GB", "", "-1", "50 GB a day", "99999999999 TB"] {
            let error = serde_json::from_value::<ByteCount>(said.into()).expect_err(said);
            assert!(error.to_string().contains("write "), "{error}");
        }
        assert!(serde_json::from_value::<ByteCount>(serde_json::json!(-1)).is_err());
        assert!(serde_json::from_value::<ByteCount>(serde_json::json!(1.5)).is_err());
    }
}
