//! Changing a table's files without a run: what maintenance does.
//!
//! The actions are named as in Iceberg's Java API and checked for conflicts as there: each says what
//! it has assumed of the state it was made for, and is refused if a commit in between has broken it.
//! Neither the checkpoint nor the versions change.

use std::collections::HashSet;

use iceberg::TableUpdate;
use iceberg::spec::Operation;
use polder_core::{Predicate, Result};
use uuid::Uuid;

use super::conflicts::{Assumed, Rows};
use super::snapshot::{Change, NewFile, SnapshotWriter};
use super::{Action, Failure, Prepared, conflict, main_to};
use crate::catalog::TableState;
use crate::stage::Stage;
use crate::table::{Properties, commit_of, descends, references};
use crate::write::{StagedDeletes, StagedFile};

/// A change of files that is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilesCommitted {
    pub snapshot_id: i64,
    /// The commit had been made before this call, which found it.
    pub already: bool,
}

/// All of these need a stage of [`crate::StageKind::Files`]. They are made at most once under the
/// stage's id, and remove the files they were given when they are not made.
///
/// # Errors
/// - `lake.conflict` if the table has changed in a way that the action does not bear. Plan it anew.
/// - `lake.unknown_outcome` as for [`Stage::commit`].
impl Stage {
    /// `AppendFiles`: rows that come. Conflicts with no commit that leaves the table's shape.
    pub async fn append_files(self, files: Vec<StagedFile>) -> Result<FilesCommitted> {
        let change = self.change(Operation::Append, Vec::new(), &files, None);
        self.apply(change, Assumed::default()).await
    }

    /// `RewriteFiles`: the same rows in other files.
    ///
    /// Conflicts with a commit that removed one of the `replaced` files or deleted rows of them. Rows
    /// keep the age that equality deletes ask for; where they come to be partitioned by another spec it
    /// conflicts with equality deletes of partitions, too, which would not follow them. Delete files that
    /// say they are of the `replaced` files alone go with them, here and in the other actions that remove
    /// files.
    pub async fn rewrite_files(
        self,
        replaced: Vec<String>,
        files: Vec<StagedFile>,
    ) -> Result<FilesCommitted> {
        let base = self.base.as_ref().and_then(|base| base.metadata.current_snapshot());
        let age = base.map(|base| base.sequence_number());
        let change = self.change(Operation::Replace, replaced.clone(), &files, age);
        let assumed =
            Assumed { untouched: set(&replaced), rows: Rows::Copied, ..Assumed::default() };
        self.apply(change, assumed).await
    }

    /// `OverwriteFiles`: new rows in place of those that `filter` matches, which are all the rows of
    /// the `replaced` files.
    ///
    /// Conflicts with a commit that removed one of the `replaced` files, deleted rows of them, or
    /// added a file that may hold rows the filter matches.
    pub async fn overwrite_files(
        self,
        filter: Predicate,
        replaced: Vec<String>,
        files: Vec<StagedFile>,
    ) -> Result<FilesCommitted> {
        let change = self.change(Operation::Overwrite, replaced.clone(), &files, None);
        let unmatched = Some(filter);
        let (untouched, rows) = (set(&replaced), Rows::Replaced);
        let assumed = Assumed { untouched, rows, unmatched, ..Assumed::default() };
        self.apply(change, assumed).await
    }

    /// `DeleteFiles`: the files go with all their rows.
    ///
    /// Conflicts with a commit that removed one of them.
    pub async fn delete_files(self, files: Vec<String>) -> Result<FilesCommitted> {
        let change = self.change(Operation::Delete, files, &[], None);
        self.apply(change, Assumed::default()).await
    }

    /// `DeleteFiles`, and no manifest tells that they were there: what they held cannot be guessed from
    /// the table's metadata once its older snapshots are expired.
    pub async fn forget_files(self, files: Vec<String>) -> Result<FilesCommitted> {
        let mut change = self.change(Operation::Delete, files, &[], None);
        change.forgets = true;
        self.apply(change, Assumed::default()).await
    }

    /// Rows that go for good, as retention has it: the `dropped` files with all of theirs, and
    /// `replaced` ones, of which `files` hold the rest.
    ///
    /// Conflicts with a commit that removed one of these files, or deleted rows of the `replaced`, as
    /// [`Self::rewrite_files`] does.
    pub async fn remove_rows(
        self,
        dropped: Vec<String>,
        replaced: Vec<String>,
        files: Vec<StagedFile>,
    ) -> Result<FilesCommitted> {
        let base = self.base.as_ref().and_then(|base| base.metadata.current_snapshot());
        let age = base.map(|base| base.sequence_number());
        let operation = if replaced.is_empty() { Operation::Delete } else { Operation::Overwrite };
        let assumed =
            Assumed { untouched: set(&replaced), rows: Rows::Copied, ..Assumed::default() };
        let removed = [dropped, replaced].concat();
        let change = self.change(operation, removed, &files, age);
        self.apply(change, assumed).await
    }

