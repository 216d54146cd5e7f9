//! States of tables whose times lie in this machine's future: its clock is behind, or that of another
//! writer was ahead.
//!
//! The library stamps what it builds with the present, and neither builds nor reads a state whose times
//! go back by more than a minute. So such a state is built on as if it had been made now, and gets its
//! own times back afterwards.

use iceberg::spec::{SnapshotLog, TableMetadata};
use polder_core::{Error, ErrorCode, Result};
use serde_json::Value;

const UPDATED: &str = "last-updated-ms";
const SNAPSHOTS: &str = "snapshot-log";
const FILES: &str = "metadata-log";
const AT: &str = "timestamp-ms";

/// A state whose times lie ahead of the present.
pub(super) struct Ahead<'a> {
    state: &'a TableMetadata,
    now_ms: i64,
    latest_ms: i64,
}

impl<'a> Ahead<'a> {
    /// `None` if no time of the state lies ahead.
    pub(super) fn of(state: &'a TableMetadata) -> Option<Self> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let logged = state.history().iter().map(|entry| entry.timestamp_ms);
        let latest_ms = logged.fold(state.last_updated_ms(), i64::max);
        (latest_ms > now_ms).then_some(Self { state, now_ms, latest_ms })
    }

    /// The state as if it had been made now.
    ///
    /// # Errors
    /// `internal` if it is no JSON.
    pub(super) fn as_of_now(&self) -> Result<TableMetadata> {
        let mut document = document(self.state)?;
        let not_later = |at: &mut Value| {
            if at.as_i64().is_some_and(|ms| ms > self.now_ms) {
                *at = self.now_ms.into();
            }
        };
        not_later(&mut document[UPDATED]);
        for log in [SNAPSHOTS, FILES] {
            entries(&mut document, log).for_each(|entry| not_later(&mut entry[AT]));
        }
        parsed(document)
    }

    /// What was built on [`Self::as_of_now`], with the state's own times. Nothing new is older than
    /// these.
    ///
    /// # Errors
    /// `internal` if it is no JSON.
    pub(super) fn with_times(&self, built: &TableMetadata) -> Result<TableMetadata> {
        let mut document = document(built)?;
        document[UPDATED] = built.last_updated_ms().max(self.latest_ms).into();
        let kept = kept(self.state.history(), built.history());
        for (at, entry) in entries(&mut document, SNAPSHOTS).enumerate() {
            let new_ms = entry[AT].as_i64().unwrap_or_default().max(self.latest_ms);
            entry[AT] = kept.get(at).map_or(new_ms, |old| old.timestamp_ms).into();
        }
        for (entry, named) in entries(&mut document, FILES).zip(built.metadata_log()) {
            let mut known = self.state.metadata_log().iter();
            let known = known.find(|old| old.metadata_file == named.metadata_file);
            // Of the state itself, which is not in its own log.
            let own_ms = self.state.last_updated_ms();
            entry[AT] = known.map_or(own_ms, |old| old.timestamp_ms).into();
        }
        parsed(document)
    }
}

/// What is left of a log where other entries may follow: its end, as only what is old goes.
fn kept<'a>(old: &'a [SnapshotLog], new: &[SnapshotLog]) -> &'a [SnapshotLog] {
    let begins = |kept: &&[SnapshotLog]| {
        let same = |(old, new): (&SnapshotLog, &SnapshotLog)| old.snapshot_id == new.snapshot_id;
        kept.len() <= new.len() && kept.iter().zip(new).all(same)
    };
    (0..=old.len()).map(|gone| &old[gone..]).find(begins).unwrap_or_default()
}

fn entries<'a>(document: &'a mut Value, log: &str) -> impl Iterator<Item = &'a mut Value> {
    document.get_mut(log).and_then(Value::as_array_mut).into_iter().flatten()
}

fn document(state: &TableMetadata) -> Result<Value> {
    serde_json::to_value(state).map_err(failed)
}

fn parsed(document: Value) -> Result<TableMetadata> {
    serde_json::from_value(document).map_err(failed)
}

fn failed(cause: serde_json::Error) -> Error {
    Error::new(ErrorCode::Internal, "the table's times cannot be changed").caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(ids: &[i64]) -> Vec<SnapshotLog> {
        let entry = |id: &i64| SnapshotLog { snapshot_id: *id, timestamp_ms: *id };
        ids.iter().map(entry).collect()
    }

    #[test]
    fn of_an_old_log_its_end_is_kept() {
        let cases: [(&[i64], &[i64], &[i64]); 6] = [
            (&[], &[1], &[]),
            (&[1, 2], &[1, 2], &[1, 2]),
            (&[1, 2], &[1, 2, 3], &[1, 2]),
            (&[1, 2, 3], &[3, 4], &[3]),
            (&[1, 2, 1], &[1, 2, 1, 2], &[1, 2, 1]),
            (&[1, 2], &[3], &[]),
        ];
        for (old, new, expected) in cases {
            assert_eq!(kept(&log(old), &log(new)), log(expected), "{old:?} {new:?}");
        }
    }
}
