//! Publishing a stage: exactly one table commit, whatever happens to answers.
//!
//! One call of [`Catalog::commit`](crate::Catalog::commit) is one attempt. Between attempts the table
//! is read anew and searched for our run id, so that a commit whose answer was lost is found and
//! never made twice. Files are removed only when it is certain that no metadata can name them.
//!
//! The actions here (append, replace) exist because `iceberg` 0.10 has only `fast_append`, whose own
//! retry doubles rows when an answer is lost. Each goes when upstream has it.

mod snapshot;

use std::time::Duration;

use iceberg::spec::MAIN_BRANCH;
use iceberg::{TableRequirement, TableUpdate};
use polder_core::{Checkpoint, Error, ErrorCode, Result};
use rand::Rng;

use crate::catalog::{self, CommitFailure, TableState};
use crate::stage::{Committed, RunSummary, Stage, target_of};
use crate::table::{Properties, references, run_of};
use crate::write::StagedFile;
use snapshot::Snapshots;

/// Commits tried before giving up.
const ATTEMPTS_MAX: u32 = 8;
/// Tries to read the table after an unclear answer, within one attempt.
const LOADS_MAX: u32 = 4;
/// The first pause between attempts; it doubles up to [`PAUSE_MAX`], and a random part is left off.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(4);

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
        let snapshots = Snapshots::new(&self, &files);
        let publication =
            Publication { stage: &self, checkpoint, snapshots, unclear: None, sent: false };
        let outcome = publication.run().await;
        match outcome {
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
                Err(error.detail(self.ident.to_string()))
            }
        }
    }
}

/// A commit that was not made, as far as is known.
struct Failure {
    error: Error,
    /// Metadata files to remove along with the data files; `None` if nothing may be removed.
    leftovers: Option<Vec<String>>,
}

struct Publication<'a> {
    stage: &'a Stage,
    checkpoint: &'a Checkpoint,
    snapshots: Snapshots<'a>,
    /// The requirements of an attempt whose answer was lost: it may yet land as long as they hold.
    unclear: Option<Vec<TableRequirement>>,
    sent: bool,
}

