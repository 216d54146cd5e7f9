//! A table of many types in PostgreSQL, or one of another source, loaded into a lake of its own, and the means
//! to damage what the lake has.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use futures::TryStreamExt;
use polder_core::spec::TableSpec;
use polder_core::validation::{CheckName, Verdict};
use polder_core::{Authorized, OrgId, Principal, RunProgress, Source};
use polder_lake::{
    CatalogSettings, Lake, LakeSettings, LakeTable, Predicate, ScanRequest, StageKind, StageRequest,
};
use polder_pipeline::{
    IngestLimits, IngestReport, IngestRequest, ValidateRequest, ValidationReport, Verdicts, ingest,
    validate, validate_and_keep,
};
use polder_sources::postgres::PostgresSource;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::service::Database;

/// Rows of org 1, with ids from 1; others of org 2 follow.
pub(super) const ROWS: i32 = 600;

pub(super) const TABLE: &str = "
CREATE TYPE mood AS ENUM ('low', 'high');
CREATE TABLE deal (
    id int PRIMARY KEY,
    org_id text NOT NULL,
    name text,
    note text,
    code char(5),
    mood mood,
    amount numeric(18,2),
    free numeric,
    price float8,
    ratio float4,
    big bigint,
    active boolean,
    born date,
    opening time,
    at timestamp,
    span interval,
    tags text[],
    sizes numeric(6,3)[],
    doc jsonb,
    address inet,
    data bytea,
    token uuid,
    updated_at timestamptz NOT NULL
);
INSERT INTO deal SELECT i, CASE WHEN i <= 600 THEN '1' ELSE '2' END,
    'Zoë ' || i || E'\\r\\n', CASE i % 3 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'note ' || i END,
    'ab' || i % 10, (CASE WHEN i % 2 = 0 THEN 'low' ELSE 'high' END)::mood,
    i * 1.37, ((i * 1.5)::text || '0')::numeric,
    CASE i WHEN 7 THEN float8 'NaN' WHEN 8 THEN float8 '-0' ELSE i::float8 / 7 END,
    i / 3.0, 9007199254740993 + i, i % 2 = 0, date '1999-12-30' + i,
    time '08:00' + i * interval '1.000001 second', timestamp '1999-12-31 23:59:59.999999' + i * interval '1 hour',
    make_interval(months => i, days => -i, secs => i * 0.000001),
    CASE i % 4 WHEN 0 THEN NULL WHEN 1 THEN '{}' ELSE ARRAY['a' || i, NULL, 'ü,\"'] END,
    ARRAY[i / 8.0, NULL], jsonb_build_object('b', i, 'a', ARRAY['é', NULL]),
    ('10.0.0.' || i % 250)::inet, decode(lpad(to_hex(i), 8, '0'), 'hex'),
    ('00000000-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid,
    timestamptz '2026-01-01' + i * interval '1 hour'
FROM generate_series(1, 900) i;
";

pub(super) struct Proof<D = Database> {
    pub(super) database: D,
    pub(super) folder: TempDir,
    pub(super) spec: TableSpec,
    pub(super) source: Arc<dyn Source>,
    pub(super) org: Authorized<OrgId>,
    pub(super) lake: Lake,
}

impl Proof {
    /// A lake with the table, loaded. `mode`: `full_refresh`, `append` or `merge`.
    pub(super) async fn new(mode: &str) -> Self {
        let database = Database::new();
        database.sql(TABLE);
        Self::of(database, &spec(mode)).await
    }

    /// The same with a table of one's own.
    pub(super) async fn of(database: Database, spec: &Value) -> Self {
        let source = PostgresSource::open("revdb", database.url().into()).unwrap();
        Self::over(database, Arc::new(source), spec).await
    }
}

impl<D> Proof<D> {
    /// The same with a table of another source.
    pub(super) async fn over(database: D, source: Arc<dyn Source>, spec: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let org: OrgId = "1".parse().unwrap();
        let proof = Self {
            lake: open(&folder).await,
            folder,
            spec: serde_json::from_value(spec.clone()).unwrap(),
            source,
            org: Principal::Operator.authorize(&org).unwrap(),
            database,
        };
        proof.load().await;
        proof
    }

    /// Opens the lake anew, so that nothing is remembered of it.
    pub(super) async fn reopen(&mut self) {
        self.lake = open(&self.folder).await;
    }

    pub(super) fn limits() -> IngestLimits {
        IngestLimits {
            splits: NonZeroUsize::new(2).unwrap(),
            memory_bytes: 64 << 20,
            connections: None,
        }
    }

    /// Loads the table anew, in full.
    pub(super) async fn load(&self) -> IngestReport {
        self.ingest(true).await
    }

    pub(super) async fn ingest(&self, full_refresh: bool) -> IngestReport {
        let request = IngestRequest {
            org: self.org.clone(),
            run_id: Uuid::new_v4(),
            table: self.spec.clone(),
            full_refresh,
            limits: Self::limits(),
            progress: Arc::new(RunProgress::default()),
            engine: None,
            importer: None,
            dry_run: false,
            cancel: CancellationToken::new(),
        };
        ingest(&self.lake, &*self.source, &request).await.unwrap()
    }

    pub(super) async fn validate(&self) -> ValidationReport {
        self.try_validate().await.unwrap()
    }

    pub(super) async fn try_validate(&self) -> polder_core::Result<ValidationReport> {
        validate(&self.lake, &*self.source, &self.request(), &Verdicts::default()).await
    }

    /// As servers do it: knowing what was said before, and remembering what is said.
    pub(super) async fn validate_and_keep(&self) -> ValidationReport {
        validate_and_keep(&self.lake, &*self.source, &self.request()).await.unwrap()
    }

    fn request(&self) -> ValidateRequest {
        ValidateRequest {
            org: self.org.clone(),
            table: self.spec.clone(),
            limits: Self::limits(),
            fresh_within: Duration::from_hours(1),
            engine: None,
            progress: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }

    pub(super) async fn table(&self) -> LakeTable {
        self.lake.table(&self.org, &self.spec.name).await.unwrap().unwrap()
    }

    /// All rows that the lake has, by id.
    pub(super) async fn rows(&self) -> RecordBatch {
        let table = self.table().await;
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let batches: Vec<RecordBatch> =
            table.read(scan).await.unwrap().try_collect().await.unwrap();
        concat_batches(&table.schema().to_arrow(), &batches).unwrap()
    }

    /// Puts other rows in the place of the lake's, as a rewrite of files that goes wrong would.
    pub(super) async fn replace(&self, rows: &[RecordBatch]) {
        let table = self.table().await;
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let old = table.plan(scan).await.unwrap().files.into_iter().map(|file| file.path);
        let stage = StageRequest {
            run_id: Uuid::new_v4(),
            schema: table.schema(),
            partition: table.partition(),
            sort: None,
            kind: StageKind::Files,
            target_file_bytes: 128 << 20,
            memory_bytes: 64 << 20,
        };
        let stage = self.lake.stage_on(&table, stage).unwrap();
        let mut writer = stage.writer();
        for batch in rows {
            writer.write(batch.clone()).await.unwrap();
        }
        let files = writer.finish().await.unwrap();
        stage.rewrite_files(old.collect(), files).await.unwrap();
    }

    /// The data files of the table as it is, on disk.
    pub(super) async fn data_files(&self) -> Vec<std::path::PathBuf> {
        let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
        let files = self.table().await.plan(scan).await.unwrap().files;
        files.into_iter().map(|file| file.path.replacen("file://", "", 1).into()).collect()
    }
}

async fn open(folder: &TempDir) -> Lake {
    let path = folder.path().to_str().unwrap();
    let settings = LakeSettings {
        warehouse: format!("{path}/lake"),
        catalog: CatalogSettings::Sql(format!("sqlite://{path}/catalog.db").into()),
        s3: None,
    };
    Lake::open(settings).await.unwrap()
}

pub(super) fn spec(mode: &str) -> Value {
    json!({
        "name": "deal", "source": "revdb", "from": "public.deal", "filter": "org_id = {org}",
        "mode": mode, "cursor": "updated_at", "key": ["id"], "partition": ["month(updated_at)"],
    })
}

/// The checks that failed, as `values amount`; the content's and the count's, which follow from
/// others, are left out.
pub(super) fn failed(report: &ValidationReport) -> BTreeSet<String> {
    let failed = report.checks.iter().filter(|check| check.verdict == Verdict::Failed);
    let of_themselves =
        failed.filter(|check| !matches!(check.check, CheckName::Content | CheckName::RowCount));
    let name = |check: &polder_core::validation::Check| match &check.column {
        Some(column) => format!("{} {column}", check.check),
        None => check.check.to_string(),
    };
    of_themselves.map(name).collect()
}

/// All keys that checks named.
pub(super) fn samples(report: &ValidationReport) -> BTreeSet<String> {
    report.checks.iter().flat_map(|check| check.samples.clone()).collect()
}
