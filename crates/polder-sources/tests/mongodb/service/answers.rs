//! What the server makes of a collection's documents, by a schema that was learnt from all of them.

use std::sync::Arc;

use arrow::util::display::array_value_to_string;
use bson::{Bson, DateTime, doc};
use futures::TryStreamExt;
use polder_core::subplan::{Aggregate, AggregateFunction, Order, Term};
use polder_core::{
    AnswerRequest, Field, LakeType, Learnt, Predicate, Source, SubPlan, TableSchema,
};

use super::support::Database;
use crate::reading::request;

async fn learn(database: &Database) -> Arc<Learnt> {
    let (_, learnt) = database.source().learn(request("t")).await.expect("all");
    Arc::new(learnt.expect("learnt"))
}

/// All documents with some of their members, by position.
fn table(learnt: &Learnt, columns: &[&str]) -> SubPlan {
    let field = |name: &&str| learnt.schema.field(name).expect(name).clone();
    let columns = columns.iter().map(field).collect();
    SubPlan::Table { from: "t".to_owned(), columns, predicate: Predicate::True }
}

/// How often each value of the column is there.
fn counted(learnt: &Learnt, column: &str) -> SubPlan {
    let (function, argument) = (AggregateFunction::Count, None);
    let rows = Aggregate { function, argument, distinct: false, filter: None };
    let keys = vec![Term::Column(0)];
    SubPlan::Aggregate { input: Box::new(table(learnt, &[column])), keys, aggregates: vec![rows] }
}

/// One row of what is made of the column.
fn one(learnt: &Learnt, column: &str, functions: &[AggregateFunction]) -> SubPlan {
    let of = |function: &AggregateFunction| {
        let argument = Some(Term::Column(0));
        Aggregate { function: *function, argument, distinct: false, filter: None }
    };
    let aggregates = functions.iter().map(of).collect();
    SubPlan::Aggregate { input: Box::new(table(learnt, &[column])), keys: Vec::new(), aggregates }
}

/// The two least values of the column.
fn least(learnt: &Learnt, column: &str) -> SubPlan {
    let order = vec![Order { term: Term::Column(0), descending: false, nulls_first: false }];
    SubPlan::First { input: Box::new(table(learnt, &[column])), order, rows: 2 }
}

/// The rows as `value|value`, sorted.
async fn answer(database: &Database, learnt: &Arc<Learnt>, part: SubPlan) -> Option<Vec<String>> {
    let types = part.columns().expect("exact");
    let fields = types.into_iter().map(|of| Field::new("of the answer", of)).collect();
    let request = AnswerRequest {
        part,
        schema: TableSchema::new(fields),
        learnt: Some(Arc::clone(learnt)),
        read: request(""),
    };
    let answer = database.source().answer(request).await.expect("asked")?;
    assert!(answer.statement.starts_with("aggregate=["), "{}", answer.statement);
    let batches: Vec<_> = answer.split.read().try_collect().await.expect("rows");
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch.records.columns();
        let shown = |row: usize| {
            let cells =
                columns.iter().map(|column| array_value_to_string(column, row).expect("shown"));
            cells.collect::<Vec<_>>().join("|")
        };
        rows.extend((0..batch.records.num_rows()).map(shown));
    }
    assert_eq!(answer.rows_estimated, Some(rows.len() as u64));
    rows.sort();
    Some(rows)
}

