//! One table as one metadata file says it is: schema, snapshots, references, checkpoint.
//!
//! A [`LakeTable`] does not change; load it again to see later commits. Reading rows is in
//! [`crate::scan`].

mod properties;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use iceberg::spec::{MAIN_BRANCH, Snapshot, SnapshotRef, SnapshotReference, TableMetadata};
use iceberg::table::Table;
use polder_core::spec::{PartitionField, SortField};
use polder_core::{Checkpoint, Error, ErrorCode, OrgId, Result, TableSchema};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use properties::{At, Properties, json};

use crate::catalog::TableState;
use crate::commit::{KEPT_AS, STAGING};
use crate::error;
use crate::schema;
use crate::storage::Store;

/// Versions named in an error's hint.
const NAMES_SHOWN_MAX: usize = 10;

/// One time that `main` was moved to another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    pub id: Uuid,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// What was asked for: a version, tag or snapshot id.
    pub to: String,
    pub from_snapshot: i64,
    pub to_snapshot: i64,
    /// The tag that keeps the state before.
    pub kept_as: String,
}

/// A table of the lake. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LakeTable {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    org: OrgId,
    table: Table,
    metadata_location: String,
    columns: TableSchema,
    refs: Vec<RefInfo>,
    store: Store,
}

/// What a snapshot says of itself: counts, and what its writer added.
pub type Summary = BTreeMap<String, String>;

/// One state of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub id: i64,
    pub parent: Option<i64>,
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// `append`, `overwrite`, `replace` or `delete`.
    pub operation: String,
    /// Rows (less those deleted by position), data files, and the bytes of all files, of the whole state, where
    /// the writer said so.
    pub rows: Option<u64>,
    pub files: Option<u64>,
    pub bytes: Option<u64>,
    /// The run that made it; `None` for another engine's.
    pub run_id: Option<Uuid>,
    /// The branches and tags that point here.
    pub refs: Vec<String>,
}

/// A published full refresh: the tag `v<number>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub number: u64,
    pub snapshot: SnapshotInfo,
    /// The table's rows are this version's, and what runs have added to it since.
    pub current: bool,
}

/// A named snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefInfo {
    pub name: String,
    pub snapshot_id: i64,
    pub kind: RefKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefKind {
    Branch,
    Tag,
}

/// A state of the table that somebody keeps under a name: a tag that is no version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub name: String,
    pub snapshot: SnapshotInfo,
}

impl LakeTable {
    pub(crate) fn new(org: &OrgId, state: TableState, store: &Store) -> Result<Self> {
        let metadata = &state.metadata;
        let columns = Properties(metadata.properties()).schema(metadata.current_schema())?;
        let refs = ref_infos(metadata)?;
        let failed = |cause| error::iceberg("open the table", cause);
        // Whatever reads by the table's metadata goes through this one.
        let store = store.of_table(metadata.location());
        let runtime = iceberg::Runtime::try_current().map_err(failed)?;
        let table = Table::builder()
            .file_io(store.file_io())
            .metadata(Arc::clone(&state.metadata))
            .metadata_location(state.metadata_location.clone())
            .identifier(state.ident)
            .runtime(runtime)
            .readonly(true)
            .build()
            .map_err(failed)?;
        let metadata_location = state.metadata_location;
        let org = org.clone();
        let inner = Inner { org, table, metadata_location, columns, refs, store };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn org(&self) -> &OrgId {
        &self.inner.org
    }

    pub fn name(&self) -> &str {
        self.inner.table.identifier().name()
    }

    pub fn uuid(&self) -> Uuid {
        self.metadata().uuid()
    }

    /// The address below which all files of the table are.
    pub fn location(&self) -> &str {
        self.metadata().location()
    }

    /// The address of the metadata file, for engines that open tables by it.
    pub fn metadata_location(&self) -> &str {
        &self.inner.metadata_location
    }

    /// The current columns, with the marks (source ids) they were published with.
    pub fn schema(&self) -> TableSchema {
        self.inner.columns.clone()
    }

    /// How many sets of columns the table has had: with one, every file has all of them as they are now.
    pub fn layouts(&self) -> usize {
        self.metadata().schemas_iter().count()
    }

    /// How new files are partitioned.
    pub fn partition(&self) -> Vec<PartitionField> {
        schema::partition_fields(self.metadata())
    }

    /// The order that rows of rewritten files have, empty for none; `None` for an order of another
    /// engine that a table spec has no words for.
    pub fn sort(&self) -> Option<Vec<SortField>> {
        let metadata = self.metadata();
        schema::sort_fields(metadata.default_sort_order(), metadata.current_schema())
    }

    /// How far the table's rows have read their source; `None` if that is not known: no run of ours
    /// wrote them, or `main` was moved to a state that does not say.
    ///
    /// # Errors
    /// `lake.corrupt` if it cannot be read.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>> {
        checkpoint_text(self.metadata()).map(Checkpoint::from_json).transpose()
    }

