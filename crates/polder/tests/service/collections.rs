//! SQL over a collection: the same answers whatever the server leaves out, and whatever was written after
//! the collection's columns were learnt.

mod answers;

use std::sync::Arc;

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, Document, Timestamp, doc};
use mongodb::{Client, Collection};
use polder_core::{Error, Principal, Source};
use polder_sources::mongodb::MongodbSource;
use tempfile::TempDir;

use super::asked::Asked;

const DOCUMENTS: i32 = 400;
/// 2024-01-01, in milliseconds.
const BEGIN: i64 = 1_704_067_200_000;

/// Conditions of every kind: those the server is asked, and those it must not be.
const CONDITIONS: &[&str] = &[
    "true",
    "n = 7",
    "n <> 7",
    "n > 390",
    "n BETWEEN 10 AND 20",
    "n NOT BETWEEN 10 AND 380",
    "n IN (1, 2, 3, 9999)",
    "n NOT IN (1, 2, 3)",
    "n IS NULL",
    "n IS NOT NULL AND n < 9",
    "NOT (n > 10)",
    "n + 1 = 8",
    "n > 395.5",
    "big > 1000000000000",
    "big <= -1",
    "big = 0 OR big IS NULL",
    "s = 'Zebra'",
    "s <> 'Zebra'",
    "s < 'b'",
    "s >= 'é'",
    "s = ''",
    "s IS NULL",
    "s LIKE 'a1%'",
    "s NOT LIKE 'a%'",
    "s LIKE '%bra'",
    "s IN ('Zebra', '漢', 'no')",
    "s NOT IN ('Zebra', '')",
    "lower(s) = 'zebra'",
    "ref = '000000000000000000000007'",
    "ref > '000000000000000000000180'",
    "ref = 'no id'",
    "ref <> 'no id'",
    "ref < 'no id'",
    "ref IN ('000000000000000000000007', 'no id')",
    "ok",
    "NOT ok",
    "ok IS NULL",
    "ok = false",
    "ok IS NOT TRUE",
    "at < TIMESTAMPTZ '2024-01-03T00:00:00Z'",
    "at >= TIMESTAMPTZ '2024-01-15T00:00:00.0005Z'",
    "at = TIMESTAMPTZ '2024-01-01T07:00:00.007Z'",
    "at <> TIMESTAMPTZ '2024-01-01T07:00:00.0075Z'",
    "NOT (at > TIMESTAMPTZ '2024-01-01T07:00:00.007+01:00')",
    "amount > 390.5",
    "amount IS NULL",
    "ratio > 100.0",
    "ratio IS NULL AND n < 50",
    "mixed = '5'",
    "mixed IS NULL",
    "tags IS NULL",
    "array_has(tags, 'a')",
    "o IS NULL",
    "blank IS NULL AND n < 5",
    "blank = 'x'",
    "(n < 5 OR s = 'Zebra') AND NOT (big = 0 OR ok)",
    "n < 5 OR ratio > 100.0",
    "n < 300 AND ratio > 1.0",
    "CASE WHEN n < 10 THEN ok ELSE big > 5 END",
    "coalesce(n, 0) = 0",
    "_id IN (SELECT n FROM {t} WHERE s = 'Zebra')",
];

/// What is asked of the rows: `{t}` is the collection, `{c}` the condition.
const SHAPES: &[&str] = &[
    "SELECT count(*) FROM {t} WHERE {c}",
    "SELECT * FROM {t} WHERE {c}",
    "SELECT _id, s, at FROM {t} WHERE {c} ORDER BY _id LIMIT 7",
    "SELECT ok, count(*), min(n), max(s), sum(big) FROM {t} WHERE {c} GROUP BY ok",
    "SELECT a._id, b.s FROM {t} a JOIN {t} b ON a._id = b.n WHERE a._id IN \
     (SELECT _id FROM {t} WHERE {c})",
];

fn document(i: i32) -> Document {
    let mut id = [0; 12];
    id[10..].copy_from_slice(&u16::try_from(i).expect("small").to_be_bytes());
    let amount: Decimal128 = format!("{i}.25").parse().expect("decimal");
    let mut document = doc! {
        "_id": i, "ref": ObjectId::from_bytes(id), "amount": amount, "ratio": f64::from(i) / 3.0,
        "at": DateTime::from_millis(BEGIN + i64::from(i) * 3_600_001),
    };
    match i % 13 {
        0 => {}
        1 => drop(document.insert("n", Bson::Null)),
        _ => drop(document.insert("n", i)),
    }
    let big =
        if i % 2 == 0 { Bson::from(i - 200) } else { Bson::from(i64::from(i) * 9_999_999_999) };
    document.insert("big", big);
    let text = match i % 7 {
        0 => Bson::Null,
        1 => Bson::from(""),
        2 => Bson::from("Zebra"),
        3 => Bson::from(format!("a{i}")),
        4 => Bson::from(format!("é{i}")),
        5 => Bson::from("漢"),
        _ => Bson::from(format!("zebra \\ 'x' {i}")),
    };
    document.insert("s", text);
    if i % 5 > 0 {
        document.insert("ok", i % 2 == 0);
        document.insert("o", doc! { "p": i, "q": [i, Bson::Null] });
    }
    let mixed = match i % 4 {
        0 => Bson::from(i % 9),
        1 => Bson::from("5"),
        2 => Bson::from(vec![i]),
        _ => Bson::Null,
    };
    document.insert("mixed", mixed);
    if i % 3 > 0 {
        document.insert("tags", if i % 3 == 1 { vec!["a", "b"] } else { Vec::new() });
    }
    document.insert("blank", Bson::Null);
    document
}

