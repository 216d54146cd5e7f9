//! What other writers have set in a table, and what their clocks say: runs and upkeep bear it, or say
//! that they do not.

use iceberg::spec::{FormatVersion, MAIN_BRANCH, SnapshotReference, SnapshotRetention};
use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use polder_core::ErrorCode;
use polder_core::retention::Retention;
use polder_lake::{Catalog, Lake, LakeTable, Predicate, ScanRequest, StageKind, Store};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::*;

const HOUR_MS: i64 = 3_600_000;

async fn load(scratch: &Scratch, kind: StageKind, ids: std::ops::Range<i64>) {
    let request = request(kind, &id_and_text());
    run(&scratch.lake, "t", request, &[rows(ids)]).await.expect("run");
}

/// A table with the ids 0 to 5 in two files, its first version being 0 to 2.
async fn two_runs() -> Scratch {
    let scratch = Scratch::new().await;
    load(&scratch, StageKind::Replace, 0..3).await;
    load(&scratch, StageKind::Append, 3..6).await;
    scratch
}

/// What another engine does to the table.
async fn change(scratch: &Scratch, update: TableUpdate) {
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    let catalog = Scratch::catalog(&settings, store).await;
    let ident = TableIdent::new(NamespaceIdent::new("org_401".to_owned()), "t".to_owned());
    catalog.commit(&ident, &[], vec![update]).await.expect("changed");
}

async fn rolled_back(lake: &Lake, to: &str) {
    lake.rollback(&org("401"), "t", to, Uuid::new_v4()).await.expect("rolled back");
}

/// Takes one file out of the table, by a change of files.
async fn delete_a_file(lake: &Lake) {
    let now = table(lake, "t").await;
    let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    let file = now.plan(scan).await.expect("plan").files.remove(0);
    let stage = lake.stage_on(&now, request(StageKind::Files, &id_and_text())).expect("stage");
    stage.delete_files(vec![file.path]).await.expect("deleted");
}

#[tokio::test]
async fn what_main_is_to_keep_stays_as_it_was_set() {
    let scratch = two_runs().await;
    let lake = &scratch.lake;
    let current = table(lake, "t").await.current_snapshot().expect("current").id;
    let retention = SnapshotRetention::branch(Some(7), Some(86_400_000), None);
    let reference = SnapshotReference::new(current, retention);
    let ref_name = MAIN_BRANCH.to_owned();
    change(&scratch, TableUpdate::SetSnapshotRef { ref_name, reference }).await;
    let kept = async |after: &str| {
        let found = metadata(&table(lake, "t").await)["refs"][MAIN_BRANCH].clone();
        let found = (&found["min-snapshots-to-keep"], &found["max-snapshot-age-ms"]);
        assert_eq!(found, (&json!(7), &json!(86_400_000)), "after {after}");
    };
    kept("it was set").await;
    load(&scratch, StageKind::Append, 6..9).await;
    kept("an append").await;
    delete_a_file(lake).await;
    kept("a change of files").await;
    load(&scratch, StageKind::Replace, 10..12).await;
    kept("a full refresh").await;
    rolled_back(lake, "v1").await;
    kept("a rollback").await;
    let retention = Retention { versions: 1, history_ms: -1, history_min: 1 };
    lake.expire(&org("401"), "t", &retention, Uuid::new_v4()).await.expect("expired");
    kept("an expiry").await;
}

