//! Expiry: snapshots and names that retention lets go leave the table in one commit; then the files
//! that only they reached are removed: data first, then manifests, then manifest lists. The commit
//! says which state it was made for, so that the next expiry can tell by the lists that are still
//! there whether this one was cut off, and ends it.

use std::collections::{HashMap, HashSet};

use chrono::Utc;
use futures::{StreamExt, TryStreamExt};
use iceberg::TableUpdate;
use iceberg::spec::{
    MAIN_BRANCH, Manifest, Snapshot, SnapshotRef, SnapshotReference, SnapshotRetention,
    TableMetadata,
};
use polder_core::retention::{Expiry, Named, NamedKind, Retention, SnapshotAge, expiry};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use uuid::Uuid;

use super::rollback::KEPT_AS;
use super::snapshot::read_list;
use super::{Action, Failure, Prepared, no_table, point};
use crate::catalog::service::Fence;
use crate::catalog::{TableState, keeps_files, parse_metadata};
use crate::error;
use crate::lake::{Lake, ident};
use crate::maintain::RowsBefore;
use crate::storage::Store;
use crate::table::{
    LakeTable, Properties, Rollback, json, references, run_of, version_number, was_main,
};

/// Files looked at at the same time.
const READS_MAX: usize = 16;
/// Where a table wants its metadata files, if not beside its data.
const METADATA_PATH: &str = "write.metadata.path";
/// Expiries remembered that may not have ended: several may be under way at once.
const EXPIRED_FROM_MAX: usize = 5;

/// What an expiry lets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiryRequest {
    pub retention: Retention,
    /// States that hold such rows go before their time; the current version names what is left of it.
    pub overdue: Option<RowsBefore>,
}

impl From<&Retention> for ExpiryRequest {
    fn from(retention: &Retention) -> Self {
        Self { retention: *retention, overdue: None }
    }
}

/// What an expiry removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Tags and branches.
    pub names: Vec<String>,
    /// See [`Expiry`].
    pub moved: Vec<String>,
    pub holding: Vec<String>,
    pub snapshots: usize,
    /// Those of an earlier expiry that was cut off included.
    pub files: usize,
}

impl Lake {
    /// What [`Self::expire`] would remove from a table now, its files aside.
    ///
    /// # Errors
    /// `lake.not_found` for an unknown table.
    pub async fn expiry(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        request: impl Into<ExpiryRequest>,
    ) -> Result<Expiry> {
        let request = request.into();
        let present = self.state(&ident(org.get(), table)).await?.ok_or_else(|| no_table(table))?;
        let overdue = self.overdue(org.get(), &present, &request).await?;
        expiring(&present.metadata, &request.retention, &overdue)
    }

    /// The snapshots that hold rows for longer than they may.
    async fn overdue(
        &self,
        org: &OrgId,
        present: &TableState,
        request: &ExpiryRequest,
    ) -> Result<HashSet<i64>> {
        let Some(rows) = &request.overdue else { return Ok(HashSet::new()) };
        rows.held_by(&LakeTable::new(org, present.clone(), self.store())?).await
    }

    /// Removes the snapshots, versions and names that retention lets go, in one commit, and then the
    /// files that no snapshot left reaches. Committing twice with one `id` expires once.
    ///
    /// Once the commit is made, this succeeds. Files that could not be removed then, or because of a
    /// crash, are removed by the next call. Only files below the table's own location are removed, and
    /// none where the table says `gc.enabled=false`.
    ///
    /// # Errors
    /// - `lake.not_found` for an unknown table; `lake.held` for one under legal hold.
    /// - `lake.conflict` if names kept appearing on what was to go.
    /// - `lake.unknown_outcome` as for [`crate::Stage::commit`]; no file is removed then.
    pub async fn expire(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        request: impl Into<ExpiryRequest>,
        id: Uuid,
    ) -> Result<Expired> {
        let request = request.into();
        let ident = ident(org.get(), table);
        self.check_hold(org, Some(table), "expiry").await?;
        let present = self.state(&ident).await?.ok_or_else(|| no_table(table))?;
        let stays = |error: &Error| {
            tracing::warn!(table = %ident, "files stay until the next expiry: {error}");
        };
        let (mut files, mut ended) = (0, Vec::new());
        for from in expired_from(&present.metadata) {
            match self.left_since(&from, &present.metadata).await {
                Ok(removed) => {
                    files += removed;
                    ended.push(from);
                }
                Err(error) if error.retryable() => return Err(error),
                Err(error) => stays(&error),
            }
        }
        let overdue = self.overdue(org.get(), &present, &request).await?;
        let retention = request.retention;
        let planned = expiring(&present.metadata, &retention, &overdue)?;
        let holding = planned.holding.clone();
        if planned == (Expiry { holding: holding.clone(), ..Expiry::default() }) {
            return Ok(Expired { holding, files, ..Expired::default() });
        }
        let mut action = Expire { table, retention, overdue, id, ended, made_for: None };
        let done = super::commit(self, &ident, &mut action).await;
        let (expiry, after) = done.map_err(|Failure { error, .. }| error)?;
        let gone: HashSet<i64> = expiry.snapshots.iter().copied().collect();
        if let Some((before, _)) = action.made_for {
            let removed = self.remove(&before.metadata, &gone, &after.metadata, false).await;
            files += removed.inspect_err(stays).unwrap_or_default();
        }
        let Expiry { names, moved, holding, .. } = expiry;
        Ok(Expired { names, moved, holding, snapshots: gone.len(), files })
    }

