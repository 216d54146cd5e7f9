//! How a table is kept between runs, and how long its rows are: `maintenance:` and `retention:` of a
//! table spec.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Days, Months, NaiveTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, ErrorCode, Result};

/// How a table is kept between runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MaintenanceSpec {
    /// The size data files aim at, in megabytes: 16 to 512.
    #[schemars(range(min = 16, max = 512))]
    pub target_file_mb: u64,
    /// Whether files that are not in the table's order (`sort`) are rewritten for that alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sort_files: bool,
    /// The latest versions that stay; the current one stays beside them.
    pub keep_versions: usize,
    /// Days that a state without a name stays once another took its place: queries that opened it have as long.
    pub keep_snapshots_days: u32,
    /// The latest states that stay, whatever their age.
    #[schemars(range(min = 1))]
    pub keep_snapshots: usize,
    /// Metadata files of earlier states that stay: readers that opened one know the table by it.
    #[schemars(range(min = 1))]
    pub keep_metadata_files: usize,
}

impl Default for MaintenanceSpec {
    fn default() -> Self {
        Self {
            target_file_mb: 128,
            sort_files: false,
            keep_versions: 2,
            keep_snapshots_days: 7,
            keep_snapshots: 1,
            keep_metadata_files: 20,
        }
    }
}

/// How long rows are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetentionSpec {
    /// The column that says how old a row is: a date or timestamp. Rows without a value stay.
    pub column: String,
    /// Rows older than this go from the table, and are not read again.
    pub keep: Period,
    /// How long kept versions and earlier states may still hold rows that went from the table.
    #[serde(default = "Period::month")]
    pub within: Period,
}

impl RetentionSpec {
    /// Rows of earlier times go; microseconds since the epoch, UTC. The start of a day, so that a
    /// row's whole day goes at once.
    pub fn cutoff_micros(&self, now: DateTime<Utc>) -> i64 {
        self.keep.before(now).and_time(NaiveTime::MIN).and_utc().timestamp_micros()
    }

    /// Versions and earlier states that hold rows of before this go too.
    pub fn overdue_micros(&self, now: DateTime<Utc>) -> i64 {
        let then = self.within.before(now).and_time(NaiveTime::MIN).and_utc();
        self.cutoff_micros(then)
    }
}

/// A length of time on the calendar: `6 months`, `90 days`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Period {
    count: u32,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unit {
    Day,
    Week,
    Month,
    Year,
}

/// More than this is for ever.
const COUNT_MAX: u32 = 100_000;

impl Period {
    fn month() -> Self {
        Self { count: 1, unit: Unit::Month }
    }

    /// The day so long before: of a month that is too short, its last one.
    fn before(self, now: DateTime<Utc>) -> chrono::NaiveDate {
        let today = now.date_naive();
        let months = |months: u32| today.checked_sub_months(Months::new(months));
        let days = |days: u32| today.checked_sub_days(Days::new(u64::from(days)));
        let day = match self.unit {
            Unit::Day => days(self.count),
            Unit::Week => days(self.count.saturating_mul(7)),
            Unit::Month => months(self.count),
            Unit::Year => months(self.count.saturating_mul(12)),
        };
        day.unwrap_or(chrono::NaiveDate::MIN)
    }
}

impl FromStr for Period {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::new(ErrorCode::SpecInvalid, format!("{text:?} is no length of time"))
                .hint("write 90 days, 12 weeks, 6 months or 2 years")
        };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let count: u32 = trimmed[..digits].parse().map_err(|_| invalid())?;
        let unit = match trimmed[digits..].trim().trim_end_matches('s') {
            "day" => Unit::Day,
            "week" => Unit::Week,
            "month" => Unit::Month,
            "year" => Unit::Year,
            _ => return Err(invalid()),
        };
        if count == 0 || count > COUNT_MAX { Err(invalid()) } else { Ok(Self { count, unit }) }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Day => "day",
            Unit::Week => "week",
            Unit::Month => "month",
            Unit::Year => "year",
        };
        write!(f, "{} {unit}{}", self.count, if self.count == 1 { "" } else { "s" })
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::pipeline::parse_text(deserializer)
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A number and days, weeks, months or years.",
            "examples": ["6 months", "90 days"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> i64 {
        let day: chrono::NaiveDate = text.parse().expect("day");
        day.and_time(NaiveTime::MIN).and_utc().timestamp_micros()
    }

    #[test]
    fn periods_are_lengths_on_the_calendar() {
        let cases = [
            ("6 months", "2026-02-28"),
            ("1 month", "2026-07-31"),
            ("90 days", "2026-06-02"),
            ("2 weeks", "2026-08-17"),
            ("1year", "2025-08-31"),
        ];
        let now = "2026-08-31T23:59:59Z".parse().expect("now");
        for (keep, expected) in cases {
            let keep: Period = keep.parse().expect(keep);
            assert_eq!(keep.to_string().parse::<Period>().expect("again"), keep);
            let spec = RetentionSpec { column: "at".into(), keep, within: Period::month() };
            assert_eq!(spec.cutoff_micros(now), day(expected), "{keep}");
            assert!(spec.overdue_micros(now) < spec.cutoff_micros(now));
        }
        let far = "100000 years".parse().expect("long");
        let spec = RetentionSpec { column: "at".into(), keep: far, within: Period::month() };
        assert!(spec.cutoff_micros(now) < day("0001-01-01"));
        for bad in ["", "6", "months", "-1 days", "0 days", "1.5 days", "6 fortnights", "6 m"] {
            assert_eq!(bad.parse::<Period>().expect_err(bad).code(), ErrorCode::SpecInvalid);
        }
    }
}
