//! Validation of sources that compute no digests: their rows are read, several splits at a time.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use async_trait::async_trait;
use futures::StreamExt;
use polder_core::validation::{CheckName, Verdict};
use polder_core::{
    BatchStream, Capabilities, Field, LakeType, ReadPlan, ReadRequest, Result, Source, SourceTable,
    Split, TableSchema,
};
use polder_pipeline::{IngestLimits, ValidateRequest, ValidationReport, Verdicts, validate};
use polder_sources::memory::{MemorySource, MemoryTable};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Scratch, org};

/// Batches of one row each: its id, and when it was written.
fn table(rows: impl IntoIterator<Item = (i64, i64)>) -> MemoryTable {
    let fields = ["id", "at"].map(|name| Field::new(name, LakeType::Long));
    let schema = TableSchema::new(fields.to_vec());
    let batch = |(id, at): (i64, i64)| {
        let columns = [id, at].map(|value| Arc::new(Int64Array::from(vec![value])) as ArrayRef);
        RecordBatch::try_new(schema.to_arrow(), columns.to_vec()).expect("batch")
    };
    let batches = rows.into_iter().map(batch).collect();
    MemoryTable { batches, schema: schema.clone(), ..MemoryTable::default() }
}

/// The table `t`, or `all` without a filter; always in four splits.
#[derive(Default)]
struct Shared {
    tables: MemorySource,
    reading: Arc<AtomicUsize>,
    reading_max: Arc<AtomicUsize>,
}

#[async_trait]
impl Source for Shared {
    fn capabilities(&self) -> Capabilities {
        self.tables.capabilities()
    }

    async fn check(&self) -> Result<String> {
        self.tables.check().await
    }

    async fn discover(&self) -> Result<Vec<SourceTable>> {
        self.tables.discover().await
    }

    fn named_in_sql(&self, schema: Option<&str>, table: &str) -> Option<String> {
        self.tables.named_in_sql(schema, table)
    }

    async fn plan(&self, request: ReadRequest) -> Result<ReadPlan> {
        let from = if request.filter.is_some() { "t" } else { "all" };
        let splits_max = NonZeroUsize::new(4).expect("four");
        let request = ReadRequest { from: from.to_owned(), splits_max, ..request };
        let mut plan = self.tables.plan(request).await?;
        let slow = |split| {
            let (reading, reading_max) = (self.reading.clone(), self.reading_max.clone());
            Box::new(Slow { split, reading, reading_max }) as Box<dyn Split>
        };
        plan.splits = plan.splits.into_iter().map(slow).collect();
        Ok(plan)
    }
}

/// A split that takes a while, and counts how many are read at the same time.
struct Slow {
    split: Box<dyn Split>,
    reading: Arc<AtomicUsize>,
    reading_max: Arc<AtomicUsize>,
}

impl Split for Slow {
    fn describe(&self) -> String {
        self.split.describe()
    }

    fn read(self: Box<Self>) -> BatchStream {
        let Self { split, reading, reading_max } = *self;
        let batches = async move {
            let now = reading.fetch_add(1, Ordering::SeqCst) + 1;
            reading_max.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            let batches: Vec<_> = split.read().collect().await;
            reading.fetch_sub(1, Ordering::SeqCst);
            futures::stream::iter(batches)
        };
        Box::pin(futures::stream::once(batches).flatten())
    }
}

async fn scratch() -> Scratch {
    Scratch::new(json!({
        "mode": "append", "cursor": "at", "key": ["id"], "filter": "org = {org}",
    }))
    .await
}

async fn validated(scratch: &Scratch, source: &Shared, parallel: usize) -> ValidationReport {
    let mut table = scratch.spec.clone();
    table.validation.max_parallel = NonZeroUsize::new(parallel);
    let request = ValidateRequest {
        org: org(),
        table,
        limits: IngestLimits {
            splits: NonZeroUsize::new(3).expect("three"),
            memory_bytes: 64 << 20,
            connections: None,
        },
        fresh_within: Duration::from_hours(1),
        engine: None,
        progress: Arc::default(),
        cancel: CancellationToken::new(),
    };
    validate(&scratch.lake, source, &request, &Verdicts::default()).await.expect("validated")
}

fn verdict(report: &ValidationReport, check: CheckName) -> (Verdict, &[String]) {
    let found = report.checks.iter().find(|found| found.check == check).expect("check");
    (found.verdict, &found.samples)
}

#[tokio::test]
async fn as_many_splits_are_read_at_the_same_time_as_may_be() {
    let (scratch, source) = (scratch().await, Shared::default());
    source.tables.put("t", table((0..40).map(|id| (id, id))));
    scratch.run_from(&source).await;
    for (parallel, most) in [(1, 1), (2, 2), (9, 3)] {
        source.reading_max.store(0, Ordering::SeqCst);
        let report = validated(&scratch, &source, parallel).await;
        assert_eq!(report.verdict, Verdict::Verified, "{:#?}", report.checks);
        assert_eq!(report.pending, 1, "the row with the checkpoint's cursor");
        assert_eq!(source.reading_max.load(Ordering::SeqCst), most, "of {parallel} that it may");
    }
}

#[tokio::test]
async fn rows_that_a_run_read_in_spite_of_the_filter_are_told_from_rows_that_went() {
    let (scratch, source) = (scratch().await, Shared::default());
    // 7 is another org's, and 9 was deleted after the run.
    source.tables.put("t", table((0..40).map(|id| (id, id))));
    scratch.run_from(&source).await;
    source.tables.put("t", table((0..40).filter(|id| ![7, 9].contains(id)).map(|id| (id, id))));
    source.tables.put("all", table((0..60).filter(|id| *id != 9).map(|id| (id, id))));
    let report = validated(&scratch, &source, 2).await;
    let (foreign, extra) = (CheckName::OrgFilter, CheckName::ExtraKeys);
    assert_eq!(verdict(&report, foreign), (Verdict::Failed, &["id=7".to_owned()][..]));
    assert_eq!(verdict(&report, extra), (Verdict::Warning, &["id=9".to_owned()][..]));

    // A row that became another org's since, which its cursor says, is gone and no other org's.
    source.tables.put("all", table((0..60).map(|id| (id, if id == 7 { 99 } else { id }))));
    source.tables.put("t", table((0..40).filter(|id| *id != 7).map(|id| (id, id))));
    let report = validated(&scratch, &source, 2).await;
    assert_eq!(verdict(&report, foreign), (Verdict::Verified, &[][..]), "{:#?}", report.checks);
    assert_eq!(verdict(&report, extra), (Verdict::Warning, &["id=7".to_owned()][..]));
}

/// Rows of others that cannot be read as the table's are not held against it.
#[tokio::test]
async fn others_whose_rows_do_not_fit_are_left_out() {
    let (scratch, source) = (scratch().await, Shared::default());
    source.tables.put("t", table((0..40).map(|id| (id, id))));
    scratch.run_from(&source).await;
    source.tables.put("t", table((0..40).filter(|id| *id != 7).map(|id| (id, id))));
    let other = TableSchema::new(vec![Field::new("at", LakeType::Long)]);
    source.tables.put("all", MemoryTable { schema: other, ..MemoryTable::default() });
    let report = validated(&scratch, &source, 1).await;
    assert_eq!(verdict(&report, CheckName::OrgFilter).0, Verdict::Verified);
    assert_eq!(verdict(&report, CheckName::ExtraKeys).0, Verdict::Warning);
}
