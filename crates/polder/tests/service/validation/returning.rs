//! Keys that return: rows that changed in the source, before and after the last run.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use polder_core::validation::Verdict;
use serde_json::json;

use super::damage::{only, texts};
use super::proof::{Proof, failed, samples, spec};
use crate::service::Database;

const CHANGE: &str =
    "UPDATE deal SET name = 'changed', updated_at = clock_timestamp() WHERE id < 20";

fn joined(parts: &[RecordBatch]) -> RecordBatch {
    concat_batches(&parts[0].schema(), parts).unwrap()
}

#[tokio::test]
async fn changed_rows_are_pending_until_a_run_has_read_them() {
    for mode in ["append", "full_refresh"] {
        let proof = Proof::new(mode).await;
        proof.database.sql(CHANGE);
        proof
            .database
            .sql("INSERT INTO deal (id, org_id, updated_at) VALUES (5001, '1', clock_timestamp())");
        let report = proof.validate().await;
        assert_eq!(report.verdict, Verdict::Verified, "{mode}: {:#?}", report.checks);
        assert_eq!(report.pending, 20, "{mode}");
        proof.ingest(false).await;
        let report = proof.validate().await;
        assert_eq!(report.verdict, Verdict::Verified, "{mode}: {:#?}", report.checks);
        // What the last run read may be written at or above its checkpoint still, but is settled by the
        // run's snapshot.
        assert_eq!(report.pending, 0, "{mode}: {:#?}", report.checks);
    }
}

#[tokio::test]
async fn the_newest_row_of_a_key_is_the_one_that_counts() {
    let proof = Proof::new("append").await;
    let old = proof.rows().await;
    proof.database.sql(CHANGE);
    proof.ingest(false).await;
    let whole = proof.rows().await;
    assert_eq!(whole.num_rows(), old.num_rows() + 19);
    assert_eq!(proof.validate().await.verdict, Verdict::Verified);
    // The new row of a key is lost: the old one comes to the fore.
    proof.load().await;
    let newest = proof.rows().await;
    let lost = joined(&[only(&newest, |id| id != 7), only(&old, |id| id == 7)]);
    proof.replace(&[lost]).await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), ["values name", "values updated_at"].map(String::from).into());
    assert!(samples(&report).contains("id=7"), "{:#?}", report.checks);
    // An old row is there twice: no reader of the newest rows would see it.
    proof.replace(&[newest.clone(), only(&old, |id| id == 7), only(&old, |id| id == 7)]).await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), ["duplicates".to_owned()].into(), "{:#?}", report.checks);
    assert!(samples(&report).contains("id=7"));
}

#[tokio::test]
async fn rows_gone_from_the_source_are_told_from_rows_that_never_were_there() {
    let proof = Proof::new("full_refresh").await;
    proof.database.sql("DELETE FROM deal WHERE id = 7");
    let report = proof.validate().await;
    assert_eq!(report.verdict, Verdict::Verified, "{:#?}", report.checks);
    assert!(samples(&report).contains("id=7"), "named nevertheless");
    proof.database.sql("UPDATE deal SET org_id = '2' WHERE id = 8");
    let report = proof.validate().await;
    assert_eq!(report.verdict, Verdict::Verified, "moved since the run: {:#?}", report.checks);
    let append = Proof::new("append").await;
    append.database.sql("DELETE FROM deal WHERE id = 7");
    let report = append.validate().await;
    assert_eq!(report.verdict, Verdict::Warning, "{:#?}", report.checks);
    // Without a change of the cursor no run will see it go.
    append.database.sql("UPDATE deal SET org_id = '2' WHERE id = 8");
    assert_eq!(failed(&append.validate().await), ["org_filter".to_owned()].into());
}

#[tokio::test]
async fn a_change_that_the_cursor_does_not_show_is_found() {
    let proof = Proof::new("append").await;
    proof.database.sql("UPDATE deal SET name = 'silent' WHERE id = 7");
    let report = proof.validate().await;
    assert_eq!(failed(&report), ["values name".to_owned()].into(), "{:#?}", report.checks);
    assert!(samples(&report).contains("id=7"));
}

#[tokio::test]
async fn rows_without_a_key_are_compared_as_a_whole() {
    let database = Database::new();
    database.sql("CREATE TABLE event AS SELECT i % 10 AS kind, 'x' || i % 10 AS text FROM generate_series(1, 100) i");
    let spec = json!({ "name": "event", "source": "revdb", "from": "event" });
    let proof = Proof::of(database, &spec).await;
    assert_eq!(proof.validate().await.verdict, Verdict::Verified);
    let rows = proof.rows().await;
    proof.replace(&[rows.slice(1, rows.num_rows() - 1)]).await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), ["missing_keys".to_owned()].into(), "{:#?}", report.checks);
    proof.replace(&[rows.clone(), rows.slice(0, 1)]).await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), ["extra_keys".to_owned()].into(), "{:#?}", report.checks);
}

/// What is sent for them would be more than the server can print.
#[tokio::test]
async fn values_of_megabytes_are_compared_to_their_end() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE long AS SELECT i AS id, repeat('é', 700000) || i AS name, convert_to(repeat('b', 1048576 + i), 'UTF8') AS bytes,
             jsonb_build_object('a', repeat('j', 1100000)) AS doc, array_fill(i, ARRAY[200000]) AS list,
             'p '::char(5) AS padded FROM generate_series(0, 2) i",
    );
    let spec = json!({ "name": "long", "source": "revdb", "from": "long", "key": ["id"] });
    let proof = Proof::of(database, &spec).await;
    let report = proof.validate().await;
    assert_eq!(report.verdict, Verdict::Verified, "{:#?}", report.checks);
    let rows = proof.rows().await;
    let other = |text: &str| Some(format!("{}x", &text[..text.len() - 1]));
    proof.replace(&[texts(&rows, "name", |id| id == 1, |text| other(text?))]).await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), ["values name".to_owned()].into(), "{:#?}", report.checks);
}

#[tokio::test]
async fn a_source_that_cannot_compute_digests_is_read() {
    // `clamp` may alter values on their way, so that the server cannot say what the lake has.
    let database = Database::new();
    database.sql(
        "CREATE TABLE deal (id int PRIMARY KEY, name text, born date, updated_at timestamptz NOT NULL);
         INSERT INTO deal SELECT i, 'n' || i, CASE i WHEN 9 THEN 'infinity' ELSE date '2000-01-01' + i END,
             timestamptz '2026-01-01' + i * interval '1 hour' FROM generate_series(1, 600) i",
    );
    let mut spec = spec("append");
    spec["on_unrepresentable"] = json!("clamp");
    spec.as_object_mut().unwrap().remove("filter");
    let proof = Proof::of(database, &spec).await;
    let report = proof.validate().await;
    assert_eq!(report.verdict, Verdict::Verified, "{:#?}", report.checks);
    assert_eq!(report.pending, 1, "the row with the checkpoint's cursor");
    let rows = proof.rows().await;
    proof.replace(&[texts(&rows, "name", |id| id == 7, |_| None)]).await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), ["values name".to_owned()].into(), "{:#?}", report.checks);
    assert!(samples(&report).contains("id=7"));
}
