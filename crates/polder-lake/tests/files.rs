//! Changes of files that are no runs: what they do, and which commits in between they bear.

use std::collections::HashSet;

use futures::TryStreamExt;
use iceberg::spec::{FormatVersion, Manifest, ManifestList, TableMetadata};
use object_store::ObjectStoreExt;
use polder_core::spec::SortField;
use polder_core::{ErrorCode, Result};
use polder_lake::{
    CmpOp, FilesCommitted, Lake, LakeTable, Literal, MetadataRequest, Predicate, ScanFile,
    ScanRequest, Stage, StageKind, StagedFile,
};

use crate::support::*;

/// A table with the ids 0 to 8 in three files.
async fn three_files() -> Scratch {
    let scratch = Scratch::new().await;
    let replace = request(StageKind::Replace, &id_and_text());
    run(&scratch.lake, "t", replace, &[rows(0..3)]).await.expect("create");
    for first in [3, 6] {
        append(&scratch.lake, first..first + 3).await;
    }
    scratch
}

async fn append(lake: &Lake, ids: std::ops::Range<i64>) {
    let request = request(StageKind::Append, &id_and_text());
    run(lake, "t", request, &[rows(ids)]).await.expect("append");
}

async fn stage(lake: &Lake) -> Stage {
    let request = request(StageKind::Files, &id_and_text());
    lake.stage(&org("401"), "t", request).await.expect("stage")
}

async fn planned(table: &LakeTable) -> Vec<ScanFile> {
    let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    table.plan(scan).await.expect("plan").files
}

fn paths(files: &[ScanFile]) -> Vec<String> {
    files.iter().map(|file| file.path.clone()).collect()
}

/// The file that holds an id.
async fn file_of(table: &LakeTable, id: i64) -> ScanFile {
    let scan = ScanRequest { snapshot: None, filter: id_is(id), columns: None };
    let mut files = table.plan(scan).await.expect("plan").files;
    assert_eq!(files.len(), 1, "bounds tell the file of {id}");
    files.remove(0)
}

fn id_is(id: i64) -> Predicate {
    Predicate::Cmp { column: "id".to_owned(), op: CmpOp::Eq, value: Literal::Long(id) }
}

/// The rows of the files, rewritten by the stage.
async fn rewritten(table: &LakeTable, stage: &Stage, files: &[String]) -> Vec<StagedFile> {
    let wanted: HashSet<String> = files.iter().cloned().collect();
    let stream = table.read_files(&wanted).await.expect("read");
    let batches: Vec<_> = stream.try_collect().await.expect("rows");
    written(stage, &batches).await
}

/// Deletes one row.
async fn delete_row(lake: &Lake, id: i64) -> Result<FilesCommitted> {
    let now = table(lake, "t").await;
    let file = file_of(&now, id).await;
    let stage = stage(lake).await;
    let deletes = stage.write_deletes(&[(file, vec![(id % 3) as u64])]).await?;
    stage.row_delta(deletes, Vec::new()).await
}

async fn ids_now(scratch: &Scratch) -> Vec<i64> {
    ids(&table(&scratch.lake, "t").await).await
}

fn numbers(table: &LakeTable, keys: &[&str]) -> Vec<String> {
    let summary = summary_of(table);
    keys.iter().map(|key| summary.get(*key).cloned().unwrap_or_default()).collect()
}

