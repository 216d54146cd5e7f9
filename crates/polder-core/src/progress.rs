//! The counters of one run, written by sources and writers while they work and read by whoever
//! shows them.
//!
//! Nothing is drawn here, and no clock is read: rates are the reader's business.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// The most rows with altered values that are remembered by their key, for each column.
pub const ALTERED_KEYS_MAX: usize = 5;

/// What a run is busy with or waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    #[default]
    Waiting,
    Planning,
    /// Reading a source once to learn its schema.
    Inferring,
    Reading,
    /// Looking for the rows that changed ones take the place of.
    Merging,
    Committing,
    Done,
}

impl Stage {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Planning => "planning",
            Self::Inferring => "inferring",
            Self::Reading => "reading",
            Self::Merging => "merging",
            Self::Committing => "committing",
            Self::Done => "done",
        }
    }
}

/// Counters of one run of one table. Shared by reference; every method is cheap and never blocks
/// for long.
#[derive(Debug, Default)]
pub struct RunProgress {
    rows_read: AtomicU64,
    bytes_read: AtomicU64,
    rows_written: AtomicU64,
    rows_known: AtomicU64,
    rows_estimated: AtomicU64,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    stage: Stage,
    waiting_for: Option<String>,
    altered: BTreeMap<String, u64>,
    altered_keys: BTreeMap<String, Vec<String>>,
    rejected: BTreeMap<String, u64>,
}

/// What one read has counted, so that it can be taken back if the read breaks off.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Tallied>);

#[derive(Debug, Default)]
struct Tallied {
    rows: u64,
    bytes: u64,
    altered: BTreeMap<String, u64>,
}

impl Tally {
    /// [`RunProgress::add_read`].
    pub fn add_read(&self, progress: &RunProgress, rows: u64, bytes: u64) {
        progress.add_read(rows, bytes);
        let mut tallied = self.tallied();
        tallied.rows += rows;
        tallied.bytes += bytes;
    }

    /// [`RunProgress::add_altered`].
    pub fn add_altered(&self, progress: &RunProgress, column: &str, values: u64) {
        if values > 0 {
            progress.add_altered(column, values);
            *self.tallied().altered.entry(column.to_owned()).or_default() += values;
        }
    }

    /// Takes all of it back. The keys of rows with altered values stay: they will be met again.
    pub fn take_back(&self, progress: &RunProgress) {
        let Tallied { rows, bytes, altered } = std::mem::take(&mut *self.tallied());
        progress.rows_read.fetch_sub(rows, Ordering::Relaxed);
        progress.bytes_read.fetch_sub(bytes, Ordering::Relaxed);
        let mut notes = progress.notes();
        for (column, values) in altered {
            if let Some(counted) = notes.altered.get_mut(&column) {
                *counted -= values;
            }
        }
        notes.altered.retain(|_, values| *values > 0);
    }

    fn tallied(&self) -> MutexGuard<'_, Tallied> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A copy of the counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProgressSnapshot {
    pub stage: Stage,
    /// What the run waits for, in words, if it waits.
    pub waiting_for: Option<String>,
    /// Rows the source delivered.
    pub rows_read: u64,
    /// Bytes the source delivered, as they came over the wire or from the file.
    pub bytes_read: u64,
    /// Rows handed to data files.
    pub rows_written: u64,
    /// Rows read again and recognised as already stored.
    pub rows_known: u64,
    /// The source's own estimate of the rows to come; 0 when unknown.
    pub rows_estimated: u64,
    /// Values changed because the spec says so (`on_unrepresentable`), by column.
    pub altered: BTreeMap<String, u64>,
    /// The keys of a few rows with such values, by column; none where the spec names no key.
    pub altered_keys: BTreeMap<String, Vec<String>>,
    /// Lines set aside because the spec says so (`on_bad_line: reject`), by file.
    pub rejected: BTreeMap<String, u64>,
}