    /// The published versions, oldest first.
    pub fn versions(&self) -> Vec<Version> {
        let metadata = self.metadata();
        let mut versions: Vec<Version> = self
            .inner
            .refs
            .iter()
            .filter(|found| found.kind == RefKind::Tag)
            .filter_map(|found| {
                let number = version_number(&found.name)?;
                let snapshot = self.info(metadata.snapshot_by_id(found.snapshot_id)?);
                Some(Version { number, snapshot, current: false })
            })
            .collect();
        versions.sort_by_key(|version| version.number);
        let current = ancestors(metadata, metadata.current_snapshot()).find_map(|ancestor| {
            versions.iter().rposition(|version| version.snapshot.id == ancestor.snapshot_id())
        });
        if let Some(current) = current {
            versions[current].current = true;
        }
        versions
    }

    /// The states that are kept under names of somebody's choice, by name.
    pub fn pins(&self) -> Vec<Pin> {
        let tags = self.inner.refs.iter().filter(|found| found.kind == RefKind::Tag);
        tags.filter(|found| !is_reserved(&found.name))
            .filter_map(|found| {
                let snapshot = self.info(self.metadata().snapshot_by_id(found.snapshot_id)?);
                Some(Pin { name: found.name.clone(), snapshot })
            })
            .collect()
    }

    /// The last times that `main` was moved to another version, oldest first.
    pub fn rollbacks(&self) -> Vec<Rollback> {
        Properties(self.metadata().properties()).rollbacks()
    }

    /// The last runs that committed, oldest first.
    pub fn run_ids(&self) -> Vec<Uuid> {
        Properties(self.metadata().properties()).run_ids()
    }

    pub fn current_snapshot(&self) -> Option<SnapshotInfo> {
        self.metadata().current_snapshot().map(|snapshot| self.info(snapshot))
    }

    /// One state by its snapshot's id, if the table still has it.
    pub fn snapshot(&self, id: i64) -> Option<SnapshotInfo> {
        self.metadata().snapshot_by_id(id).map(|snapshot| self.info(snapshot))
    }

    /// What columns of a snapshot hold, by column, where an engine has written it down.
    ///
    /// # Errors
    /// `lake.not_found` for an unknown snapshot.
    pub fn column_docs(&self, snapshot: i64) -> Result<BTreeMap<String, String>> {
        let schema = self.iceberg_schema(Some(snapshot))?;
        let fields = schema.as_struct().fields().iter();
        Ok(fields.filter_map(|field| Some((field.name.clone(), field.doc.clone()?))).collect())
    }

    /// The snapshot that was the table's current one at a time, in milliseconds since the epoch.
    ///
    /// # Errors
    /// `lake.not_found` if it had none then, or that state has expired.
    pub fn snapshot_at(&self, ms: i64) -> Result<SnapshotInfo> {
        let history = self.history();
        let found = history.iter().rev().find(|(since, _)| *since <= ms).map(|(_, id)| *id);
        let message = match found {
            Some(id) => match self.snapshot(id) {
                Some(snapshot) => return Ok(snapshot),
                None => "has lost its state of that time to an expiry",
            },
            None => "had no rows yet at that time",
        };
        let error =
            Error::new(ErrorCode::LakeNotFound, format!("table {:?} {message}", self.name()));
        Err(error.hint("ask for a later time, or leave the table out"))
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let mut snapshots: Vec<_> = self.metadata().snapshots().collect();
        snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
        snapshots.into_iter().map(|snapshot| self.info(snapshot)).collect()
    }