    /// Ends an earlier expiry, if it was cut off after its commit. Returns how many files it removed.
    async fn left_since(&self, from: &str, present: &TableMetadata) -> Result<usize> {
        let store = self.store().of_table(present.location());
        let before = match store.read(from).await {
            Ok(bytes) => parse_metadata(&bytes, from)?,
            // Another engine has removed it.
            Err(error) if error.code() == ErrorCode::LakeNotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        if before.uuid() != present.uuid() {
            // The property came here with a copy of another table's properties.
            return Ok(0);
        }
        let is_gone = |old: &&SnapshotRef| present.snapshot_by_id(old.snapshot_id()).is_none();
        let gone = before.snapshots().filter(is_gone);
        let lists: Vec<(i64, String)> =
            gone.map(|gone| (gone.snapshot_id(), gone.manifest_list().to_owned())).collect();
        let store = &store;
        let lists = futures::stream::iter(lists).map(|(id, list)| async move {
            let found = store.head(&list).await.map(|_| Some(id));
            if_there(found)
        });
        let left: Vec<Option<i64>> = lists.buffer_unordered(READS_MAX).try_collect().await?;
        self.remove(&before, &left.into_iter().flatten().collect(), present, true).await
    }

    /// Removes the files that the snapshots gone reached and none in `after` does, of those below the
    /// location that the table has in `after`: what `before` says of itself may be anybody's word.
    /// `again`: some may be removed already.
    pub(super) async fn remove(
        &self,
        before: &TableMetadata,
        gone: &HashSet<i64>,
        after: &TableMetadata,
        again: bool,
    ) -> Result<usize> {
        let Ok(own) = Fence::org(after.location()) else { return Ok(0) };
        if gone.is_empty() || keeps_files(after) {
            return Ok(0);
        }
        let mut removed = 0;
        for mut files in self.unreachable(before, gone, after, again).await? {
            files.retain(|file| own.check(file).is_ok());
            removed += files.len();
            self.store().delete(files.into_iter().collect()).await?;
        }
        Ok(removed)
    }

    /// The files that the snapshots gone reached and none in `after` does: data, deletes and
    /// statistics, then manifests, then manifest lists.
    async fn unreachable(
        &self,
        before: &TableMetadata,
        gone: &HashSet<i64>,
        after: &TableMetadata,
        again: bool,
    ) -> Result<[HashSet<String>; 3]> {
        let store = &self.store().of_table(after.location());
        let read = |found| if again { if_there(found) } else { found };
        let (mut files, mut lists) = (statistics(before, gone), HashSet::new());
        let mut old = HashSet::new();
        for snapshot in before.snapshots().filter(|found| gone.contains(&found.snapshot_id())) {
            lists.insert(snapshot.manifest_list().to_owned());
            old.extend(read(manifests(store, snapshot).await)?);
        }
        let mut kept = HashSet::new();
        for snapshot in after.snapshots() {
            lists.remove(snapshot.manifest_list());
            kept.extend(manifests(store, snapshot).await?);
        }
        old.retain(|path| !kept.contains(path));
        for manifest in &old {
            files.extend(read(files_of(store, manifest, false).await)?);
        }
        // Statistics alone are no other snapshot's, where the state before is known to be the table's.
        if again || !old.is_empty() {
            for manifest in &kept {
                for live in files_of(store, manifest, true).await? {
                    files.remove(&live);
                }
            }
        }
        Ok([files, old, lists])
    }
}

async fn manifests(store: &Store, snapshot: &Snapshot) -> Result<Vec<String>> {
    let list = read_list(store, snapshot).await?;
    Ok(list.into_iter().map(|manifest| manifest.manifest_path).collect())
}

/// The files that a manifest names; those that are in the table by it only, if `live`.
async fn files_of(store: &Store, manifest: &str, live: bool) -> Result<Vec<String>> {
    let loaded = Manifest::parse_avro(&store.read(manifest).await?);
    let loaded = loaded.map_err(|cause| error::iceberg("read a manifest", cause))?;
    let entries = loaded.entries().iter().filter(|entry| !live || entry.is_alive());
    Ok(entries.map(|entry| entry.file_path().to_owned()).collect())
}

/// The statistics files of the snapshots.
fn statistics(metadata: &TableMetadata, of: &HashSet<i64>) -> HashSet<String> {
    let tables =
        metadata.statistics_iter().map(|found| (found.snapshot_id, &found.statistics_path));
    let partitions = metadata.partition_statistics_iter();
    let partitions = partitions.map(|found| (found.snapshot_id, &found.statistics_path));
    let all = tables.chain(partitions).filter(|(snapshot, _)| of.contains(snapshot));
    all.map(|(_, path)| path.clone()).collect()
}

/// Nothing, of a file that is gone.
fn if_there<T: Default>(read: Result<T>) -> Result<T> {
    match read {
        Err(error) if error.code() == ErrorCode::LakeNotFound => Ok(T::default()),
        other => other,
    }
}

/// The metadata files of the states that expiries were made for which may not have ended. Every client
/// that may write to the table can write this property: files elsewhere than where the table's own
/// metadata lies are passed over.
pub(crate) fn expired_from(metadata: &TableMetadata) -> Vec<String> {
    let properties = metadata.properties();
    let text = properties.get(Properties::EXPIRED_FROM);
    let mut from: Vec<String> =
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let default = format!("{}/metadata", metadata.location());
    let folders = [Some(&default), properties.get(METADATA_PATH)];
    let folders: Vec<Fence> =
        folders.into_iter().flatten().filter_map(|folder| Fence::org(folder).ok()).collect();
    from.retain(|file| folders.iter().any(|folder| folder.check(file).is_ok()));
    from
}

/// What goes of a table now.
fn expiring(
    metadata: &TableMetadata,
    retention: &Retention,
    overdue: &HashSet<i64>,
) -> Result<Expiry> {
    let published = Properties(metadata.properties()).run_ids();
    let left = left(metadata);
    let snapshots: Vec<SnapshotAge> = metadata
        .snapshots()
        .map(|snapshot| SnapshotAge {
            id: snapshot.snapshot_id(),
            parent: snapshot.parent_snapshot_id(),
            timestamp_ms: snapshot.timestamp_ms(),
            left_ms: left.get(&snapshot.snapshot_id()).copied(),
            staged: is_staged(metadata, snapshot, &published),
            overdue: overdue.contains(&snapshot.snapshot_id()),
        })
        .collect();
    let named: Vec<Named> = references(metadata)?
        .into_iter()
        .map(|(name, found)| {
            let kind = kind(metadata, &name, &found);
            let age_max_ms = match found.retention {
                SnapshotRetention::Branch { max_ref_age_ms, .. }
                | SnapshotRetention::Tag { max_ref_age_ms } => max_ref_age_ms,
            };
            Named { name, snapshot: found.snapshot_id, kind, age_max_ms }
        })
        .collect();
    Ok(expiry(&snapshots, &named, retention, Utc::now().timestamp_millis()))
}

/// When `main` last went on from each of its earlier states, as far as its log goes.
fn left(metadata: &TableMetadata) -> HashMap<i64, i64> {
    let steps = metadata.history().windows(2);
    let mut left: HashMap<i64, i64> =
        steps.map(|step| (step[0].snapshot_id, step[1].timestamp_ms)).collect();
    if let Some(present) = metadata.current_snapshot_id() {
        left.remove(&present);
    }
    left
}

/// Whether a run has made a snapshot and not published it. The log of `main` forgets, and so does the
/// list of runs; what both have forgotten is kept as if its run was under way.
fn is_staged(metadata: &TableMetadata, snapshot: &Snapshot, published: &[Uuid]) -> bool {
    run_of(snapshot).is_some_and(|run| !published.contains(&run))
        && !was_main(metadata, snapshot.snapshot_id())
}

fn kind(metadata: &TableMetadata, name: &str, found: &SnapshotReference) -> NamedKind {
    match found.retention {
        _ if name == MAIN_BRANCH => NamedKind::Main,
        SnapshotRetention::Branch { min_snapshots_to_keep, max_snapshot_age_ms, .. } => {
            NamedKind::Branch {
                history_min: min_snapshots_to_keep.and_then(|count| usize::try_from(count).ok()),
                history_ms: max_snapshot_age_ms,
            }
        }
        SnapshotRetention::Tag { .. } => {
            let rollbacks = Properties(metadata.properties()).rollbacks();
            // The state before may have had a name of others, which stays theirs.
            let ours = |rollback: &&Rollback| name.starts_with(KEPT_AS) && rollback.kept_as == name;
            let made = rollbacks.iter().rev().find(ours);
            let before = made.map(|made| NamedKind::BeforeRollback(made.at_ms));
            version_number(name).map(NamedKind::Version).or(before).unwrap_or(NamedKind::Tag)
        }
    }
}

struct Expire<'a> {
    table: &'a str,
    retention: Retention,
    /// Snapshots with overdue rows.
    overdue: HashSet<i64>,
    id: Uuid,
    /// What earlier expiries were made for that have removed all their files.
    ended: Vec<String>,
    /// The state that the last attempt was made for, and what went.
    made_for: Option<(TableState, Expiry)>,
}

