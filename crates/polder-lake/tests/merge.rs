//! Runs that add rows and delete rows in one commit, and what they bear of other writers.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use polder_core::{ErrorCode, Result};
use polder_lake::{
    CmpOp, FilesCommitted, Gate, Lake, LakeTable, Literal, Placed, Predicate, RowDelta, RunSummary,
    ScanFile, ScanRequest, Stage, StageKind,
};
use uuid::Uuid;

use crate::support::*;

/// Some hundred are read in a second; without what it holds, one in ten thousands did not end.
const READS: usize = 200;

/// A table with the ids 0 to 5 in two files.
async fn two_files() -> Scratch {
    let scratch = Scratch::new().await;
    for (kind, ids) in [(StageKind::Replace, 0..3), (StageKind::Append, 3..6)] {
        run(&scratch.lake, "t", request(kind, &id_and_text()), &[rows(ids)]).await.expect("run");
    }
    scratch
}

fn range(from: i64, to: i64) -> Predicate {
    let bound =
        |op, value| Predicate::Cmp { column: "id".to_owned(), op, value: Literal::Long(value) };
    bound(CmpOp::GtEq, from).and(bound(CmpOp::LtEq, to))
}

async fn begin(lake: &Lake) -> Stage {
    lake.stage(&org("401"), "t", request(StageKind::Merge, &id_and_text())).await.expect("stage")
}

/// Where the ids from `from` to `to` are in the table the stage began from.
async fn places(stage: &Stage, from: i64, to: i64) -> Vec<(ScanFile, Vec<u64>)> {
    let table = stage.table().expect("open").expect("table");
    let scan = ScanRequest { snapshot: None, filter: range(from, to), columns: None };
    let placed: Vec<Placed> =
        table.read_placed(scan).await.expect("read").try_collect().await.expect("rows");
    let mut found: BTreeMap<String, (ScanFile, Vec<u64>)> = BTreeMap::new();
    for placed in placed {
        for (id, position) in longs(&placed.records, "id").into_iter().zip(placed.positions) {
            if (from..=to).contains(&id) {
                let new = || (ScanFile::clone(&placed.file), Vec::new());
                found.entry(placed.file.path.clone()).or_insert_with(new).1.push(position);
            }
        }
    }
    found.into_values().collect()
}

/// The ids from `from` to `to` anew.
async fn delta(stage: &Stage, from: i64, to: i64) -> RowDelta {
    let deletes = places(stage, from, to).await;
    let deletes = stage.write_deletes(&deletes).await.expect("deletes");
    let files = written(stage, &[rows(from..to + 1)]).await;
    RowDelta { files, deletes, among: range(from, to) }
}

fn rows_of(delta: &RowDelta) -> RunSummary {
    summary(&delta.files)
}

async fn ids_now(scratch: &Scratch) -> Vec<i64> {
    ids(&table(&scratch.lake, "t").await).await
}

#[tokio::test]
async fn rows_deletes_and_checkpoint_are_one_commit() {
    let scratch = two_files().await;
    let lake = &scratch.lake;
    let before = table(lake, "t").await.snapshots().len();
    let merge = begin(lake).await;
    let delta = delta(&merge, 2, 3).await;
    assert_eq!(delta.deletes.len(), 2, "one for each file");
    let summary = rows_of(&delta);
    let done = merge.commit_delta(delta, &checkpoint(7), summary, None).await.expect("merged");
    let now = table(lake, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2, 3, 4, 5]);
    assert_eq!(now.checkpoint().expect("good"), Some(checkpoint(7)));
    assert_eq!((now.snapshots().len(), now.versions().len()), (before + 1, 1));
    let current = now.current_snapshot().expect("current");
    assert_eq!((current.id, current.operation.as_str()), (done.snapshot_id, "overwrite"));
    assert_eq!((current.rows, current.run_id), (Some(6), now.run_ids().last().copied()));
    // Rows that are gone have no place any more, and others keep theirs.
    let merge = begin(lake).await;
    let found = places(&merge, 0, 5).await;
    let positions: usize = found.iter().map(|(_, positions)| positions.len()).sum();
    assert_eq!((found.len(), positions), (3, 6));
}

