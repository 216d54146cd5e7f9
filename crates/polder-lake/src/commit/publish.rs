//! Publishing a stage: write – audit – publish.
//!
//! The new snapshot first hangs on the branch `staging`, where no reader of `main` sees it; it is read
//! back and checked there ([`super::audit`]); then one commit moves `main` to it, with the schema, the
//! partition spec, the checkpoint and the run id.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use iceberg::TableUpdate;
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use polder_core::{Checkpoint, Error, ErrorCode, Predicate, Result};
use tracing::{Instrument, info_span};

use super::audit::Audit;
use super::conflicts::Assumed;
use super::staging::{Content, STAGING, StageSnapshot, Staged, Withdraw};
use super::{Action, Failure, Prepared, conflict, main_to, point, read_back};
use crate::catalog::TableState;
use crate::failpoint::{self, Point};
use crate::stage::{Committed, RowDelta, RunSummary, Stage, StageKind};
use crate::table::{
    At, LakeTable, Properties, follows, references, run_of, version_number, was_main,
};
use crate::write::StagedFile;

/// How often a snapshot is staged anew because another engine moved `main` while it was audited.
const STAGINGS_MAX: usize = 8;

/// Set with every commit, so that they are right whoever created the table.
pub(super) const STANDING_PROPERTIES: [(&str, &str); 2] =
    [("write.parquet.compression-codec", "zstd"), ("write.metadata.previous-versions-max", "100")];

/// Looks at a snapshot that was staged and audited, before it is published.
#[async_trait]
pub trait Gate: Send + Sync {
    /// # Errors
    /// Whatever speaks against publishing it: the commit fails with that, and the snapshot goes.
    async fn check(&self, staged: &LakeTable, snapshot: i64) -> Result<()>;
}

impl Stage {
    /// Publishes the files, the schema, the checkpoint and the run id in one table commit, after a
    /// snapshot on the branch `staging` was read back and found to hold exactly them.
    ///
    /// Readers of `main` see all of it or nothing. A commit that this run made before is found and
    /// reported with [`Committed::already`]; `files` are removed then.
    ///
    /// # Errors
    /// - `lake.conflict`: another run changed the table since the stage began. Nothing is visible,
    ///   the files are gone; stage again.
    /// - `lake.audit_failed`: what was read back is not what the run wrote. Nothing is visible, the
    ///   files are gone.
    /// - `lake.unknown_outcome`: the catalog cannot be asked whether the commit was made. Nothing is
    ///   removed; staging and committing again with the same run id finds out.
    /// - `internal`: the files do not hold the rows the run counted.
    pub async fn commit(
        self,
        files: Vec<StagedFile>,
        checkpoint: &Checkpoint,
        summary: RunSummary,
    ) -> Result<Committed> {
        let delta = RowDelta { files, deletes: Vec::new(), among: Predicate::True };
        Box::pin(self.commit_delta(delta, checkpoint, summary, None)).await
    }

    /// [`Self::commit`] of rows that come and rows that go, together, if the gate lets them.
    ///
    /// # Errors
    /// As there; what `gate` says. `lake.conflict` too if another engine's commit since the stage began removed a file
    /// in which rows are deleted, deleted rows of it, or added a file that may hold rows that were
    /// looked for ([`RowDelta::among`]).
    pub async fn commit_delta(
        self,
        delta: RowDelta,
        checkpoint: &Checkpoint,
        summary: RunSummary,
        gate: Option<&dyn Gate>,
    ) -> Result<Committed> {
        let RowDelta { files, deletes, among } = &delta;
        let staged: u64 = files.iter().map(StagedFile::rows).sum();
        if staged != summary.rows {
            self.drop_delta(&delta).await;
            return Err(Error::new(ErrorCode::Internal, "the staged files lack or double rows")
                .detail(format!("{} rows counted, {staged} in files", summary.rows)));
        }
        let mut assumed = Assumed::of_deletes(deletes, files);
        if self.request.kind == StageKind::Merge {
            assumed.unmatched = Some(among.clone());
        }
        let mut run = Publication {
            stage: &self,
            content: Content { files, deletes, assumed: &assumed },
            checkpoint,
            summary: &summary,
            gate,
            decoded: false,
            own: Vec::new(),
            abandoned: Vec::new(),
            written: Vec::new(),
            had: None,
        };
        match run.publish().await {
            Ok(done) => {
                if done.already {
                    // Names are unique to a stage: the commit that landed cannot name these files.
                    self.drop_delta(&delta).await;
                }
                failpoint::reach(Point::Published).await?;
                Ok(done)
            }
            Err(Failure { error, leftovers }) => {
                if let Some(metadata) = leftovers {
                    self.drop_delta(&delta).await;
                    self.discard(metadata).await;
                }
                Err(error)
            }
        }
    }