impl Action for Expire<'_> {
    type Done = Expiry;

    fn find(&self, present: &TableState, _sent: bool) -> Option<Expiry> {
        let metadata = &present.metadata;
        let landed = Properties(metadata.properties()).commit_ids().contains(&self.id);
        let (_, planned) = self.made_for.as_ref().filter(|_| landed)?;
        let mut done = planned.clone();
        done.snapshots.retain(|id| metadata.snapshot_by_id(*id).is_none());
        Some(done)
    }

    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        present.map(drop).ok_or_else(|| no_table(self.table))
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<Expiry>> {
        let present = present.ok_or_else(|| no_table(self.table))?;
        let expiry = expiring(&present.metadata, &self.retention, &self.overdue)?;
        let mut updates: Vec<TableUpdate> = expiry
            .names
            .iter()
            .map(|name| TableUpdate::RemoveSnapshotRef { ref_name: name.clone() })
            .collect();
        if let Some(main) = present.metadata.current_snapshot_id() {
            let retention = SnapshotRetention::Tag { max_ref_age_ms: None };
            let moved = expiry.moved.iter();
            updates.extend(moved.map(|name| point(name, main, retention.clone())));
        }
        // The crate would leave these in the metadata, without their files.
        let gone: HashSet<i64> = expiry.snapshots.iter().copied().collect();
        let statistics = present.metadata.statistics_iter().map(|of| of.snapshot_id);
        let statistics = statistics.filter(|id| gone.contains(id));
        updates.extend(statistics.map(|snapshot_id| TableUpdate::RemoveStatistics { snapshot_id }));
        let partitions = present.metadata.partition_statistics_iter().map(|of| of.snapshot_id);
        let partitions = partitions.filter(|id| gone.contains(id));
        updates.extend(
            partitions.map(|snapshot_id| TableUpdate::RemovePartitionStatistics { snapshot_id }),
        );
        if !expiry.snapshots.is_empty() {
            let snapshot_ids = expiry.snapshots.clone();
            updates.push(TableUpdate::RemoveSnapshots { snapshot_ids });
        }
        let mut from = expired_from(&present.metadata);
        from.retain(|earlier| !self.ended.contains(earlier));
        from.push(present.metadata_location.clone());
        from.drain(..from.len().saturating_sub(EXPIRED_FROM_MAX));
        let from = (Properties::EXPIRED_FROM.to_owned(), json(&from)?);
        let set = [Properties(present.metadata.properties()).with_commit(self.id), from];
        updates.push(TableUpdate::SetProperties { updates: set.into() });
        self.made_for = Some((present.clone(), expiry.clone()));
        Ok(Prepared { updates, done: expiry })
    }

    fn written(&self) -> Vec<String> {
        Vec::new()
    }
}