/// A database of a test's own, dropped at its end, and an engine over it.
struct Server {
    url: String,
    name: String,
    client: Client,
    engine: Asked,
    _folder: TempDir,
}

impl Server {
    async fn new() -> Self {
        let url = std::env::var("POLDER_TEST_MONGO_URL").expect(
            "POLDER_TEST_MONGO_URL is not set: run `cargo xtask services up` and \
             `eval \"$(cargo xtask services env)\"`",
        );
        let name = format!("polder_{}", uuid::Uuid::new_v4().simple());
        let client = Client::with_uri_str(&url).await.expect("client");
        let folder = TempDir::new().expect("a folder");
        let source: Arc<dyn Source> =
            Arc::new(MongodbSource::new("conversations", url.clone().into(), &name));
        let engine = Asked::new(folder.path(), "catalog.db", [("conversations", source)]).await;
        let server = Self { url, name, client, engine, _folder: folder };
        let documents: Vec<_> = (1..=DOCUMENTS).map(document).collect();
        server.emails().insert_many(documents).await.expect("documents");
        server
    }

    fn emails(&self) -> Collection<Document> {
        self.client.database(&self.name).collection("emails")
    }

    fn of(&self, shape: &str, condition: &str) -> String {
        let table = format!("conversations.{}.emails", self.name);
        shape.replace("{c}", condition).replace("{t}", &table)
    }

    /// The rows as text; sorted, unless the query says an order. Without push-down the columns are learnt anew.
    async fn rows(&self, sql: &str, pushdown: bool) -> Result<Vec<String>, Error> {
        self.engine.rows(sql, Principal::Operator, pushdown).await
    }

    /// What comes of a query, be it an error.
    async fn outcome(&self, sql: &str, pushdown: bool) -> String {
        match self.rows(sql, pushdown).await {
            Ok(rows) => rows.join("\n"),
            Err(error) => format!("{:?}", error.code()),
        }
    }

    async fn plan(&self, sql: &str, pushdown: bool) -> String {
        let plan = self.rows(&format!("EXPLAIN {}", self.of(sql, "")), pushdown).await;
        plan.expect(sql).join("\n")
    }

    /// Has the engine know the columns as they are now.
    async fn learn(&self) {
        self.rows(&self.of("SELECT count(*) FROM {t}", ""), false).await.expect("learnt");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let (url, name) = (self.url.clone(), self.name.clone());
        // Out of the test's runtime, which may be going down with a panic.
        let drop = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let client = Client::with_uri_str(&url).await.unwrap();
                client.database(&name).drop().await.ok();
            });
        });
        drop.join().ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushed_down_and_read_whole_answer_the_same() {
    let server = Server::new().await;
    let mut compared = 0;
    for condition in CONDITIONS {
        for shape in SHAPES {
            let sql = server.of(shape, condition);
            let whole = server.rows(&sql, false).await.expect(&sql);
            let pushed = server.rows(&sql, true).await.expect(&sql);
            assert_eq!(pushed, whole, "{sql}");
            compared += 1;
        }
    }
    assert!(compared >= 300, "{compared}");
}

