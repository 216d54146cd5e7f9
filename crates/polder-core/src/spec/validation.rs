//! How a table is held to its source: `validation:` and `checks:` of a table spec.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, ErrorCode, Result};

/// Rows of the source may be pending for so long after a run, unless the spec says otherwise.
const FRESH_WITHIN: Duration = Duration::from_hours(24);
/// How long one statement of a validation may take at the source, unless the spec says otherwise.
const STATEMENT_TIMEOUT: Duration = Duration::from_hours(1);

/// How a table is held to its source, and what follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationSpec {
    /// What follows when the table is found wrong.
    pub policy: ValidationPolicy,
    /// How long after a run rows of the source may be waiting for the next one: `6h`, `2d`. A day when
    /// absent.
    #[serde(with = "span")]
    #[schemars(with = "Option<String>")]
    pub fresh_within: Option<Duration>,
    /// How long one statement of a validation may take at the source: `10m`. An hour when absent; `0s`
    /// is no limit.
    #[serde(with = "span")]
    #[schemars(with = "Option<String>")]
    pub statement_timeout: Option<Duration>,
    /// Processes of the source's server, or reads of it, that one validation has at the same time; 1
    /// when absent, and `[limits] splits` at most.
    pub max_parallel: Option<NonZeroUsize>,
    /// Who is told of verdicts, by the names of `[alerts]` in `polder.toml`; all of them when absent.
    pub alerts: Option<Vec<String>>,
}

impl ValidationSpec {
    /// How long after a run rows of the source may be pending.
    pub fn freshness_target(&self) -> Duration {
        self.fresh_within.unwrap_or(FRESH_WITHIN)
    }

    /// How long one statement may take at the source; `None` for any time.
    pub fn time_per_statement(&self) -> Option<Duration> {
        Some(self.statement_timeout.unwrap_or(STATEMENT_TIMEOUT)).filter(|time| !time.is_zero())
    }

    /// Work at the source at the same time, within the process's own limit.
    pub fn parallel(&self, limit: NonZeroUsize) -> NonZeroUsize {
        self.max_parallel.unwrap_or(NonZeroUsize::MIN).min(limit)
    }
}

/// What follows when a table is found wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidationPolicy {
    /// The verdict is kept and told.
    #[default]
    Warn,
    /// A run reads its rows back and asks `checks` before it publishes: a state that fails is never
    /// seen.
    BlockPublish,
    /// A validation that fails moves the table back to the last state that was verified; the wrong one
    /// stays under a tag.
    Quarantine,
}

/// A question about the org's tables whose answer is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlCheck {
    /// What the check is called in results; once in a table.
    pub name: String,
    /// One SELECT over the org's own lake tables, by their bare names.
    pub sql: String,
    #[serde(default)]
    pub expect: Expectation,
}

/// How many rows a check's query has: `0 rows`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Expectation(pub u64);

/// Rows that a check can expect at most.
const ROWS_MAX: u64 = 1_000_000;

impl FromStr for Expectation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.trim().strip_suffix("rows").or(text.trim().strip_suffix("row"));
        let number = number.map(str::trim_end).filter(|digits| {
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        });
        let rows = number.and_then(|digits| digits.parse().ok()).filter(|rows| *rows <= ROWS_MAX);
        rows.map(Self).ok_or_else(|| {
            Error::new(ErrorCode::SpecInvalid, format!("{text:?} is nothing a check can expect"))
                .hint(format!("write `expect: 0 rows`, or another number up to {ROWS_MAX}"))
        })
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", self.0)
    }
}

impl Serialize for Expectation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Expectation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::pipeline::parse_text(deserializer)
    }
}

impl JsonSchema for Expectation {
    fn schema_name() -> Cow<'static, str> {
        "Expectation".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+ rows?$",
            "description": "How many rows the query has.",
            "examples": ["0 rows"]
        })
    }
}

/// Lengths of time as the configuration writes them.
mod span {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::erasure::Span;

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match span {
            Some(span) => serializer.serialize_str(&format!("{}s", span.as_secs())),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let span: Result<Span, crate::Error> = text.parse();
        span.map(|Span(span)| Some(span)).map_err(|error| {
            de::Error::custom(format!("{error}; {}", error.hint_text().unwrap_or_default()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_are_numbers_of_rows() {
        for (text, rows) in [("0 rows", 0), ("1 row", 1), (" 12 rows ", 12), ("3rows", 3)] {
            assert_eq!(text.parse::<Expectation>().expect(text), Expectation(rows));
        }
        for bad in ["", "rows", "-1 rows", "0", "no rows", "1000001 rows", "1.5 rows"] {
            assert_eq!(bad.parse::<Expectation>().expect_err(bad).code(), ErrorCode::SpecInvalid);
        }
        let check: SqlCheck =
            serde_json::from_str(r#"{"name": "a", "sql": "SELECT 1"}"#).expect("check");
        assert_eq!(check.expect, Expectation(0));
    }

    #[test]
    fn a_spec_reads_back_what_it_writes_and_has_its_limits() {
        let text = r#"{"policy": "quarantine", "fresh_within": "6h", "max_parallel": 4}"#;
        let spec: ValidationSpec = serde_json::from_str(text).expect("spec");
        let back = serde_json::to_string(&spec).expect("JSON");
        assert_eq!(serde_json::from_str::<ValidationSpec>(&back).expect("back"), spec);
        assert_eq!(spec.freshness_target(), Duration::from_hours(6));
        assert_eq!(spec.time_per_statement(), Some(Duration::from_hours(1)));
        assert_eq!(spec.parallel(NonZeroUsize::MIN).get(), 1, "the process's limit counts");
        let spec: ValidationSpec =
            serde_json::from_str(r#"{"statement_timeout": "0s"}"#).expect("spec");
        assert_eq!(spec.time_per_statement(), None);
        for bad in [r#"{"fresh_within": "soon"}"#, r#"{"max_parallel": 0}"#, r#"{"policy": "no"}"#]
        {
            assert!(serde_json::from_str::<ValidationSpec>(bad).is_err(), "{bad}");
        }
    }
}
