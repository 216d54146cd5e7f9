//! Rolling back: rows, schema, partitions and checkpoint of an older state, in one commit.

use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention};
use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use polder_core::spec::PartitionField;
use polder_core::{ErrorCode, Field, LakeType, TextOf};
use polder_lake::{Catalog, LakeTable, RolledBack, StageKind, Store};
use uuid::Uuid;

use crate::support::*;

async fn replaced(scratch: &Scratch, ids: std::ops::Range<i64>) {
    let batches = [rows(ids)];
    run(&scratch.lake, "t", request(StageKind::Replace, &id_and_text()), &batches)
        .await
        .expect("replace");
}

async fn appended(scratch: &Scratch, ids: std::ops::Range<i64>) {
    let batches = [rows(ids)];
    run(&scratch.lake, "t", request(StageKind::Append, &id_and_text()), &batches)
        .await
        .expect("append");
}

async fn rolled_back(scratch: &Scratch, to: &str) -> RolledBack {
    scratch.lake.rollback(&org("401"), "t", to, Uuid::new_v4()).await.expect("rollback")
}

fn versions(table: &LakeTable) -> String {
    let versions = table.versions().into_iter();
    let names: Vec<_> = versions
        .map(|version| format!("v{}{}", version.number, if version.current { "*" } else { "" }))
        .collect();
    names.join(" ")
}

/// What another engine does to `main`.
async fn moved_by_another_engine(scratch: &Scratch, snapshot_id: i64) {
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    let catalog = Scratch::catalog(&settings, store).await;
    let ident = TableIdent::new(NamespaceIdent::new("org_401".to_owned()), "t".to_owned());
    let retention = SnapshotRetention::branch(None, None, None);
    let reference = SnapshotReference::new(snapshot_id, retention);
    let update = TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference };
    catalog.commit(&ident, &[], vec![update]).await.expect("moved");
}

#[tokio::test]
async fn rows_and_checkpoint_go_back_and_forth() {
    let scratch = Scratch::new().await;
    replaced(&scratch, 0..3).await;
    replaced(&scratch, 10..15).await;
    appended(&scratch, 15..16).await;
    let before = table(&scratch.lake, "t").await;
    assert_eq!(versions(&before), "v1 v2*");
    let done = rolled_back(&scratch, "v1").await.done.expect("done");
    assert_eq!((done.to.as_str(), done.kept_as.as_str()), ("v1", "before-rollback-1"));
    let now = table(&scratch.lake, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2]);
    assert_eq!(versions(&now), "v1* v2");
    assert_eq!(now.checkpoint().expect("good"), Some(checkpoint(3)));
    assert_eq!(now.rollbacks(), std::slice::from_ref(&done));
    assert_eq!(now.uuid(), before.uuid());
    // And back, to what was appended to the version too.
    rolled_back(&scratch, "before-rollback-1").await;
    let now = table(&scratch.lake, "t").await;
    assert_eq!(ids(&now).await, [10, 11, 12, 13, 14, 15]);
    assert_eq!(now.checkpoint().expect("good"), Some(checkpoint(1)));
    assert_eq!(now.current_snapshot().expect("current").id, done.from_snapshot);
    let tags: Vec<_> = now.refs().into_iter().map(|found| found.name).collect();
    assert_eq!(tags, ["before-rollback-1", "before-rollback-2", "main", "v1", "v2"]);
    // A state that is current already.
    assert_eq!(rolled_back(&scratch, "before-rollback-1").await.done, None);
    // Runs go on from there.
    appended(&scratch, 16..17).await;
    replaced(&scratch, 20..21).await;
    let now = table(&scratch.lake, "t").await;
    assert_eq!((ids(&now).await, versions(&now).as_str()), (vec![20], "v1 v2 v3*"));
}

#[tokio::test]
async fn columns_marks_and_partitions_are_those_of_the_version() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let mut first = id_and_text();
    first.fields[0].source_id = Some(1);
    first.fields[1] = Field::text("text", TextOf::Json).with_source_id(2);
    let by_id: PartitionField = "bucket(4, id)".parse().expect("partition");
    let mut old = request(StageKind::Replace, &first);
    old.partition = vec![by_id.clone()];
    run(lake, "t", old, &[rows(0..3)]).await.expect("v1");
    // Another id and another meaning of the text, and no partitions.
    let mut second = first.clone();
    second.fields[1] = Field::new("text", LakeType::String).with_source_id(3);
    run(lake, "t", request(StageKind::Replace, &second), &[rows(5..6)]).await.expect("v2");
    rolled_back(&scratch, "v1").await;
    let now = table(lake, "t").await;
    assert_eq!((now.schema(), now.partition()), (first.clone(), vec![by_id.clone()]));
    assert_eq!(ids(&now).await, [0, 1, 2]);
    let mut more = request(StageKind::Append, &first);
    more.partition = vec![by_id];
    run(lake, "t", more, &[rows(3..4)]).await.expect("append");
    assert_eq!(ids(&table(lake, "t").await).await, [0, 1, 2, 3]);
    rolled_back(&scratch, "v2").await;
    let now = table(lake, "t").await;
    assert_eq!((now.schema(), now.partition()), (second, Vec::new()));
    assert_eq!(ids(&now).await, [5]);
}