    /// `RowDelta`: rows that go, by their positions, and rows that come.
    ///
    /// Conflicts with a commit that removed a file in which rows are deleted, or deleted rows of it.
    pub async fn row_delta(
        self,
        deletes: Vec<StagedDeletes>,
        files: Vec<StagedFile>,
    ) -> Result<FilesCommitted> {
        let mut change = self.change(Operation::Overwrite, Vec::new(), &files, None);
        for deletes in &deletes {
            change.added.push(deletes_added(&self, deletes)?);
            change.removed.extend(deletes.replaces().iter().cloned());
        }
        self.apply(change, Assumed::of_deletes(&deletes, &files)).await
    }

    fn change(
        &self,
        operation: Operation,
        removed: Vec<String>,
        files: &[StagedFile],
        sequence_number: Option<i64>,
    ) -> Change {
        let new = |file: &StagedFile| NewFile {
            file: file.data_file().clone(),
            spec: self.target.spec.clone(),
            sequence_number,
        };
        let fields = vec![
            (Properties::COMMIT_ID.to_owned(), self.request.run_id.to_string()),
            (Properties::SPEC_ID.to_owned(), self.target.spec.spec_id().to_string()),
        ];
        let added = files.iter().map(new).collect();
        let removed = removed.into_iter().collect();
        Change { operation, added, removed, keeps: true, forgets: false, fields }
    }

    async fn apply(self, change: Change, assumed: Assumed) -> Result<FilesCommitted> {
        let added = change.added.iter().map(|new| new.file.file_path().to_owned());
        let added: Vec<String> = added.collect();
        let target = &self.target;
        let writer = SnapshotWriter::new(self.lake.store(), &target.location, &target.schema);
        let mut action = FilesAction { stage: &self, change, assumed, writer };
        match super::commit(&self.lake, &self.ident, &mut action).await {
            Ok((done, _)) => {
                if done.already {
                    self.discard(added).await;
                }
                Ok(done)
            }
            Err(Failure { error, leftovers }) => {
                if let Some(metadata) = leftovers {
                    self.discard(added).await;
                    self.discard(metadata).await;
                }
                Err(error)
            }
        }
    }
}

/// A delete file as a snapshot takes it.
pub(super) fn deletes_added(stage: &Stage, deletes: &StagedDeletes) -> Result<NewFile> {
    let spec = stage.has_spec(deletes.spec_id())?;
    Ok(NewFile { file: deletes.file().clone(), spec, sequence_number: None })
}

fn set(locations: &[String]) -> HashSet<String> {
    locations.iter().cloned().collect()
}

struct FilesAction<'a> {
    stage: &'a Stage,
    change: Change,
    assumed: Assumed,
    writer: SnapshotWriter,
}

impl Action for FilesAction<'_> {
    type Done = FilesCommitted;

    fn find(&self, present: &TableState, sent: bool) -> Option<FilesCommitted> {
        let metadata = &present.metadata;
        let id: Uuid = self.stage.request.run_id;
        let own = metadata.snapshots().find(|snapshot| commit_of(snapshot) == Some(id));
        if own.is_none() && !Properties(metadata.properties()).commit_ids().contains(&id) {
            return None;
        }
        let mine = own.map_or(sent, |own| own.snapshot_id() == self.writer.id());
        let snapshot_id = own.or(metadata.current_snapshot())?.snapshot_id();
        Some(FilesCommitted { snapshot_id, already: !mine })
    }

    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        let (Some(base), Some(present)) = (&self.stage.base, present) else {
            return Err(conflict());
        };
        if base.metadata_location == present.metadata_location {
            return Ok(());
        }
        let descends = descends(&present.metadata, &base.metadata);
        if descends && self.stage.has_shape_of(present) { Ok(()) } else { Err(conflict()) }
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<FilesCommitted>> {
        let (Some(base), Some(present)) = (&self.stage.base, present) else {
            return Err(conflict());
        };
        self.assumed.check(self.stage, base, present).await?;
        let snapshot = self.writer.write(Some(present), &self.change).await?;
        let refs = references(&present.metadata)?;
        let mut updates = self.stage.target.updates.clone();
        updates.push(TableUpdate::AddSnapshot { snapshot });
        updates.push(main_to(self.writer.id(), &refs));
        let properties = Properties(present.metadata.properties());
        let set = [properties.with_commit(self.stage.request.run_id)];
        updates.push(TableUpdate::SetProperties { updates: set.into() });
        let done = FilesCommitted { snapshot_id: self.writer.id(), already: false };
        Ok(Prepared { updates, done })
    }

    fn written(&self) -> Vec<String> {
        self.writer.written()
    }

    async fn superseded(&self, landed: &TableState, done: &FilesCommitted) -> Vec<String> {
        self.writer.superseded(landed, done.already).await
    }
}
