//! Reads of some documents, by a schema that was learnt from all of them.

use std::sync::Arc;

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use futures::TryStreamExt;
use polder_core::{CmpOp, Learnt, Literal, PartPlan, PartRequest, Predicate, ReadRequest, Source};
use polder_sources::mongodb::MongodbSource;

use super::support::Database;
use crate::reading::{Read, Vary, drain, request};

/// Documents that differ in `n`.
async fn numbered(database: &Database, documents: i32) -> Arc<Learnt> {
    let document = |i: i32| {
        doc! { "_id": ObjectId::new(), "n": i, "s": format!("Zoë {i}"), "big": i64::from(i) << 40 }
    };
    database.insert("t", (0..documents).map(document).collect()).await;
    learn(&database.source()).await
}

async fn learn(source: &MongodbSource) -> Arc<Learnt> {
    let (_, learnt) = source.learn(request("t")).await.expect("all");
    Arc::new(learnt.expect("learnt"))
}

fn number(op: CmpOp, value: i32) -> Predicate {
    Predicate::Cmp { column: "n".to_owned(), op, value: Literal::Int(value) }
}

fn wanting(predicate: Predicate) -> ReadRequest {
    ReadRequest { predicate, ..request("t") }
}

async fn part(
    database: &Database,
    learnt: &Arc<Learnt>,
    read: ReadRequest,
    limit: Option<u64>,
) -> Option<PartPlan> {
    let request = PartRequest { read, learnt: Arc::clone(learnt), limit };
    database.source().plan_part(request).await.expect("planned")
}

/// The part, which has to fit.
async fn fitting(
    database: &Database,
    learnt: &Arc<Learnt>,
    read: ReadRequest,
    limit: Option<u64>,
) -> (Read, String) {
    let part = part(database, learnt, read, limit).await.expect("fits");
    (drain(part.plan).await.expect("rows"), part.statement)
}

#[tokio::test]
async fn the_server_sends_only_what_is_wanted() {
    let database = Database::new().await;
    let learnt = numbered(&database, 500).await;
    assert_eq!(learnt.rows, 500);
    let read = wanting(number(CmpOp::Lt, 3)).columns(&["n", "s"]);
    let progress = Arc::clone(&read.progress);
    let (found, statement) = fitting(&database, &learnt, read, None).await;
    assert_eq!(progress.snapshot().rows_read, 3, "{statement}");
    assert_eq!(found.types(), "n int, s string");
    assert_eq!(found.sorted_texts("s"), ["Zoë 0", "Zoë 1", "Zoë 2"]);
    assert!(statement.contains(r#"{"n":{"$lt":3}}"#), "{statement}");
    let read = request("t");
    let progress = Arc::clone(&read.progress);
    let (found, statement) = fitting(&database, &learnt, read, Some(7)).await;
    assert_eq!((progress.snapshot().rows_read, found.rows.num_rows()), (7, 7), "{statement}");
    assert_eq!(found.schema, learnt.schema);
    // Nobody would see what else is in a column that is not read.
    let read = wanting(number(CmpOp::Lt, 3)).columns(&["s"]);
    let (found, _) = fitting(&database, &learnt, read, None).await;
    assert_eq!(found.rows.num_rows(), 500);
    let (found, _) = fitting(&database, &learnt, wanting(number(CmpOp::Gt, 999)), None).await;
    assert_eq!((found.splits, found.rows.num_rows()), (0, 0));
}

#[tokio::test]
async fn a_value_of_another_type_is_sent_and_does_not_fit() {
    let database = Database::new().await;
    let learnt = numbered(&database, 20).await;
    let odd = [
        Bson::from("x"),
        Bson::from(7.0),
        Bson::from(7_i64),
        Bson::from(vec![7_i32]),
        Bson::from(Vec::<Bson>::new()),
        Bson::from(doc! { "x": 7_i32 }),
        Bson::from(DateTime::from_millis(7)),
        Bson::from(ObjectId::from_bytes([7; 12])),
        Bson::from(true),
        Bson::Decimal128("7".parse().expect("decimal")),
    ];
    let both = number(CmpOp::Eq, 3).and(Predicate::IsNull("s".to_owned()));
    for value in odd {
        let id = database.collection("t").insert_one(doc! { "n": &value }).await.expect("document");
        for predicate in [number(CmpOp::Eq, 3), number(CmpOp::NotEq, 3), both.clone()] {
            let read = wanting(predicate).columns(&["n", "s"]);
            assert!(part(&database, &learnt, read, None).await.is_none(), "{value}");
        }
        let id = doc! { "_id": id.inserted_id };
        database.collection("t").delete_one(id).await.expect("deleted");
    }
    let (found, _) = fitting(&database, &learnt, wanting(number(CmpOp::Eq, 3)), None).await;
    assert_eq!(found.shown("s"), ["Zoë 3"]);
}

#[tokio::test]
async fn of_all_documents_it_is_seen_what_is_gone() {
    let database = Database::new().await;
    let learnt = numbered(&database, 20).await;
    assert!(part(&database, &learnt, request("t"), None).await.is_some());
    let unset = doc! { "$unset": { "big": "" } };
    database.collection("t").update_many(Document::new(), unset).await.expect("changed");
    assert!(part(&database, &learnt, request("t"), None).await.is_none());
    assert!(part(&database, &learnt, request("t").columns(&["big"]), None).await.is_none());
    assert!(part(&database, &learnt, request("t").columns(&["n", "s"]), None).await.is_some());
}

#[tokio::test]
async fn texts_compare_by_their_bytes_in_a_collection_that_folds_case() {
    let database = Database::new().await;
    let folding = doc! { "create": "t", "collation": { "locale": "en", "strength": 1 } };
    database.run(folding).await;
    let document = |text: &str| doc! { "s": text };
    let texts = ["a", "A", "á", "b", "B", "z", "Z"];
    database.insert("t", texts.map(document).to_vec()).await;
    let learnt = learn(&database.source()).await;
    let cases = [
        (CmpOp::Eq, "a", vec!["a"]),
        (CmpOp::NotEq, "a", vec!["A", "B", "Z", "b", "z", "á"]),
        (CmpOp::Lt, "a", vec!["A", "B", "Z"]),
        (CmpOp::Gt, "b", vec!["z", "á"]),
    ];
    for (op, value, expected) in cases {
        let value = Literal::String(value.to_owned());
        let read = wanting(Predicate::Cmp { column: "s".to_owned(), op, value });
        let (found, statement) = fitting(&database, &learnt, read, None).await;
        assert_eq!(found.sorted_texts("s"), expected, "{statement}");
    }
}

#[tokio::test]
async fn all_documents_are_read_once_for_several_readers() {
    let database = Database::new().await;
    numbered(&database, 100).await;
    let read = request("t").splits(2);
    let progress = Arc::clone(&read.progress);
    let (plan, _) = database.source().learn(read).await.expect("all");
    for _ in 0..2 {
        let mut rows = 0;
        for split in &plan.splits {
            let shared = split.share().expect("can be read again");
            let batches: Vec<_> = shared.read().try_collect().await.expect("rows");
            rows += batches.iter().map(|batch| batch.records.num_rows()).sum::<usize>();
        }
        assert_eq!(rows, 100);
    }
    assert_eq!(progress.snapshot().rows_read, 100);
}