#[tokio::test]
async fn a_file_has_one_delete_file_however_often_rows_of_it_go() {
    let scratch = two_files().await;
    let lake = &scratch.lake;
    for (number, id) in [0, 2, 1].into_iter().enumerate() {
        let merge = begin(lake).await;
        let delta = delta(&merge, id, id).await;
        let summary = rows_of(&delta);
        merge.commit_delta(delta, &checkpoint(id), summary, None).await.expect("merged");
        let now = table(lake, "t").await;
        assert_eq!(ids(&now).await, [0, 1, 2, 3, 4, 5]);
        let totals = summary_of(&now);
        let total = |key: &str| totals.get(key).cloned().unwrap_or_default();
        assert_eq!(total("total-delete-files"), "1", "after {id}");
        assert_eq!(total("total-position-deletes"), (number + 1).to_string());
        assert_eq!(now.current_snapshot().expect("current").rows, Some(6));
    }
    // Only deletes.
    let merge = begin(lake).await;
    let deletes = places(&merge, 4, 4).await;
    let deletes = merge.write_deletes(&deletes).await.expect("deletes");
    let delta = RowDelta { files: Vec::new(), deletes, among: range(4, 4) };
    merge.commit_delta(delta, &checkpoint(9), RunSummary::default(), None).await.expect("merged");
    let now = table(lake, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2, 3, 5]);
    assert_eq!(now.current_snapshot().expect("current").operation, "delete");
}

/// Files that are read at the same time have deletes in common; whoever waits for them is woken.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_of_files_that_share_deletes_ends() {
    let scratch = two_files().await;
    let lake = &scratch.lake;
    for first in [6, 9, 12, 15] {
        let request = request(StageKind::Append, &id_and_text());
        run(lake, "t", request, &[rows(first..first + 3)]).await.expect("run");
    }
    let merge = begin(lake).await;
    let deletes = merge.write_deletes(&places(&merge, 0, 17).await).await;
    let deletes = deletes.expect("deletes").into_iter().collect::<Vec<_>>();
    assert_eq!(deletes.len(), 6);
    let kept = [rows(0..9), rows(9..18)];
    let files = written(&merge, &kept).await;
    let delta = RowDelta { files, deletes, among: range(0, 17) };
    let summary = rows_of(&delta);
    merge.commit_delta(delta, &checkpoint(17), summary, None).await.expect("merged");
    let now = table(lake, "t").await;
    for read in 0..READS {
        let found = tokio::time::timeout(Duration::from_mins(1), ids(&now)).await;
        assert_eq!(found.unwrap_or_else(|_| panic!("read {read} does not end")).len(), 18);
    }
}

#[tokio::test]
async fn rows_of_new_files_may_go_with_the_same_commit() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    for (kind, first, expected) in
        [(StageKind::Replace, 0, vec![0, 2]), (StageKind::Merge, 10, vec![0, 2, 10, 12])]
    {
        let request = request(kind, &id_and_text());
        let stage = lake.stage(&org("401"), "t", request).await.expect("stage");
        let files = written(&stage, &[rows(first..first + 3)]).await;
        let placed: Vec<Placed> = stage
            .read_staged(&files[0], Some(&["id".to_owned()]))
            .expect("read")
            .try_collect()
            .await
            .expect("rows");
        assert_eq!(longs(&placed[0].records, "id"), [first, first + 1, first + 2]);
        assert_eq!(placed[0].positions, [0, 1, 2]);
        let goes = [(files[0].as_scanned(), vec![1])];
        let deletes = stage.write_deletes_with(&goes, &files).await.expect("deletes");
        let delta = RowDelta { files, deletes, among: range(first, first + 2) };
        let summary = rows_of(&delta);
        stage.commit_delta(delta, &checkpoint(1), summary, None).await.expect("committed");
        let now = table(lake, "t").await;
        assert_eq!(ids(&now).await, expected);
        let rows = now.current_snapshot().expect("current").rows;
        assert_eq!(rows, Some(expected.len() as u64));
    }
}

