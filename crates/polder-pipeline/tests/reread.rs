//! Splits whose connection breaks: read again where the source still has the state, from the beginning of
//! the run where it has not. Whatever breaks, each row is there once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use polder_core::{
    Capabilities, ErrorCode, Field, LakeType, ReadPlan, ReadRequest, Result, Source, SourceTable,
    TableSchema,
};
use polder_pipeline::Outcome;
use polder_sources::memory::{MemorySource, MemoryTable};
use serde_json::json;

use crate::support::Scratch;

const ROWS_EACH: i64 = 100;

/// So many batches of numbers, and after how many of them reading breaks off.
fn table(batches: i64, fail_after: Option<usize>, again: bool) -> MemoryTable {
    let schema = TableSchema::new(vec![Field::new("id", LakeType::Long)]);
    let batch = |number: i64| {
        let first = number * ROWS_EACH;
        let ids: Arc<dyn Array> = Arc::new((first..first + ROWS_EACH).collect::<Int64Array>());
        RecordBatch::try_new(schema.to_arrow(), vec![ids]).expect("batch")
    };
    MemoryTable {
        batches: (0..batches).map(batch).collect(),
        schema: schema.clone(),
        key: vec!["id".to_owned()],
        fail_after,
        again,
        ..MemoryTable::default()
    }
}

async fn ids(scratch: &Scratch) -> Vec<i64> {
    let rows = scratch.rows().await;
    let ids = rows.column_by_name("id").expect("id").as_primitive::<Int64Type>();
    let mut ids = ids.values().to_vec();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn a_split_that_breaks_is_read_again_and_the_others_stay() {
    for mode in ["full_refresh", "append", "merge"] {
        for fail_after in [0, 3, 5] {
            let spec = json!({ "mode": mode, "key": ["id"], "cursor": "id" });
            let scratch = Scratch::new(spec).await;
            scratch.put(table(6, Some(fail_after), true));
            let report = scratch.run().await;
            let rows = 6 * ROWS_EACH as u64;
            let counts = (report.attempts, report.rows_read, report.rows_written);
            assert_eq!(counts, (1, rows, rows), "{mode}, {fail_after}");
            assert!(ids(&scratch).await.into_iter().eq(0..6 * ROWS_EACH), "{mode}, {fail_after}");
            let told = report.warnings.iter().filter(|text| text.contains("was read again"));
            assert!(told.count() > 0, "{mode}, {fail_after}: {:?}", report.warnings);
            assert_eq!(scratch.data_files(), report.files, "{mode}, {fail_after}: files are left");
        }
    }
}

#[tokio::test]
async fn rows_since_a_checkpoint_are_not_read_again_in_part() {
    let spec = json!({ "mode": "append", "key": ["id"], "cursor": "id" });
    let scratch = Scratch::new(spec).await;
    scratch.put(table(2, None, true));
    scratch.run().await;
    // Rows that are recognised are so once.
    scratch.put(table(5, Some(2), true));
    assert_eq!(scratch.fails().await.code(), ErrorCode::SourceUnavailable);
    scratch.put(table(5, None, true));
    assert_eq!(scratch.run().await.outcome, Outcome::Append);
    assert!(ids(&scratch).await.into_iter().eq(0..5 * ROWS_EACH));
}

/// Breaks off once, and has lost its state then.
struct Restarting {
    tables: MemorySource,
    restarted: AtomicBool,
}

#[async_trait]
impl Source for Restarting {
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

    async fn plan(&self, mut request: ReadRequest) -> Result<ReadPlan> {
        if !self.restarted.swap(true, Ordering::SeqCst) {
            "broken".clone_into(&mut request.from);
        }
        self.tables.plan(request).await
    }
}

#[tokio::test]
async fn a_source_that_lost_its_state_is_read_from_the_beginning_and_the_report_says_so() {
    let scratch = Scratch::new(json!({ "mode": "full_refresh" })).await;
    let tables = MemorySource::new();
    tables.put("broken", table(4, Some(2), false));
    tables.put("t", table(5, None, false));
    let source = Restarting { tables, restarted: AtomicBool::new(false) };
    let report = scratch.run_from(&source).await;
    let rows = 5 * ROWS_EACH as u64;
    assert_eq!((report.attempts, report.rows_read), (2, rows));
    assert!(ids(&scratch).await.into_iter().eq(0..5 * ROWS_EACH));
    assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
    assert!(report.warnings[0].contains("begun anew after"), "{:?}", report.warnings);
    assert_eq!(scratch.data_files(), report.files, "files of the first attempt are left");
}
