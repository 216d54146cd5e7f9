//! The branch `staging`: what is written and not yet published.
//!
//! A table has one, and it points at the snapshot that was staged last. Runs do not rely on the
//! branch, only on their own snapshots; it shows people what is under way, and keeps expiry off.

use iceberg::TableUpdate;
use iceberg::spec::{Operation, PartitionSpec, Schema, SnapshotRetention, TableMetadata};
use polder_core::retention::STAGED_MS_MAX;
use polder_core::{Checkpoint, Error, ErrorCode, Result};

use super::conflicts::Assumed;
use super::files::deletes_added;
use super::publish::{STANDING_PROPERTIES, published};
use super::snapshot::{Change, NewFile, SnapshotWriter};
use super::{Action, Prepared, conflict, point};
use crate::catalog::TableState;
use crate::stage::{Committed, Stage, StageKind, Target};
use crate::table::{Properties, follows, references, was_main};
use crate::write::{StagedDeletes, StagedFile};

pub(crate) const STAGING: &str = "staging";

/// The longest checkpoint that a snapshot's summary holds, as all summaries are read with the table.
const CHECKPOINT_BYTES_MAX: usize = 8 << 10;

/// The outcome of staging.
pub(super) enum Staged {
    /// The run had published before.
    Published(Committed),
    /// The snapshot's id.
    Snapshot(i64),
}

/// What a run adds and takes away.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) files: &'a [StagedFile],
    pub(super) deletes: &'a [StagedDeletes],
    /// What the deletes assume of commits in between.
    pub(super) assumed: &'a Assumed,
}

/// Puts a run's snapshot on the branch `staging`; creates the table, empty, where there is none.
pub(super) struct StageSnapshot<'a> {
    stage: &'a Stage,
    content: Content<'a>,
    checkpoint: &'a Checkpoint,
    writer: SnapshotWriter,
    /// The snapshots of this call that this one takes the place of.
    earlier: Vec<i64>,
}

impl<'a> StageSnapshot<'a> {
    pub(super) fn new(
        stage: &'a Stage,
        content: Content<'a>,
        checkpoint: &'a Checkpoint,
        earlier: Vec<i64>,
    ) -> Self {
        let target = &stage.target;
        let writer = SnapshotWriter::new(stage.lake.store(), &target.location, &target.schema);
        Self { stage, content, checkpoint, writer, earlier }
    }

    /// The snapshot's id.
    pub(super) fn id(&self) -> i64 {
        self.writer.id()
    }

    fn change(&self, present: Option<&TableState>) -> Result<Change> {
        let stage = self.stage;
        let replaces = stage.request.kind == StageKind::Replace;
        let parent = present.and_then(|present| present.metadata.current_snapshot());
        let overwrites = replaces && parent.is_some();
        let new = |file: &StagedFile| NewFile {
            file: file.data_file().clone(),
            spec: stage.target.spec.clone(),
            sequence_number: None,
        };
        let Content { files, deletes, .. } = self.content;
        let mut added: Vec<NewFile> = files.iter().map(new).collect();
        for deletes in deletes {
            added.push(deletes_added(stage, deletes)?);
        }
        let operation = match (overwrites, deletes.is_empty(), files.is_empty()) {
            (false, true, _) => Operation::Append,
            (false, false, true) => Operation::Delete,
            _ => Operation::Overwrite,
        };
        let removed = deletes.iter().flat_map(StagedDeletes::replaces).cloned().collect();
        let fields = self.summary_fields(present);
        Ok(Change { operation, added, removed, keeps: !replaces, forgets: false, fields })
    }

    /// What only Polder reads of a snapshot: where a rollback to it leads.
    fn summary_fields(&self, present: Option<&TableState>) -> Vec<(String, String)> {
        let request = &self.stage.request;
        let properties = Properties::of(present);
        let marked_by = properties.marked_by(request.run_id, &request.schema);
        let mut fields = vec![
            (Properties::RUN_ID.to_owned(), request.run_id.to_string()),
            (Properties::SPEC_ID.to_owned(), self.stage.target.spec.spec_id().to_string()),
            (Properties::MARKED_BY.to_owned(), marked_by.to_string()),
        ];
        let checkpoint = self.checkpoint.to_json();
        if checkpoint.len() <= CHECKPOINT_BYTES_MAX {
            fields.push((Properties::CHECKPOINT.to_owned(), checkpoint));
        }
        fields
    }

    /// Whether the table takes the run's columns and partitions as it did when the stage began.
    fn same_shape(&self, base: &TableState, present: &TableState) -> bool {
        let (now, before) = (&present.metadata, &base.metadata);
        if self.earlier.iter().any(|id| now.snapshot_by_id(*id).is_some()) {
            // The run has staged before: its columns have their ids already.
            return self.knows_shape(now)
                && now.current_schema_id() == before.current_schema_id()
                && now.default_partition_spec_id() == before.default_partition_spec_id();
        }
        self.stage.has_shape_of(present)
    }

    /// Whether the table has the schema and spec of the run's files.
    fn knows_shape(&self, metadata: &TableMetadata) -> bool {
        let Target { schema, spec, .. } = &self.stage.target;
        metadata.schema_by_id(schema.schema_id()) == Some(schema)
            && metadata.partition_spec_by_id(spec.spec_id()) == Some(spec)
    }

