//! A collection, held to a real server: its rows are read and digested here.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use bson::{DateTime, Document, doc};
use mongodb::Client;
use polder_core::validation::Verdict;
use polder_sources::mongodb::MongodbSource;
use serde_json::{Value, json};

use super::damage::with;
use super::proof::{Proof, failed, samples};

/// Documents; those with odd numbers are org 1's, the others org 2's.
const DOCUMENTS: i64 = 602;

/// A database of the test's own, dropped at its end.
struct Server {
    url: String,
    name: String,
    client: Client,
}

impl Server {
    async fn new() -> Self {
        let url = std::env::var("POLDER_TEST_MONGO_URL").expect(
            "POLDER_TEST_MONGO_URL is not set: run `cargo xtask services up` and \
             `eval \"$(cargo xtask services env)\"`",
        );
        let name = format!("polder_{}", uuid::Uuid::new_v4().simple());
        let client = Client::with_uri_str(&url).await.unwrap();
        let server = Self { url, name, client };
        let document = |i: i64| {
            let org = if i % 2 == 1 { "1" } else { "2" };
            let at = DateTime::from_millis(1_700_000_000_000 + i * 1000);
            doc! {
                "_id": format!("{i:05}"), "org": org, "name": format!("Zoë {i}"),
                "amount": i as f64 / 7.0, "at": at,
            }
        };
        let rows = (0..DOCUMENTS).map(document);
        server.deals().insert_many(rows.collect::<Vec<_>>()).await.unwrap();
        server
    }

    fn deals(&self) -> mongodb::Collection<Document> {
        self.client.database(&self.name).collection("deal")
    }

    async fn change(&self, id: i64, set: Document) {
        let id = doc! { "_id": format!("{id:05}") };
        self.deals().update_one(id, doc! { "$set": set }).await.unwrap();
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

fn spec(mode: &str) -> Value {
    json!({
        "name": "deal", "source": "conversations", "from": "deal", "filter": { "org": "{org}" },
        "mode": mode, "cursor": "at", "key": ["_id"], "validation": { "max_parallel": 2 },
    })
}

async fn proof(mode: &str) -> Proof<Server> {
    let server = Server::new().await;
    let source = MongodbSource::new("conversations", server.url.clone().into(), &server.name);
    Proof::over(server, Arc::new(source), &spec(mode)).await
}

fn places(rows: &RecordBatch, wanted: impl Fn(&str) -> bool) -> BooleanArray {
    let ids = rows.column_by_name("_id").unwrap().as_string::<i32>();
    ids.iter().map(|id| Some(wanted(id.unwrap()))).collect()
}

pub(super) fn only(rows: &RecordBatch, wanted: impl Fn(&str) -> bool) -> RecordBatch {
    filter_record_batch(rows, &places(rows, wanted)).unwrap()
}

pub(super) fn texts(rows: &RecordBatch, column: &str, of: &str, text: &str) -> RecordBatch {
    let hit = places(rows, |id| id == of);
    let old = rows.column_by_name(column).unwrap().as_string::<i32>();
    let new = old
        .iter()
        .zip(hit.iter())
        .map(|(old, hit)| if hit == Some(true) { Some(text) } else { old });
    let new: ArrayRef = Arc::new(new.collect::<StringArray>());
    with(rows, column, new)
}

/// What is done to the rows, and the checks and keys that have to be named.
type Case =
    (&'static str, fn(&RecordBatch) -> Vec<RecordBatch>, &'static [&'static str], &'static str);

const CASES: [Case; 7] = [
    ("a row is lost", |rows| vec![only(rows, |id| id != "00007")], &["missing_keys"], "_id=00007"),
    (
        "a row is there twice",
        |rows| vec![rows.clone(), only(rows, |id| id == "00007")],
        &["duplicates"],
        "_id=00007",
    ),
    (
        "a text is another one",
        |rows| vec![texts(rows, "name", "00007", "Zoe\u{308} 7")],
        &["values name"],
        "_id=00007",
    ),
    (
        "a row that no org has",
        |rows| vec![rows.clone(), texts(&only(rows, |id| id == "00007"), "_id", "00007", "x")],
        &["extra_keys"],
        "_id=x",
    ),
    (
        "another org's row",
        |rows| vec![rows.clone(), texts(&only(rows, |id| id == "00007"), "_id", "00007", "00450")],
        &["org_filter"],
        "_id=00450",
    ),
    (
        "another org's row in the place of an own one",
        |rows| vec![texts(rows, "_id", "00007", "00450")],
        &["missing_keys", "org_filter"],
        "_id=00450",
    ),
    (
        "all rows are those of others",
        |rows| {
            let ids = rows.column_by_name("_id").unwrap().as_string::<i32>();
            let before = |id: &str| format!("{:05}", id.parse::<i64>().unwrap() - 1);
            let ids = ids.iter().map(|id| before(id.unwrap()));
            let ids: ArrayRef = Arc::new(ids.map(Some).collect::<StringArray>());
            vec![with(rows, "_id", ids)]
        },
        &["missing_keys", "org_filter"],
        "",
    ),
];

#[tokio::test]
async fn damaged_rows_of_a_collection_are_found_and_named() {
    for mode in ["append", "full_refresh", "merge"] {
        let proof = proof(mode).await;
        let report = proof.validate().await;
        assert_eq!(report.verdict, Verdict::Verified, "{mode}: {:#?}", report.checks);
        let right = proof.rows().await;
        assert_eq!(right.num_rows() as i64, DOCUMENTS / 2);
        for (what, alter, checks, key) in &CASES {
            proof.replace(&alter(&right)).await;
            let report = proof.validate().await;
            // What a merged table was made of is not known: a row too many may be gone from the source.
            let warned = |check: &&&str| mode == "merge" && **check == "extra_keys";
            let expected = checks.iter().filter(|check| !warned(check));
            let expected = expected.map(|check| (*check).to_owned()).collect();
            assert_eq!(failed(&report), expected, "{mode}, {what}: {:#?}", report.checks);
            assert_ne!(report.verdict, Verdict::Verified, "{mode}, {what}");
            assert!(key.is_empty() || samples(&report).contains(*key), "{mode}, {what}: {key}");
        }
        let turned = UInt32Array::from_iter_values((0..right.num_rows() as u32).rev());
        proof.replace(&[take_record_batch(&right, &turned).unwrap()]).await;
        let report = proof.validate().await;
        assert_eq!(
            report.verdict,
            Verdict::Verified,
            "{mode}, another order: {:#?}",
            report.checks
        );
    }
}

#[tokio::test]
async fn what_changed_since_the_run_is_no_alarm() {
    let proof = proof("append").await;
    let now = || DateTime::from_millis(1_800_000_000_000);
    proof.database.change(7, doc! { "name": "new", "at": now() }).await;
    proof.database.change(9, doc! { "org": "2", "at": now() }).await;
    let new = doc! { "_id": "99999", "org": "1", "name": "new", "amount": 1.0, "at": now() };
    proof.database.deals().insert_one(new).await.unwrap();
    let report = proof.validate().await;
    assert!(report.verdict <= Verdict::Warning, "{:#?}", report.checks);
    assert!(failed(&report).is_empty(), "{:#?}", report.checks);
    // Without a cursor nobody can say when a row became another org's.
    let whole = self::proof("full_refresh").await;
    whole.database.change(9, doc! { "org": "2" }).await;
    let report = whole.validate().await;
    assert_eq!(
        (report.verdict, failed(&report).len()),
        (Verdict::Stale, 0),
        "{:#?}",
        report.checks
    );
}