    /// What the newest snapshot that says `value` under `key` says of itself, and what the one before it
    /// does.
    pub fn summaries_with(&self, key: &str, value: &str) -> Option<(Summary, Option<Summary>)> {
        let said = |snapshot: &&SnapshotRef| summary(snapshot, key) == Some(value);
        let found = self.metadata().snapshots().filter(said);
        let newest = found.max_by_key(|snapshot| snapshot.sequence_number())?;
        let before = newest.parent_snapshot_id();
        let before = before.and_then(|id| self.metadata().snapshot_by_id(id));
        Some((whole_summary(newest), before.map(|snapshot| whole_summary(snapshot))))
    }

    /// The address of a snapshot's manifest list, and what the snapshot says of itself.
    pub fn recorded(&self, id: i64) -> Option<(String, Summary)> {
        let snapshot = self.metadata().snapshot_by_id(id)?;
        Some((snapshot.manifest_list().to_owned(), whole_summary(snapshot)))
    }

    /// When which snapshot became the current one, oldest first: milliseconds since the epoch, and
    /// the snapshot's id.
    pub fn history(&self) -> Vec<(i64, i64)> {
        let log = self.metadata().history().iter();
        log.map(|entry| (entry.timestamp_ms(), entry.snapshot_id)).collect()
    }

    /// Branches and tags, by name.
    pub fn refs(&self) -> Vec<RefInfo> {
        self.inner.refs.clone()
    }

    /// The snapshot that `version` names: a branch or tag, or a snapshot's id.
    ///
    /// # Errors
    /// `lake.not_found`, with what there is in the hint.
    pub fn resolve(&self, version: &str) -> Result<i64> {
        if let Some(found) = self.inner.refs.iter().find(|found| found.name == version) {
            return Ok(found.snapshot_id);
        }
        if let Ok(id) = version.parse::<i64>()
            && self.metadata().snapshot_by_id(id).is_some()
        {
            return Ok(id);
        }
        let names: Vec<&str> =
            self.inner.refs.iter().map(|r| r.name.as_str()).take(NAMES_SHOWN_MAX).collect();
        let newest = self.snapshots().into_iter().rev().take(NAMES_SHOWN_MAX);
        let ids: Vec<String> = newest.map(|snapshot| snapshot.id.to_string()).collect();
        let message = format!("table {} has no version {version:?}", self.name());
        Err(Error::new(ErrorCode::LakeNotFound, message).hint(format!(
            "there are {} and the snapshots {} (newest first)",
            names.join(", "),
            ids.join(", "),
        )))
    }

    /// The columns of a snapshot, or of the table as it is now, and their Arrow layout with
    /// `PARQUET:field_id` metadata at every level.
    ///
    /// # Errors
    /// `lake.not_found` for an unknown snapshot.
    pub fn schema_at(&self, snapshot: Option<i64>) -> Result<(TableSchema, SchemaRef)> {
        let schema = self.iceberg_schema(snapshot)?;
        let columns = if schema.schema_id() == self.metadata().current_schema_id() {
            self.schema()
        } else {
            schema::table_schema(&schema)?
        };
        let arrow = schema::arrow_schema(&columns, &schema);
        Ok((columns, arrow))
    }

    pub(crate) fn iceberg_schema(&self, snapshot: Option<i64>) -> Result<iceberg::spec::SchemaRef> {
        let metadata = self.metadata();
        let Some(id) = snapshot else { return Ok(metadata.current_schema().clone()) };
        let snapshot = metadata.snapshot_by_id(id).ok_or_else(|| {
            let message = format!("table {} has no snapshot {id}", self.name());
            Error::new(ErrorCode::LakeNotFound, message)
        })?;
        snapshot.schema(metadata).map_err(|cause| error::iceberg("find a snapshot's schema", cause))
    }