impl Publication<'_> {
    async fn run(mut self) -> Result<Committed, Failure> {
        let mut last = None;
        let mut pause = PAUSE;
        for _ in 0..ATTEMPTS_MAX {
            let present = match self.load().await {
                Ok(present) => present,
                Err(error) => return Err(self.failure(error)),
            };
            if let Some(found) = self.find(present.as_ref()) {
                return Ok(found);
            }
            match self.attempt(present.as_ref()).await {
                Ok(done) => return Ok(done),
                Err(CommitFailure::Rejected(error)) if !may_repeat(&error) => {
                    return Err(self.failure(error));
                }
                Err(CommitFailure::Conflict(error) | CommitFailure::Rejected(error)) => {
                    last = Some(error);
                }
                Err(CommitFailure::Unknown(error)) => {
                    self.unclear = Some(requirements(present.as_ref()));
                    last = Some(error);
                }
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        match self.load().await {
            Ok(present) => match self.find(present.as_ref()) {
                Some(found) => Ok(found),
                None => Err(self.failure(last.unwrap_or_else(conflict))),
            },
            Err(error) => Err(self.failure(error)),
        }
    }

    /// Reads the table, and learns whether an unclear attempt can still land.
    async fn load(&mut self) -> Result<Option<TableState>> {
        let mut tries = 0;
        let present = loop {
            match self.stage.lake.state(&self.stage.ident).await {
                Ok(present) => break present,
                Err(error) if error.retryable() && tries + 1 < LOADS_MAX => {
                    tries += 1;
                    tokio::time::sleep(jittered(PAUSE * 2_u32.pow(tries))).await;
                }
                Err(error) => return Err(error),
            }
        };
        let impossible = |requirements: &Vec<TableRequirement>| {
            catalog::check(present.as_ref(), requirements).is_err()
        };
        if self.unclear.as_ref().is_some_and(impossible) && self.find(present.as_ref()).is_none() {
            // The table moved on without it: its compare-and-swap cannot succeed any more.
            self.unclear = None;
        }
        Ok(present)
    }

    /// Our run's commit, if the table has it.
    fn find(&self, present: Option<&TableState>) -> Option<Committed> {
        let metadata = &present?.metadata;
        let run = self.stage.request.run_id;
        let own = metadata.snapshots().find(|snapshot| run_of(snapshot) == Some(run));
        // Either may be gone: the snapshot by expiry, the property by another engine's replace.
        if own.is_none() && !Properties(metadata.properties()).run_ids().contains(&run) {
            return None;
        }
        // Ours, if this call sent anything: of an expired snapshot nobody can say whose it was, and
        // its files may live on in later ones.
        let mine = own.map_or(self.sent, |own| own.snapshot_id() == self.snapshots.id());
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

    async fn attempt(&mut self, present: Option<&TableState>) -> Result<Committed, CommitFailure> {
        self.check_rebase(present).map_err(CommitFailure::Rejected)?;
        let (version, updates) = self.updates(present).await.map_err(CommitFailure::Rejected)?;
        let requirements = requirements(present);
        self.sent = true;
        let stage = self.stage;
        stage.lake.catalog().commit(&stage.ident, &requirements, updates).await?;
        Ok(Committed { snapshot_id: self.snapshots.id(), already: false, version })
    }

    /// Whether the stage's files still make sense on top of the table's present state: only if no
    /// other run has committed, and its shape is the one the files were written in.
    fn check_rebase(&self, present: Option<&TableState>) -> Result<()> {
        let (base, present) = match (&self.stage.base, present) {
            (None, None) => return Ok(()),
            (Some(base), Some(present)) => (base, present),
            _ => return Err(conflict()),
        };
        if base.metadata_location == present.metadata_location {
            return Ok(());
        }
        let (old, new) =
            (Properties(base.metadata.properties()), Properties(present.metadata.properties()));
        let same_runs = old.run_ids() == new.run_ids()
            && old.checkpoint_text() == new.checkpoint_text()
            && base.metadata.uuid() == present.metadata.uuid();
        let (target, staged) = (target_of(present, &self.stage.request)?, &self.stage.target);
        let same_shape = target.schema == staged.schema && target.spec == staged.spec;
        if same_runs && same_shape { Ok(()) } else { Err(conflict()) }
    }

    async fn updates(
        &mut self,
        present: Option<&TableState>,
    ) -> Result<(Option<String>, Vec<TableUpdate>)> {
        let stage = self.stage;
        let mut updates = stage.target.updates.clone();
        let published = self.snapshots.publish(present).await?;
        updates.extend(published.updates);
        let empty = std::collections::HashMap::new();
        let properties = Properties(present.map_or(&empty, |p| p.metadata.properties()));
        let request = &stage.request;
        let mut set = properties.after(request.run_id, self.checkpoint, &request.schema)?;
        set.extend(STANDING_PROPERTIES.map(|(key, value)| (key.to_owned(), value.to_owned())));
        if let Some(version) = published.version {
            set.push((Properties::VERSION.to_owned(), version.to_string()));
        }
        updates.push(TableUpdate::SetProperties { updates: set.into_iter().collect() });
        Ok((published.version.map(|version| format!("v{version}")), updates))
    }

    fn failure(&self, error: Error) -> Failure {
        if self.unclear.is_some() {
            let unknown = Error::new(
                ErrorCode::LakeUnknownOutcome,
                "the outcome of the commit could not be learnt",
            )
            .hint("run again: the next run finds the commit, or makes it")
            .caused_by(error);
            return Failure { error: unknown, leftovers: None };
        }
        Failure { error, leftovers: Some(self.snapshots.written()) }
    }
}

/// Set with every commit, so that they are right whoever created the table.
const STANDING_PROPERTIES: [(&str, &str); 2] =
    [("write.parquet.compression-codec", "zstd"), ("write.metadata.previous-versions-max", "100")];

/// What must still be so when the catalog takes the commit: the state the updates were made for.
fn requirements(present: Option<&TableState>) -> Vec<TableRequirement> {
    let Some(present) = present else { return vec![TableRequirement::NotExist] };
    let metadata = &present.metadata;
    vec![
        TableRequirement::UuidMatch { uuid: metadata.uuid() },
        TableRequirement::RefSnapshotIdMatch {
            r#ref: MAIN_BRANCH.to_owned(),
            snapshot_id: metadata.current_snapshot_id(),
        },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: metadata.current_schema_id() },
        TableRequirement::LastAssignedFieldIdMatch {
            last_assigned_field_id: metadata.last_column_id(),
        },
        TableRequirement::DefaultSpecIdMatch {
            default_spec_id: metadata.default_partition_spec_id(),
        },
        TableRequirement::LastAssignedPartitionIdMatch {
            last_assigned_partition_id: metadata.last_partition_id(),
        },
    ]
}

/// The number of a version's tag: `v1`, `v2`, …
fn version_number(name: &str) -> Option<u64> {
    name.strip_prefix('v')?.parse().ok()
}

/// A hiccup of the store or the catalog is worth another attempt with the same data files; a conflict
/// found by [`Publication::check_rebase`] is not: the run has to read again.
fn may_repeat(error: &Error) -> bool {
    error.retryable() && error.code() != ErrorCode::LakeConflict
}

fn conflict() -> Error {
    Error::new(ErrorCode::LakeConflict, "another run changed the table meanwhile")
        .hint("nothing was published; run again")
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}
