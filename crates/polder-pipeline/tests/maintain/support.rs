//! Lakes in temporary folders, and tables of dated rows in them.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::Int64Type;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use polder_core::spec::{PartitionField, TableSpec};
use polder_core::{
    Authorized, Checkpoint, CursorValue, Field, LakeType, OrgId, Principal, Result, TableSchema,
};
use polder_lake::{
    CatalogSettings, Lake, LakeSettings, LakeTable, Predicate, RunSummary, ScanRequest, StageKind,
    StageRequest,
};
use polder_pipeline::{MaintainLimits, MaintainReport, MaintainRequest, Maintenance, maintain};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) const DAY_MICROS: i64 = 86_400_000_000;

/// Places of deleted rows, by file.
pub(crate) type Gone = HashMap<String, Vec<u64>>;

/// A lake of its own, gone with this value.
pub(crate) struct Scratch {
    pub(crate) lake: Lake,
    pub(crate) folder: TempDir,
}

impl Scratch {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().to_str().expect("utf-8");
        let settings = LakeSettings {
            warehouse: format!("{path}/lake"),
            catalog: CatalogSettings::Sql(format!("sqlite://{path}/catalog.db").into()),
            s3: None,
        };
        Self { lake: Lake::open(settings).await.expect("lake"), folder }
    }

    pub(crate) async fn table(&self) -> LakeTable {
        self.lake.table(&org(), "t").await.expect("load").expect("table")
    }

    /// A run that brings these rows.
    pub(crate) async fn load(
        &self,
        kind: StageKind,
        partition: &[PartitionField],
        rows: RecordBatch,
    ) -> Result<()> {
        let count = rows.num_rows() as u64;
        let stage = self.lake.stage(&org(), "t", staging(kind, partition)).await?;
        let mut writer = stage.writer();
        writer.write(rows).await?;
        let files = writer.finish().await?;
        let checkpoint = Checkpoint { cursor: Some(CursorValue::Int(1)), ..Checkpoint::default() };
        stage
            .commit(files, &checkpoint, RunSummary { rows: count, ..RunSummary::default() })
            .await
            .map(drop)
    }

    /// Deletes a row by its place in the file that has it. `gone`: the places deleted before, by file.
    pub(crate) async fn delete(&self, id: i64, gone: &mut Gone) -> Result<()> {
        let table = self.table().await;
        let stage = self.lake.stage_on(&table, staging(StageKind::Files, &table.partition()))?;
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        for file in table.plan(scan).await?.files {
            let rows = table.read_files(&[file.path.clone()].into()).await?;
            let batches: Vec<RecordBatch> = rows.try_collect().await?;
            let found: Vec<i64> = batches.iter().flat_map(ids_of).collect();
            let before = gone.entry(file.path.clone()).or_default();
            let places = (0..file.rows.expect("rows")).filter(|place| !before.contains(place));
            let places: Vec<u64> = places.collect();
            assert_eq!(places.len(), found.len(), "no other rows of it are deleted");
            if let Some(at) = found.iter().position(|found| *found == id) {
                let deletes = stage.write_deletes(&[(file, vec![places[at]])]).await?;
                stage.row_delta(deletes, Vec::new()).await?;
                before.push(places[at]);
                return Ok(());
            }
        }
        panic!("no file has row {id}");
    }

    pub(crate) async fn ids(&self) -> Vec<i64> {
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let rows = self.table().await.read(scan).await.expect("read");
        let batches: Vec<RecordBatch> = rows.try_collect().await.expect("rows");
        let mut ids: Vec<i64> = batches.iter().flat_map(ids_of).collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) async fn data_files(&self) -> usize {
        self.table().await.files(&[], &[]).await.expect("files").files().len()
    }

    pub(crate) async fn maintain(&self, spec: &TableSpec, action: Maintenance) -> MaintainReport {
        maintain(&self.lake, &request(spec, action)).await.expect("maintained")
    }
}

fn staging(kind: StageKind, partition: &[PartitionField]) -> StageRequest {
    StageRequest {
        run_id: Uuid::new_v4(),
        schema: dated(),
        partition: partition.to_vec(),
        sort: None,
        kind,
        target_file_bytes: 128 << 20,
        memory_bytes: 64 << 20,
    }
}

pub(crate) fn org() -> Authorized<OrgId> {
    Principal::Operator.authorize(&"401".parse().expect("org")).expect("authorised")
}

/// A spec of table `t` with these policies, as YAML has them.
pub(crate) fn spec(policies: &serde_json::Value) -> TableSpec {
    let mut spec = serde_json::json!({ "name": "t", "source": "s", "from": "f" });
    let own = spec.as_object_mut().expect("object");
    own.extend(policies.as_object().expect("object").clone());
    serde_json::from_value(spec).expect("spec")
}

pub(crate) fn request(spec: &TableSpec, action: Maintenance) -> MaintainRequest {
    MaintainRequest {
        org: org(),
        table: spec.clone(),
        action,
        now: now(),
        limits: MaintainLimits {
            memory_bytes: 64 << 20,
            workers: NonZeroUsize::new(2).expect("two"),
            cancel: CancellationToken::new(),
        },
        optimizer: None,
        progress: Arc::default(),
        dry_run: false,
    }
}

pub(crate) fn now() -> DateTime<Utc> {
    "2026-11-26T12:00:00Z".parse().expect("now")
}

pub(crate) fn dated() -> TableSchema {
    let field = |name: &str, data_type| Field::new(name, data_type);
    TableSchema::new(vec![field("id", LakeType::Long), field("at", LakeType::Timestamptz)])
}

/// Rows of so many days before [`now`]; `None`: without a time.
pub(crate) fn rows(given: &[(i64, Option<i64>)]) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(given.iter().map(|(id, _)| *id)));
    let now = now().timestamp_micros();
    let times = given.iter().map(|(_, days)| days.map(|days| now - days * DAY_MICROS));
    let times: ArrayRef =
        Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone_utc());
    RecordBatch::try_new(dated().to_arrow(), vec![ids, times]).expect("batch")
}

pub(crate) fn ids_of(batch: &RecordBatch) -> Vec<i64> {
    batch.column_by_name("id").expect("ids").as_primitive::<Int64Type>().values().to_vec()
}
