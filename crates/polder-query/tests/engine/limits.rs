//! Rows, memory, cancelling.

use std::time::{Duration, Instant};

use futures::StreamExt;
use polder_core::{Engine, ErrorCode, Principal, Session};

use super::lake::{TestLake, session};

const MIB: usize = 1024 * 1024;

fn operator(rows_max: Option<u64>, memory_bytes_max: usize) -> Session {
    Session {
        principal: Principal::Operator,
        rows_max,
        memory_bytes_max,
        snapshots: std::collections::BTreeMap::default(),
        pushdown: true,
    }
}

#[tokio::test]
async fn more_rows_than_allowed_are_an_error() {
    let test = TestLake::new().await;
    let sql = "SELECT value FROM generate_series(1, 100000)";
    for (rows_max, ok) in [(99_999, false), (100_000, true)] {
        let outcome = test.batches_for(sql, &operator(Some(rows_max), 64 * MIB)).await;
        match outcome {
            Ok(batches) => {
                assert!(ok);
                assert_eq!(
                    batches.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>(),
                    100_000
                );
            }
            Err(error) => {
                assert!(!ok, "{error}");
                assert_eq!(error.code(), ErrorCode::QueryLimit);
            }
        }
    }
}

#[tokio::test]
async fn memory_is_bounded() {
    let test = TestLake::new().await;
    let hungry = "SELECT array_length(array_agg(value)) FROM generate_series(1, 5000000)";
    let error = test.batches_for(hungry, &operator(None, 8 * MIB)).await.expect_err("too much");
    assert_eq!(error.code(), ErrorCode::QueryLimit, "{error}");
    assert!(error.hint_text().is_some());
    // A sort spills instead.
    let sort = "SELECT max(n) FROM (SELECT value, row_number() OVER (ORDER BY value % 1000, value) n \
                FROM generate_series(1, 2000000))";
    let sorted =
        test.text_for(sort, &operator(None, 48 * MIB)).await.expect("sorted with spilling");
    assert_eq!(sorted, "2000000");
}

#[tokio::test]
async fn dropping_the_stream_cancels() {
    let test = TestLake::with_memory(64 * MIB).await;
    let endless = "SELECT count(*) FROM generate_series(1, 100000000000) a";
    let start = Instant::now();
    for _ in 0..3 {
        // Each takes all memory: the next one only starts when the last one has ended.
        let mut stream =
            test.engine.query(endless, &operator(None, 64 * MIB)).await.expect("a stream");
        let wait = tokio::time::timeout(Duration::from_millis(100), stream.batches.next()).await;
        assert!(wait.is_err(), "the query cannot be done");
        drop(stream);
    }
    let next = test.text_for("SELECT 1", &operator(None, 64 * MIB)).await;
    assert_eq!(next.expect("memory is free again"), "1");
    assert!(start.elapsed() < Duration::from_mins(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_schema_is_known_before_the_rows() {
    let test = TestLake::new().await;
    let session = session(Principal::Operator);
    let stream = test.engine.query("SELECT 1 AS a, 'x' AS \"B c\"", &session).await;
    let stream = stream.expect("a stream");
    let names: Vec<&str> = stream.schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["a", "B c"]);
}
