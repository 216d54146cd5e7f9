//! Lakes in temporary folders, and one-line ways to fill and read them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use futures::TryStreamExt;
use polder_core::{
    Authorized, Checkpoint, Content, CursorValue, Field, LakeType, OrgId, Principal, Result,
    TableSchema, digest,
};
use polder_lake::{
    CatalogSettings, Committed, Lake, LakeSettings, LakeTable, Predicate, RunSummary, ScanRequest,
    SqlCatalog, Stage, StageKind, StageRequest, StagedFile, Store,
};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) const TARGET_FILE_BYTES: u64 = 128 << 20;
pub(crate) const MEMORY_BYTES: usize = 64 << 20;

/// A lake of its own, gone with this value.
pub(crate) struct Scratch {
    pub(crate) lake: Lake,
    pub(crate) folder: TempDir,
}

impl Scratch {
    pub(crate) fn settings(folder: &TempDir) -> LakeSettings {
        let path = folder.path().to_str().expect("utf-8");
        LakeSettings {
            warehouse: format!("{path}/lake"),
            catalog: CatalogSettings::Sql(format!("sqlite://{path}/catalog.db").into()),
            s3: None,
        }
    }

    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let lake = Lake::open(Self::settings(&folder)).await.expect("lake");
        Self { lake, folder }
    }

    /// A connection of its own to the embedded catalog of these settings.
    pub(crate) async fn catalog(settings: &LakeSettings, store: Store) -> SqlCatalog {
        let CatalogSettings::Sql(url) = &settings.catalog else {
            panic!("not the embedded catalog");
        };
        SqlCatalog::open(url, store).await.expect("catalog")
    }

    /// Every file below the warehouse that ends so.
    pub(crate) fn files(&self, end: &str) -> Vec<String> {
        let mut found = files_below(&self.folder.path().join("lake"));
        found.retain(|path| path.ends_with(end));
        found.sort_unstable();
        found
    }
}

/// Every file below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path.to_str().expect("utf-8").to_owned());
        }
    }
    found
}

pub(crate) fn org(id: &str) -> Authorized<OrgId> {
    let org: OrgId = id.parse().expect("org");
    Principal::Operator.authorize(&org).expect("authorised")
}

pub(crate) fn schema(columns: &[(&str, LakeType)]) -> TableSchema {
    TableSchema::new(columns.iter().map(|(name, t)| Field::new(*name, t.clone())).collect())
}

pub(crate) fn id_and_text() -> TableSchema {
    schema(&[("id", LakeType::Long), ("text", LakeType::String)])
}

/// Rows `ids` with the text `row <id>`.
pub(crate) fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let text: Vec<String> = ids.clone().map(|id| format!("row {id}")).collect();
    batch(
        &id_and_text(),
        vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(StringArray::from(text))],
    )
}

pub(crate) fn batch(schema: &TableSchema, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema.to_arrow(), columns).expect("batch")
}

pub(crate) fn checkpoint(value: i64) -> Checkpoint {
    Checkpoint { cursor: Some(CursorValue::Int(value)), ..Checkpoint::default() }
}

pub(crate) fn request(kind: StageKind, schema: &TableSchema) -> StageRequest {
    StageRequest {
        run_id: Uuid::new_v4(),
        schema: schema.clone(),
        partition: Vec::new(),
        sort: None,
        kind,
        target_file_bytes: TARGET_FILE_BYTES,
        memory_bytes: MEMORY_BYTES,
    }
}

pub(crate) async fn written(stage: &Stage, batches: &[RecordBatch]) -> Vec<StagedFile> {
    let mut writer = stage.writer();
    for batch in batches {
        writer.write(batch.clone()).await.expect("write");
    }
    writer.finish().await.expect("finish")
}

/// What the rows of batches are in all.
pub(crate) fn content(batches: &[RecordBatch]) -> Content {
    let of = |batch: &RecordBatch| Content {
        rows: batch.num_rows() as u64,
        digest: digest::content(batch).expect("digest"),
    };
    batches.iter().map(of).fold(Content::default(), Content::and)
}

pub(crate) fn summary(files: &[StagedFile]) -> RunSummary {
    RunSummary { rows: files.iter().map(StagedFile::rows).sum(), ..RunSummary::default() }
}

/// One whole run.
pub(crate) async fn run(
    lake: &Lake,
    table: &str,
    request: StageRequest,
    batches: &[RecordBatch],
) -> Result<Committed> {
    run_of(lake, (&org("401"), table), request, batches).await
}

/// One whole run into an org's table.
pub(crate) async fn run_of(
    lake: &Lake,
    (org, table): (&Authorized<OrgId>, &str),
    request: StageRequest,
    batches: &[RecordBatch],
) -> Result<Committed> {
    let stage = lake.stage(org, table, request).await?;
    let files = written(&stage, batches).await;
    let summary = RunSummary { content: Some(content(batches)), ..summary(&files) };
    let rows = summary.rows as i64;
    stage.commit(files, &checkpoint(rows), summary).await
}

pub(crate) async fn table(lake: &Lake, name: &str) -> LakeTable {
    table_of(lake, &org("401"), name).await
}

pub(crate) async fn table_of(lake: &Lake, org: &Authorized<OrgId>, name: &str) -> LakeTable {
    lake.table(org, name).await.expect("load").expect("table")
}

pub(crate) async fn read(table: &LakeTable, filter: Predicate) -> RecordBatch {
    read_at(table, None, filter).await
}

pub(crate) async fn read_at(
    table: &LakeTable,
    snapshot: Option<i64>,
    filter: Predicate,
) -> RecordBatch {
    let (columns, _) = table.schema_at(snapshot).expect("schema");
    let stream = table.read(ScanRequest { snapshot, filter, columns: None }).await.expect("read");
    let batches: Vec<RecordBatch> = stream.try_collect().await.expect("rows");
    concat_batches(&columns.to_arrow(), &batches).expect("one batch")
}

/// The values of a long column, sorted.
pub(crate) fn longs(batch: &RecordBatch, column: &str) -> Vec<i64> {
    let array = batch.column_by_name(column).expect("column");
    let array = array.as_any().downcast_ref::<Int64Array>().expect("long");
    let mut values: Vec<i64> = array.iter().flatten().collect();
    values.sort_unstable();
    values
}

pub(crate) async fn ids(table: &LakeTable) -> Vec<i64> {
    longs(&read(table, Predicate::True).await, "id")
}

pub(crate) async fn files_planned(table: &LakeTable, filter: Predicate) -> usize {
    let scan = ScanRequest { snapshot: None, filter, columns: None };
    table.plan(scan).await.expect("plan").files.len()
}

/// A table's properties and snapshot summaries, from its metadata file.
pub(crate) fn metadata(table: &LakeTable) -> serde_json::Value {
    let path = table.metadata_location().strip_prefix("file://").expect("local");
    serde_json::from_slice(&std::fs::read(path).expect("metadata")).expect("json")
}

/// The current snapshot's summary.
pub(crate) fn summary_of(table: &LakeTable) -> BTreeMap<String, String> {
    let metadata = metadata(table);
    let snapshots = metadata["snapshots"].as_array().expect("snapshots");
    let current = &metadata["current-snapshot-id"];
    let found = snapshots.iter().find(|snapshot| &snapshot["snapshot-id"] == current);
    serde_json::from_value(found.expect("current")["summary"].clone()).expect("summary")
}
