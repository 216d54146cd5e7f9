//! Maintenance by the policies of table specs.

mod elsewhere;
mod support;

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use futures::TryStreamExt;
use polder_core::spec::TableSpec;
use polder_core::{ErrorCode, Principal};
use polder_lake::{LakeTable, Predicate, ScanRequest, StageKind};
use polder_pipeline::{
    Done, MaintainRequest, Maintenance, MaintenancePlace, RetentionReport, RewriteReport, maintain,
    maintenance_history,
};
use serde_json::json;
use tokio::task::JoinSet;

use support::*;

fn rewritten(done: &Done) -> &RewriteReport {
    let Done::Rewritten(report) = done else { panic!("{done:?}") };
    report
}

fn retained(done: &Done) -> &RetentionReport {
    let Done::Retained(Some(report)) = done else { panic!("{done:?}") };
    report
}

async fn trickle(scratch: &Scratch, spec: &TableSpec, ids: std::ops::Range<i64>) {
    for id in ids {
        let kind = if id == 0 { StageKind::Replace } else { StageKind::Append };
        let two = rows(&[(2 * id, Some(1)), (2 * id + 1, Some(40))]);
        scratch.load(kind, &spec.partition, two).await.expect("run");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_are_merged_deletes_applied_and_partitions_followed() {
    let scratch = Scratch::new().await;
    let plain = spec(&json!({}));
    trickle(&scratch, &plain, 0..12).await;
    let mut gone = Gone::new();
    for id in [3, 8] {
        scratch.delete(id, &mut gone).await.expect("deleted");
    }
    let expected: Vec<i64> = (0..24).filter(|id| ![3, 8].contains(id)).collect();
    let dry = MaintainRequest { dry_run: true, ..request(&plain, Maintenance::Optimize) };
    let planned = maintain(&scratch.lake, &dry).await.expect("planned");
    assert_eq!((rewritten(&planned.done).files_replaced, scratch.data_files().await), (12, 12));

    let report = scratch.maintain(&plain, Maintenance::Optimize).await;
    let done = rewritten(&report.done);
    assert_eq!((done.files_replaced, done.files_written, done.commits), (12, 1, 1));
    assert_eq!((done.rows, done.rows_deleted), (22, 2));
    let sizes = |size: Option<polder_lake::TableSize>| {
        let size = size.expect("size");
        (size.files, size.rows, size.delete_files)
    };
    assert_eq!(sizes(report.before), (Some(12), Some(24), Some(2)));
    assert_eq!(sizes(report.after), (Some(1), Some(22), Some(0)), "no delete file is left");
    assert_eq!(scratch.ids().await, expected);
    let again = scratch.maintain(&plain, Maintenance::Optimize).await;
    assert!(!again.done.changed());

    let monthly = spec(&json!({ "partition": ["month(at)"] }));
    let report = scratch.maintain(&monthly, Maintenance::Optimize).await;
    assert_eq!(rewritten(&report.done).files_written, 2);
    assert_eq!(scratch.table().await.partition(), monthly.partition);
    assert_eq!(scratch.ids().await, expected);
    trickle(&scratch, &monthly, 12..15).await;
    let report = scratch.maintain(&monthly, Maintenance::Optimize).await;
    let done = rewritten(&report.done);
    assert_eq!((done.files_replaced, done.files_written), (8, 2), "each partition on its own");
    assert_eq!(scratch.ids().await.len(), 28);
}

/// Runs append and rows are deleted while files are merged over and over: whatever comes between, no
/// row is lost, doubled or brought back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_row_is_lost_while_runs_write_at_the_same_time() {
    let scratch = Arc::new(Scratch::new().await);
    let plain = spec(&json!({}));
    trickle(&scratch, &plain, 0..4).await;
    let mut tasks = JoinSet::new();
    {
        let (scratch, plain) = (Arc::clone(&scratch), plain.clone());
        tasks.spawn(async move { trickle(&scratch, &plain, 4..30).await });
    }
    let (rounds, mut seen) = tokio::sync::watch::channel(0);
    {
        let scratch = Arc::clone(&scratch);
        tasks.spawn(async move {
            let mut gone = Gone::new();
            for id in [1, 4, 7, 10, 13] {
                seen.borrow_and_update();
                // A file that was just rewritten is a conflict: the row is looked for anew.
                loop {
                    if scratch.ids().await.contains(&id) {
                        match scratch.delete(id, &mut gone).await {
                            Ok(()) => break,
                            Err(error) => assert!(error.retryable(), "{error:?}"),
                        }
                    }
                    tokio::task::yield_now().await;
                }
                // Between two deletes a merge has its chance, however slow the machine is.
                seen.changed().await.expect("merges go on");
            }
        });
    }
    let mut merged = 0;
    while !tasks.is_empty() {
        match maintain(&scratch.lake, &request(&plain, Maintenance::Optimize)).await {
            Ok(report) => {
                merged += rewritten(&report.done).files_replaced;
                rounds.send_modify(|rounds| *rounds += 1);
            }
            Err(error) => assert_eq!(error.code(), ErrorCode::LakeConflict, "{error:?}"),
        }
        while let Some(joined) = tasks.try_join_next() {
            joined.expect("a writer");
        }
    }
    assert!(merged > 0);
    scratch.maintain(&plain, Maintenance::Optimize).await;
    let expected: Vec<i64> = (0..60).filter(|id| ![1, 4, 7, 10, 13].contains(id)).collect();
    assert_eq!(scratch.ids().await, expected);
    assert_eq!(scratch.data_files().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_with_their_files_or_out_of_them_and_everywhere_in_time() {
    let scratch = Scratch::new().await;
    let six_months = spec(&json!({
        "partition": ["month(at)"],
        "retention": { "column": "at", "keep": "6 months" },
        "maintenance": { "keep_snapshots_days": 7 },
    }));
    // Two files of old months, one on the boundary (26 May), and rows without a time.
    let all =
        [(1, Some(400)), (2, Some(300)), (3, Some(190)), (4, Some(180)), (5, Some(0)), (6, None)];
    scratch.load(StageKind::Replace, &six_months.partition, rows(&all)).await.expect("run");
    let dry = MaintainRequest { dry_run: true, ..request(&six_months, Maintenance::Retention) };
    let planned = maintain(&scratch.lake, &dry).await.expect("planned");
    let report = retained(&planned.done);
    assert_eq!((report.rows_removed, report.files_dropped, report.files_replaced), (3, 2, 1));
    assert_eq!(report.before, "2026-05-26T00:00:00+00:00");
    assert_eq!(scratch.ids().await, [1, 2, 3, 4, 5, 6], "nothing went");

    let report = scratch.maintain(&six_months, Maintenance::Retention).await;
    let done = retained(&report.done);
    assert_eq!((done.rows_removed, done.files_dropped, done.files_replaced), (3, 2, 1));
    assert_eq!(scratch.ids().await, [4, 5, 6]);
    assert!(!scratch.maintain(&six_months, Maintenance::Retention).await.done.changed());

    // The first version reaches the rows until they are overdue: rows of 190 days before are kept for
    // another month at most.
    let v1 = async || {
        let table = scratch.table().await;
        ids_at(&table, table.resolve("v1").expect("v1")).await
    };
    assert_eq!(v1().await.len(), 6);
    let report = scratch.maintain(&six_months, Maintenance::Versions).await;
    let Done::Expired(done) = &report.done else { panic!("{:?}", report.done) };
    assert_eq!((done.moved.as_slice(), done.snapshots), (["v1".to_owned()].as_slice(), 1));
    assert_eq!(v1().await, [4, 5, 6], "rows of a year ago were overdue");
    let mut files = Vec::new();
    below(scratch.folder.path(), &mut files);
    files.retain(|file| file.ends_with(".parquet"));
    let table = scratch.table().await;
    let own = table.location().strip_prefix("file://").expect("local").to_owned();
    files.retain(|file| file.starts_with(&own));
    assert_eq!(files.len(), 3, "their bytes are gone: {files:?}");
}

async fn ids_at(table: &LakeTable, snapshot: i64) -> Vec<i64> {
    let scan = ScanRequest { snapshot: Some(snapshot), filter: Predicate::True, columns: None };
    let batches: Vec<RecordBatch> =
        table.read(scan).await.expect("read").try_collect().await.expect("rows");
    let mut ids: Vec<i64> = batches.iter().flat_map(ids_of).collect();
    ids.sort_unstable();
    ids
}

fn below(folder: &std::path::Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() { below(&path, found) } else { found.push(path.display().to_string()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_leaves_a_row_with_before_and_after() {
    let scratch = Scratch::new().await;
    let plain = spec(&json!({}));
    trickle(&scratch, &plain, 0..3).await;
    for action in Maintenance::ALL {
        scratch.maintain(&plain, action).await;
    }
    let wrong = spec(&json!({ "retention": { "column": "id", "keep": "1 day" } }));
    let failed = maintain(&scratch.lake, &request(&wrong, Maintenance::Retention)).await;
    assert_eq!(failed.expect_err("no times").code(), ErrorCode::SpecInvalid);
    let history = scratch.lake.management_table(&Principal::Operator, "maintenance_history").await;
    let history = history.expect("load").expect("table");
    let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    let batches: Vec<RecordBatch> =
        history.read(scan).await.expect("read").try_collect().await.expect("rows");
    let mut found = Vec::new();
    for batch in &batches {
        let text = |name: &str, at: usize| {
            let column = batch.column_by_name(name).expect("column");
            column.as_string::<i32>().value(at).to_owned()
        };
        let number = |name: &str, at: usize| {
            let column = batch.column_by_name(name).expect("column");
            column.as_primitive::<arrow::datatypes::Int64Type>().value(at)
        };
        for at in 0..batch.num_rows() {
            assert_eq!((text("org", at).as_str(), text("table_name", at).as_str()), ("401", "t"));
            let (before, after) = (number("files_before", at), number("files_after", at));
            found.push((text("action", at), text("outcome", at), before, after));
        }
    }
    found.sort();
    let row = |action: &str, outcome: &str, before, after| {
        (action.to_owned(), outcome.to_owned(), before, after)
    };
    assert_eq!(
        found,
        [
            row("metadata", "nothing_to_do", 1, 1),
            row("optimize", "done", 3, 1),
            row("retention", "failed", 1, 0),
            row("retention", "nothing_to_do", 3, 3),
            row("versions", "nothing_to_do", 1, 1),
        ]
    );
    let own = Principal::Operator.authorize(&"401".parse().expect("id")).expect("org");
    let page = async |table: &str, before: Option<&MaintenancePlace>| {
        let found = maintenance_history(&scratch.lake, &own, table, before, 3);
        Box::pin(found).await.expect("page")
    };
    let newest = page("t", None).await;
    let rest = page("t", Some(&newest[2].place)).await;
    assert_eq!((newest.len(), rest.len()), (3, 2));
    let all: Vec<_> = newest.iter().chain(&rest).map(|record| &record.place).collect();
    assert!(all.windows(2).all(|two| two[0] > two[1]), "{all:?}");
    assert_eq!((newest[0].outcome.as_str(), newest[0].after), ("failed", None));
    let optimized = newest.iter().chain(&rest).find(|record| record.place.action == "optimize");
    let files =
        optimized.map(|one| (one.before.and_then(|s| s.files), one.after.and_then(|s| s.files)));
    assert_eq!(files, Some((Some(3), Some(1))));
    assert!(page("other", None).await.is_empty(), "another table's");
    let foreign = Principal::Operator.authorize(&"402".parse().expect("id")).expect("org");
    let none = maintenance_history(&scratch.lake, &foreign, "t", None, 3);
    let none = Box::pin(none).await.expect("page");
    assert!(none.is_empty(), "another org's");
}

/// A row's id and time.
type Dated = (i64, Option<i64>);

/// The rows of each file, as they lie in it.
async fn by_file(scratch: &Scratch) -> Vec<Vec<Dated>> {
    let table = scratch.table().await;
    let mut found = Vec::new();
    for file in table.files(&[], &[]).await.expect("files").files() {
        let rows = table.read_files(&[file.path.clone()].into()).await.expect("read");
        let batches: Vec<RecordBatch> = rows.try_collect().await.expect("rows");
        let dated = |batch: &RecordBatch| -> Vec<Dated> {
            let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            ids_of(batch).into_iter().zip(times.iter()).collect()
        };
        found.push(batches.iter().flat_map(dated).collect());
    }
    found
}

async fn unsorted(scratch: &Scratch, spec: &TableSpec) -> usize {
    let table = scratch.table().await;
    let sort = spec.sort.as_deref().expect("an order");
    let files = table.files(&spec.partition, sort).await.expect("files");
    files.files().iter().filter(|file| file.cost.unsorted).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_sorted_in_each_file_and_files_in_order_are_left_alone() {
    let scratch = Scratch::new().await;
    let latest = spec(&json!({ "sort": ["at desc nulls last", "id"] }));
    for run in 0..5_i64 {
        let row = |n: i64| (run + 5 * n, (n % 7 != 0).then_some((n * 31 + run) % 90));
        let given: Vec<_> = (0..40).map(row).collect();
        let kind = if run == 0 { StageKind::Replace } else { StageKind::Append };
        scratch.load(kind, &[], rows(&given)).await.expect("run");
    }
    assert_eq!(unsorted(&scratch, &latest).await, 5, "runs do not sort");
    let report = scratch.maintain(&latest, Maintenance::Optimize).await;
    assert_eq!((rewritten(&report.done).files_written, rewritten(&report.done).rows), (1, 200));
    assert_eq!(scratch.table().await.sort(), latest.sort);
    assert_eq!(unsorted(&scratch, &latest).await, 0);
    assert_eq!(scratch.ids().await, (0..200).collect::<Vec<_>>());
    let order = |(id, at): &Dated| (at.is_none(), std::cmp::Reverse(*at), *id);
    let files = by_file(&scratch).await;
    let [file] = &files[..] else { panic!("one file") };
    assert!(file.is_sorted_by_key(order), "{file:?}");

    // Another order is no reason to rewrite a file, unless one asks for that; and then it is once.
    let by_id = spec(&json!({ "sort": ["id desc"] }));
    assert!(!scratch.maintain(&by_id, Maintenance::Optimize).await.done.changed());
    let asked = spec(&json!({ "sort": ["id desc"], "maintenance": { "sort_files": true } }));
    assert!(scratch.maintain(&asked, Maintenance::Optimize).await.done.changed());
    let files = by_file(&scratch).await;
    let [file] = &files[..] else { panic!("one file") };
    assert!(file.is_sorted_by_key(|(id, _)| std::cmp::Reverse(*id)), "{file:?}");
    assert_eq!((file.len(), unsorted(&scratch, &asked).await), (200, 0));
    assert!(!scratch.maintain(&asked, Maintenance::Optimize).await.done.changed(), "it is marked");

    // Partitions have the order each, and what comes later waits for the next call.
    let monthly = json!({ "sort": ["at desc nulls last", "id"], "partition": ["month(at)"] });
    let monthly = spec(&monthly);
    scratch.maintain(&monthly, Maintenance::Optimize).await;
    let files = by_file(&scratch).await;
    assert!(files.len() > 3 && files.iter().all(|file| file.is_sorted_by_key(order)), "{files:?}");
    assert_eq!((unsorted(&scratch, &monthly).await, scratch.ids().await.len()), (0, 200));
    scratch.load(StageKind::Append, &monthly.partition, rows(&[(200, None)])).await.expect("run");
    assert_eq!(unsorted(&scratch, &monthly).await, 1);
    let wrong = spec(&json!({ "sort": ["nope"], "maintenance": { "sort_files": true } }));
    let refused = maintain(&scratch.lake, &request(&wrong, Maintenance::Optimize)).await;
    assert_eq!(refused.expect_err("no such column").code(), ErrorCode::SpecUnknownName);
}
