//! Rows, memory, cancelling.

use std::time::{Duration, Instant};

use arrow::array::{Int64Array, StringArray};
use futures::StreamExt;
use polder_core::{Engine, ErrorCode, Field, LakeType, Principal, Session, TableSchema};

use super::lake::{Rows, TestLake, array, session};

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

/// What a join gives has the texts' memory of all rows it read, and a join that keeps it would count that for each batch.
#[tokio::test]
async fn joins_hold_the_texts_of_their_own_rows() {
    let test = TestLake::new().await;
    let longs = |values: Vec<i64>| array(Int64Array::from(values));
    let names = (0..50_000).map(|id| format!("customer number {id}"));
    let names = array(StringArray::from_iter_values(names));
    let field = |name| Field::new(name, LakeType::Long);
    let customer = TableSchema::new(vec![field("id"), Field::new("name", LakeType::String)]);
    let deal = TableSchema::new(vec![field("id"), field("customer")]);
    let item = TableSchema::new(vec![field("id"), field("deal")]);
    let customers = (0..200_000).map(|id| id * 7_919 % 50_000).collect();
    let tables = [
        ("customer", &customer, vec![longs((0..50_000).collect()), names]),
        ("deal", &deal, vec![longs((0..200_000).collect()), longs(customers)]),
        (
            "item",
            &item,
            vec![longs((0..600_000).collect()), longs((0..600_000).map(|id| id / 3).collect())],
        ),
    ];
    for (table, schema, part) in tables {
        test.replace(Rows { org: "1", table, schema, partition: &[], parts: vec![part] }).await;
    }
    let sql = "SELECT count(*), max(c.name) FROM lake.org_1.customer c \
               JOIN lake.org_1.deal d ON d.customer = c.id JOIN lake.org_1.item i ON i.deal = d.id";
    let found = test.text_for(sql, &operator(None, 28 * MIB)).await.expect("joined");
    assert_eq!(found, "600000|customer number 9999");
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
