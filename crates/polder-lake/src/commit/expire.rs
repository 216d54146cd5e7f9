//! Expiry: snapshots and names that retention lets go leave the table in one commit; then the files
//! that only they reached are removed: data first, then manifests, then manifest lists. The commit
//! says which state it was made for, so that the next expiry can tell by the lists that are still
//! there whether this one was cut off, and ends it.

use std::collections::{BTreeMap, HashSet};

use chrono::Utc;
use futures::StreamExt;
use iceberg::TableUpdate;
use iceberg::spec::{
    MAIN_BRANCH, Manifest, ManifestFile, Snapshot, SnapshotRef, SnapshotReference,
    SnapshotRetention, TableMetadata,
};
use polder_core::retention::{Expiry, Named, NamedKind, Retention, SnapshotAge, expiry};
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use uuid::Uuid;

use super::snapshot::read_list;
use super::{Action, Failure, Prepared, no_table};
use crate::catalog::service::Fence;
use crate::catalog::{TableState, keeps_files, parse_metadata};
use crate::error;
use crate::lake::{Lake, ident};
use crate::table::{Properties, references, version_number};

/// Files looked at at the same time.
const READS_MAX: usize = 16;

/// What an expiry removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Tags and branches.
    pub names: Vec<String>,
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
        retention: &Retention,
    ) -> Result<Expiry> {
        let present = self.state(&ident(org.get(), table)).await?.ok_or_else(|| no_table(table))?;
        expiring(&present.metadata, retention)
    }

    /// Removes the snapshots, versions and names that retention lets go, in one commit, and then the
    /// files that no snapshot left reaches. Committing twice with one `id` expires once.
    ///
    /// Once the commit is made, this succeeds. Files that could not be removed then, or because of a
    /// crash, are removed by the next call. Only files below the table's own location are removed, and
    /// none where the table says `gc.enabled=false`.
    ///
    /// # Errors
    /// - `lake.not_found` for an unknown table.
    /// - `lake.conflict` if names kept appearing on what was to go.
    /// - `lake.unknown_outcome` as for [`crate::Stage::commit`]; no file is removed then.
    pub async fn expire(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        retention: &Retention,
        id: Uuid,
    ) -> Result<Expired> {
        let ident = ident(org.get(), table);
        let present = self.state(&ident).await?.ok_or_else(|| no_table(table))?;
        let stays = |error: &Error| {
            tracing::warn!(table = %ident, "files stay until the next expiry: {error}");
        };
        let mut files = match self.left_by_the_last(&present.metadata).await {
            // Nothing is committed yet, and this commit would forget what the last one left.
            Err(error) if error.retryable() => return Err(error),
            left => left.inspect_err(stays).unwrap_or_default(),
        };
        if expiring(&present.metadata, retention)? == Expiry::default() {
            return Ok(Expired { files, ..Expired::default() });
        }
        let mut action = Expire { table, retention, id, made_for: None };
        let done = super::commit(self, &ident, &mut action).await;
        let (expiry, after) = done.map_err(|Failure { error, .. }| error)?;
        let gone: HashSet<i64> = expiry.snapshots.iter().copied().collect();
        if let Some((before, _)) = action.made_for {
            let removed = self.remove(&before.metadata, &gone, &after.metadata).await;
            files += removed.inspect_err(stays).unwrap_or_default();
        }
        Ok(Expired { names: expiry.names, snapshots: gone.len(), files })
    }

    /// Ends the last expiry, if it was cut off after its commit. Returns how many files it removed.
    async fn left_by_the_last(&self, present: &TableMetadata) -> Result<usize> {
        let Some(location) = present.properties().get(Properties::EXPIRED_FROM) else {
            return Ok(0);
        };
        let before = match self.store().read(location).await {
            Ok(bytes) => parse_metadata(&bytes, location)?,
            // Another engine has removed it.
            Err(error) if error.code() == ErrorCode::LakeNotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let is_gone = |old: &&SnapshotRef| present.snapshot_by_id(old.snapshot_id()).is_none();
        let gone = before.snapshots().filter(is_gone);
        let lists: Vec<(i64, String)> =
            gone.map(|gone| (gone.snapshot_id(), gone.manifest_list().to_owned())).collect();
        let lists = futures::stream::iter(lists)
            .map(|(id, list)| async move { self.store().head(&list).await.is_ok().then_some(id) });
        let left = lists.buffer_unordered(READS_MAX).filter_map(std::future::ready);
        let left: HashSet<i64> = left.collect().await;
        self.remove(&before, &left, present).await
    }

    /// Removes the files that the snapshots gone reached and none in `after` does.
    async fn remove(
        &self,
        before: &TableMetadata,
        gone: &HashSet<i64>,
        after: &TableMetadata,
    ) -> Result<usize> {
        let Ok(own) = Fence::org(before.location()) else { return Ok(0) };
        if gone.is_empty() || keeps_files(after) {
            return Ok(0);
        }
        let mut removed = 0;
        for mut files in self.unreachable(before, gone, after).await? {
            files.retain(|file| own.check(file).is_ok());
            removed += files.len();
            self.store().delete(files.into_iter().collect()).await?;
        }
        Ok(removed)
    }

    /// The files that the snapshots gone reached and none in `after` does: data, deletes and
    /// statistics, then manifests, then manifest lists. Those that are removed already may be missing.
    async fn unreachable(
        &self,
        before: &TableMetadata,
        gone: &HashSet<i64>,
        after: &TableMetadata,
    ) -> Result<[HashSet<String>; 3]> {
        let (mut files, mut lists) = (statistics(before, gone), HashSet::new());
        let mut old = BTreeMap::new();
        for snapshot in before.snapshots().filter(|found| gone.contains(&found.snapshot_id())) {
            lists.insert(snapshot.manifest_list().to_owned());
            old.extend(if_there(self.manifests(snapshot).await)?);
        }
        let mut kept = BTreeMap::new();
        for snapshot in after.snapshots() {
            kept.extend(self.manifests(snapshot).await?);
        }
        old.retain(|path, _| !kept.contains_key(path));
        for manifest in old.keys() {
            files.extend(if_there(self.files_of(manifest, false).await)?);
        }
        if !old.is_empty() {
            for manifest in kept.keys() {
                for live in self.files_of(manifest, true).await? {
                    files.remove(&live);
                }
            }
        }
        Ok([files, old.into_keys().collect(), lists])
    }

    async fn manifests(&self, snapshot: &Snapshot) -> Result<Vec<(String, ManifestFile)>> {
        let list = read_list(self.store(), snapshot).await?;
        Ok(list.into_iter().map(|manifest| (manifest.manifest_path.clone(), manifest)).collect())
    }

    /// The files that a manifest names; those that are in the table by it only, if `live`.
    async fn files_of(&self, manifest: &str, live: bool) -> Result<Vec<String>> {
        let loaded = Manifest::parse_avro(&self.store().read(manifest).await?);
        let loaded = loaded.map_err(|cause| error::iceberg("read a manifest", cause))?;
        let entries = loaded.entries().iter().filter(|entry| !live || entry.is_alive());
        Ok(entries.map(|entry| entry.file_path().to_owned()).collect())
    }
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

/// What goes of a table now.
fn expiring(metadata: &TableMetadata, retention: &Retention) -> Result<Expiry> {
    let snapshots: Vec<SnapshotAge> = metadata
        .snapshots()
        .map(|snapshot| SnapshotAge {
            id: snapshot.snapshot_id(),
            parent: snapshot.parent_snapshot_id(),
            timestamp_ms: snapshot.timestamp_ms(),
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
            let made = rollbacks.iter().rev().find(|rollback| rollback.kept_as == name);
            let before = made.map(|made| NamedKind::BeforeRollback(made.at_ms));
            version_number(name).map(NamedKind::Version).or(before).unwrap_or(NamedKind::Tag)
        }
    }
}

struct Expire<'a> {
    table: &'a str,
    retention: &'a Retention,
    id: Uuid,
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
        let expiry = expiring(&present.metadata, self.retention)?;
        let mut updates: Vec<TableUpdate> = expiry
            .names
            .iter()
            .map(|name| TableUpdate::RemoveSnapshotRef { ref_name: name.clone() })
            .collect();
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
        let from = (Properties::EXPIRED_FROM.to_owned(), present.metadata_location.clone());
        let set = [Properties(present.metadata.properties()).with_commit(self.id), from];
        updates.push(TableUpdate::SetProperties { updates: set.into() });
        self.made_for = Some((present.clone(), expiry.clone()));
        Ok(Prepared { updates, done: expiry })
    }

    fn written(&self) -> Vec<String> {
        Vec::new()
    }
}