#[tokio::test]
async fn what_other_writers_did_to_its_rows_is_a_conflict() {
    let scratch = two_files().await;
    let lake = &scratch.lake;
    let files = |lake: &Lake| {
        let lake = lake.clone();
        async move {
            let request = request(StageKind::Files, &id_and_text());
            lake.stage(&org("401"), "t", request).await.expect("stage")
        }
    };
    // Rows of a file of its deletes are deleted: refused, and its files go.
    let merge = begin(lake).await;
    let mine = delta(&merge, 0, 0).await;
    let other = files(lake).await;
    let deletes = places(&begin(lake).await, 1, 1).await;
    let deletes = other.write_deletes(&deletes).await.expect("deletes");
    other.row_delta(deletes, Vec::new()).await.expect("deleted");
    let parquet = scratch.files(".parquet").len();
    let summary = rows_of(&mine);
    let error = merge.commit_delta(mine, &checkpoint(1), summary, None).await.expect_err("deleted");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(scratch.files(".parquet").len(), parquet - 2, "its files went");
    assert_eq!(ids_now(&scratch).await, [0, 2, 3, 4, 5]);
    // A file with one of its keys comes: refused. One with others does not matter.
    for (ids, bears) in [(20..21, false), (30..31, true)] {
        let merge = begin(lake).await;
        let mine = delta(&merge, 20, 20).await;
        let other = files(lake).await;
        let new = written(&other, &[rows(ids)]).await;
        other.row_delta(Vec::new(), new).await.expect("added");
        let summary = rows_of(&mine);
        let done = merge.commit_delta(mine, &checkpoint(2), summary, None).await;
        assert_eq!(done.is_ok(), bears, "{done:?}");
    }
    // A run in between is another matter: its rows were not looked at.
    let merge = begin(lake).await;
    let mine = delta(&merge, 5, 5).await;
    run(lake, "t", request(StageKind::Append, &id_and_text()), &[rows(40..41)]).await.expect("run");
    let summary = rows_of(&mine);
    let error =
        merge.commit_delta(mine, &checkpoint(3), summary, None).await.expect_err("overtaken");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
}

/// What everybody else sees of a table once a run's snapshot is staged and audited.
struct Meanwhile {
    lake: Lake,
    seen: Mutex<Option<LakeTable>>,
}

#[async_trait]
impl Gate for Meanwhile {
    async fn check(&self, _staged: &LakeTable, _snapshot: i64) -> Result<()> {
        let now = table(&self.lake, "t").await;
        *self.seen.lock().expect("seen") = Some(now);
        Ok(())
    }
}

/// Puts the rows of the state into one file, on top of whatever `main` is now.
async fn rewrite(lake: &Lake, of: &LakeTable) -> Result<FilesCommitted> {
    let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    let old = of.plan(scan).await.expect("plan").files;
    let rows = read(of, Predicate::True).await;
    let stage = lake.stage_on(of, request(StageKind::Files, &id_and_text())).expect("stage");
    let files = written(&stage, &[rows]).await;
    stage.rewrite_files(old.into_iter().map(|file| file.path).collect(), files).await
}

/// The merge has its number before the rewrite reads the table, and comes into `main` after that.
#[tokio::test]
async fn a_rewrite_does_not_bring_back_rows_of_a_merge_that_was_staged_before_it() {
    let scratch = two_files().await;
    let lake = &scratch.lake;
    let merge = begin(lake).await;
    let deletes = merge.write_deletes(&places(&merge, 1, 2).await).await.expect("deletes");
    let delta = RowDelta { files: Vec::new(), deletes, among: range(1, 2) };
    let meanwhile = Meanwhile { lake: lake.clone(), seen: Mutex::default() };
    let (rows, gate) = (RunSummary::default(), Some(&meanwhile as &dyn Gate));
    merge.commit_delta(delta, &checkpoint(9), rows, gate).await.expect("merged");
    let seen = meanwhile.seen.into_inner().expect("seen").expect("looked");
    assert_eq!(ids(&seen).await, [0, 1, 2, 3, 4, 5], "not published yet");
    let error = rewrite(lake, &seen).await.expect_err("rows of its files were deleted");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(ids_now(&scratch).await, [0, 3, 4, 5]);
}

/// Rows that a state has lost are lost again when the table is rolled forward to it, whatever was
/// begun in between.
#[tokio::test]
async fn nor_rows_of_a_state_that_was_rolled_back_when_it_began() {
    let scratch = two_files().await;
    let lake = &scratch.lake;
    let full = table(lake, "t").await.current_snapshot().expect("current").id;
    let now = table(lake, "t").await;
    let stage = lake.stage_on(&now, request(StageKind::Files, &id_and_text())).expect("stage");
    let deletes = stage.write_deletes(&places(&stage, 1, 2).await).await.expect("deletes");
    let less = stage.row_delta(deletes, Vec::new()).await.expect("deleted").snapshot_id;
    let go = async |to: i64| {
        lake.rollback(&org("401"), "t", &to.to_string(), Uuid::new_v4()).await.expect("rolled");
    };
    go(full).await;
    let seen = table(lake, "t").await;
    go(less).await;
    let error = rewrite(lake, &seen).await.expect_err("rows of its files were deleted");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(ids_now(&scratch).await, [0, 3, 4, 5]);
}
