//! One table as one metadata file says it is: schema, snapshots, references, checkpoint.
//!
//! A [`LakeTable`] does not change; load it again to see later commits. Reading rows is in
//! [`crate::scan`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use iceberg::spec::{Schema, SnapshotRef, SnapshotReference, TableMetadata};
use iceberg::table::Table;
use polder_core::spec::PartitionField;
use polder_core::{Checkpoint, Error, ErrorCode, OrgId, Result, TableSchema};
use uuid::Uuid;

use crate::catalog::TableState;
use crate::error;
use crate::schema;
use crate::storage::Store;

/// Runs remembered in a table's properties, newest last.
const RUN_IDS_MAX: usize = 20;
/// Versions named in an error's hint.
const NAMES_SHOWN_MAX: usize = 10;

/// The table properties that are ours. They change in the same commit as the rows.
pub(crate) struct Properties<'a>(pub(crate) &'a HashMap<String, String>);

impl Properties<'_> {
    pub(crate) const SCHEMA: &'static str = "polder.schema";
    pub(crate) const CHECKPOINT: &'static str = "polder.checkpoint";
    pub(crate) const RUN_IDS: &'static str = "polder.run-ids";
    pub(crate) const VERSION: &'static str = "polder.version";
    /// In a snapshot's summary.
    pub(crate) const RUN_ID: &'static str = "polder.run-id";

    pub(crate) fn run_ids(&self) -> Vec<Uuid> {
        let text = self.0.get(Self::RUN_IDS).map(String::as_str).unwrap_or_default();
        text.split(',').filter_map(|id| id.parse().ok()).collect()
    }

    pub(crate) fn checkpoint_text(&self) -> Option<&str> {
        self.0.get(Self::CHECKPOINT).map(String::as_str)
    }

    /// The number of the last version.
    pub(crate) fn version(&self) -> u64 {
        self.0.get(Self::VERSION).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The columns of an Iceberg schema with the marks kept here, where they still fit: another
    /// engine may have changed the table.
    pub(crate) fn schema(&self, schema: &Schema) -> Result<TableSchema> {
        let marks = self.0.get(Self::SCHEMA).and_then(|text| serde_json::from_str(text).ok());
        Ok(schema::with_marks(schema::table_schema(schema)?, marks))
    }

    /// The properties after a run.
    pub(crate) fn after(
        &self,
        run_id: Uuid,
        checkpoint: &Checkpoint,
        columns: &TableSchema,
    ) -> Result<Vec<(String, String)>> {
        let mut ids = self.run_ids();
        ids.push(run_id);
        let ids = &ids[ids.len().saturating_sub(RUN_IDS_MAX)..];
        let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        let columns = serde_json::to_string(columns).map_err(|cause| {
            Error::new(ErrorCode::Internal, "cannot serialise the schema").caused_by(cause)
        })?;
        Ok(vec![
            (Self::SCHEMA.to_owned(), columns),
            (Self::CHECKPOINT.to_owned(), checkpoint.to_json()),
            (Self::RUN_IDS.to_owned(), ids.join(",")),
        ])
    }
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
}

/// One state of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub id: i64,
    pub parent: Option<i64>,
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// `append`, `overwrite`, `replace` or `delete`.
    pub operation: String,
    /// Rows and data files of the whole state, where the writer said so.
    pub rows: Option<u64>,
    pub files: Option<u64>,
    /// The run that made it; `None` for another engine's.
    pub run_id: Option<Uuid>,
    /// The branches and tags that point here.
    pub refs: Vec<String>,
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

impl LakeTable {
    pub(crate) fn new(org: &OrgId, state: TableState, store: &Store) -> Result<Self> {
        let metadata = &state.metadata;
        let columns = Properties(metadata.properties()).schema(metadata.current_schema())?;
        let refs = ref_infos(metadata)?;
        let failed = |cause| error::iceberg("open the table", cause);
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
        Ok(Self { inner: Arc::new(Inner { org, table, metadata_location, columns, refs }) })
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

    /// How new files are partitioned.
    pub fn partition(&self) -> Vec<PartitionField> {
        schema::partition_fields(self.metadata())
    }

    /// How far the table has read its source; `None` if no run of ours wrote it.
    ///
    /// # Errors
    /// `lake.corrupt` if the property cannot be read.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>> {
        let properties = Properties(self.metadata().properties());
        properties.checkpoint_text().map(Checkpoint::from_json).transpose()
    }

    /// The last runs that committed, oldest first.
    pub fn run_ids(&self) -> Vec<Uuid> {
        Properties(self.metadata().properties()).run_ids()
    }

    pub fn current_snapshot(&self) -> Option<SnapshotInfo> {
        self.metadata().current_snapshot().map(|snapshot| self.info(snapshot))
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let mut snapshots: Vec<_> = self.metadata().snapshots().collect();
        snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
        snapshots.into_iter().map(|snapshot| self.info(snapshot)).collect()
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

    pub(crate) fn iceberg(&self) -> &Table {
        &self.inner.table
    }

    fn info(&self, snapshot: &SnapshotRef) -> SnapshotInfo {
        let id = snapshot.snapshot_id();
        let summary = snapshot.summary();
        let number = |key: &str| summary.additional_properties.get(key)?.parse().ok();
        let refs = self.inner.refs.iter().filter(|found| found.snapshot_id == id);
        SnapshotInfo {
            id,
            parent: snapshot.parent_snapshot_id(),
            timestamp_ms: snapshot.timestamp_ms(),
            operation: summary.operation.as_str().to_owned(),
            rows: number("total-records"),
            files: number("total-data-files"),
            run_id: run_of(snapshot),
            refs: refs.map(|found| found.name.clone()).collect(),
        }
    }
}

pub(crate) fn run_of(snapshot: &SnapshotRef) -> Option<Uuid> {
    snapshot.summary().additional_properties.get(Properties::RUN_ID)?.parse().ok()
}

/// Branches and tags by name. The crate offers no list of them, but its JSON has them.
pub(crate) fn references(metadata: &TableMetadata) -> Result<BTreeMap<String, SnapshotReference>> {
    #[derive(serde::Deserialize)]
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