#[tokio::test]
async fn a_rollback_is_made_once_and_unknown_versions_are_named() {
    let scratch = Scratch::new().await;
    let org = org("401");
    let missing = scratch.lake.rollback(&org, "t", "v1", Uuid::new_v4()).await.expect_err("none");
    assert_eq!(missing.code(), ErrorCode::LakeNotFound);
    replaced(&scratch, 0..1).await;
    replaced(&scratch, 1..2).await;
    let id = Uuid::new_v4();
    let first = scratch.lake.rollback(&org, "t", "v1", id).await.expect("rollback");
    replaced(&scratch, 2..3).await;
    let again = scratch.lake.rollback(&org, "t", "v1", id).await.expect("found");
    assert_eq!(first, again);
    assert_eq!(ids(&table(&scratch.lake, "t").await).await, [2], "it was done before");
    let unknown = scratch.lake.rollback(&org, "t", "v9", Uuid::new_v4()).await.expect_err("v9");
    assert_eq!(unknown.code(), ErrorCode::LakeNotFound);
    assert!(unknown.hint_text().expect("hint").contains("v1, v2, v3"), "{unknown:?}");
}

#[tokio::test]
async fn a_run_that_began_before_a_rollback_does_not_undo_it() {
    let scratch = Scratch::new().await;
    replaced(&scratch, 0..1).await;
    replaced(&scratch, 1..2).await;
    for kind in [StageKind::Append, StageKind::Replace] {
        let request = request(kind, &id_and_text());
        let stage = scratch.lake.stage(&org("401"), "t", request).await.expect("stage");
        let files = written(&stage, &[rows(2..3)]).await;
        let to = if kind == StageKind::Append { "v1" } else { "v2" };
        rolled_back(&scratch, to).await;
        let summary = summary(&files);
        let error = stage.commit(files, &checkpoint(9), summary).await.expect_err("conflict");
        assert_eq!(error.code(), ErrorCode::LakeConflict);
    }
}

#[tokio::test]
async fn main_moved_by_another_engine_takes_the_checkpoint_along() {
    let scratch = Scratch::new().await;
    replaced(&scratch, 0..3).await;
    let first = table(&scratch.lake, "t").await.current_snapshot().expect("current").id;
    appended(&scratch, 3..8).await;
    assert_eq!(table(&scratch.lake, "t").await.checkpoint().expect("good"), Some(checkpoint(5)));
    moved_by_another_engine(&scratch, first).await;
    let now = table(&scratch.lake, "t").await;
    assert_eq!(
        (ids(&now).await, now.checkpoint().expect("good")),
        (vec![0, 1, 2], Some(checkpoint(3)))
    );
}

#[tokio::test]
async fn a_checkpoint_too_long_for_a_summary_is_lost_by_a_rollback_and_nothing_else_is() {
    let scratch = Scratch::new().await;
    let object = |n: usize| {
        (format!("file-{n}.csv"), polder_core::checkpoint::ObjectState { etag: "e".repeat(100) })
    };
    let mut long = checkpoint(1);
    long.objects = (0..100).map(object).collect();
    let replace = || request(StageKind::Replace, &id_and_text());
    let stage = scratch.lake.stage(&org("401"), "t", replace()).await.expect("stage");
    let files = written(&stage, &[rows(0..1)]).await;
    let summary = summary(&files);
    stage.commit(files, &long, summary).await.expect("commit");
    assert_eq!(table(&scratch.lake, "t").await.checkpoint().expect("good"), Some(long));
    replaced(&scratch, 1..3).await;
    rolled_back(&scratch, "v1").await;
    let now = table(&scratch.lake, "t").await;
    assert_eq!((ids(&now).await, now.checkpoint().expect("good")), (vec![0], None));
    assert_eq!(now.schema(), id_and_text());
    rolled_back(&scratch, "v2").await;
    let now = table(&scratch.lake, "t").await;
    assert_eq!(
        (ids(&now).await, now.checkpoint().expect("good")),
        (vec![1, 2], Some(checkpoint(2)))
    );
}