#[tokio::test]
async fn a_rewrite_keeps_rows_checkpoint_and_versions() {
    let scratch = three_files().await;
    let lake = &scratch.lake;
    delete_row(lake, 4).await.expect("deleted");
    let before = table(lake, "t").await;
    let run_under_way = {
        let request = request(StageKind::Append, &id_and_text());
        lake.stage(&org("401"), "t", request).await.expect("stage")
    };
    let stage = stage(lake).await;
    let old = paths(&planned(&before).await);
    let new = rewritten(&before, &stage, &old).await;
    stage.rewrite_files(old, new).await.expect("rewritten");
    let now = table(lake, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(planned(&now).await.len(), 1);
    assert_eq!(
        (now.checkpoint().expect("good"), now.versions().len(), now.run_ids()),
        (before.checkpoint().expect("good"), 1, before.run_ids())
    );
    let current = now.current_snapshot().expect("current");
    assert_eq!((current.operation.as_str(), current.rows), ("replace", Some(8)));
    let keys = ["added-data-files", "deleted-data-files", "added-records", "deleted-records"];
    assert_eq!(numbers(&now, &keys), ["1", "3", "8", "9"]);
    // The state before is as it was.
    let past = before.current_snapshot().expect("current").id;
    assert_eq!(longs(&read_at(&now, Some(past), Predicate::True).await, "id").len(), 8);
    // A run that began before goes on top of it.
    let files = written(&run_under_way, &[rows(9..10)]).await;
    let summary = summary(&files);
    run_under_way.commit(files, &checkpoint(10), summary).await.expect("commit");
    assert_eq!(ids_now(&scratch).await, [0, 1, 2, 3, 5, 6, 7, 8, 9]);
}

/// The sequence number that the rows of a file have by its manifest entry; `None` for that of the commit
/// that added it (spec, *Sequence Number Inheritance*).
async fn age_of(lake: &Lake, path: &str) -> Option<i64> {
    let now = table(lake, "t").await;
    let current = now.current_snapshot().expect("current").id;
    let bytes = async |location: &str| {
        let path = lake.object_path(location).expect("path");
        let found = lake.object_store().get(&path).await.expect("there");
        found.bytes().await.expect("bytes")
    };
    let metadata: TableMetadata =
        serde_json::from_slice(&bytes(now.metadata_location()).await).expect("metadata");
    let list = metadata.snapshot_by_id(current).expect("current").manifest_list();
    let list = ManifestList::parse_with_version(&bytes(list).await, FormatVersion::V2);
    for manifest in list.expect("a list").consume_entries() {
        let manifest = Manifest::parse_avro(&bytes(&manifest.manifest_path).await);
        let manifest = manifest.expect("a manifest");
        let mut living = manifest.entries().iter().filter(|entry| entry.is_alive());
        if let Some(found) = living.find(|entry| entry.file_path() == path) {
            return found.sequence_number();
        }
    }
    panic!("the table has no {path}");
}

/// The commit that takes files away lists their manifests once more, and readers open them.
#[tokio::test]
async fn manifests_go_once_their_files_were_rewritten() {
    let scratch = three_files().await;
    let lake = &scratch.lake;
    for id in 9..15 {
        append(lake, id..id + 1).await;
    }
    let before = table(lake, "t").await;
    let stage = stage(lake).await;
    let old = paths(&planned(&before).await);
    let new = rewritten(&before, &stage, &old).await;
    stage.rewrite_files(old, new).await.expect("rewritten");
    let request = MetadataRequest { files: 100, older_than_ms: 0, dry_run: false };
    for expected in [(10, 1), (1, 1)] {
        let done = lake.tidy_metadata(&org("401"), "t", &request).await.expect("tidied");
        assert_eq!((done.manifests_before, done.manifests_after), expected);
    }
    assert_eq!(ids_now(&scratch).await, (0..15).collect::<Vec<_>>());
    let past = before.current_snapshot().expect("current").id;
    let now = table(lake, "t").await;
    assert_eq!(longs(&read_at(&now, Some(past), Predicate::True).await, "id").len(), 15);
    assert_eq!(numbers(&now, &["total-data-files", "total-records"]), ["1", "15"]);
}

/// Deletes by equality that others commit while a rewrite is under way are of older rows than theirs: they
/// would leave out nothing of files that were as new as the rewrite's own commit.
#[tokio::test]
async fn rewritten_rows_stay_as_old_as_the_state_that_was_read() {
    let scratch = three_files().await;
    let lake = &scratch.lake;
    let before = table(lake, "t").await;
    let read = metadata(&before)["last-sequence-number"].as_i64();
    let (old, stage) = (paths(&planned(&before).await), stage(lake).await);
    let new = rewritten(&before, &stage, &old).await;
    let path = new[0].location().to_owned();
    append(lake, 9..10).await;
    stage.rewrite_files(old, new).await.expect("rewritten");
    assert!(metadata(&table(lake, "t").await)["last-sequence-number"].as_i64() > read);
    assert_eq!(age_of(lake, &path).await, read);
    // An append's are as new as its commit.
    let added = file_of(&table(lake, "t").await, 9).await.path;
    assert_ne!(age_of(lake, &added).await, read);
    assert_eq!(ids_now(&scratch).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_rewrite_bears_appends_and_not_deletes() {
    let scratch = three_files().await;
    let lake = &scratch.lake;
    let before = table(lake, "t").await;
    let old = vec![file_of(&before, 0).await.path, file_of(&before, 3).await.path];
    let (one, two, three) = (stage(lake).await, stage(lake).await, stage(lake).await);
    let (new, again) = (rewritten(&before, &one, &old).await, rewritten(&before, &two, &old).await);
    append(lake, 9..10).await;
    delete_row(lake, 7).await.expect("in a file that is not rewritten");
    one.rewrite_files(old.clone(), new).await.expect("rewritten");
    assert_eq!(ids_now(&scratch).await, [0, 1, 2, 3, 4, 5, 6, 8, 9]);
    let parquet = scratch.files(".parquet").len();
    let error = two.rewrite_files(old.clone(), again).await.expect_err("files are gone");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(scratch.files(".parquet").len(), parquet - 1, "its files went");
    let error = three.delete_files(old).await.expect_err("files are gone");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    // Rows deleted meanwhile would come back.
    let before = table(lake, "t").await;
    let old = vec![file_of(&before, 0).await.path];
    let stage = stage(lake).await;
    let new = rewritten(&before, &stage, &old).await;
    delete_first(lake, &old[0]).await;
    let error = stage.rewrite_files(old, new).await.expect_err("deleted meanwhile");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(ids_now(&scratch).await.len(), 8);
}

async fn delete_first(lake: &Lake, path: &str) {
    let files = planned(&table(lake, "t").await).await;
    let file = files.into_iter().find(|file| file.path == path).expect("file");
    let stage = stage(lake).await;
    let deletes = stage.write_deletes(&[(file, vec![0])]).await.expect("deletes");
    stage.row_delta(deletes, Vec::new()).await.expect("deleted");
}

#[tokio::test]
async fn a_row_delta_deletes_and_adds_at_once() {
    let scratch = three_files().await;
    let lake = &scratch.lake;
    let before = table(lake, "t").await;
    let stage_one = stage(lake).await;
    let of_four = file_of(&before, 4).await;
    let deletes = stage_one.write_deletes(&[(of_four, vec![2, 0])]).await.expect("deletes");
    let files = written(&stage_one, &[rows(20..22)]).await;
    stage_one.row_delta(deletes, files).await.expect("delta");
    let now = table(lake, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2, 4, 6, 7, 8, 20, 21]);
    let keys = ["total-delete-files", "total-position-deletes", "total-records"];
    assert_eq!(numbers(&now, &keys), ["1", "2", "11"]);
    // Of a file that was removed meanwhile, no row can be deleted.
    let slow = stage(lake).await;
    let file = file_of(&now, 7).await;
    let deletes = slow.write_deletes(&[(file.clone(), vec![0])]).await.expect("deletes");
    stage(lake).await.delete_files(vec![file.path]).await.expect("deleted");
    let error = slow.row_delta(deletes, Vec::new()).await.expect_err("gone");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(ids_now(&scratch).await, [0, 1, 2, 4, 20, 21]);
    // And two deltas of one file are not told apart.
    let now = table(lake, "t").await;
    let file = file_of(&now, 0).await;
    let (one, two) = (stage(lake).await, stage(lake).await);
    let of = |positions: &[u64]| vec![(file.clone(), positions.to_vec())];
    let first = one.write_deletes(&of(&[0])).await.expect("deletes");
    let second = two.write_deletes(&of(&[0])).await.expect("deletes");
    one.row_delta(first, Vec::new()).await.expect("delta");
    let error = two.row_delta(second, Vec::new()).await.expect_err("deleted meanwhile");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert!(stage(lake).await.write_deletes(&of(&[3])).await.is_err(), "it has three rows");
    assert!(stage(lake).await.write_deletes(&of(&[])).await.is_err());
}

#[tokio::test]
async fn an_overwrite_bears_only_rows_it_does_not_replace() {
    let scratch = three_files().await;
    let lake = &scratch.lake;
    let now = table(lake, "t").await;
    let middle = |from: i64, below: i64| {
        let bound =
            |op, value| Predicate::Cmp { column: "id".to_owned(), op, value: Literal::Long(value) };
        bound(CmpOp::GtEq, from).and(bound(CmpOp::Lt, below))
    };
    let old = vec![file_of(&now, 4).await.path];
    let (one, two) = (stage(lake).await, stage(lake).await);
    let first = written(&one, &[rows(4..5)]).await;
    append(lake, 9..10).await;
    one.overwrite_files(middle(3, 6), old, first).await.expect("overwritten");
    assert_eq!(ids_now(&scratch).await, [0, 1, 2, 4, 6, 7, 8, 9]);
    let second = written(&two, &[rows(100..101)]).await;
    let old = vec![file_of(&now, 7).await.path];
    let error = two.overwrite_files(middle(6, 10), old, second).await.expect_err("9 was added");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert_eq!(ids_now(&scratch).await, [0, 1, 2, 4, 6, 7, 8, 9]);
}

#[tokio::test]
async fn partitions_change_for_new_files_at_once_and_for_old_ones_by_a_rewrite() {
    let scratch = three_files().await;
    let lake = &scratch.lake;
    let mut more = request(StageKind::Append, &id_and_text());
    more.partition = vec!["truncate(10, id)".parse().expect("partition")];
    run(lake, "t", more, &[rows(9..12)]).await.expect("append");
    let now = table(lake, "t").await;
    assert_eq!(now.partition().len(), 1);
    assert_eq!(ids(&now).await, (0..12).collect::<Vec<_>>());
    assert_eq!(planned(&now).await.len(), 5, "new rows lie in two partitions");
    for id in [0, 5, 9, 10] {
        assert_eq!(longs(&read(&now, id_is(id)).await, "id"), [id]);
    }
    let mut again = request(StageKind::Files, &id_and_text());
    again.partition = now.partition();
    let stage = lake.stage(&org("401"), "t", again).await.expect("stage");
    let old = now.files_partitioned_otherwise(&now.partition()).await.expect("planned");
    assert_eq!(old.len(), 3);
    let new = rewritten(&now, &stage, &paths(&old)).await;
    stage.rewrite_files(paths(&old), new).await.expect("rewritten");
    let now = table(lake, "t").await;
    assert_eq!(ids(&now).await, (0..12).collect::<Vec<_>>());
    let left = now.files_partitioned_otherwise(&now.partition()).await.expect("planned");
    assert_eq!((left.len(), planned(&now).await.len()), (0, 3), "one more partition, for 0 to 8");
    assert_eq!(files_planned(&now, id_is(11)).await, 1);
}

/// The table's data files on disk, temporary ones too.
fn on_disk(table: &LakeTable) -> usize {
    let folder = table.location().strip_prefix("file://").expect("local");
    std::fs::read_dir(format!("{folder}/data")).expect("folder").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_dropped_leaves_no_file_however_far_each_was() {
    let scratch = three_files().await;
    let before = table(&scratch.lake, "t").await;
    for batches in 1..8 {
        let mut request = request(StageKind::Append, &id_and_text());
        // Each batch is a file.
        request.target_file_bytes = 1;
        let stage = scratch.lake.stage(&org("401"), "t", request).await.expect("stage");
        let mut writer = stage.writer();
        for batch in 0..batches {
            writer.write(rows(batch..batch + 1)).await.expect("written");
        }
        drop(writer);
        stage.abort(Vec::new()).await;
        assert_eq!(on_disk(&before), 3, "after {batches} batches");
    }
}

#[tokio::test]
async fn files_are_marked_with_an_order_only_where_rows_came_in_it() {
    let scratch = three_files().await;
    let now = table(&scratch.lake, "t").await;
    let sort: Vec<SortField> = vec!["id desc".parse().expect("field")];
    let mut request = request(StageKind::Files, &id_and_text());
    assert!(stage(&scratch.lake).await.sorted_writer().is_err(), "the table has no order");
    request.sort = Some(sort.clone());
    let stage = scratch.lake.stage_on(&now, request).expect("stage");
    let old = file_of(&now, 0).await.path;
    let mut writer = stage.sorted_writer().expect("an order");
    for ids in [2..3, 1..2] {
        writer.write(rows(ids)).await.expect("written");
    }
    writer.cut().await.expect("cut");
    writer.write(rows(0..1)).await.expect("written");
    let new = writer.finish().await.expect("finished");
    assert_eq!(new.iter().map(StagedFile::rows).collect::<Vec<_>>(), [2, 1], "cut in two");
    stage.rewrite_files(vec![old], new).await.expect("rewritten");
    let now = table(&scratch.lake, "t").await;
    assert_eq!((now.sort(), ids(&now).await), (Some(sort.clone()), (0..9).collect()));
    let files = now.files(&[], &sort).await.expect("files");
    let unsorted = files.files().iter().filter(|file| file.cost.unsorted).count();
    assert_eq!((files.files().len(), unsorted), (4, 2));
    // In another order, or in none, nothing is known of it.
    let other: [SortField; 1] = ["id".parse().expect("field")];
    let files = now.files(&[], &other).await.expect("files");
    assert!(files.files().iter().all(|file| file.cost.unsorted));
    let files = now.files(&[], &[]).await.expect("files");
    assert!(files.files().iter().all(|file| !file.cost.unsorted));
}
