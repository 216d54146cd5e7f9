//! What Polder remembers in a table's own properties, and in the summaries of its snapshots.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::LazyLock;

use iceberg::spec::{Schema, Snapshot};
use polder_core::{Error, ErrorCode, Result, TableSchema};
use serde::Serialize;
use uuid::Uuid;

use super::{Rollback, summary};
use crate::catalog::TableState;
use crate::schema;

/// Runs and other commits remembered in a table's properties, newest last.
const IDS_MAX: usize = 20;
/// Sets of marks remembered in a table's properties.
const MARKS_MAX: usize = 5;

/// The table properties that are ours. They change in the same commit as the rows.
pub(crate) struct Properties<'a>(pub(crate) &'a HashMap<String, String>);

impl<'a> Properties<'a> {
    /// Those of a state; none where there is no table yet.
    pub(crate) fn of(state: Option<&'a TableState>) -> Self {
        static NONE: LazyLock<HashMap<String, String>> = LazyLock::new(HashMap::new);
        Self(state.map_or(&NONE, |state| state.metadata.properties()))
    }
}

impl Properties<'_> {
    pub(crate) const SCHEMA: &'static str = "polder.schema";
    /// Here, and in the summary of the snapshot that it belongs to.
    pub(crate) const CHECKPOINT: &'static str = "polder.checkpoint";
    /// The snapshot that the checkpoint belongs to: see [`checkpoint_text`].
    pub(crate) const CHECKPOINT_AT: &'static str = "polder.checkpoint-at";
    pub(crate) const RUN_IDS: &'static str = "polder.run-ids";
    /// The last commits that were no runs.
    pub(crate) const COMMIT_IDS: &'static str = "polder.commit-ids";
    pub(crate) const VERSION: &'static str = "polder.version";
    /// Where the last versions' tags were set.
    pub(crate) const VERSION_SNAPSHOTS: &'static str = "polder.version-snapshots";
    /// The marked columns, by the run that brought them, which `main` had before: see [`Marks`].
    pub(crate) const MARKS: &'static str = "polder.marks";
    /// The metadata files of the states that the last expiries were made for.
    pub(crate) const EXPIRED_FROM: &'static str = "polder.expired-from";
    pub(crate) const ROLLBACKS: &'static str = "polder.rollbacks";
    /// In a snapshot's summary: who made it, and how its files are partitioned.
    pub(crate) const RUN_ID: &'static str = "polder.run-id";
    pub(crate) const COMMIT_ID: &'static str = "polder.commit-id";
    pub(crate) const SPEC_ID: &'static str = "polder.partition-spec-id";
    /// Here and in a snapshot's summary: the run that brought the marks of the columns.
    pub(crate) const MARKED_BY: &'static str = "polder.marked-by";

    pub(crate) fn run_ids(&self) -> Vec<Uuid> {
        self.ids(Self::RUN_IDS)
    }

    pub(crate) fn commit_ids(&self) -> Vec<Uuid> {
        self.ids(Self::COMMIT_IDS)
    }

    /// The property of commits that were no runs, with one more.
    pub(crate) fn with_commit(&self, id: Uuid) -> (String, String) {
        self.with_id(Self::COMMIT_IDS, id)
    }

    fn ids(&self, key: &str) -> Vec<Uuid> {
        let text = self.0.get(key).map(String::as_str).unwrap_or_default();
        text.split(',').filter_map(|id| id.parse().ok()).collect()
    }

    fn with_id(&self, key: &str, id: Uuid) -> (String, String) {
        let mut ids = self.ids(key);
        ids.push(id);
        let last = &ids[ids.len().saturating_sub(IDS_MAX)..];
        let last: Vec<String> = last.iter().map(Uuid::to_string).collect();
        (key.to_owned(), last.join(","))
    }

    /// The last times that `main` was moved back, oldest first.
    pub(crate) fn rollbacks(&self) -> Vec<Rollback> {
        let text = self.0.get(Self::ROLLBACKS).map(String::as_str).unwrap_or_default();
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The number of the last version.
    pub(crate) fn version(&self) -> u64 {
        self.0.get(Self::VERSION).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The snapshots that the last versions' tags were set on, by the version's number.
    pub(crate) fn version_snapshots(&self) -> BTreeMap<u64, i64> {
        let text = self.0.get(Self::VERSION_SNAPSHOTS).map(String::as_str).unwrap_or_default();
        let pair = |pair: &str| {
            let (version, snapshot) = pair.split_once(':')?;
            Some((version.parse().ok()?, snapshot.parse().ok()?))
        };
        text.split(',').filter_map(pair).collect()
    }

    /// The property of where tags were set, with one more.
    pub(crate) fn with_version(&self, version: u64, snapshot: i64) -> (String, String) {
        let mut set = self.version_snapshots();
        set.insert(version, snapshot);
        let last = set.iter().skip(set.len().saturating_sub(IDS_MAX));
        let last: Vec<String> = last.map(|(version, at)| format!("{version}:{at}")).collect();
        (Self::VERSION_SNAPSHOTS.to_owned(), last.join(","))
    }

    /// The columns that the present state was published with; `None` where that is not known.
    pub(crate) fn published_columns(&self) -> Option<TableSchema> {
        serde_json::from_str(self.0.get(Self::SCHEMA)?).ok()
    }

    /// The columns of an Iceberg schema with the marks kept here, where they still fit: another
    /// engine may have changed the table.
    pub(crate) fn schema(&self, schema: &Schema) -> Result<TableSchema> {
        let marks = self.0.get(Self::SCHEMA).and_then(|text| serde_json::from_str(text).ok());
        Ok(schema::with_marks(schema::table_schema(schema)?, marks))
    }

    /// The properties after a run, but for its checkpoint.
    pub(crate) fn after(
        &self,
        run_id: Uuid,
        columns: &TableSchema,
    ) -> Result<Vec<(String, String)>> {
        let mut after = vec![self.with_id(Self::RUN_IDS, run_id)];
        if self.marked_by(run_id, columns) == run_id {
            after.extend(self.marks().put(run_id, columns.clone()).properties()?);
        }
        Ok(after)
    }

    /// The run that brought the columns' marks, if `run_id` is to publish these columns.
    pub(crate) fn marked_by(&self, run_id: Uuid, columns: &TableSchema) -> Uuid {
        match self.marks().0.pop() {
            Some((run, marked)) if marked == *columns => run,
            _ => run_id,
        }
    }

    pub(crate) fn marks(&self) -> Marks {
        let text = self.0.get(Self::MARKS).map(String::as_str).unwrap_or_default();
        let mut marks = Marks(serde_json::from_str(text).unwrap_or_default());
        let own = self.0.get(Self::SCHEMA).and_then(|text| serde_json::from_str(text).ok());
        let by = self.0.get(Self::MARKED_BY).and_then(|text| text.parse().ok());
        marks.0.extend(by.zip(own));
        marks
    }
}

/// The marks that the columns had, oldest first and the present ones last, each with the run that
/// brought them. Iceberg's schemas do not hold them, and a rollback needs those of its state.
pub(crate) struct Marks(Vec<(Uuid, TableSchema)>);

impl Marks {
    /// Makes these the present ones.
    pub(crate) fn put(mut self, run: Uuid, columns: TableSchema) -> Self {
        self.0.retain(|(other, _)| *other != run);
        self.0.push((run, columns));
        self.0.drain(..self.0.len().saturating_sub(MARKS_MAX));
        self
    }

    /// Those that a snapshot was written with.
    pub(crate) fn of(&self, snapshot: &Snapshot) -> Option<&(Uuid, TableSchema)> {
        let run: Uuid = summary(snapshot, Properties::MARKED_BY)?.parse().ok()?;
        self.0.iter().find(|(found, _)| *found == run)
    }

    /// As the property of past ones only: the present state has none.
    pub(crate) fn archived(&self) -> Result<(String, String)> {
        Ok((Properties::MARKS.to_owned(), json(&self.0)?))
    }

    /// As table properties.
    pub(crate) fn properties(self) -> Result<Vec<(String, String)>> {
        let Some(((run, columns), past)) = self.0.split_last() else { return Ok(Vec::new()) };
        Ok(vec![
            (Properties::SCHEMA.to_owned(), json(columns)?),
            (Properties::MARKED_BY.to_owned(), run.to_string()),
            (Properties::MARKS.to_owned(), json(&past)?),
        ])
    }
}

/// The value of a property that is JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|cause| {
        Error::new(ErrorCode::Internal, "cannot serialise a table property").caused_by(cause)
    })
}

/// A snapshot's place in the table's history: its sequence number and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(super) sequence_number: i64,
    pub(super) snapshot_id: i64,
}

impl At {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        Self { sequence_number: snapshot.sequence_number(), snapshot_id: snapshot.snapshot_id() }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (sequence_number, snapshot_id) = text.split_once(':')?;
        Some(Self {
            sequence_number: sequence_number.parse().ok()?,
            snapshot_id: snapshot_id.parse().ok()?,
        })
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence_number, self.snapshot_id)
    }
}