    pub(crate) fn metadata(&self) -> &TableMetadata {
        self.inner.table.metadata()
    }

    pub(crate) fn state(&self) -> TableState {
        TableState {
            ident: self.inner.table.identifier().clone(),
            metadata: self.inner.table.metadata_ref(),
            metadata_location: self.inner.metadata_location.clone(),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn iceberg(&self) -> &Table {
        &self.inner.table
    }

    fn info(&self, snapshot: &SnapshotRef) -> SnapshotInfo {
        let id = snapshot.snapshot_id();
        let summary = snapshot.summary();
        let number =
            |key: &str| -> Option<u64> { summary.additional_properties.get(key)?.parse().ok() };
        let deleted = number("total-position-deletes").unwrap_or(0);
        let refs = self.inner.refs.iter().filter(|found| found.snapshot_id == id);
        SnapshotInfo {
            id,
            parent: snapshot.parent_snapshot_id(),
            timestamp_ms: snapshot.timestamp_ms(),
            operation: summary.operation.as_str().to_owned(),
            rows: number("total-records").map(|rows| rows.saturating_sub(deleted)),
            files: number("total-data-files"),
            bytes: number("total-files-size"),
            run_id: run_of(snapshot),
            refs: refs.map(|found| found.name.clone()).collect(),
        }
    }
}

pub(crate) fn run_of(snapshot: &Snapshot) -> Option<Uuid> {
    summary(snapshot, Properties::RUN_ID)?.parse().ok()
}

/// The commit that is no run and made the snapshot.
pub(crate) fn commit_of(snapshot: &Snapshot) -> Option<Uuid> {
    summary(snapshot, Properties::COMMIT_ID)?.parse().ok()
}

fn whole_summary(snapshot: &Snapshot) -> Summary {
    let said = snapshot.summary().additional_properties.iter();
    said.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn summary<'a>(snapshot: &'a Snapshot, key: &str) -> Option<&'a str> {
    snapshot.summary().additional_properties.get(key).map(String::as_str)
}

/// The number of a version's tag: `v1`, `v2`, …
pub(crate) fn version_number(name: &str) -> Option<u64> {
    name.strip_prefix('v')?.parse().ok()
}

/// Whether a branch or tag of that name is one that Polder sets by itself.
pub(crate) fn is_reserved(name: &str) -> bool {
    version_number(name).is_some()
        || name.starts_with(KEPT_AS)
        || name == MAIN_BRANCH
        || name == STAGING
}

/// A snapshot, its parent and so on, as far as they are in the table still.
pub(crate) fn ancestors<'a>(
    metadata: &'a TableMetadata,
    snapshot: Option<&'a SnapshotRef>,
) -> impl Iterator<Item = &'a SnapshotRef> {
    std::iter::successors(snapshot, |child| {
        child.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id))
    })
}

/// Whether a snapshot is, or was, the state of `main`: one that was only staged is not.
pub(crate) fn was_main(metadata: &TableMetadata, id: i64) -> bool {
    metadata.history().iter().any(|entry| entry.snapshot_id == id)
        || ancestors(metadata, metadata.current_snapshot()).any(|found| found.snapshot_id() == id)
}

/// Whether `main` was at a snapshot, or a tag keeps it: the log of `main` forgets what came before a
/// state that has expired. A run's snapshot that is on `staging` alone was not audited.
pub(crate) fn was_published(metadata: &TableMetadata, id: i64) -> Result<bool> {
    let tagged = references(metadata)?.into_values().filter(|named| !named.is_branch());
    let mut heads = tagged.filter_map(|named| metadata.snapshot_by_id(named.snapshot_id));
    Ok(was_main(metadata, id)
        || heads.any(|head| {
            ancestors(metadata, Some(head)).any(|ancestor| ancestor.snapshot_id() == id)
        }))
}