    async fn drop_delta(&self, delta: &RowDelta) {
        self.drop_files(&delta.files).await;
        self.drop_deletes(&delta.deletes).await;
    }
}

/// One run's way from staged files to `main`.
struct Publication<'a> {
    stage: &'a Stage,
    content: Content<'a>,
    checkpoint: &'a Checkpoint,
    summary: &'a RunSummary,
    gate: Option<&'a dyn Gate>,
    /// Whether the files' rows were read back: they do not change if their snapshot is staged anew.
    decoded: bool,
    /// The snapshots of this run that the table may have, newest last.
    own: Vec<i64>,
    /// Snapshots of other calls for the same run, which did not get to the end, or not yet. One that
    /// is still alive may stage its files once more, so that they stay until the run is published.
    abandoned: Vec<i64>,
    /// The metadata files of own snapshots, to be removed with one that is not published.
    written: Vec<(i64, Vec<String>)>,
    /// The table as it was when it had the last own snapshot.
    had: Option<TableState>,
}

impl Publication<'_> {
    async fn publish(&mut self) -> Result<Committed, Failure> {
        let (lake, ident) = (&self.stage.lake, &self.stage.ident);
        let mut last = conflict();
        self.find_abandoned();
        for _ in 0..STAGINGS_MAX {
            let snapshot = match self.stage_snapshot().await? {
                Staged::Published(done) => {
                    if let Some(now) = self.had.as_ref().filter(|_| done.already) {
                        self.give_way(now).await;
                    }
                    return Ok(done);
                }
                Staged::Snapshot(id) => id,
            };
            let audited = self.audited(snapshot).instrument(info_span!("audit")).await;
            let staged = match audited {
                Ok(staged) => staged,
                Err(error) if error.code() == ErrorCode::LakeConflict => {
                    last = error;
                    continue;
                }
                Err(error) => return Err(self.withdrawn(error).await),
            };
            tracing::info!(snapshot, "what is staged was read back: it is what was written");
            let (stage, checkpoint, own) = (self.stage, self.checkpoint, &self.own);
            let abandoned = &self.abandoned;
            let mut publish = Publish { stage, checkpoint, staged: &staged, own, abandoned };
            match super::commit(lake, ident, &mut publish).await {
                Ok((done, landed)) => {
                    if done.already {
                        self.give_way(&landed).await;
                    }
                    self.clean_up(&done, &landed).await;
                    return Ok(done);
                }
                Err(failure) if failure.leftovers.is_none() => return Err(failure),
                Err(Failure { error, .. }) => {
                    let present = lake.state(ident).await;
                    if !present.is_ok_and(|present| publish.validate(present.as_ref()).is_err()) {
                        return Err(self.withdrawn(error).await);
                    }
                    // `main` has moved: a snapshot on top of it has a chance, if the run bears that.
                    last = error;
                }
            }
        }
        Err(self.withdrawn(last).await)
    }

    async fn stage_snapshot(&mut self) -> Result<Staged, Failure> {
        let (lake, ident) = (&self.stage.lake, &self.stage.ident);
        let own = self.own.clone();
        let mut action = StageSnapshot::new(self.stage, self.content, self.checkpoint, own);
        let id = action.id();
        self.own.push(id);
        match super::commit(lake, ident, &mut action).await {
            Ok((done, landed)) => {
                self.written.push((id, action.written()));
                self.let_go(&landed).await;
                self.had = Some(landed);
                Ok(done)
            }
            Err(Failure { error, leftovers: Some(metadata) }) => {
                // It cannot land any more: its files go, whether or not earlier ones can be withdrawn.
                self.own.pop();
                self.stage.discard(metadata).await;
                Err(self.withdrawn(error).await)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Removes what only own earlier snapshots still reached: files of older states, which an expiry
    /// in between has left to them.
    async fn let_go(&self, now: &TableState) {
        self.let_go_of(&self.own, self.had.as_ref(), now).await;
    }

    /// Removes what only those of some snapshots reached that the table had and has no more.
    async fn let_go_of(&self, snapshots: &[i64], had: Option<&TableState>, now: &TableState) {
        let Some(had) = had else { return };
        let gone = snapshots.iter().copied().filter(|id| has(had, *id) && !has(now, *id));
        let gone: HashSet<i64> = gone.collect();
        let lake = &self.stage.lake;
        if let Err(error) = lake.remove(&had.metadata, &gone, &now.metadata, true).await {
            let table = &self.stage.ident;
            tracing::warn!(%table, "files stay until orphan removal: {error}");
        }
    }

    /// Reads the staged snapshot back and compares it with what the run wrote.
    async fn audited(&mut self, snapshot: i64) -> Result<TableState> {
        failpoint::reach(Point::Staged).await?;
        let stage = self.stage;
        let staged = stage.lake.state(&stage.ident).await?.ok_or_else(conflict)?;
        let keeps = stage.request.kind != StageKind::Replace;
        let Content { files, deletes, .. } = self.content;
        let (store, target) = (stage.store(), &stage.target);
        let store = &store;
        let audit = Audit { store, target, files, deletes, keeps };
        let within = |error: Error| error.within(&stage.ident.to_string());
        audit.check(&staged, snapshot).await.map_err(within)?;
        if !self.decoded {
            read_back::check(stage, files, self.summary).await.map_err(within)?;
            self.decoded = true;
        }
        if let Some(gate) = self.gate {
            let table = LakeTable::new(&stage.org()?, staged.clone(), stage.lake.store())?;
            gate.check(&table, snapshot).await?;
        }
        failpoint::reach(Point::Audited).await?;
        Ok(staged)
    }

    /// Learns what other calls for the same run have staged and not published: the snapshot that is
    /// published takes their place.
    fn find_abandoned(&mut self) {
        let Some(base) = &self.stage.base else { return };
        let (run, metadata) = (self.stage.request.run_id, &base.metadata);
        let of_run = metadata.snapshots().filter(|snapshot| run_of(snapshot) == Some(run));
        let ids = of_run.map(|snapshot| snapshot.snapshot_id());
        self.abandoned = ids.filter(|id| !was_main(metadata, *id)).collect();
    }

    fn leftovers(&self) -> Vec<String> {
        self.written.iter().flat_map(|(_, files)| files.clone()).collect()
    }

    /// Removes what other stagings have left, once the run is published: own ones, whose snapshots went
    /// when a later one came, and those of other calls, none of which can publish the run any more.
    async fn clean_up(&self, done: &Committed, now: &TableState) {
        // The last one was published by this call, also where it has expired since: later snapshots
        // have its manifests then.
        let published = if done.already { None } else { self.own.last() };
        let stays = |id: i64| id == done.snapshot_id || published == Some(&id) || has(now, id);
        let earlier = self.written.iter().filter(|(id, _)| !stays(*id));
        self.stage.discard(earlier.flat_map(|(_, files)| files.clone()).collect()).await;
        self.let_go_of(&self.abandoned, self.stage.base.as_ref(), now).await;
    }

    /// Takes the run's snapshots out of the table, as far as they are in it.
    async fn withdrawn(&self, error: Error) -> Failure {
        let lake = &self.stage.lake;
        let none = self.own.is_empty();
        if none || matches!(lake.state(&self.stage.ident).await, Ok(None)) {
            return Failure { error, leftovers: Some(self.leftovers()) };
        }
        let leftovers = if self.withdraw().await { Some(self.leftovers()) } else { None };
        Failure { error, leftovers }
    }

    /// Takes own snapshots out of the table where another call has published the run.
    async fn give_way(&self, now: &TableState) {
        if self.own.iter().any(|id| has(now, *id)) && self.withdraw().await {
            self.stage.discard(self.leftovers()).await;
        }
    }

    /// True if none of the own snapshots is in the table any more.
    async fn withdraw(&self) -> bool {
        let mut action = Withdraw { snapshots: &self.own };
        match super::commit(&self.stage.lake, &self.stage.ident, &mut action).await {
            Ok(((), landed)) => {
                self.let_go(&landed).await;
                true
            }
            Err(Failure { error: cause, .. }) => {
                let table = &self.stage.ident;
                tracing::warn!(%table, "a snapshot that was not published stays until it expires: {cause}");
                false
            }
        }
    }
}

fn has(state: &TableState, snapshot: i64) -> bool {
    state.metadata.snapshot_by_id(snapshot).is_some()
}

/// The run's commit, if it is in the history of `main`. `own`: the snapshots this call has made;
/// `sent`: it has asked for one of them to become `main`.
pub(super) fn published(
    present: &TableState,
    stage: &Stage,
    own: &[i64],
    sent: bool,
) -> Option<Committed> {
    let metadata = &present.metadata;
    let run = stage.request.run_id;
    let found = metadata.snapshots().find(|snapshot| {
        run_of(snapshot) == Some(run) && was_main(metadata, snapshot.snapshot_id())
    });
    // Either may be gone: the snapshot by expiry, the property by another engine's replace.
    if found.is_none() && !Properties(metadata.properties()).run_ids().contains(&run) {
        return None;
    }
    // Ours, if this call sent anything: of an expired snapshot nobody can say whose it was, and its
    // files may live on in later ones.
    let mine = found.map_or(sent, |found| own.contains(&found.snapshot_id()));
    let snapshot_id = found.or(metadata.current_snapshot())?.snapshot_id();
    let versions = references(metadata).unwrap_or_default();
    let version = versions
        .into_iter()
        .find(|(name, found)| {
            found.snapshot_id == snapshot_id && !found.is_branch() && version_number(name).is_some()
        })
        .map(|(name, _)| name);
    Some(Committed { snapshot_id, already: !mine, version })
}

/// Moves `main` to a snapshot that was staged and audited.
struct Publish<'a> {
    stage: &'a Stage,
    checkpoint: &'a Checkpoint,
    /// The table as it was audited.
    staged: &'a TableState,
    /// The run's snapshots; the last is the one to publish.
    own: &'a [i64],
    /// Those of other calls for the run, which go.
    abandoned: &'a [i64],
}

impl Publish<'_> {
    fn snapshot(&self) -> i64 {
        self.own.last().copied().unwrap_or_default()
    }

    /// The number of the version that a replace makes.
    fn version(
        &self,
        present: &TableState,
        refs: &BTreeMap<String, SnapshotReference>,
    ) -> Option<u64> {
        (self.stage.request.kind == StageKind::Replace).then(|| {
            let last = Properties(present.metadata.properties()).version();
            // Somebody may have set such a tag by hand.
            let tagged = refs.keys().filter_map(|name| version_number(name)).max();
            last.max(tagged.unwrap_or(0)).saturating_add(1)
        })
    }

    /// What gives the table the schema and spec that the staged snapshot was written with, and its order.
    fn shape(&self) -> Vec<TableUpdate> {
        let target = &self.stage.target;
        if self.stage.base.is_none() || target.updates.is_empty() {
            return Vec::new();
        }
        let order = |update: &&TableUpdate| {
            matches!(
                update,
                TableUpdate::AddSortOrder { .. } | TableUpdate::SetDefaultSortOrder { .. }
            )
        };
        // One that goes stands before the schema, one that comes after it.
        let all = target.updates.iter();
        let mut updates: Vec<TableUpdate> = all.clone().take_while(order).cloned().collect();
        updates.push(TableUpdate::SetCurrentSchema { schema_id: target.schema.schema_id() });
        updates.push(TableUpdate::SetDefaultSpec { spec_id: target.spec.spec_id() });
        updates.extend(all.skip_while(order).filter(order).cloned());
        updates
    }
}

