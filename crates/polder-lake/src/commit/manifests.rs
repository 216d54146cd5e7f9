//! `RewriteManifests`: the same files in fewer manifests, so that planning reads few small objects.
//!
//! It assumes nothing of the table but what it finds: every attempt is made for the state it meets.

use std::collections::{BTreeMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{ManifestContentType, ManifestFile, Operation};
use iceberg::{TableIdent, TableUpdate};
use polder_core::{Error, Result};
use uuid::Uuid;

use super::snapshot::{Change, SnapshotWriter, is_live, read_list};
use super::{Action, Failure, Prepared, main_to, no_table};
use crate::catalog::TableState;
use crate::error;
use crate::lake::Lake;
use crate::storage::Store;
use crate::table::{Properties, commit_of, references};

/// The size manifests aim at (Iceberg's `commit.manifest.target-size-bytes`), in bytes.
const TARGET_BYTES: i64 = 8 << 20;
/// Manifests of one kind from which on small ones are worth merging (`commit.manifest.min-count-to-merge`
/// is 100 for every commit; here nobody waits).
const MERGED_MIN: usize = 8;
/// Manifests read at the same time.
const READS_MAX: usize = 16;

/// Manifests now, and after a rewrite.
pub(crate) struct Fragmented {
    pub(crate) manifests: usize,
    pub(crate) merged: usize,
}

/// What a rewrite would do to a table.
pub(crate) async fn fragmented(store: &Store, state: &TableState) -> Result<Fragmented> {
    let Some(snapshot) = state.metadata.current_snapshot() else {
        return Ok(Fragmented { manifests: 0, merged: 0 });
    };
    let store = &store.of_table(state.metadata.location());
    let list = read_list(store, snapshot).await?;
    let manifests = list.len();
    let dead = list.iter().filter(|manifest| !is_live(manifest)).count();
    let saved: usize = groups(store, list).await?.iter().map(|group| group.len() - 1).sum();
    // A rewrite is made for what it merges, or for many manifests without live files: the commit that took the files away
    // lists these still, the next one does not.
    let worth = saved > 0 || dead >= MERGED_MIN;
    let merged = if worth { manifests - dead - saved } else { manifests };
    Ok(Fragmented { manifests, merged })
}

/// The manifests that become one each: of one kind, partition spec and schema.
async fn groups(store: &Store, list: Vec<ManifestFile>) -> Result<Vec<Vec<ManifestFile>>> {
    let mut kinds: BTreeMap<(bool, i32), Vec<ManifestFile>> = BTreeMap::new();
    for manifest in list.into_iter().filter(is_live) {
        let deletes = manifest.content == ManifestContentType::Deletes;
        if manifest.manifest_length < TARGET_BYTES / 4 * 3 {
            kinds.entry((deletes, manifest.partition_spec_id)).or_default().push(manifest);
        }
    }
    let mut groups = Vec::new();
    for small in kinds.into_values().filter(|small| small.len() >= MERGED_MIN) {
        for alike in by_schema(store, small).await? {
            groups.extend(of_target_size(alike));
        }
    }
    groups.retain(|group| group.len() > 1);
    Ok(groups)
}

/// Entries are only written back right in the schema they were written in.
async fn by_schema(store: &Store, manifests: Vec<ManifestFile>) -> Result<Vec<Vec<ManifestFile>>> {
    let file_io = &store.file_io();
    let known = futures::stream::iter(manifests).map(|manifest| async move {
        let loaded = manifest.load_manifest(file_io).await;
        let loaded = loaded.map_err(|cause| error::iceberg("read a manifest", cause))?;
        Ok::<_, Error>((loaded.metadata().schema().schema_id(), manifest))
    });
    let known: Vec<_> = known.buffered(READS_MAX).try_collect().await?;
    let mut alike: BTreeMap<i32, Vec<ManifestFile>> = BTreeMap::new();
    for (schema, manifest) in known {
        alike.entry(schema).or_default().push(manifest);
    }
    Ok(alike.into_values().collect())
}

fn of_target_size(manifests: Vec<ManifestFile>) -> Vec<Vec<ManifestFile>> {
    let mut groups: Vec<Vec<ManifestFile>> = Vec::new();
    let mut bytes = 0;
    for manifest in manifests {
        bytes += manifest.manifest_length;
        if let Some(group) = groups.last_mut().filter(|_| bytes <= TARGET_BYTES) {
            group.push(manifest);
        } else {
            bytes = manifest.manifest_length;
            groups.push(vec![manifest]);
        }
    }
    groups
}

impl Lake {
    /// Merges the small manifests of a table's present state.
    pub(crate) async fn rewrite_manifests(&self, ident: &TableIdent) -> Result<()> {
        let Some(state) = self.state(ident).await? else { return Err(no_table(ident.name())) };
        let location = state.metadata.location();
        let schema = state.metadata.current_schema();
        let writer = SnapshotWriter::new(self.store(), location, schema);
        let mut action = RewriteManifests { lake: self, ident, id: Uuid::new_v4(), writer };
        match super::commit(self, ident, &mut action).await {
            Ok(_) => Ok(()),
            Err(Failure { error, leftovers }) => {
                let removed = self.store().delete(leftovers.unwrap_or_default()).await;
                if let Err(stay) = removed {
                    tracing::warn!(table = %ident, "manifests stay until orphan removal: {stay}");
                }
                Err(error)
            }
        }
    }
}

struct RewriteManifests<'a> {
    lake: &'a Lake,
    ident: &'a TableIdent,
    id: Uuid,
    writer: SnapshotWriter,
}

impl Action for RewriteManifests<'_> {
    type Done = bool;

    /// Whether another call had made it.
    fn find(&self, present: &TableState, sent: bool) -> Option<bool> {
        let own = present.metadata.snapshots().find(|found| commit_of(found) == Some(self.id))?;
        Some(!sent || own.snapshot_id() != self.writer.id())
    }

    fn validate(&self, present: Option<&TableState>) -> Result<()> {
        present.map(drop).ok_or_else(|| no_table(self.ident.name()))
    }

    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<bool>> {
        let present = present.ok_or_else(|| no_table(self.ident.name()))?;
        let store = self.lake.store().of_table(present.metadata.location());
        let list = match present.metadata.current_snapshot() {
            Some(snapshot) => read_list(&store, snapshot).await?,
            None => Vec::new(),
        };
        let fields = vec![(Properties::COMMIT_ID.to_owned(), self.id.to_string())];
        let groups = groups(&store, list).await?;
        let change = Change {
            operation: Operation::Replace,
            added: Vec::new(),
            removed: HashSet::new(),
            keeps: true,
            forgets: false,
            fields,
        };
        let snapshot = self.writer.write_merged(present, groups, &change).await?;
        let refs = references(&present.metadata)?;
        let set = [Properties(present.metadata.properties()).with_commit(self.id)];
        let updates = vec![
            TableUpdate::AddSnapshot { snapshot },
            main_to(self.writer.id(), &refs),
            TableUpdate::SetProperties { updates: set.into() },
        ];
        Ok(Prepared { updates, done: false })
    }

    fn written(&self) -> Vec<String> {
        self.writer.written()
    }

    async fn superseded(&self, landed: &TableState, already: &bool) -> Vec<String> {
        self.writer.superseded(landed, *already).await
    }
}