/// The checkpoint that the rows of `main` have reached.
///
/// The property is the checkpoint of the last commit of ours. It tells nothing if another engine has
/// moved `main` behind that commit since; then the checkpoint is the one in the summary of the
/// nearest ancestor. An ancestor that is gone was expired, which moves nothing.
pub(crate) fn checkpoint_text(metadata: &TableMetadata) -> Option<&str> {
    let properties = metadata.properties();
    let property = properties.get(Properties::CHECKPOINT).map(String::as_str);
    // Tables of earlier versions do not say which snapshot it belongs to.
    let at = properties.get(Properties::CHECKPOINT_AT).and_then(|text| At::parse(text));
    let Some(at) = at else { return property };
    let mut oldest = None;
    for ancestor in ancestors(metadata, metadata.current_snapshot()) {
        if ancestor.snapshot_id() == at.snapshot_id {
            return property;
        }
        if ancestor.sequence_number() < at.sequence_number {
            return snapshot_checkpoint(metadata, ancestor);
        }
        oldest = Some(ancestor);
    }
    property.filter(|_| oldest.is_some_and(|oldest| oldest.parent_snapshot_id().is_some()))
}

/// The checkpoint that the rows of a snapshot have reached, where a summary says it.
pub(crate) fn snapshot_checkpoint<'a>(
    metadata: &'a TableMetadata,
    snapshot: &'a SnapshotRef,
) -> Option<&'a str> {
    summary(last_run(metadata, snapshot)?, Properties::CHECKPOINT)
}

/// The last snapshot of a run that a snapshot builds on, or is.
pub(crate) fn last_run<'a>(
    metadata: &'a TableMetadata,
    snapshot: &'a SnapshotRef,
) -> Option<&'a SnapshotRef> {
    ancestors(metadata, Some(snapshot)).find(|ancestor| run_of(ancestor).is_some())
}

/// The partition spec that a snapshot of ours was written for.
pub(crate) fn spec_id(snapshot: &Snapshot) -> Option<i32> {
    summary(snapshot, Properties::SPEC_ID)?.parse().ok()
}

/// Whether `now` is `before` plus, at most, what other engines have changed: the same table, no run
/// in between, and `main` not moved to another state.
pub(crate) fn follows(now: &TableMetadata, before: &TableMetadata) -> bool {
    let (new, old) = (Properties(now.properties()), Properties(before.properties()));
    descends(now, before)
        && new.run_ids() == old.run_ids()
        && new.rollbacks() == old.rollbacks()
        && checkpoint_text(now) == checkpoint_text(before)
}

/// Whether `now` is the same table as `before`, and what `main` was is among its ancestors.
pub(crate) fn descends(now: &TableMetadata, before: &TableMetadata) -> bool {
    now.uuid() == before.uuid()
        && before.current_snapshot_id().is_none_or(|id| {
            ancestors(now, now.current_snapshot()).any(|ancestor| ancestor.snapshot_id() == id)
        })
}

/// Branches and tags by name. The crate offers no list of them, but its JSON has them.
pub(crate) fn references(metadata: &TableMetadata) -> Result<BTreeMap<String, SnapshotReference>> {
    #[derive(Deserialize)]
    struct Json {
        #[serde(default)]
        refs: BTreeMap<String, SnapshotReference>,
    }
    let failed = |cause: serde_json::Error| {
        Error::new(ErrorCode::LakeCorrupt, "cannot read the table's references").caused_by(cause)
    };
    let json = serde_json::to_vec(metadata).map_err(failed)?;
    Ok(serde_json::from_slice::<Json>(&json).map_err(failed)?.refs)
}

fn ref_infos(metadata: &TableMetadata) -> Result<Vec<RefInfo>> {
    let refs = references(metadata)?.into_iter().map(|(name, found)| RefInfo {
        name,
        snapshot_id: found.snapshot_id,
        kind: if found.is_branch() { RefKind::Branch } else { RefKind::Tag },
    });
    Ok(refs.collect())
}