impl Action for Publish<'_> {
    type Done = Committed;

    fn find(&self, present: &TableState, sent: bool) -> Option<Committed> {
        published(present, self.stage, self.own, sent)
    }

    /// The snapshot is there, on top of what `main` is, and the table is as it was audited.
    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        let metadata = &present.ok_or_else(conflict)?.metadata;
        let snapshot = metadata.snapshot_by_id(self.snapshot()).ok_or_else(conflict)?;
        let staged = &self.staged.metadata;
        let same = metadata.current_snapshot_id() == snapshot.parent_snapshot_id()
            && metadata.current_schema_id() == staged.current_schema_id()
            && metadata.default_partition_spec_id() == staged.default_partition_spec_id()
            && follows(metadata, staged);
        if same { Ok(()) } else { Err(conflict()) }
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<Committed>> {
        let present = present.ok_or_else(conflict)?;
        let (metadata, id) = (&present.metadata, self.snapshot());
        let snapshot = metadata.snapshot_by_id(id).ok_or_else(conflict)?;
        let refs = references(metadata)?;
        let mut updates = self.shape();
        updates.push(main_to(id, &refs));
        let version = self.version(present, &refs);
        let request = &self.stage.request;
        let mut set = Properties(metadata.properties()).after(request.run_id, &request.schema)?;
        set.push((Properties::CHECKPOINT.to_owned(), self.checkpoint.to_json()));
        set.push((Properties::CHECKPOINT_AT.to_owned(), At::of(snapshot).to_string()));
        set.extend(STANDING_PROPERTIES.map(|(key, value)| (key.to_owned(), value.to_owned())));
        if let Some(version) = version {
            let tag = SnapshotRetention::Tag { max_ref_age_ms: None };
            updates.push(point(&format!("v{version}"), id, tag));
            set.push((Properties::VERSION.to_owned(), version.to_string()));
            set.push(Properties(metadata.properties()).with_version(version, id));
        }
        updates.push(TableUpdate::SetProperties { updates: set.into_iter().collect() });
        if refs.get(STAGING).is_some_and(|staging| staging.snapshot_id == id) {
            updates.push(TableUpdate::RemoveSnapshotRef { ref_name: STAGING.to_owned() });
        }
        // Somebody may have given one a name, which keeps it.
        let named = |id: i64| refs.values().any(|found| found.snapshot_id == id);
        let goes = |id: &i64| has(present, *id) && !named(*id) && !was_main(metadata, *id);
        let snapshot_ids: Vec<i64> = self.abandoned.iter().copied().filter(goes).collect();
        if !snapshot_ids.is_empty() {
            updates.push(TableUpdate::RemoveSnapshots { snapshot_ids });
        }
        let version = version.map(|version| format!("v{version}"));
        let done = Committed { snapshot_id: id, already: false, version };
        Ok(Prepared { updates, done })
    }

    /// Not for its own sake: a late answer to it must not be carried out once other runs were here.
    fn branch(&self) -> Option<&str> {
        Some(STAGING)
    }

    fn written(&self) -> Vec<String> {
        Vec::new()
    }
}
