//! Groups and first documents that the server makes by itself: the same as when the documents are read, and as
//! over a copy in memory, whatever was written after the collection's columns were learnt.

use std::sync::Arc;

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use polder_core::{Principal, Source};
use polder_sources::memory::MemorySource;
use polder_sources::mongodb::MongodbSource;
use tempfile::TempDir;

use super::super::asked::Asked;
use super::super::pushdown::read;
use super::{BEGIN, Server};

/// Conditions that the server can be told as a whole.
const SAID: &[&str] = &[
    "true",
    "n BETWEEN 10 AND 300",
    "n NOT IN (1, 2, 3) AND big > 1000",
    "n IS NULL",
    "NOT (n > 10) OR n IS NULL",
    "s < 'b'",
    "s LIKE 'a1%' OR s = ''",
    "s IS NOT NULL AND mixed IS NULL",
    "ok IS NOT TRUE",
    "NOT ok",
    "ref > '000000000000000000000180'",
    "at < TIMESTAMPTZ '2024-01-03T00:00:00.0005Z' AND tags IS NOT NULL",
    "n = 99999",
];

/// Conditions that it can be told no more than a part of.
const UNSAID: &[&str] =
    &["ratio > 100.0", "n < 300 AND ratio > 1.0", "mixed = '5'", "s LIKE '%bra'", "amount > 390.5"];

/// What the server is asked for: `{t}` is the collection, `{c}` the condition. Where a limit keeps some of
/// equal rows, they are equal in all that is shown.
const ANSWERED: &[&str] = &[
    "SELECT count(*) FROM {t} WHERE {c}",
    "SELECT count(*), count(n), count(mixed), sum(n), sum(big), min(s), max(at), min(ref) \
     FROM {t} WHERE {c}",
    "SELECT s, ok, count(*), count(ratio), sum(big), min(at), max(_id) FROM {t} WHERE {c} \
     GROUP BY s, ok HAVING count(*) > 1",
    "SELECT DISTINCT n FROM {t} WHERE {c}",
    "SELECT count(DISTINCT n) FROM {t} WHERE {c}",
    "SELECT s, count(*) AS many FROM {t} WHERE {c} GROUP BY s ORDER BY many DESC, s LIMIT 3",
    "SELECT * FROM {t} WHERE {c} ORDER BY at DESC LIMIT 5",
    "SELECT s FROM {t} WHERE {c} ORDER BY s NULLS FIRST LIMIT 60",
    "SELECT n, big FROM {t} WHERE {c} ORDER BY n DESC, ok NULLS FIRST, ref LIMIT 40 OFFSET 3",
    "SELECT s, mixed, o FROM {t} WHERE {c} ORDER BY ok DESC NULLS LAST, big LIMIT 9",
];

/// What it is not asked for: values that it adds, compares or tells apart in another way.
const READ: &[&str] = &[
    "SELECT sum(ratio) FROM {t}",
    "SELECT sum(amount), min(amount) FROM {t}",
    "SELECT avg(n) FROM {t}",
    "SELECT mixed, count(*) FROM {t} GROUP BY mixed",
    "SELECT lower(s), count(*) FROM {t} GROUP BY lower(s)",
    "SELECT s FROM {t} ORDER BY ratio LIMIT 3",
    "SELECT s FROM {t} ORDER BY mixed, _id LIMIT 3",
    "SELECT s FROM {t} ORDER BY n % 7, _id LIMIT 3",
    "SELECT s FROM {t} LIMIT 3",
];

