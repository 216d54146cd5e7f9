//! What was found, as checks: the words and the verdicts.

use std::time::Instant;

use polder_core::spec::{Mode, TableSpec};
use polder_core::validation::{
    Check, CheckName, Differences, Named, PENDING_MAX, SAMPLES_MAX, Verdict,
};
use polder_core::{Content, RangeDigest, TableSchema};
use polder_lake::{FileFault, TagFault};

/// Checks in the making, each with when it began and how long it took.
pub(crate) struct Checks {
    pub(crate) done: Vec<Check>,
    since: Instant,
    started_ms: i64,
}

impl Checks {
    pub(crate) fn new() -> Self {
        Self { done: Vec::new(), since: Instant::now(), started_ms: now_ms() }
    }

    /// Adds what was found since the last call.
    pub(crate) fn add(&mut self, checks: impl IntoIterator<Item = Check>) {
        let duration_ms = self.since.elapsed().as_millis() as u64;
        let started_ms = self.started_ms;
        self.done.extend(checks.into_iter().map(|check| Check {
            started_ms,
            duration_ms,
            ..check
        }));
        self.since = Instant::now();
        self.started_ms = now_ms();
    }
}

pub(crate) fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

pub(super) fn files(faults: &[FileFault], files: u64) -> Check {
    let verdict = if faults.is_empty() { Verdict::Verified } else { Verdict::Failed };
    let expected = format!("{files} files that can be read");
    let observed =
        if faults.is_empty() { expected.clone() } else { format!("{} that cannot", faults.len()) };
    let name = |fault: &FileFault| format!("{}: {}", file_name(&fault.path), fault.what);
    Check::new(CheckName::Files, verdict, expected, observed).with_samples(faults.iter().map(name))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

pub(super) fn partitions(misplaced: &[String]) -> Check {
    let verdict = if misplaced.is_empty() { Verdict::Verified } else { Verdict::Failed };
    let observed = format!("{} files hold rows of another partition", misplaced.len());
    Check::new(CheckName::Partitions, verdict, "0 files hold rows of another partition", observed)
        .with_samples(misplaced.iter().map(|path| file_name(path).to_owned()))
}

pub(super) fn tags(faults: &[TagFault]) -> Check {
    let verdict = if faults.is_empty() { Verdict::Verified } else { Verdict::Failed };
    let observed = format!("{} tags moved", faults.len());
    let name = |fault: &TagFault| match fault.set_on {
        Some(set_on) => format!("{} is on {}, set on {set_on}", fault.name, fault.snapshot_id),
        None => format!("{} is on {}, never published", fault.name, fault.snapshot_id),
    };
    Check::new(CheckName::Tags, verdict, "0 tags moved", observed)
        .with_samples(faults.iter().map(name))
}

/// `published`: the columns as the last run left them; `changes`: how the source differs from the table.
pub(super) fn schema(
    present: &TableSchema,
    published: Option<&TableSchema>,
    changes: &[String],
) -> Check {
    let shape = |schema: &TableSchema| -> Vec<String> {
        let column = |field: &polder_core::Field| {
            let required = if field.nullable { "" } else { " required" };
            format!("{} {}{required}", field.name, field.data_type)
        };
        schema.fields.iter().map(column).collect()
    };
    let found = shape(present);
    if let Some(published) = published.map(shape).filter(|published| *published != found) {
        let other = found.iter().filter(|column| !published.contains(column));
        let lost = published.iter().filter(|column| !found.contains(column));
        let samples = lost.map(|c| format!("lost {c}")).chain(other.map(|c| format!("has {c}")));
        return Check::new(
            CheckName::Schema,
            Verdict::Failed,
            "the columns that the last run published",
            "other columns",
        )
        .with_samples(samples);
    }
    let verdict = if changes.is_empty() { Verdict::Verified } else { Verdict::Stale };
    let observed = format!("{} differences", changes.len());
    Check::new(CheckName::Schema, verdict, "0 differences to the source", observed)
        .with_samples(changes.iter().cloned())
}

/// The table was made by another spec: its rows are not those that this one means.
pub(super) fn other_spec() -> Check {
    Check::new(
        CheckName::Schema,
        Verdict::Stale,
        "the rows and columns that the table spec means",
        "those of an earlier spec: the next run reloads them",
    )
}

/// Rows are not compared where nearly all may be others by now.
pub(super) fn too_many_pending() -> Check {
    let expected = format!("{PENDING_MAX} rows pending at most");
    Check::new(CheckName::Freshness, Verdict::Stale, expected, "more: nothing was compared")
}

/// Whether the rows are those that runs have stored; `None` if that is not known.
pub(crate) fn content(recorded: Option<Content>, found: Content) -> Option<Check> {
    let recorded = recorded?;
    let verdict = if recorded == found { Verdict::Verified } else { Verdict::Failed };
    Some(Check::new(CheckName::Content, verdict, recorded.to_string(), found.to_string()))
}

/// Of a state that only its run has seen: `rows` too many by the key, and cursor where keys return.
pub(crate) fn staged_duplicates(rows: u64, returns: bool) -> Check {
    let by = if returns { "key and cursor" } else { "key" };
    let verdict = if rows == 0 { Verdict::Verified } else { Verdict::Failed };
    let words = |rows: u64| format!("{rows} rows too many by {by}");
    Check::new(CheckName::Duplicates, verdict, words(0), words(rows))
}

/// What was compared before: the same state of the table with the same state of the source.
pub(super) fn proven(at_ms: i64) -> [Check; 4] {
    let time = chrono::DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
    let time = time.format("%Y-%m-%d %H:%M:%S");
    let observed = format!("neither side changed since {time} UTC, when they were equal");
    [CheckName::RowCount, CheckName::MissingKeys, CheckName::ExtraKeys, CheckName::Values]
        .map(|name| Check::new(name, Verdict::Verified, "as compared before", observed.clone()))
}

/// What differences between source and lake mean.
pub(super) struct Meaning {
    pub(super) mode: Mode,
    /// Whether the table has the rows that runs have stored; `None` if that is not known.
    pub(super) content_is_right: Option<bool>,
    /// Whether it is known which rows the table must have.
    pub(super) common_point: bool,
    /// Whether the source is as the runs have read it: no row is gone from it.
    pub(super) as_read: bool,
}

impl Meaning {
    /// Of a settled row that the lake lacks, or has with other values.
    fn of_settled(&self) -> Verdict {
        if self.common_point || self.content_is_right == Some(false) {
            Verdict::Failed
        } else {
            Verdict::Stale
        }
    }

    /// Whether a row that the filter leaves out now was never this org's since the run.
    pub(super) fn tells_foreign(&self) -> bool {
        self.common_point || self.content_is_right == Some(false)
    }

    /// Of rows that the lake alone has.
    fn of_extra(&self) -> Verdict {
        match (self.content_is_right, self.mode) {
            (Some(false), _) => Verdict::Failed,
            _ if self.as_read => Verdict::Failed,
            _ if !self.common_point => Verdict::Stale,
            (Some(true), Mode::FullRefresh) => Verdict::Verified,
            _ => Verdict::Warning,
        }
    }
}

/// What was compared.
pub(super) struct Found<'a> {
    pub(super) spec: &'a TableSpec,
    /// The compared columns.
    pub(super) columns: &'a TableSchema,
    pub(super) source: RangeDigest,
    pub(super) lake: RangeDigest,
    pub(super) pending: usize,
    pub(super) differences: Differences,
    /// Ranges that differ, and how many of them were listed.
    pub(super) ranges: (usize, usize),
    pub(super) foreign: Vec<Named>,
    /// Rows too many of keys that the lake repeats, and those keys.
    pub(super) repeated: (u64, Vec<Named>),
    pub(super) has_key: bool,
    pub(super) meaning: Meaning,
}