/// What the plan of a query says, once the columns are known.
const PLANS: &[(&str, &[&str])] = &[
    (
        "SELECT s FROM {t} WHERE n = 7",
        &["rows=1, find={", "{\"n\":{\"$eq\":7}}", "\"projection\":{", "\"s\":1"],
    ),
    ("SELECT s FROM {t} WHERE n BETWEEN 10 AND 12", &["rows=3, find={", "$and"]),
    (
        "SELECT count(*) FROM {t} WHERE n BETWEEN 10 AND 12",
        &["SourceAnswer: conversations, aggregate=[{\"$match\":", "$and", "{\"$group\":"],
    ),
    ("SELECT s FROM {t} WHERE ref = '000000000000000000000008'", &["rows=1, find={", "$oid"]),
    ("SELECT _id FROM {t} WHERE s = 'a10'", &["rows=1, find={", "\"locale\":\"simple\""]),
    ("SELECT s FROM {t} WHERE s LIKE 'a10%'", &["rows=3, find={", "\"$lt\":\"a11\""]),
    ("SELECT s FROM {t} WHERE at < TIMESTAMPTZ '2024-01-01T03:00:00Z'", &["rows=2, find={"]),
    ("SELECT s FROM {t} WHERE n = 99999", &["splits=0, rows=0, find={"]),
    ("SELECT s FROM {t} WHERE n = 7 AND ratio > 1.0", &["rows=1, find={"]),
    ("SELECT s FROM {t} LIMIT 5", &["rows=5, find={", "\"limit\":5"]),
    // A limit counts rows that pass; these conditions are judged here.
    ("SELECT s FROM {t} WHERE ratio > 1.0 LIMIT 5", &["rows=400, find={\"filter\":{}"]),
    ("SELECT * FROM {t} WHERE mixed = '5'", &["rows=400, find={\"filter\":{}}"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_shows_what_the_server_is_asked_and_how_little_it_sends() {
    let server = Server::new().await;
    let first = server.plan("SELECT s FROM {t} WHERE n = 7", true).await;
    assert!(first.contains("SourceScan") && !first.contains("find="), "{first}");
    for (sql, texts) in PLANS {
        let plan = server.plan(sql, true).await;
        for text in *texts {
            assert!(plan.contains(text), "{sql}: no {text} in\n{plan}");
        }
    }
    let whole = server.plan("SELECT s FROM {t} WHERE n = 7", false).await;
    assert!(whole.contains("SourceScan") && !whole.contains("find="), "{whole}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_of_a_new_type_is_answered_as_if_all_had_been_read() {
    let server = Server::new().await;
    let values = [
        Bson::from("7"),
        Bson::from("seven"),
        Bson::from(7.0),
        Bson::from(7.5),
        Bson::from(f64::NAN),
        Bson::from(7_i64),
        Bson::Decimal128("7.00".parse().expect("decimal")),
        Bson::from(vec![7]),
        Bson::from(vec!["x"]),
        Bson::from(Vec::<Bson>::new()),
        Bson::from(vec![Bson::Null]),
        Bson::from(doc! { "x": 7 }),
        Bson::from(true),
        Bson::from(DateTime::from_millis(BEGIN)),
        Bson::from(ObjectId::from_bytes([7; 12])),
        Bson::from(Binary { subtype: BinarySubtype::Generic, bytes: vec![7] }),
        Bson::from(Timestamp { time: 7, increment: 7 }),
        Bson::MinKey,
        Bson::MaxKey,
        Bson::Null,
    ];
    let asked = ["n = 7", "n > 398", "n NOT IN (1, 2)", "n < 3 AND s IS NOT NULL", "n IS NULL"];
    for value in values {
        for condition in asked {
            let sql = server.of("SELECT _id, n FROM {t} WHERE {c}", condition);
            server.learn().await;
            server.emails().insert_one(doc! { "_id": 1000, "n": &value }).await.expect("new");
            let pushed = server.outcome(&sql, true).await;
            let whole = server.outcome(&sql, false).await;
            server.emails().delete_one(doc! { "_id": 1000 }).await.expect("deleted");
            assert_eq!(pushed, whole, "{value}: {condition}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_members_and_those_that_are_gone_are_seen() {
    let server = Server::new().await;
    server.learn().await;
    let named = server.of("SELECT fresh FROM {t} WHERE fresh IS NOT NULL", "");
    assert_eq!(server.outcome(&named, true).await, "QueryInvalid");
    server.emails().insert_one(doc! { "_id": 1001, "n": 7, "fresh": 5 }).await.expect("new");
    assert_eq!(server.rows(&named, true).await.expect("a new column"), ["5"]);
    let set = doc! { "$set": { "newer": { "a": 1 } } };
    server.emails().update_one(doc! { "_id": 1001 }, set).await.expect("changed");
    let all = server.of("SELECT * FROM {t} WHERE n = 7", "");
    let pushed = server.rows(&all, true).await.expect("pushed");
    assert_eq!(pushed.len(), 2);
    assert_eq!(pushed, server.rows(&all, false).await.expect("whole"));
    // A member that a known one has within.
    let set = doc! { "$set": { "newer.b": "x" } };
    server.emails().update_one(doc! { "_id": 1001 }, set).await.expect("changed");
    let inside = server.of("SELECT newer FROM {t} WHERE n = 7", "");
    let pushed = server.rows(&inside, true).await.expect("pushed");
    assert_eq!(pushed, server.rows(&inside, false).await.expect("whole"));
    // Where all documents are read, a column that none has is gone.
    server.emails().delete_one(doc! { "_id": 1001 }).await.expect("deleted");
    let gone = server.of("SELECT fresh FROM {t}", "");
    assert_eq!(server.outcome(&gone, true).await, "QueryInvalid");
}
