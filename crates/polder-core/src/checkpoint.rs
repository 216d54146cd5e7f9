//! What a table has already read from its source, as it is committed with the data.
//!
//! The JSON form is stored as one table property in the same commit as the rows. This module does
//! not decide what the next checkpoint is: the source says how far it may move, the pipeline what
//! was seen.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorCode, Guarantee, Result};

/// One value of a cursor column, at the source's full precision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CursorValue {
    Int(i64),
    /// Days since the epoch.
    Date(i32),
    /// Microseconds since the epoch, no time zone.
    Timestamp(i64),
    /// Microseconds since the epoch, UTC.
    Timestamptz(i64),
    /// Compared byte by byte (PostgreSQL `COLLATE "C"`); `ObjectId`s as 24 hex digits.
    Text(String),
}

impl CursorValue {
    /// The order of two values of one kind; `None` between kinds.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b))
            | (Self::Timestamp(a), Self::Timestamp(b))
            | (Self::Timestamptz(a), Self::Timestamptz(b)) => Some(a.cmp(b)),
            (Self::Date(a), Self::Date(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
            _ => None,
        }
    }

    /// The smaller of the two; `self` if they are of different kinds.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if self.compare(&other) == Some(Ordering::Greater) { other } else { self }
    }

    /// The larger of the two; `self` if they are of different kinds.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if self.compare(&other) == Some(Ordering::Less) { other } else { self }
    }
}

impl fmt::Display for CursorValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => write!(f, "{value}"),
            Self::Date(days) => write!(f, "{}", date(*days)),
            Self::Timestamp(micros) => write!(f, "{}", naive(*micros)),
            Self::Timestamptz(micros) => write!(f, "{}Z", naive(*micros)),
            Self::Text(text) => f.write_str(text),
        }
    }
}

fn date(days: i32) -> String {
    let epoch = chrono::NaiveDate::default();
    epoch
        .checked_add_signed(chrono::Duration::days(i64::from(days)))
        .map_or_else(|| format!("day {days}"), |date| date.to_string())
}

fn naive(micros: i64) -> String {
    chrono::DateTime::from_timestamp_micros(micros).map_or_else(
        || format!("{micros} µs"),
        |time| time.format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
    )
}

/// The state of one object (file) that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectState {
    /// The store's entity tag; on local disk made of size and modification time.
    pub etag: String,
}

/// The rows of a table as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub rows: u64,
    /// The sum of [`crate::digest::content`] over them.
    pub digest: u64,
}

impl Content {
    /// Those rows and these.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let digest = self.digest.wrapping_add(other.digest);
        Self { rows: self.rows + other.rows, digest }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, digest {:016x}", self.rows, self.digest)
    }
}

/// How far a table has read its source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The cursor's safe low-water mark: every row with a smaller cursor value is in the table, and
    /// none with a smaller one can still appear. Rows at or above it are read again and recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<CursorValue>,
    /// The objects already read, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, ObjectState>,
    /// The parts of the table spec that decide which rows are read. A run whose spec says otherwise
    /// cannot go on from here.
    #[serde(default)]
    pub reads: String,
    /// The source's name for the state that the last run read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// What the table holds by then, in the columns it has; `None` where that is not known: the
    /// table is older than this field, or its columns have changed in place since. Named anew whenever
    /// [`crate::digest::content`] makes other digests: what an older Polder has kept is not known then.
    #[serde(default, rename = "content_2", skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The least that a run has had since everything was loaded; `None` if a run is older than this
    /// field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<Guarantee>,
}

impl Checkpoint {
    pub fn to_json(&self) -> String {
        // Strings, integers and maps with string keys only: this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// # Errors
    /// `lake.corrupt` when the text is not a checkpoint.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| {
            Error::new(ErrorCode::LakeCorrupt, "the table's checkpoint cannot be read")
                .hint("run once with --full-refresh to write a new one")
                .caused_by(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_survive_json() {
        let checkpoint = Checkpoint {
            cursor: Some(CursorValue::Timestamptz(1_700_000_000_123_456)),
            objects: [("a\"/é".to_owned(), ObjectState { etag: "x".into() })].into(),
            reads: "public.t".into(),
            snapshot: Some("7:9:8".into()),
            content: Some(Content { rows: 3, digest: u64::MAX }),
            guarantee: Some(Guarantee::AtLeastOnce),
        };
        assert_eq!(Checkpoint::from_json(&checkpoint.to_json()).expect("json"), checkpoint);
        assert_eq!(Checkpoint::from_json("{}").expect("empty"), Checkpoint::default());
        let older = r#"{"content":{"rows":3,"digest":5}}"#;
        assert_eq!(Checkpoint::from_json(older).expect("older"), Checkpoint::default());
        assert_eq!(Checkpoint::from_json("3").expect_err("bad").code(), ErrorCode::LakeCorrupt);
    }

    #[test]
    fn values_of_one_kind_are_ordered_and_others_are_not() {
        let (a, b) = (CursorValue::Text("Z".into()), CursorValue::Text("a".into()));
        assert_eq!(a.compare(&b), Some(Ordering::Less), "bytes, not a collation");
        assert_eq!(CursorValue::Int(1).compare(&CursorValue::Date(1)), None);
        assert_eq!(CursorValue::Int(1).max(CursorValue::Int(2)), CursorValue::Int(2));
        assert_eq!(CursorValue::Int(1).min(CursorValue::Int(2)), CursorValue::Int(1));
    }

    #[test]
    fn values_print_for_people() {
        let cases = [
            (CursorValue::Int(7), "7"),
            (CursorValue::Date(19_000), "2022-01-08"),
            (CursorValue::Timestamptz(1), "1970-01-01T00:00:00.000001Z"),
        ];
        for (value, expected) in cases {
            assert_eq!(value.to_string(), expected);
        }
    }
}
