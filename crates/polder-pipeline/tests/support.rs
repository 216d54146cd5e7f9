//! A lake of its own, and one-line runs over tables in memory.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use futures::TryStreamExt;
use polder_core::spec::TableSpec;
use polder_core::{Authorized, Error, OrgId, Principal, Result, Source};
use polder_lake::{CatalogSettings, Lake, LakeSettings, LakeTable, Predicate, ScanRequest};
use polder_pipeline::{IngestLimits, IngestReport, IngestRequest, ingest};
use polder_sources::memory::{MemorySource, MemoryTable};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A lake, a source and one table spec that brings the source's table `t` into the lake's.
pub(crate) struct Scratch {
    pub(crate) lake: Lake,
    pub(crate) source: MemorySource,
    pub(crate) spec: TableSpec,
    pub(crate) memory_bytes: usize,
    folder: TempDir,
}

impl Scratch {
    /// `spec`: what differs from a plain table.
    pub(crate) async fn new(spec: Value) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().to_str().expect("utf-8");
        let settings = LakeSettings {
            warehouse: format!("{path}/lake"),
            catalog: CatalogSettings::Sql(format!("sqlite://{path}/catalog.db").into()),
            s3: None,
        };
        let lake = Lake::open(settings).await.expect("lake");
        let source = MemorySource::new();
        let spec = table_spec(spec);
        Self { lake, source, spec, memory_bytes: 64 << 20, folder }
    }

    pub(crate) fn put(&self, table: MemoryTable) {
        self.source.put("t", table);
    }

    pub(crate) fn request(&self) -> IngestRequest {
        IngestRequest {
            org: org(),
            run_id: Uuid::new_v4(),
            table: self.spec.clone(),
            full_refresh: false,
            limits: IngestLimits {
                splits: NonZeroUsize::new(3).expect("three"),
                memory_bytes: self.memory_bytes,
                connections: None,
            },
            progress: Arc::default(),
            engine: None,
            importer: None,
            dry_run: false,
            cancel: CancellationToken::new(),
        }
    }

    pub(crate) async fn ingest(&self, request: &IngestRequest) -> Result<IngestReport> {
        Box::pin(ingest(&self.lake, &self.source, request)).await
    }

    pub(crate) async fn run(&self) -> IngestReport {
        self.ingest(&self.request()).await.expect("run")
    }

    /// A run over another source than the one in memory.
    pub(crate) async fn run_from(&self, source: &dyn Source) -> IngestReport {
        let request = self.request();
        Box::pin(ingest(&self.lake, source, &request)).await.expect("run")
    }

    pub(crate) async fn fails(&self) -> Error {
        self.ingest(&self.request()).await.expect_err("a run that has to fail")
    }

    /// Below it are the lake and its catalog.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How many data files there are, whoever names them.
    pub(crate) fn data_files(&self) -> usize {
        fn below(folder: &Path) -> usize {
            let entries = std::fs::read_dir(folder).expect("folder");
            let paths = entries.map(|entry| entry.expect("entry").path());
            let count = paths.map(|path| {
                let is_data = path.extension().is_some_and(|ending| ending == "parquet");
                if path.is_dir() { below(&path) } else { usize::from(is_data) }
            });
            count.sum()
        }
        below(self.folder.path())
    }

    pub(crate) async fn table(&self) -> LakeTable {
        self.lake.table(&org(), "t").await.expect("load").expect("table")
    }

    /// All rows of the lake table, in no order.
    pub(crate) async fn rows(&self) -> RecordBatch {
        let table = self.table().await;
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let stream = table.read(scan).await.expect("read");
        let batches: Vec<RecordBatch> = stream.try_collect().await.expect("rows");
        concat_batches(&table.schema().to_arrow(), &batches).expect("one batch")
    }
}

pub(crate) fn org() -> Authorized<OrgId> {
    let org: OrgId = "1".parse().expect("org");
    Principal::Operator.authorize(&org).expect("authorised")
}

fn table_spec(differs: Value) -> TableSpec {
    let mut spec = serde_json::json!({ "name": "t", "source": "memory", "from": "t" });
    let (all, own) = (spec.as_object_mut().expect("map"), differs);
    all.extend(own.as_object().expect("map").clone());
    serde_json::from_value(spec).expect("spec")
}
