//! All documents of one read come from one state, and a plan keeps it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::doc;
use polder_core::Source;
use tokio::task::JoinSet;

use super::support::Database;
use super::swap::Swap;
use crate::reading::{Vary, drain, read, request};

#[tokio::test]
async fn a_plan_keeps_the_documents_as_they_were() {
    let database = Database::new().await;
    database.insert("t", (0..100).map(|n| doc! { "_id": n, "v": "old" }).collect()).await;
    let source = database.source();
    let plan = source.plan(request("t").splits(4)).await.expect("plan");
    let documents = database.collection("t");
    documents.update_many(doc! {}, doc! { "$set": { "v": 7_i32 } }).await.expect("update");
    documents.delete_one(doc! { "_id": 1_i32 }).await.expect("delete");
    database.insert("t", vec![doc! { "_id": 100_i32 }]).await;
    let found = drain(plan).await.expect("read");
    let ids: Vec<_> = (0..100).map(|n: i32| n.to_string()).collect();
    assert_eq!(found.shown("_id"), ids);
    assert!(found.shown("v").iter().all(|value| value == "old"));
    let now = read(&source, request("t")).await.expect("read");
    assert_eq!((now.rows.num_rows(), now.types().as_str()), (100, "_id int, v int"));
}

#[tokio::test]
async fn a_server_without_snapshots_is_read_once_with_a_warning() {
    let database = Database::new().await;
    database.insert("t", (0..100).map(|n| doc! { "_id": n }).collect()).await;
    // By this the server says which snapshot it has read.
    let older = Swap::renamed("atClusterTime", "atSomeOther__").await;
    let asked = request("t");
    let progress = asked.progress.clone();
    let found = read(&older.source(&database), asked).await.expect("read");
    assert_eq!((found.rows.num_rows(), found.snapshot.as_deref()), (100, None));
    assert!(found.warnings[0].contains("no snapshot"), "{:?}", found.warnings);
    assert_eq!(progress.snapshot().rows_read, 100, "the first attempt does not count");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_sees_one_state_while_documents_change() {
    let database = Database::new().await;
    let filler = "x".repeat(2_000);
    // The counters are the first and the last document: several batches of the server lie between.
    let document = |n: i32| doc! { "_id": n, "count": 0_i64, "f": &filler };
    database.insert("t", (0..20_000).map(document).collect()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writer = JoinSet::new();
    let (documents, stopped) = (database.collection("t"), stop.clone());
    writer.spawn(async move {
        let mut steps = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            for id in [0, 19_999] {
                let count = doc! { "$inc": { "count": 1_i64 } };
                documents.update_one(doc! { "_id": id }, count).await.expect("update");
            }
            steps += 1;
        }
        steps
    });
    let source = database.source();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let found =
            read(&source, request("t").columns(&["_id", "count", "f"])).await.expect("read");
        assert_eq!(found.rows.num_rows(), 20_000);
        assert!(found.snapshot.as_ref().expect("a snapshot").starts_with("cluster time "));
        assert!(found.warnings.is_empty(), "{:?}", found.warnings);
        let counts = found.shown("_id").into_iter().zip(found.shown("count"));
        let counts: HashMap<String, String> = counts.collect();
        let count = |id: &str| counts[id].parse::<i64>().expect("a number");
        seen.push((count("0"), count("19999")));
    }
    stop.store(true, Ordering::Relaxed);
    let steps = writer.join_next().await.expect("a writer").expect("steps");
    assert!(steps > 0, "nothing changed meanwhile");
    for (first, last) in seen {
        assert!(
            (0..=1).contains(&(first - last)),
            "{first} and {last} were never at the same time"
        );
    }
}