impl Found<'_> {
    pub(super) fn checks(&self) -> Vec<Check> {
        let mut checks = vec![self.row_count()];
        checks.extend(self.has_key.then(|| self.duplicates()));
        checks.push(self.missing());
        checks.push(self.extra());
        checks.extend(self.spec.filter.is_some().then(|| self.org_filter()));
        checks.extend(self.values());
        checks
    }

    /// `5 rows`, and whether there may be more.
    fn count(&self, count: usize, what: &str) -> String {
        let (differ, listed) = self.ranges;
        if listed < differ {
            return format!("{count} {what} in {listed} of {differ} ranges that differ");
        }
        format!("{count} {what}")
    }

    fn row_count(&self) -> Check {
        let (expected, observed) = (self.source.rows, self.lake.rows);
        let verdict = match observed.cmp(&expected) {
            std::cmp::Ordering::Equal => Verdict::Verified,
            std::cmp::Ordering::Less => self.meaning.of_settled(),
            std::cmp::Ordering::Greater if !self.repeated.1.is_empty() => self.of_repeated(),
            std::cmp::Ordering::Greater => self.meaning.of_extra(),
        };
        let pending = match self.pending {
            0 => String::new(),
            pending => format!(", and {pending} pending"),
        };
        Check::new(
            CheckName::RowCount,
            verdict,
            format!("{expected} rows{pending}"),
            format!("{observed} rows"),
        )
    }

    /// Of keys that the lake repeats: the source may do so itself.
    fn of_repeated(&self) -> Verdict {
        let in_source = |key: &Named| self.differences.repeated.iter().any(|r| r.key == key.key);
        match (self.repeated.1.is_empty(), self.repeated.1.iter().all(in_source)) {
            (true, _) => Verdict::Verified,
            (false, true) => Verdict::Warning,
            (false, false) => Verdict::Failed,
        }
    }

    fn duplicates(&self) -> Check {
        let verdict = self.of_repeated();
        let returns = self.spec.mode == Mode::Append && self.spec.cursor.is_some();
        let by = if returns { "key and cursor" } else { "key" };
        let in_source = if verdict == Verdict::Warning { ", as in the source" } else { "" };
        let observed = format!("{} rows too many by {by}{in_source}", self.repeated.0);
        Check::new(CheckName::Duplicates, verdict, format!("0 rows too many by {by}"), observed)
            .with_samples(names(&self.repeated.1))
    }

    fn missing(&self) -> Check {
        let missing = &self.differences.missing;
        let verdict =
            if missing.is_empty() { Verdict::Verified } else { self.meaning.of_settled() };
        let observed = self.count(missing.len(), "rows missing");
        Check::new(CheckName::MissingKeys, verdict, "0 rows missing", observed)
            .with_samples(names(missing))
    }

    fn extra(&self) -> Check {
        let foreign = |row: &&Named| !self.foreign.iter().any(|found| found.key == row.key);
        let extra: Vec<Named> = self.differences.extra.iter().filter(foreign).cloned().collect();
        let verdict = if extra.is_empty() { Verdict::Verified } else { self.meaning.of_extra() };
        let what = match verdict {
            Verdict::Failed | Verdict::Stale => "rows that the source does not have",
            Verdict::Verified | Verdict::Warning => "rows gone from the source",
        };
        let observed = self.count(extra.len(), what);
        Check::new(CheckName::ExtraKeys, verdict, "0 rows that the source does not have", observed)
            .with_samples(names(&extra))
    }

    fn org_filter(&self) -> Check {
        let verdict = if self.foreign.is_empty() { Verdict::Verified } else { Verdict::Failed };
        let observed = self.count(self.foreign.len(), "rows that the filter leaves out");
        Check::new(CheckName::OrgFilter, verdict, "0 rows that the filter leaves out", observed)
            .with_samples(names(&self.foreign))
    }

    /// One for each column that differs; one for all if none does.
    fn values(&self) -> Vec<Check> {
        let differ = |(column, rows): (&usize, &Vec<Named>)| {
            let observed = self.count(rows.len(), "rows differ");
            let verdict = self.meaning.of_settled();
            let check = Check::new(CheckName::Values, verdict, "0 rows differ", observed);
            let name = self.columns.fields.get(*column).map(|field| field.name.clone());
            check.of_column(name.unwrap_or_default()).with_samples(names(rows))
        };
        let found: Vec<Check> = self.differences.values.iter().map(differ).collect();
        if !found.is_empty() {
            return found;
        }
        let (columns, rows) = (self.columns.fields.len(), self.source.rows);
        let observed = format!("0 rows differ, of {rows} in {columns} columns");
        vec![Check::new(CheckName::Values, Verdict::Verified, "0 rows differ", observed)]
    }
}