#[tokio::test]
async fn texts_are_compared_by_their_bytes_or_not_by_the_server() {
    let database = Database::new().await;
    let texts = ["b", "a", "A", "á", "B", "b"];
    let documents = texts.map(|text| doc! { "s": text, "n": 1_i32 }).to_vec();
    database.insert("t", documents.clone()).await;
    let learnt = learn(&database).await;
    let rows = answer(&database, &learnt, counted(&learnt, "s")).await.expect("fits");
    assert_eq!(rows, ["A|1", "B|1", "a|1", "b|2", "á|1"]);
    let rows = answer(&database, &learnt, least(&learnt, "s")).await.expect("fits");
    assert_eq!(rows, ["A", "B"]);
    let database = Database::new().await;
    let folding = doc! { "create": "t", "collation": { "locale": "en", "strength": 1 } };
    database.run(folding).await;
    database.insert("t", documents).await;
    let learnt = learn(&database).await;
    assert_eq!(answer(&database, &learnt, counted(&learnt, "s")).await, None);
    assert_eq!(answer(&database, &learnt, least(&learnt, "s")).await, None);
    let rows = answer(&database, &learnt, counted(&learnt, "n")).await.expect("fits");
    assert_eq!(rows, ["1|6"]);
}

#[tokio::test]
async fn whole_numbers_of_both_sizes_are_one_key() {
    let database = Database::new().await;
    let values = [Bson::from(1_i32), Bson::from(1_i64), Bson::from(2_i64)];
    database.insert("t", values.map(|n| doc! { "n": n }).to_vec()).await;
    let learnt = learn(&database).await;
    let rows = answer(&database, &learnt, counted(&learnt, "n")).await.expect("fits");
    assert_eq!(rows, ["1|2", "2|1"]);
}

#[tokio::test]
async fn values_that_are_not_null_are_counted_whatever_they_are() {
    let database = Database::new().await;
    let values = [
        Bson::from(vec![1_i32]),
        Bson::from(Vec::<Bson>::new()),
        Bson::from(doc! {}),
        Bson::from(1.5),
        Bson::Null,
        Bson::from("x"),
    ];
    database.insert("t", values.map(|v| doc! { "n": 1_i32, "v": v }).to_vec()).await;
    let learnt = learn(&database).await;
    let part = one(&learnt, "v", &[AggregateFunction::Count]);
    assert_eq!(answer(&database, &learnt, part).await.expect("counted"), ["5"]);
}

#[tokio::test]
async fn a_value_that_does_not_fit_leaves_no_answer() {
    let database = Database::new().await;
    let documents = (0..20_i32).map(|n| doc! { "n": n, "at": DateTime::from_millis(n.into()) });
    database.insert("t", documents.collect()).await;
    let learnt = learn(&database).await;
    let odd = [
        Bson::from("x"),
        Bson::from(7.0),
        Bson::from(7_i64),
        Bson::from(vec![7_i32]),
        Bson::from(Vec::<Bson>::new()),
        Bson::from(doc! { "x": 7_i32 }),
        Bson::from(true),
        Bson::Decimal128("7".parse().expect("decimal")),
        Bson::MaxKey,
    ];
    let extremes = [AggregateFunction::Min, AggregateFunction::Max];
    for value in odd {
        let document = doc! { "n": &value, "at": &value };
        let id = database.collection("t").insert_one(document).await.expect("document");
        for column in ["n", "at"] {
            let parts =
                [counted(&learnt, column), least(&learnt, column), one(&learnt, column, &extremes)];
            for part in parts {
                let found = answer(&database, &learnt, part).await;
                assert_eq!(found, None, "{value} in {column}");
            }
        }
        let id = doc! { "_id": id.inserted_id };
        database.collection("t").delete_one(id).await.expect("deleted");
    }
    let rows = answer(&database, &learnt, least(&learnt, "n")).await.expect("fits");
    assert_eq!(rows, ["0", "1"]);
}

#[tokio::test]
async fn without_knowledge_of_the_documents_nothing_is_answered() {
    let database = Database::new().await;
    database.insert("t", vec![doc! { "n": 1_i32 }]).await;
    let learnt = learn(&database).await;
    let schema =
        TableSchema::new(vec![Field::new("n", LakeType::Int), Field::new("rows", LakeType::Long)]);
    let part = counted(&learnt, "n");
    let request = AnswerRequest { part, schema, learnt: None, read: request("") };
    assert!(database.source().answer(request).await.expect("asked").is_none());
}
