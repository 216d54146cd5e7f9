//! `mode: merge` on tables in memory: what stays of each key, run by run.

mod histories;
mod keys;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use polder_core::{CursorValue, ErrorCode, Field, LakeType, TableSchema};
use polder_pipeline::Outcome;
use polder_sources::memory::MemoryTable;
use serde_json::json;

use crate::support::Scratch;

/// A row: id, cursor, note, mark.
type Row = (Option<i64>, Option<i64>, &'static str, Option<i64>);

fn schema() -> TableSchema {
    TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("at", LakeType::Long),
        Field::new("note", LakeType::String),
        Field::new("gone", LakeType::Long),
    ])
}

/// Rows, those of each slice in a batch of their own.
fn table(batches: &[&[Row]], key: &[&str]) -> MemoryTable {
    let batch = |rows: &&[Row]| {
        let ids: Int64Array = rows.iter().map(|row| row.0).collect();
        let ats: Int64Array = rows.iter().map(|row| row.1).collect();
        let notes = StringArray::from_iter_values(rows.iter().map(|row| row.2));
        let gone: Int64Array = rows.iter().map(|row| row.3).collect();
        let columns: Vec<Arc<dyn Array>> =
            vec![Arc::new(ids), Arc::new(ats), Arc::new(notes), Arc::new(gone)];
        RecordBatch::try_new(schema().to_arrow(), columns).expect("batch")
    };
    MemoryTable {
        schema: schema(),
        batches: batches.iter().map(batch).collect(),
        key: key.iter().map(|name| (*name).to_owned()).collect(),
        ..MemoryTable::default()
    }
}

fn row(id: i64, at: i64, note: &'static str) -> Row {
    (Some(id), Some(at), note, None)
}

fn marked(id: i64, at: i64) -> Row {
    (Some(id), Some(at), "", Some(1))
}

async fn scratch() -> Scratch {
    let spec = json!({ "mode": "merge", "key": ["id"], "cursor": "at", "deleted_at": "gone" });
    Scratch::new(spec).await
}

/// The notes of the lake table, by id; panics if a key stands twice.
async fn notes(scratch: &Scratch) -> BTreeMap<i64, String> {
    let rows = scratch.rows().await;
    let ids = rows.column_by_name("id").expect("id").as_primitive::<Int64Type>().clone();
    let notes = rows.column_by_name("note").expect("note").as_string::<i32>().clone();
    let mut found = BTreeMap::new();
    for row in 0..rows.num_rows() {
        let before = found.insert(ids.value(row), notes.value(row).to_owned());
        assert_eq!(before, None, "key {} stands twice", ids.value(row));
    }
    found
}

fn map(rows: &[(i64, &str)]) -> BTreeMap<i64, String> {
    rows.iter().map(|(id, note)| (*id, (*note).to_owned())).collect()
}

#[tokio::test]
async fn rows_take_the_place_of_those_of_their_keys() {
    let scratch = scratch().await;
    let first: &[Row] = &[row(1, 10, "a"), row(2, 11, "b"), row(3, 12, "c"), marked(4, 12)];
    scratch.put(table(&[first], &["id"]));
    let report = scratch.run().await;
    assert_eq!((report.outcome, report.rows_written), (Outcome::FullRefresh, 3));
    assert_eq!(notes(&scratch).await, map(&[(1, "a"), (2, "b"), (3, "c")]));
    let second: &[Row] =
        &[row(1, 20, "A"), row(2, 11, "b"), marked(3, 21), marked(4, 12), row(5, 22, "e")];
    scratch.put(table(&[second], &["id"]));
    let report = scratch.run().await;
    let counts = [report.rows_inserted, report.rows_updated, report.rows_deleted];
    assert_eq!((report.outcome, counts), (Outcome::Merge, [1, 1, 1]));
    assert_eq!(report.checkpoint.expect("checkpoint").cursor, Some(CursorValue::Int(22)));
    assert_eq!(notes(&scratch).await, map(&[(1, "A"), (2, "b"), (5, "e")]));
    let before = scratch.table().await.current_snapshot().expect("snapshot");
    assert_eq!(before.rows, Some(3), "rows that are gone are not counted");
    // The row at the mark is read again, and known.
    let report = scratch.run().await;
    assert_eq!((report.outcome, report.rows_known), (Outcome::NothingNew, 1));
    let after = scratch.table().await.current_snapshot().expect("snapshot");
    assert_eq!(before, after, "nothing was committed");
}

#[tokio::test]
async fn a_run_that_was_made_is_found_and_not_made_twice() {
    let scratch = scratch().await;
    scratch.put(table(&[&[row(1, 10, "a")]], &["id"]));
    scratch.run().await;
    scratch.put(table(&[&[row(1, 20, "b")]], &["id"]));
    let request = scratch.request();
    let first = scratch.ingest(&request).await.expect("merged");
    let again = scratch.ingest(&request).await.expect("found");
    assert_eq!((again.outcome, again.snapshot_id), (Outcome::Merge, first.snapshot_id));
    assert_eq!(notes(&scratch).await, map(&[(1, "b")]));
}

