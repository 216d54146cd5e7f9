//! What validation finds, and what follows from it: pure rules (ADR 0017).
//!
//! Where the digests come from is the pipeline's business; here they are compared.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{RangeDigest, RowDigest};

/// Rows that may be pending; where there are more, the table is too old to be compared.
pub const PENDING_MAX: usize = 2_000_000;
/// Keys named in a check's result.
pub const SAMPLES_MAX: usize = 5;

/// What is known of a table version, or what one check says of it; each is worse than the one before.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is as it has to be.
    #[default]
    Verified,
    /// The table differs from the source in a way that its mode brings with it.
    Warning,
    /// The source went on, so that the table cannot be told right or wrong, or is too old.
    Stale,
    /// The table is wrong.
    Failed,
}

impl Verdict {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Warning => "warning",
            Self::Stale => "stale",
            Self::Failed => "failed",
        }
    }

    /// The verdict that [`Self::as_str`] names.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Verified, Self::Warning, Self::Stale, Self::Failed]
            .into_iter()
            .find(|verdict| verdict.as_str() == text)
    }

    /// The worst of the checks' verdicts; `None` without a check.
    pub fn worst(verdicts: impl IntoIterator<Item = Self>) -> Option<Self> {
        verdicts.into_iter().max()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a check is about. Stable: part of the API (docs/reference/validation.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckName {
    Files,
    Partitions,
    Tags,
    Schema,
    Content,
    RowCount,
    Duplicates,
    MissingKeys,
    ExtraKeys,
    OrgFilter,
    Values,
    Freshness,
    /// A check of the table spec.
    Sql,
    /// What a run read back before publishing.
    Audit,
}

impl CheckName {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Partitions => "partitions",
            Self::Tags => "tags",
            Self::Schema => "schema",
            Self::Content => "content",
            Self::RowCount => "row_count",
            Self::Duplicates => "duplicates",
            Self::MissingKeys => "missing_keys",
            Self::ExtraKeys => "extra_keys",
            Self::OrgFilter => "org_filter",
            Self::Values => "values",
            Self::Freshness => "freshness",
            Self::Sql => "sql",
            Self::Audit => "audit",
        }
    }
}

impl fmt::Display for CheckName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub check: CheckName,
    /// The column it is about, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The name that the table spec gives it, of `sql`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub verdict: Verdict,
    pub expected: String,
    pub observed: String,
    /// A few of the rows (by key), files or names it is about.
    pub samples: Vec<String>,
    /// Milliseconds since the epoch.
    pub started_ms: i64,
    pub duration_ms: u64,
}

impl Check {
    pub fn new(
        check: CheckName,
        verdict: Verdict,
        expected: impl Into<String>,
        observed: impl Into<String>,
    ) -> Self {
        Self {
            check,
            column: None,
            name: None,
            verdict,
            expected: expected.into(),
            observed: observed.into(),
            samples: Vec::new(),
            started_ms: 0,
            duration_ms: 0,
        }
    }

    #[must_use]
    pub fn of_column(mut self, column: impl Into<String>) -> Self {
        self.column = Some(column.into());
        self
    }

    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The first few of these.
    #[must_use]
    pub fn with_samples(mut self, samples: impl IntoIterator<Item = String>) -> Self {
        self.samples = samples.into_iter().take(SAMPLES_MAX).collect();
        self
    }
}

/// The range of a key's word, of ranges that begin with the same `bits` bits.
pub const fn range_of(key: u64, bits: u32) -> u64 {
    if bits == 0 { 0 } else { key >> (64 - bits) }
}

/// The number of bits that makes ranges of about 256 of so many rows.
pub fn range_bits(rows: u64) -> u32 {
    const ROWS: u64 = 256;
    const BITS: (u32, u32) = (4, 16);
    (rows / ROWS).max(1).next_power_of_two().ilog2().clamp(BITS.0, BITS.1)
}

/// The ranges that are not the same on both sides, in order.
pub fn different(
    source: &BTreeMap<u64, RangeDigest>,
    lake: &BTreeMap<u64, RangeDigest>,
) -> Vec<u64> {
    let mut ranges: Vec<u64> = source.keys().chain(lake.keys()).copied().collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges.retain(|range| {
        let side = |side: &BTreeMap<u64, RangeDigest>| side.get(range).copied().unwrap_or_default();
        side(source) != side(lake)
    });
    ranges
}

/// What is different in the rows of some ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Rows that the source alone has.
    pub missing: Vec<Named>,
    /// Rows that the lake alone has.
    pub extra: Vec<Named>,
    /// Rows whose columns differ, by the column's place.
    pub values: BTreeMap<usize, Vec<Named>>,
    /// Keys that the source itself has more than once.
    pub repeated: Vec<Named>,
}

/// A row by its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub key: u64,
    pub name: String,
}

impl From<&RowDigest> for Named {
    fn from(row: &RowDigest) -> Self {
        Self { key: row.key, name: row.name.clone() }
    }
}

/// What rows are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// By all of their columns: as many on one side as on the other.
    Whole,
    /// By a key that is there once.
    Key,
    /// By a key that may return in the lake: of its rows that are equally new, as far as the cursor
    /// tells, one like the source's is enough.
    ReturningKey,
}