fn names(rows: &[Named]) -> Vec<String> {
    rows.iter().take(SAMPLES_MAX).map(|row| row.name.clone()).collect()
}

/// `age_ms`: since the last run committed.
pub(super) fn freshness(age_ms: i64, target_ms: i64, pending: usize) -> Check {
    let late = pending > 0 && age_ms > target_ms;
    let verdict = if late { Verdict::Stale } else { Verdict::Verified };
    let hours = |ms: i64| ms as f64 / 3_600_000.0;
    let observed = match pending {
        0 => "nothing pending".to_owned(),
        pending => format!("{pending} rows pending, {:.1} h since the last run", hours(age_ms)),
    };
    let expected = format!("nothing pending {:.1} h after a run", hours(target_ms));
    Check::new(CheckName::Freshness, verdict, expected, observed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_the_lake_alone_has_means_what_is_known_of_both_sides() {
        use Verdict::{Failed, Stale, Verified, Warning};
        let cases = [
            // The content, a common point, as read; and what it is in `full_refresh` and in `append`.
            (Some(true), true, false, [Verified, Warning]),
            (Some(false), true, false, [Failed, Failed]),
            (None, true, false, [Warning, Warning]),
            (Some(true), false, false, [Stale, Stale]),
            (Some(false), false, false, [Failed, Failed]),
            // Nothing can be gone from the very objects that were read: the run has read too much.
            (Some(true), true, true, [Failed, Failed]),
        ];
        for (content_is_right, common_point, as_read, expected) in cases {
            let of = |mode| Meaning { mode, content_is_right, common_point, as_read }.of_extra();
            let found = [Mode::FullRefresh, Mode::Append].map(of);
            assert_eq!(found, expected, "{content_is_right:?} {common_point} {as_read}");
        }
    }
}