#[tokio::test]
async fn of_rows_with_one_key_the_newest_stays_in_full_loads_too() {
    let scratch = scratch().await;
    let log: &[&[Row]] = &[
        &[row(1, 10, "a"), row(2, 11, "b"), row(1, 13, "c")],
        &[row(1, 12, "d"), row(3, 10, "e"), marked(3, 11), row(4, 14, "f")],
        // Of one cursor value: the greatest row.
        &[row(5, 9, "m"), row(5, 9, "z"), row(5, 9, "x")],
    ];
    scratch.put(table(log, &[]));
    scratch.run().await;
    let expected = map(&[(1, "c"), (2, "b"), (4, "f"), (5, "z")]);
    assert_eq!(notes(&scratch).await, expected);
    // An older row that is read again does not come back, nor does a marked row.
    let reread: &[&[Row]] = &[
        &[row(4, 14, "f"), row(4, 15, "newer"), row(4, 14, "other")],
        &[row(1, 14, "z"), marked(2, 15), row(2, 14, "late")],
    ];
    scratch.put(table(reread, &[]));
    let report = scratch.run().await;
    assert_eq!([report.rows_inserted, report.rows_updated, report.rows_deleted], [0, 2, 1]);
    assert_eq!(notes(&scratch).await, map(&[(1, "z"), (4, "newer"), (5, "z")]));
    let mark = scratch.table().await.current_snapshot();
    let report = scratch.run().await;
    assert_eq!(report.outcome, Outcome::NothingNew);
    assert_eq!(scratch.table().await.current_snapshot(), mark);
}

#[tokio::test]
async fn a_row_whose_cursor_went_back_is_what_the_source_says() {
    let scratch = scratch().await;
    let with = |at, note| MemoryTable {
        cursor_ceiling: Some(CursorValue::Int(5)),
        ..table(&[&[row(1, at, note)]], &["id"])
    };
    scratch.put(with(10, "a"));
    scratch.run().await;
    scratch.put(with(8, "b"));
    assert_eq!(scratch.run().await.rows_updated, 1);
    assert_eq!(notes(&scratch).await, map(&[(1, "b")]));
}

#[tokio::test]
async fn rows_without_a_key_are_refused_and_nothing_is_stored() {
    let scratch = scratch().await;
    scratch.put(table(&[&[row(1, 10, "a"), (None, Some(11), "b", None)]], &[]));
    let error = scratch.fails().await;
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(error.to_string().contains("key column \"id\""), "{error}");
    scratch.put(table(&[&[row(1, 10, "a")]], &[]));
    scratch.run().await;
    scratch.put(table(&[&[row(1, 11, "b"), (None, Some(12), "c", None)]], &[]));
    assert_eq!(scratch.fails().await.code(), ErrorCode::SourceUnrepresentable);
    assert_eq!(notes(&scratch).await, map(&[(1, "a")]));
}

#[tokio::test]
async fn another_key_mode_or_mark_is_another_table() {
    let mut scratch = scratch().await;
    scratch.put(table(&[&[row(1, 10, "a"), row(2, 11, "b")]], &["id"]));
    scratch.run().await;
    let mut reason = async |spec: serde_json::Value| {
        let before = serde_json::to_value(&scratch.spec).expect("spec");
        let mut after = before.as_object().expect("map").clone();
        after.extend(spec.as_object().expect("map").clone());
        scratch.spec = serde_json::from_value(after.into()).expect("spec");
        let report = scratch.run().await;
        assert_eq!(report.outcome, Outcome::FullRefresh);
        report.reason.expect("a reason")
    };
    for spec in [
        json!({ "key": ["id", "note"] }),
        json!({ "deleted_at": null }),
        json!({ "mode": "append" }),
        json!({ "mode": "merge" }),
    ] {
        assert_eq!(reason(spec.clone()).await, "the table spec reads other rows", "{spec}");
    }
}

#[tokio::test]
async fn keys_that_do_not_fit_into_memory_are_done_in_parts() {
    let mut scratch = scratch().await;
    let all = |note: &'static str, from: i64| -> Vec<Row> {
        (0..5_000).map(|id| row(id, from + id, note)).collect()
    };
    scratch.put(table(&[&all("old", 0)], &["id"]));
    scratch.run().await;
    // A quarter of it for keys: some hundred at a time.
    scratch.memory_bytes = 256 << 10;
    let mut rows = all("new", 10_000);
    rows.truncate(4_000);
    scratch.put(table(&rows.chunks(700).collect::<Vec<_>>(), &["id"]));
    let report = scratch.run().await;
    assert_eq!([report.rows_inserted, report.rows_updated, report.rows_deleted], [0, 4_000, 0]);
    let notes = notes(&scratch).await;
    assert_eq!(notes.len(), 5_000);
    assert_eq!(notes.values().filter(|note| *note == "new").count(), 4_000);
    // More marked rows than it may remember.
    let marks: Vec<Row> = (0..4_000).map(|id| marked(id, 20_000 + id)).collect();
    scratch.put(table(&[&marks], &["id"]));
    let error = scratch.fails().await;
    assert_eq!(error.code(), ErrorCode::SourceFailed, "{error}");
    assert!(error.hint_text().expect("hint").contains("memory_mb"));
}