const SHOWN: &str = "SourceAnswer: conversations, aggregate=[";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answered_scanned_and_copied_are_the_same() {
    let server = Server::new().await;
    let source = MongodbSource::new("conversations", server.url.clone().into(), &server.name);
    let copy = MemorySource::new();
    copy.put("emails", read(&source, "emails").await);
    let copy: Arc<dyn Source> = Arc::new(copy);
    let folder = TempDir::new().expect("a folder");
    let copied = Asked::new(folder.path(), "catalog.db", [("mem", copy)]).await;
    server.learn().await;
    for (conditions, is_answered) in [(SAID, true), (UNSAID, false)] {
        for condition in conditions {
            for shape in ANSWERED {
                let here = shape.replace("{c}", condition).replace("{t}", "mem.emails");
                let expected = copied.rows(&here, Principal::Operator, true).await.expect(&here);
                let sql = server.of(shape, condition);
                assert_eq!(server.rows(&sql, true).await.expect(&sql), expected, "{sql}");
                assert_eq!(server.rows(&sql, false).await.expect(&sql), expected, "{sql}");
            }
            let plan = server.plan(&ANSWERED[1].replace("{c}", condition), true).await;
            assert_eq!(plan.contains(SHOWN), is_answered, "{condition}:\n{plan}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_shows_what_the_server_makes_of_the_documents() {
    let server = Server::new().await;
    let first = server.plan("SELECT * FROM {t} ORDER BY at DESC LIMIT 5", true).await;
    assert!(!first.contains("SourceAnswer"), "nothing is known yet:\n{first}");
    server.learn().await;
    for sql in ANSWERED {
        let sql = sql.replace("{c}", "n > 7");
        let plan = server.plan(&sql, true).await;
        let stage = if sql.contains("count") || sql.contains("DISTINCT") {
            r#"{"$group":{"_id":"#
        } else {
            r#"{"$sort":{"x":1,"n0":1,"k0":"#
        };
        for text in [SHOWN, r#"{"$match":{"$or":[{"n":{"$gt":7}}"#, stage] {
            assert!(plan.contains(text), "{sql}: no {text} in\n{plan}");
        }
        assert!(!plan.contains("SourceScan"), "{sql}:\n{plan}");
        let whole = server.plan(&sql, false).await;
        assert!(whole.contains("SourceScan") && !whole.contains("SourceAnswer"), "{whole}");
    }
    server.learn().await;
    let limit = server.plan("SELECT n FROM {t} ORDER BY n LIMIT 4 OFFSET 3", true).await;
    assert!(limit.contains(r#"{"$limit":7}"#), "{limit}");
    for sql in READ {
        let plan = server.plan(sql, true).await;
        assert!(plan.contains("SourceScan") && !plan.contains("SourceAnswer"), "{sql}:\n{plan}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_of_a_new_type_is_not_hidden_in_a_group_or_behind_a_limit() {
    let server = Server::new().await;
    let asked = [
        "SELECT n, count(*) FROM {t} GROUP BY n",
        "SELECT count(*), sum(n), min(n), max(n) FROM {t}",
        "SELECT count(*), count(n) FROM {t} WHERE n > 390",
        "SELECT _id, n FROM {t} ORDER BY n DESC NULLS LAST, _id LIMIT 3",
        "SELECT _id FROM {t} WHERE _id > 5 ORDER BY n, _id LIMIT 3",
    ];
    let values = [
        Bson::from("seven"),
        Bson::from(7.5),
        Bson::from(f64::NAN),
        Bson::from(7_i64),
        Bson::from(1_i64 << 40),
        Bson::Decimal128("7.00".parse().expect("decimal")),
        Bson::from(vec![7]),
        Bson::from(Vec::<Bson>::new()),
        Bson::from(doc! { "x": 7 }),
        Bson::from(DateTime::from_millis(BEGIN)),
        Bson::from(ObjectId::from_bytes([7; 12])),
        Bson::MinKey,
        Bson::Null,
        Bson::from(399),
    ];
    for value in values {
        for sql in asked {
            let sql = server.of(sql, "");
            server.learn().await;
            server.emails().insert_one(doc! { "_id": 1000, "n": &value }).await.expect("new");
            let pushed = server.outcome(&sql, true).await;
            let whole = server.outcome(&sql, false).await;
            server.emails().delete_one(doc! { "_id": 1000 }).await.expect("deleted");
            assert_eq!(pushed, whole, "{value}: {sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_read_again_only_if_one_does_not_fit() {
    let server = Server::new().await;
    let values = [
        (Bson::Null, true),
        (Bson::from(399), true),
        (Bson::from(7_i64), false),
        (Bson::from(vec![7]), false),
    ];
    for (value, fits) in values {
        for sql in
            ["SELECT n, count(*) FROM {t} GROUP BY n", "SELECT s FROM {t} ORDER BY n LIMIT 2"]
        {
            server.learn().await;
            server.emails().insert_one(doc! { "_id": 1000, "n": &value }).await.expect("new");
            let plan = server.plan(sql, true).await;
            server.emails().delete_one(doc! { "_id": 1000 }).await.expect("deleted");
            assert_eq!(plan.contains(SHOWN), fits, "{value}: {plan}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_documents_are_one_row_without_keys_and_none_with_them() {
    let server = Server::new().await;
    server.learn().await;
    let cases: [(&str, &[&str]); 3] = [
        ("SELECT count(*), count(n), sum(n), max(s) FROM {t} WHERE {c}", &["0|0|∅|∅"]),
        ("SELECT n, count(*) FROM {t} WHERE {c} GROUP BY n", &[]),
        ("SELECT n FROM {t} WHERE {c} ORDER BY n LIMIT 3", &[]),
    ];
    for (shape, expected) in cases {
        let plan = server.plan(&shape.replace("{c}", "n = 99999"), true).await;
        assert!(plan.contains(SHOWN), "{plan}");
        let rows = server.rows(&server.of(shape, "n = 99999"), true).await;
        assert_eq!(rows.expect(shape), expected, "{shape}");
    }
    // The sum of nulls alone is null, too.
    let nulls = server.of("SELECT count(*), sum(n), min(n) FROM {t} WHERE n IS NULL", "");
    let rows = server.rows(&nulls, true).await.expect("rows");
    assert_eq!(rows, ["61|∅|∅"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nulls_and_missing_are_one_group_and_one_place_in_an_order() {
    let server = Server::new().await;
    server.emails().delete_many(Document::new()).await.expect("emptied");
    let documents = vec![
        doc! { "_id": 1, "k": Bson::Null, "v": 1 },
        doc! { "_id": 2, "v": 2_i64 },
        doc! { "_id": 3, "k": "a", "v": Bson::Null },
        doc! { "_id": 4, "k": "a" },
        doc! { "_id": 5, "k": "é", "v": 5 },
    ];
    server.emails().insert_many(documents).await.expect("documents");
    server.learn().await;
    let cases: [(&str, &[&str]); 4] = [
        (
            "SELECT k, count(*), count(v), sum(v) FROM {t} GROUP BY k ORDER BY k",
            &["a|2|0|∅", "é|1|1|5", "∅|2|2|3"],
        ),
        ("SELECT _id FROM {t} ORDER BY k NULLS FIRST, _id DESC LIMIT 3", &["2", "1", "4"]),
        ("SELECT _id FROM {t} ORDER BY k DESC NULLS LAST, _id LIMIT 4", &["5", "3", "4", "1"]),
        ("SELECT _id FROM {t} ORDER BY v DESC NULLS LAST, _id LIMIT 5", &["5", "2", "1", "3", "4"]),
    ];
    for (sql, expected) in cases {
        let plan = server.plan(sql, true).await;
        assert!(plan.contains(SHOWN), "{plan}");
        for pushdown in [true, false] {
            let rows = server.rows(&server.of(sql, ""), pushdown).await;
            assert_eq!(rows.expect(sql), expected, "{sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sum_beyond_64_bits_is_what_reading_makes_of_it() {
    let server = Server::new().await;
    let documents = [1000, 1001].map(|id| doc! { "_id": id, "big": i64::MAX });
    server.emails().insert_many(documents).await.expect("documents");
    server.learn().await;
    let shape = "SELECT sum(big) FROM {t} WHERE {c}";
    let sql = server.of(shape, "_id >= 1000");
    let plan = server.plan(&shape.replace("{c}", "_id >= 1000"), true).await;
    assert!(!plan.contains("SourceAnswer"), "{plan}");
    assert_eq!(server.outcome(&sql, true).await, server.outcome(&sql, false).await);
    let one = server.of(shape, "_id = 1000");
    assert_eq!(server.rows(&one, true).await.expect("a sum"), [i64::MAX.to_string()]);
    let plan = server.plan(&shape.replace("{c}", "_id = 1000"), true).await;
    assert!(plan.contains(SHOWN), "{plan}");
}