/// Compares rows.
pub fn compare(source: &[RowDigest], lake: &[RowDigest], told: Told) -> Differences {
    let mut sides: BTreeMap<u64, (Vec<&RowDigest>, Vec<&RowDigest>)> = BTreeMap::new();
    for row in source {
        sides.entry(row.key).or_default().0.push(row);
    }
    for row in lake {
        sides.entry(row.key).or_default().1.push(row);
    }
    let mut found = Differences::default();
    for (mut ours, mut theirs) in sides.into_values() {
        if told != Told::Whole {
            found.repeated.extend(ours.get(1).map(|row| Named::from(*row)));
        }
        let (in_source, in_lake) = (ours.len(), theirs.len());
        cancel(&mut ours, &mut theirs);
        if told == Told::ReturningKey && ours.is_empty() && in_source > 0 {
            continue;
        }
        // Rows of one key that are no rows of the other side's are changed ones, as far as they pair up.
        for (source, lake) in ours.iter().zip(&theirs) {
            let columns = source.columns.iter().zip(&lake.columns).enumerate();
            for (column, _) in columns.filter(|(_, (source, lake))| source != lake) {
                found.values.entry(column).or_default().push(Named::from(*lake));
            }
        }
        let paired = ours.len().min(theirs.len());
        found.missing.extend(ours[paired..].iter().map(|row| Named::from(*row)));
        // A key that both have, and the lake more often, is repeated there, not extra.
        if told == Told::Whole || in_source == 0 || in_lake == 0 {
            found.extra.extend(theirs[paired..].iter().map(|row| Named::from(*row)));
        }
    }
    found.extra.dedup();
    found
}

/// Takes equal rows from both sides.
fn cancel(ours: &mut Vec<&RowDigest>, theirs: &mut Vec<&RowDigest>) {
    let mut left: HashMap<u64, usize> = HashMap::new();
    for row in &*theirs {
        *left.entry(row.row).or_default() += 1;
    }
    let mut took: HashMap<u64, usize> = HashMap::new();
    ours.retain(|row| match left.get_mut(&row.row) {
        Some(count) if *count > 0 => {
            *count -= 1;
            *took.entry(row.row).or_default() += 1;
            false
        }
        _ => true,
    });
    theirs.retain(|row| match took.get_mut(&row.row) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: u64, columns: &[u64]) -> RowDigest {
        let row = columns.iter().fold(key, |sum, word| sum.wrapping_mul(31).wrapping_add(*word));
        RowDigest { key, name: format!("id={key}"), row, columns: columns.to_vec() }
    }

    fn names(rows: &[Named]) -> Vec<&str> {
        rows.iter().map(|row| &*row.name).collect()
    }

    #[test]
    fn the_worst_check_decides() {
        use Verdict::{Failed, Stale, Verified, Warning};
        assert_eq!(Verdict::worst([Verified, Warning]), Some(Warning));
        assert_eq!(Verdict::worst([Stale, Warning, Verified]), Some(Stale));
        assert_eq!(Verdict::worst([Failed, Stale]), Some(Failed));
        assert_eq!(Verdict::worst([]), None);
    }

    #[test]
    fn ranges_are_prefixes_of_about_as_many_rows() {
        assert_eq!([0, 256, 5000, 6_000_000, u64::MAX / 2].map(range_bits), [4, 4, 5, 15, 16]);
        assert_eq!(range_of(u64::MAX, 4), 15);
        assert_eq!(range_of(1 << 60, 4), 1);
        assert_eq!(range_of(u64::MAX, 0), 0);
    }

    #[test]
    fn ranges_differ_by_rows_or_sum_or_by_being_there() {
        let side = |ranges: &[(u64, u64, u64)]| -> BTreeMap<u64, RangeDigest> {
            let range = |(range, rows, sum): &(u64, u64, u64)| {
                (*range, RangeDigest { rows: *rows, sum: *sum })
            };
            ranges.iter().map(range).collect()
        };
        let source = side(&[(0, 1, 5), (1, 1, 5), (2, 2, 9), (3, 0, 0)]);
        let lake = side(&[(0, 1, 5), (1, 1, 6), (2, 3, 9), (7, 1, 1)]);
        assert_eq!(different(&source, &lake), [1, 2, 7]);
    }

    #[test]
    fn rows_are_missing_extra_or_changed() {
        let source = [row(1, &[1, 1]), row(2, &[2, 2]), row(3, &[3, 3]), row(4, &[4, 4])];
        let lake = [row(1, &[1, 1]), row(3, &[3, 9]), row(4, &[8, 9]), row(5, &[5, 5])];
        let found = compare(&source, &lake, Told::Key);
        assert_eq!(names(&found.missing), ["id=2"]);
        assert_eq!(names(&found.extra), ["id=5"]);
        assert_eq!(names(&found.values[&0]), ["id=4"]);
        assert_eq!(names(&found.values[&1]), ["id=3", "id=4"]);
        assert_eq!(compare(&source, &source, Told::Key), Differences::default());
    }

    #[test]
    fn repeated_keys_are_told_from_extra_ones() {
        let source = [row(1, &[1])];
        let twice = [row(1, &[1]), row(1, &[2])];
        assert_eq!(compare(&source, &twice, Told::Key), Differences::default());
        assert_eq!(compare(&source, &twice, Told::ReturningKey), Differences::default());
        let found = compare(&[row(1, &[3])], &twice, Told::ReturningKey);
        assert_eq!(names(&found.values[&0]), ["id=1"]);
        let found = compare(&twice, &twice, Told::Key);
        assert_eq!((names(&found.repeated), found.missing.len()), (vec!["id=1"], 0));
        let found = compare(&twice, &source, Told::Key);
        assert_eq!(names(&found.missing), ["id=1"]);
        let found = compare(&source, &[row(1, &[1]), row(1, &[1])], Told::Whole);
        assert_eq!((names(&found.extra), found.repeated.len()), (vec!["id=1"], 0));
    }
}