impl RunProgress {
    pub fn add_read(&self, rows: u64, bytes: u64) {
        self.rows_read.fetch_add(rows, Ordering::Relaxed);
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn add_written(&self, rows: u64) {
        self.rows_written.fetch_add(rows, Ordering::Relaxed);
    }

    /// Rows that were handed to files which are not there any more.
    pub fn take_back_written(&self, rows: u64) {
        self.rows_written.fetch_sub(rows, Ordering::Relaxed);
    }

    pub fn add_known(&self, rows: u64) {
        self.rows_known.fetch_add(rows, Ordering::Relaxed);
    }

    pub fn estimate(&self, rows: u64) {
        self.rows_estimated.store(rows, Ordering::Relaxed);
    }

    pub fn enter(&self, stage: Stage) {
        let mut notes = self.notes();
        notes.stage = stage;
        notes.waiting_for = None;
    }

    /// Says what the run waits for, until the next [`Self::enter`].
    pub fn wait_for(&self, what: impl Into<String>) {
        self.notes().waiting_for = Some(what.into());
    }

    /// Says that it waits no longer.
    pub fn go_on(&self) {
        self.notes().waiting_for = None;
    }

    /// Counts values of a column that were changed by policy.
    pub fn add_altered(&self, column: &str, values: u64) {
        if values > 0 {
            *self.notes().altered.entry(column.to_owned()).or_default() += values;
        }
    }

    /// Whether another row with altered values of this column would be remembered.
    pub fn wants_altered_key(&self, column: &str) -> bool {
        self.notes().altered_keys.get(column).is_none_or(|keys| keys.len() < ALTERED_KEYS_MAX)
    }

    /// Remembers a row with altered values of a column by its key; only the first few of each.
    pub fn add_altered_key(&self, column: &str, key: String) {
        let mut notes = self.notes();
        let keys = notes.altered_keys.entry(column.to_owned()).or_default();
        if keys.len() < ALTERED_KEYS_MAX && !keys.contains(&key) {
            keys.push(key);
        }
    }

    /// Counts lines of a file that were set aside by policy.
    pub fn add_rejected(&self, file: &str, lines: u64) {
        if lines > 0 {
            *self.notes().rejected.entry(file.to_owned()).or_default() += lines;
        }
    }

    /// Starts the counters of an attempt over; the estimate stays.
    pub fn restart(&self) {
        self.rows_read.store(0, Ordering::Relaxed);
        self.bytes_read.store(0, Ordering::Relaxed);
        self.rows_written.store(0, Ordering::Relaxed);
        self.rows_known.store(0, Ordering::Relaxed);
        *self.notes() = Notes::default();
    }

    pub fn snapshot(&self) -> ProgressSnapshot {
        let notes = self.notes();
        ProgressSnapshot {
            stage: notes.stage,
            waiting_for: notes.waiting_for.clone(),
            rows_read: self.rows_read.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            rows_written: self.rows_written.load(Ordering::Relaxed),
            rows_known: self.rows_known.load(Ordering::Relaxed),
            rows_estimated: self.rows_estimated.load(Ordering::Relaxed),
            altered: notes.altered.clone(),
            altered_keys: notes.altered_keys.clone(),
            rejected: notes.rejected.clone(),
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Counters stay readable after a panic elsewhere.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_broke_off_counts_for_nothing() {
        let (progress, whole, broken) =
            (RunProgress::default(), Tally::default(), Tally::default());
        whole.add_read(&progress, 7, 70);
        whole.add_altered(&progress, "amount", 1);
        broken.add_read(&progress, 3, 30);
        broken.add_altered(&progress, "amount", 2);
        broken.add_altered(&progress, "at", 5);
        for _ in 0..2 {
            broken.take_back(&progress);
            let left = progress.snapshot();
            assert_eq!((left.rows_read, left.bytes_read), (7, 70));
            assert_eq!(left.altered, BTreeMap::from([("amount".to_owned(), 1)]));
        }
    }
}
