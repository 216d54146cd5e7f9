//! Publishing a stage: files, schema, checkpoint and run id in one table commit.

use std::collections::{BTreeMap, HashSet};

use iceberg::TableUpdate;
use iceberg::spec::{Operation, SnapshotReference, SnapshotRetention};
use polder_core::{Checkpoint, Error, ErrorCode, Result};

use super::snapshot::{Change, NewFile, SnapshotWriter};
use super::{Action, Failure, Prepared, conflict, main_to, point};
use crate::catalog::TableState;
use crate::stage::{Committed, RunSummary, Stage, StageKind};
use crate::table::{At, Properties, follows, references, run_of, version_number};
use crate::write::StagedFile;

/// The longest checkpoint that a snapshot's summary holds, as all summaries are read with the table.
const CHECKPOINT_BYTES_MAX: usize = 8 << 10;

/// Set with every commit, so that they are right whoever created the table.
const STANDING_PROPERTIES: [(&str, &str); 2] =
    [("write.parquet.compression-codec", "zstd"), ("write.metadata.previous-versions-max", "100")];

impl Stage {
    /// Publishes the files, the schema, the checkpoint and the run id in one table commit.
    ///
    /// Readers see all of it or nothing. A commit that this run made before is found and reported
    /// with [`Committed::already`]; `files` are removed then.
    ///
    /// # Errors
    /// - `lake.conflict`: another run changed the table since the stage began. Nothing is visible,
    ///   the files are gone; stage again.
    /// - `lake.unknown_outcome`: the catalog cannot be asked whether the commit was made. Nothing is
    ///   removed; staging and committing again with the same run id finds out.
    /// - `internal`: the files do not hold the rows the run counted.
    pub async fn commit(
        self,
        files: Vec<StagedFile>,
        checkpoint: &Checkpoint,
        summary: RunSummary,
    ) -> Result<Committed> {
        let staged: u64 = files.iter().map(StagedFile::rows).sum();
        if staged != summary.rows {
            self.remove(&files).await;
            return Err(Error::new(ErrorCode::Internal, "the staged files lack or double rows")
                .detail(format!("{} rows counted, {staged} in files", summary.rows)));
        }
        let target = &self.target;
        let writer = SnapshotWriter::new(self.lake.store(), &target.location, &target.schema);
        let mut publish = Publish { stage: &self, files: &files, checkpoint, writer };
        match super::commit(&self.lake, &self.ident, &mut publish).await {
            Ok((done, _)) => {
                if done.already {
                    // Names are unique to a stage: the commit that landed cannot name these files.
                    self.remove(&files).await;
                }
                Ok(done)
            }
            Err(Failure { error, leftovers }) => {
                if let Some(metadata) = leftovers {
                    self.remove(&files).await;
                    self.discard(metadata).await;
                }
                Err(error)
            }
        }
    }
}

struct Publish<'a> {
    stage: &'a Stage,
    files: &'a [StagedFile],
    checkpoint: &'a Checkpoint,
    writer: SnapshotWriter,
}

impl Publish<'_> {
    fn change(&self, present: Option<&TableState>) -> Change {
        let stage = self.stage;
        let replaces = stage.request.kind == StageKind::Replace;
        let parent = present.and_then(|present| present.metadata.current_snapshot());
        let overwrites = replaces && parent.is_some();
        let new = |file: &StagedFile| NewFile {
            file: file.data_file().clone(),
            spec: stage.target.spec.clone(),
            sequence_number: None,
        };
        Change {
            operation: if overwrites { Operation::Overwrite } else { Operation::Append },
            added: self.files.iter().map(new).collect(),
            removed: HashSet::new(),
            keeps: !replaces,
            fields: self.summary_fields(present),
        }
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

    /// The number of the version that a replace makes.
    fn version(
        &self,
        present: Option<&TableState>,
        refs: &BTreeMap<String, SnapshotReference>,
    ) -> Option<u64> {
        (self.stage.request.kind == StageKind::Replace).then(|| {
            let last = Properties::of(present).version();
            // Somebody may have set such a tag by hand.
            let tagged = refs.keys().filter_map(|name| version_number(name)).max();
            last.max(tagged.unwrap_or(0)) + 1
        })
    }
}

impl Action for Publish<'_> {
    type Done = Committed;

    fn find(&self, present: &TableState, sent: bool) -> Option<Committed> {
        let metadata = &present.metadata;
        let run = self.stage.request.run_id;
        let own = metadata.snapshots().find(|snapshot| run_of(snapshot) == Some(run));
        // Either may be gone: the snapshot by expiry, the property by another engine's replace.
        if own.is_none() && !Properties(metadata.properties()).run_ids().contains(&run) {
            return None;
        }
        // Ours, if this call sent anything: of an expired snapshot nobody can say whose it was, and
        // its files may live on in later ones.
        let mine = own.map_or(sent, |own| own.snapshot_id() == self.writer.id());
        let snapshot_id = own.or(metadata.current_snapshot())?.snapshot_id();
        let versions = references(metadata).unwrap_or_default();
        let version = versions
            .into_iter()
            .find(|(name, found)| {
                found.snapshot_id == snapshot_id
                    && !found.is_branch()
                    && version_number(name).is_some()
            })
            .map(|(name, _)| name);
        Some(Committed { snapshot_id, already: !mine, version })
    }

    /// The stage's files make sense only if no other run has committed, the rows they were told
    /// apart from are still there, and the table has the shape they were written in.
    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        let (base, present) = match (&self.stage.base, present) {
            (None, None) => return Ok(()),
            (Some(base), Some(present)) => (base, present),
            _ => return Err(conflict()),
        };
        if base.metadata_location == present.metadata_location {
            return Ok(());
        }
        let follows = follows(&present.metadata, &base.metadata);
        if follows && self.stage.has_shape_of(present) { Ok(()) } else { Err(conflict()) }
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<Committed>> {
        let stage = self.stage;
        let refs = match present {
            Some(present) => references(&present.metadata)?,
            None => BTreeMap::new(),
        };
        let change = self.change(present);
        let snapshot = self.writer.write(present, &change).await?;
        let at = At::of(&snapshot);
        let mut updates = stage.target.updates.clone();
        updates.push(TableUpdate::AddSnapshot { snapshot });
        updates.push(main_to(self.writer.id(), &refs));
        let version = self.version(present, &refs);
        let properties = Properties::of(present);
        let request = &stage.request;
        let mut set = properties.after(request.run_id, &request.schema)?;
        set.push((Properties::CHECKPOINT.to_owned(), self.checkpoint.to_json()));
        set.push((Properties::CHECKPOINT_AT.to_owned(), at.to_string()));
        set.extend(STANDING_PROPERTIES.map(|(key, value)| (key.to_owned(), value.to_owned())));
        if let Some(version) = version {
            let tag = SnapshotRetention::Tag { max_ref_age_ms: None };
            updates.push(point(&format!("v{version}"), self.writer.id(), tag));
            set.push((Properties::VERSION.to_owned(), version.to_string()));
        }
        updates.push(TableUpdate::SetProperties { updates: set.into_iter().collect() });
        let version = version.map(|version| format!("v{version}"));
        let done = Committed { snapshot_id: self.writer.id(), already: false, version };
        Ok(Prepared { updates, done })
    }

    fn written(&self) -> Vec<String> {
        self.writer.written()
    }

    async fn superseded(&self, landed: &TableState, done: &Committed) -> Vec<String> {
        self.writer.superseded(landed, done.already).await
    }
}
