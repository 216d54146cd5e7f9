//! Publishing a stage: files, schema, checkpoint and run id in one table commit.

use std::collections::HashMap;

use iceberg::TableUpdate;
use polder_core::{Checkpoint, Error, ErrorCode, Result};

use super::snapshot::Snapshots;
use super::{Action, Failure, Prepared, conflict};
use crate::catalog::TableState;
use crate::stage::{Committed, RunSummary, Stage, target_of};
use crate::table::{Properties, follows, references, run_of, version_number};
use crate::write::StagedFile;

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
        let snapshots = Snapshots::new(&self, &files, checkpoint);
        let mut publish = Publish { stage: &self, checkpoint, snapshots };
        match super::commit(&self.lake, &self.ident, &mut publish).await {
            Ok(done) => {
                if done.already {
                    // Names are unique to a stage: the commit that landed cannot name these files.
                    self.remove(&files).await;
                }
                Ok(done)
            }
            Err(Failure { error, leftovers }) => {
                if let Some(locations) = leftovers {
                    self.remove(&files).await;
                    let _ = self.lake.store().delete(locations).await;
                }
                Err(error)
            }
        }
    }
}

struct Publish<'a> {
    stage: &'a Stage,
    checkpoint: &'a Checkpoint,
    snapshots: Snapshots<'a>,
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
        let mine = own.map_or(sent, |own| own.snapshot_id() == self.snapshots.id());
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
        let (target, staged) = (target_of(present, &self.stage.request)?, &self.stage.target);
        let same_shape = target.schema == staged.schema && target.spec == staged.spec;
        let follows = follows(&present.metadata, &base.metadata);
        if follows && same_shape { Ok(()) } else { Err(conflict()) }
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<Committed>> {
        let stage = self.stage;
        let mut updates = stage.target.updates.clone();
        let published = self.snapshots.publish(present).await?;
        updates.extend(published.updates);
        let empty = HashMap::new();
        let properties = Properties(present.map_or(&empty, |p| p.metadata.properties()));
        let request = &stage.request;
        let mut set = properties.after(request.run_id, &request.schema)?;
        set.push((Properties::CHECKPOINT.to_owned(), self.checkpoint.to_json()));
        set.push((Properties::CHECKPOINT_AT.to_owned(), published.at.to_string()));
        set.extend(STANDING_PROPERTIES.map(|(key, value)| (key.to_owned(), value.to_owned())));
        if let Some(version) = published.version {
            set.push((Properties::VERSION.to_owned(), version.to_string()));
        }
        updates.push(TableUpdate::SetProperties { updates: set.into_iter().collect() });
        let version = published.version.map(|version| format!("v{version}"));
        let done = Committed { snapshot_id: self.snapshots.id(), already: false, version };
        Ok(Prepared { updates, done })
    }

    fn written(&self) -> Vec<String> {
        self.snapshots.written()
    }
}
