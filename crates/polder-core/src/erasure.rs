//! An erasure as data: how far it is, what was found, what is gone, what remains; and the legal hold
//! that forbids it. Nothing is removed here.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorCode, Result};

/// Listings of an org's folder, and rounds of verification, before an erasure gives up on what keeps
/// appearing there.
pub const SWEEPS_MAX: usize = 20;

/// The next thing that an erasure does. Each step may be done again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErasureStep {
    /// What the catalog has is counted.
    #[default]
    Look,
    /// Tables, views and namespaces leave the catalog; the folder is closed.
    Catalog,
    /// What lies in the org's folder is listed and counted.
    List,
    /// What lies there is removed.
    Remove,
    /// The org's rows leave the management tables, and their old snapshots go.
    Forget,
    /// Folder and catalog are listed anew.
    Verify,
    /// Nothing is left to do.
    Done,
}

/// How far the erasure of one org is, and what is known of it. Kept between steps, so that a process
/// that ends at any point is followed by another that goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erasure {
    pub step: ErasureStep,
    /// The org's folder as a location; absent for an org that never had one.
    pub folder: Option<String>,
    /// Tables, views and namespaces that left the catalog.
    pub catalog_entries: u64,
    /// Times that it was verified.
    pub rounds: usize,
    /// The first whole listing of the folder.
    pub found: Option<Inventory>,
    /// Later listings with something in them: after an interruption what was still there, else what
    /// came late.
    pub sweeps: Vec<Inventory>,
    /// Rows that left management tables, by table.
    pub management_rows: Vec<(String, u64)>,
    /// Rows that left the control store.
    pub store_rows: u64,
    /// What leaves Airflow; absent where none is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub airflow: Option<AirflowDags>,
    pub remains: Vec<Remains>,
    pub verification: Option<Verification>,
}

/// DAGs of an org that are removed from Airflow with their history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AirflowDags {
    /// Which Airflow it is, by its address.
    pub url: String,
    /// Their ids, in order; written down before they are removed.
    pub dags: Vec<String>,
}

/// What a listing of an org's folder found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// Objects with their older versions.
    pub objects: u64,
    pub bytes: u64,
    pub delete_markers: u64,
    /// Multipart uploads that nobody finished.
    pub uploads: u64,
    /// Hexadecimal SHA-256 over the lines `key TAB version TAB bytes LF`, sorted by their bytes. Keys
    /// are relative to the org's folder; the version is empty where the store has none, `upload:<id>`
    /// for an upload and `marker:<version>` for a delete marker, both with 0 bytes.
    pub sha256: String,
}

impl Inventory {
    /// Whether it found nothing at all.
    pub const fn is_empty(&self) -> bool {
        self.objects == 0 && self.delete_markers == 0 && self.uploads == 0
    }
}

/// How absence was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// Whether the bucket was asked for versions as well; `None` on local disk.
    pub versions_listed: Option<bool>,
    /// What the last listing of the folder found; all of it is in [`Erasure::remains`].
    pub objects: u64,
    /// Tables, views and namespaces that the catalog still has of the org: none.
    pub catalog_entries: u64,
    /// Rows of the org in management tables: none, but for the row of the erasure itself.
    pub management_rows: u64,
    /// DAGs of the org that Airflow still lists: none. Absent where no Airflow is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub airflow_dags: Option<u64>,
}

/// Something that is still there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remains {
    pub what: String,
    pub why: String,
}

/// What keeps an org, or one of its tables, from being removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The table; the whole org when absent.
    pub table: Option<String>,
    pub reason: String,
    pub set_by: String,
    /// Milliseconds since the epoch.
    pub set_ms: i64,
}

/// The longest reason of a hold, in characters: catalogs hold no long properties.
pub const REASON_CHARS_MAX: usize = 400;

impl Hold {
    /// The refusal of what the hold forbids.
    pub fn refusal(&self, org: &impl fmt::Display, what: &str) -> Error {
        let (of, arguments) = match &self.table {
            Some(table) => (format!("table {table} of org {org}"), format!(" --table {table}")),
            None => (format!("org {org}"), String::new()),
        };
        Error::new(ErrorCode::LakeHeld, format!("{of} is under legal hold: {what} is refused"))
            .detail(format!("held by {}: {}", self.set_by, self.reason))
            .hint(format!("an operator ends it: polder hold release --org {org}{arguments}"))
    }
}

/// A length of time as the configuration writes it: `90s`, `30m`, `12h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::new(ErrorCode::SpecInvalid, format!("{text:?} is not a length of time"))
                .hint("write a whole number and s, m, h or d: 30s, 12h, 7d")
        };
        let unit = text.chars().last().ok_or_else(invalid)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(invalid()),
        };
        let number = text.strip_suffix(unit).unwrap_or_default();
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let number: u64 = number.parse().map_err(|_| invalid())?;
        // A hundred years are enough for everybody.
        let seconds = number.checked_mul(seconds).filter(|all| *all <= 3_155_760_000);
        Ok(Self(Duration::from_secs(seconds.ok_or_else(invalid)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_a_unit() {
        for (text, seconds) in
            [("0s", 0), ("90s", 90), ("2m", 120), ("12h", 43_200), ("7d", 604_800)]
        {
            assert_eq!(text.parse::<Span>().expect(text).0.as_secs(), seconds);
        }
        for bad in ["", "7", "d", "-1d", "1.5h", "+7d", "7 d", "7w", "99999999999999999999d", "é"]
        {
            assert_eq!(bad.parse::<Span>().expect_err(bad).code(), ErrorCode::SpecInvalid);
        }
    }

    #[test]
    fn a_refusal_says_who_holds_and_how_to_end_it() {
        let hold = Hold {
            table: Some("t".into()),
            reason: "case 7".into(),
            set_by: "eve".into(),
            set_ms: 0,
        };
        let error = hold.refusal(&"401", "expiry");
        assert_eq!(error.message(), "table t of org 401 is under legal hold: expiry is refused");
        assert_eq!(error.detail_text(), Some("held by eve: case 7"));
        let hint = "an operator ends it: polder hold release --org 401 --table t";
        assert_eq!(error.hint_text(), Some(hint));
    }

    #[test]
    fn what_is_kept_between_steps_is_read_back_whole() {
        let erasure = Erasure { folder: Some("s3://b/f".into()), ..Erasure::default() };
        let text = serde_json::to_string(&erasure).expect("JSON");
        assert_eq!(serde_json::from_str::<Erasure>(&text).expect("back"), erasure);
        assert!(serde_json::from_str::<Erasure>("{}").is_err());
    }
}