#[tokio::test]
async fn a_table_of_another_format_is_refused_in_plain_words() {
    let scratch = two_runs().await;
    let lake = &scratch.lake;
    let state = table(lake, "t").await.current_snapshot();
    let format_version = FormatVersion::V3;
    change(&scratch, TableUpdate::UpgradeFormatVersion { format_version }).await;
    let (data, manifests) = (scratch.files(".parquet"), scratch.files(".avro"));
    for kind in [StageKind::Append, StageKind::Replace] {
        let run = run(lake, "t", request(kind, &id_and_text()), &[rows(6..9)]).await;
        let error = run.expect_err("refused");
        assert_eq!(error.code(), ErrorCode::LakeFailed, "{error:?}");
        let said = format!("{error} {:?}", error.causes());
        assert!(said.contains("only tables of format version 2"), "{said}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("upgraded")), "{error:?}");
    }
    assert_eq!((scratch.files(".parquet"), scratch.files(".avro")), (data, manifests));
    assert_eq!(table(lake, "t").await.current_snapshot(), state);
}

/// A table whose every change was made by a machine with a clock an hour ahead.
async fn from_the_future() -> Scratch {
    let scratch = two_runs().await;
    let now = table(&scratch.lake, "t").await;
    let mut state = metadata(&now);
    let later = |at: &mut Value| *at = (at.as_i64().expect("a time") + HOUR_MS).into();
    later(&mut state["last-updated-ms"]);
    for list in ["snapshots", "snapshot-log", "metadata-log"] {
        let entries = state[list].as_array_mut().expect("a list");
        for entry in entries.iter_mut() {
            later(&mut entry["timestamp-ms"]);
        }
    }
    let path = now.metadata_location().strip_prefix("file://").expect("local");
    std::fs::write(path, state.to_string()).expect("metadata");
    let Scratch { folder, .. } = scratch;
    let lake = Lake::open(Scratch::settings(&folder)).await.expect("lake");
    Scratch { lake, folder }
}

/// The table as a process finds it that has read nothing yet.
async fn reopened(scratch: &Scratch) -> LakeTable {
    let lake = Lake::open(Scratch::settings(&scratch.folder)).await.expect("lake");
    table(&lake, "t").await
}

/// When the table was changed last, and the history of `main` with its times.
fn times(table: &LakeTable) -> (i64, Vec<(i64, i64)>) {
    let state = metadata(table);
    let number = |value: &Value| value.as_i64().expect("a number");
    let entry = |entry: &Value| (number(&entry["snapshot-id"]), number(&entry["timestamp-ms"]));
    let log = state["snapshot-log"].as_array().expect("a list").iter().map(entry);
    (number(&state["last-updated-ms"]), log.collect())
}

#[tokio::test]
async fn a_clock_that_is_behind_breaks_no_commit_and_no_table() {
    let scratch = from_the_future().await;
    let lake = &scratch.lake;
    let org = org("401");
    let mut before = times(&reopened(&scratch).await);
    assert!(before.0 > chrono::Utc::now().timestamp_millis() + HOUR_MS / 2);
    let mut check = async |after: &str, expected: &[i64]| {
        let now = reopened(&scratch).await;
        assert_eq!(ids(&now).await, expected, "after {after}");
        let (changed, history) = times(&now);
        assert!(changed >= before.0, "after {after}: {changed} is before {}", before.0);
        assert!(history.starts_with(&before.1), "after {after}: {history:?}");
        assert!(history.is_sorted_by_key(|(_, at)| *at), "after {after}: {history:?}");
        before = (changed, history);
    };
    let current = reopened(&scratch).await.current_snapshot().expect("current").id;
    lake.pin(&org, "t", "kept", current).await.expect("pinned");
    check("a name", &[0, 1, 2, 3, 4, 5]).await;
    load(&scratch, StageKind::Append, 6..8).await;
    check("an append", &[0, 1, 2, 3, 4, 5, 6, 7]).await;
    load(&scratch, StageKind::Replace, 10..12).await;
    check("a full refresh", &[10, 11]).await;
    delete_a_file(lake).await;
    check("a change of files", &[]).await;
    rolled_back(lake, "v1").await;
    check("a rollback", &[0, 1, 2]).await;
    rolled_back(lake, "v2").await;
    check("another", &[10, 11]).await;
    lake.release_pin(&org, "t", "kept").await.expect("released");
    check("a name that went", &[10, 11]).await;
    let retention = Retention { versions: 2, history_ms: i64::MAX, history_min: 100 };
    lake.expire(&org, "t", &retention, Uuid::new_v4()).await.expect("expired");
    check("an expiry", &[10, 11]).await;
}
