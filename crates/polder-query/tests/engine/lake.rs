//! A lake in a temporary folder with an engine over it.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use polder_core::{Authorized, Checkpoint, Engine, OrgId, Principal, Result, Session, TableSchema};
use polder_lake::{
    CatalogSettings, Committed, Lake, LakeSettings, RunSummary, StageKind, StageRequest,
};
use polder_query::{DataFusionEngine, DataFusionSettings};
use tempfile::TempDir;
use uuid::Uuid;

const MIB: usize = 1024 * 1024;

pub(crate) struct TestLake {
    pub(crate) lake: Lake,
    pub(crate) engine: DataFusionEngine,
    folder: TempDir,
}

/// A table's content: columns in the order of the schema.
pub(crate) struct Rows<'a> {
    pub(crate) org: &'a str,
    pub(crate) table: &'a str,
    pub(crate) schema: &'a TableSchema,
    pub(crate) partition: &'a [&'a str],
    /// Each becomes at least one data file.
    pub(crate) parts: Vec<Vec<ArrayRef>>,
}

pub(crate) fn org(id: &str) -> OrgId {
    id.parse().expect("an org id")
}

fn operator_of(id: &str) -> Authorized<OrgId> {
    Principal::Operator.authorize(&org(id)).expect("the operator may")
}

pub(crate) fn session(principal: Principal) -> Session {
    Session {
        principal,
        rows_max: None,
        memory_bytes_max: 256 * MIB,
        snapshots: std::collections::BTreeMap::default(),
        pushdown: true,
    }
}

impl TestLake {
    pub(crate) async fn new() -> Self {
        Self::with_memory(512 * MIB).await
    }

    pub(crate) async fn with_memory(memory_bytes: usize) -> Self {
        let folder = TempDir::new().expect("a folder");
        let catalog = format!("sqlite://{}", folder.path().join("catalog.db").display());
        let settings = LakeSettings {
            warehouse: folder.path().join("lake").display().to_string(),
            catalog: CatalogSettings::Sql(catalog.into()),
            s3: None,
        };
        let lake = Lake::open(settings).await.expect("a lake");
        let spill_dir = folder.path().join("spill");
        let settings = DataFusionSettings { memory_bytes, threads: 2, spill_dir };
        let engine = DataFusionEngine::new(&lake, settings).expect("an engine");
        Self { lake, engine, folder }
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub(crate) async fn replace(&self, rows: Rows<'_>) -> Committed {
        self.write(rows, StageKind::Replace).await
    }

    pub(crate) async fn append(&self, rows: Rows<'_>) -> Committed {
        self.write(rows, StageKind::Append).await
    }

    async fn write(&self, rows: Rows<'_>, kind: StageKind) -> Committed {
        let request = StageRequest {
            run_id: Uuid::new_v4(),
            schema: rows.schema.clone(),
            partition: rows.partition.iter().map(|p| p.parse().expect("a field")).collect(),
            sort: None,
            kind,
            target_file_bytes: 128 * MIB as u64,
            memory_bytes: 64 * MIB,
        };
        let stage =
            self.lake.stage(&operator_of(rows.org), rows.table, request).await.expect("a stage");
        let (mut files, mut count) = (Vec::new(), 0);
        for columns in rows.parts {
            let batch = RecordBatch::try_new(rows.schema.to_arrow(), columns).expect("a batch");
            count += batch.num_rows() as u64;
            let mut writer = stage.writer();
            writer.write(batch).await.expect("written");
            files.extend(writer.finish().await.expect("finished"));
        }
        let summary = RunSummary { rows: count, ..RunSummary::default() };
        stage.commit(files, &Checkpoint::default(), summary).await.expect("committed")
    }

    /// The batches an operator gets.
    pub(crate) async fn batches(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.batches_for(sql, &session(Principal::Operator)).await
    }

    pub(crate) async fn batches_for(
        &self,
        sql: &str,
        session: &Session,
    ) -> Result<Vec<RecordBatch>> {
        self.engine.query(sql, session).await?.batches.try_collect().await
    }

    /// The rows an operator gets, as text: `1|a` and `2|` per line.
    pub(crate) async fn text(&self, sql: &str) -> Result<String> {
        self.text_for(sql, &session(Principal::Operator)).await
    }

    pub(crate) async fn text_for(&self, sql: &str, session: &Session) -> Result<String> {
        let mut lines = Vec::new();
        for batch in self.batches_for(sql, session).await? {
            let options = FormatOptions::default();
            let formats: Vec<_> = batch
                .columns()
                .iter()
                .map(|column| ArrayFormatter::try_new(column, &options).expect("printable"))
                .collect();
            for row in 0..batch.num_rows() {
                let cells: Vec<_> = formats.iter().map(|f| f.value(row).to_string()).collect();
                lines.push(cells.join("|"));
            }
        }
        Ok(lines.join("\n"))
    }

    /// Data files the query scans, of all those of its (single) table.
    pub(crate) async fn files(&self, sql: &str) -> (u32, u32) {
        let plan = self.text(&format!("EXPLAIN {sql}")).await.expect("a plan");
        let Some((_, note)) = plan.split_once("files=") else { return (0, 0) };
        let numbers: Vec<u32> = note
            .split_whitespace()
            .filter_map(|word| word.trim_matches(',').parse().ok())
            .collect();
        (numbers[0], numbers[1])
    }
}

pub(crate) fn array(values: impl arrow::array::Array + 'static) -> ArrayRef {
    Arc::new(values)
}