    /// What makes the table know the schema and spec of the snapshot, without turning to them.
    fn shape(&self, present: Option<&TableState>) -> Vec<TableUpdate> {
        let updates = &self.stage.target.updates;
        let Some(present) = present else {
            let standing = STANDING_PROPERTIES.map(|(key, value)| (key.into(), value.into()));
            let standing = TableUpdate::SetProperties { updates: standing.into() };
            return updates.iter().cloned().chain([standing]).collect();
        };
        let (metadata, Target { schema, spec, .. }) = (&present.metadata, &self.stage.target);
        let mut adds = Vec::new();
        if metadata.schema_by_id(schema.schema_id()).is_none() {
            adds.push(TableUpdate::AddSchema { schema: Schema::clone(schema) });
        }
        if metadata.partition_spec_by_id(spec.spec_id()).is_none() {
            // A spec is bound to the current schema, so its schema is current for a moment.
            let turn = |schema_id| TableUpdate::SetCurrentSchema { schema_id };
            let spec = PartitionSpec::clone(spec).into_unbound();
            adds.push(turn(schema.schema_id()));
            adds.push(TableUpdate::AddSpec { spec });
            adds.push(turn(metadata.current_schema_id()));
        }
        adds
    }
}

impl Action for StageSnapshot<'_> {
    type Done = Staged;

    fn find(&self, present: &TableState, _sent: bool) -> Option<Staged> {
        if let Some(done) = published(present, self.stage, &self.earlier, false) {
            return Some(Staged::Published(done));
        }
        let staged = present.metadata.snapshot_by_id(self.id());
        staged.map(|staged| Staged::Snapshot(staged.snapshot_id()))
    }

    /// The stage's files make sense only if no other run has committed, the rows they were told
    /// apart from are still there, and the table has the shape they were written in.
    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        let bears = match (&self.stage.base, present) {
            (None, None) => true,
            (Some(base), Some(present)) if base.metadata_location == present.metadata_location => {
                true
            }
            (Some(base), Some(present)) => {
                follows(&present.metadata, &base.metadata) && self.same_shape(base, present)
            }
            // This run created it when it staged the first time, and nobody has used it since.
            (None, Some(present)) => {
                let metadata = &present.metadata;
                metadata.location() == self.stage.target.location
                    && metadata.current_snapshot_id().is_none()
                    && Properties(metadata.properties()).run_ids().is_empty()
                    && self.knows_shape(metadata)
            }
            (Some(_), None) => false,
        };
        if bears { Ok(()) } else { Err(conflict()) }
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<Staged>> {
        if let (Some(base), Some(present)) = (&self.stage.base, present)
            && (self.stage.request.kind == StageKind::Merge || !self.content.deletes.is_empty())
        {
            // Boxed: it reads and plans, and every commit's future would be as deep.
            Box::pin(self.content.assumed.check(self.stage, base, present)).await?;
        }
        let change = self.change(present)?;
        let snapshot = self.writer.write(present, &change).await?;
        let mut updates = self.shape(present);
        updates.push(TableUpdate::AddSnapshot { snapshot });
        // A run that takes longer to audit is gone. Other engines' expiry goes by this too.
        let retention =
            SnapshotRetention::branch(Some(1), Some(STAGED_MS_MAX), Some(STAGED_MS_MAX));
        updates.push(point(STAGING, self.id(), retention));
        let there = |id: &i64| {
            present.is_some_and(|present| present.metadata.snapshot_by_id(*id).is_some())
        };
        let snapshot_ids: Vec<i64> = self.earlier.iter().copied().filter(there).collect();
        if !snapshot_ids.is_empty() {
            updates.push(TableUpdate::RemoveSnapshots { snapshot_ids });
        }
        Ok(Prepared { updates, done: Staged::Snapshot(self.id()) })
    }

    async fn superseded(&self, landed: &TableState, done: &Staged) -> Vec<String> {
        self.writer.superseded(landed, matches!(done, Staged::Published(_))).await
    }

    fn branch(&self) -> Option<&str> {
        Some(STAGING)
    }

    fn written(&self) -> Vec<String> {
        self.writer.written()
    }
}

/// Takes snapshots that were staged, and not published, out of the table again.
pub(super) struct Withdraw<'a> {
    pub(super) snapshots: &'a [i64],
}

impl Withdraw<'_> {
    fn there(&self, present: &TableState) -> Vec<i64> {
        let there = |id: &i64| present.metadata.snapshot_by_id(*id).is_some();
        self.snapshots.iter().copied().filter(there).collect()
    }
}

impl Action for Withdraw<'_> {
    type Done = ();

    fn find(&self, present: &TableState, _sent: bool) -> Option<()> {
        self.there(present).is_empty().then_some(())
    }

    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        let Some(present) = present else { return Ok(()) };
        let published = |id: &i64| was_main(&present.metadata, *id);
        if self.there(present).iter().any(published) {
            return Err(Error::new(ErrorCode::Internal, "a published snapshot is not withdrawn"));
        }
        Ok(())
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<()>> {
        let Some(present) = present else {
            return Err(Error::new(ErrorCode::LakeNotFound, "the table is gone"));
        };
        let snapshot_ids = self.there(present);
        let refs = references(&present.metadata)?;
        let mut updates = Vec::new();
        if refs.get(STAGING).is_some_and(|staging| snapshot_ids.contains(&staging.snapshot_id)) {
            updates.push(TableUpdate::RemoveSnapshotRef { ref_name: STAGING.to_owned() });
        }
        updates.push(TableUpdate::RemoveSnapshots { snapshot_ids });
        Ok(Prepared { updates, done: () })
    }

    fn written(&self) -> Vec<String> {
        Vec::new()
    }
}
