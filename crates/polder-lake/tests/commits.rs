//! One commit per run, whoever else is at work.

use std::collections::HashMap;

use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use polder_core::{ErrorCode, Result};
use polder_lake::{Catalog, Committed, Lake, Stage, StageKind, Store};

use crate::support::*;

async fn commit(stage: Stage, ids: std::ops::Range<i64>) -> Result<Committed> {
    let files = written(&stage, &[rows(ids)]).await;
    let summary = summary(&files);
    stage.commit(files, &checkpoint(0), summary).await
}

async fn appender(lake: &Lake) -> Stage {
    let request = request(StageKind::Append, &id_and_text());
    lake.stage(&org("401"), "t", request).await.expect("stage")
}

#[tokio::test]
async fn a_run_that_commits_twice_publishes_once() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    run(lake, "t", request(StageKind::Replace, &id_and_text()), &[]).await.expect("create");
    for kind in [StageKind::Append, StageKind::Replace] {
        let request = request(kind, &id_and_text());
        let one = lake.stage(&org("401"), "t", request.clone()).await.expect("stage");
        let two = lake.stage(&org("401"), "t", request.clone()).await.expect("stage");
        let first = commit(one, 0..2).await.expect("first");
        let second = commit(two, 0..2).await.expect("second");
        let three = lake.stage(&org("401"), "t", request).await.expect("stage");
        let third = commit(three, 0..2).await.expect("third");
        assert!(!first.already && second.already && third.already);
        for again in [second, third] {
            assert_eq!(
                (again.snapshot_id, again.version),
                (first.snapshot_id, first.version.clone())
            );
        }
        assert_eq!(ids(&table(lake, "t").await).await, [0, 1]);
    }
    assert_eq!(scratch.files(".parquet").len(), 2, "the other attempts' files are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn appenders_of_many_tables_do_not_disturb_each_other() {
    let scratch = Scratch::new().await;
    let mut runs = tokio::task::JoinSet::new();
    for number in 0..8 {
        let lake = scratch.lake.clone();
        runs.spawn(async move {
            let name = format!("t{number}");
            let first = request(StageKind::Replace, &id_and_text());
            run(&lake, &name, first, &[rows(0..1)]).await.expect("create");
            for id in 1..5 {
                let more = request(StageKind::Append, &id_and_text());
                run(&lake, &name, more, &[rows(id..id + 1)]).await.expect("append");
            }
            assert_eq!(ids(&table(&lake, &name).await).await, [0, 1, 2, 3, 4]);
        });
    }
    runs.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_runs_that_began_together_one_wins_and_the_others_leave_nothing() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    run(lake, "t", request(StageKind::Replace, &id_and_text()), &[]).await.expect("create");
    let mut stages = Vec::new();
    for number in 0..8_i64 {
        stages.push((number, appender(lake).await));
    }
    let mut commits = tokio::task::JoinSet::new();
    for (number, stage) in stages {
        commits.spawn(commit(stage, number..number + 1));
    }
    let outcomes = commits.join_all().await;
    let won: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(won.len(), 1);
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(error.code(), ErrorCode::LakeConflict, "{error:?}");
    }
    assert_eq!(ids(&table(lake, "t").await).await.len(), 1);
    assert_eq!(scratch.files(".parquet").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_stage_again_after_a_conflict_all_get_in_once() {
    let scratch = Scratch::new().await;
    run(&scratch.lake, "t", request(StageKind::Replace, &id_and_text()), &[])
        .await
        .expect("create");
    let mut runs = tokio::task::JoinSet::new();
    for number in 0..8_i64 {
        let lake = scratch.lake.clone();
        runs.spawn(async move {
            let request = request(StageKind::Append, &id_and_text());
            for _ in 0..100 {
                match run(&lake, "t", request.clone(), &[rows(number..number + 1)]).await {
                    Ok(_) => return,
                    Err(error) => assert_eq!(error.code(), ErrorCode::LakeConflict, "{error:?}"),
                }
            }
            panic!("no attempt of a hundred got in");
        });
    }
    runs.join_all().await;
    let now = table(&scratch.lake, "t").await;
    assert_eq!(ids(&now).await, (0..8).collect::<Vec<i64>>());
    assert_eq!(now.snapshots().len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_first_loads_of_one_table_one_creates_it() {
    let scratch = Scratch::new().await;
    let mut stages = Vec::new();
    for number in 0..4_i64 {
        let request = request(StageKind::Replace, &id_and_text());
        stages.push((number, scratch.lake.stage(&org("401"), "t", request).await.expect("stage")));
    }
    let mut runs = tokio::task::JoinSet::new();
    for (number, stage) in stages {
        runs.spawn(commit(stage, number..number + 1));
    }
    let outcomes = runs.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert_eq!(ids(&table(&scratch.lake, "t").await).await.len(), 1);
}

/// A change that is no run of ours: maintenance, another engine.
async fn foreign_change(scratch: &Scratch) {
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    let catalog = Scratch::catalog(&settings, store).await;
    let ident = TableIdent::new(NamespaceIdent::new("org_401".into()), "t".into());
    let updates = HashMap::from([("owner".to_owned(), "somebody".to_owned())]);
    catalog
        .commit(&ident, &[], vec![TableUpdate::SetProperties { updates }])
        .await
        .expect("change");
}

#[tokio::test]
async fn a_run_goes_on_top_of_changes_that_are_no_run() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    run(lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..1)])
        .await
        .expect("create");
    let stage = appender(lake).await;
    foreign_change(&scratch).await;
    commit(stage, 1..2).await.expect("append");
    let replace = request(StageKind::Replace, &id_and_text());
    let stage = lake.stage(&org("401"), "t", replace).await.expect("stage");
    foreign_change(&scratch).await;
    assert_eq!(ids(&table(lake, "t").await).await, [0, 1]);
    commit(stage, 5..6).await.expect("replace");
    let now = table(lake, "t").await;
    assert_eq!(ids(&now).await, [5]);
    assert_eq!(metadata(&now)["properties"]["owner"], "somebody");
}

#[tokio::test]
async fn a_stage_knows_whether_the_table_it_was_decided_from_changed() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    run(lake, "t", request(StageKind::Replace, &id_and_text()), &[]).await.expect("create");
    let seen = table(lake, "t").await;
    appender(lake).await.check_base(Some(&seen)).expect("unchanged");
    run(lake, "t", request(StageKind::Append, &id_and_text()), &[rows(0..1)])
        .await
        .expect("append");
    let error = appender(lake).await.check_base(Some(&seen)).expect_err("changed");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    assert!(appender(lake).await.check_base(None).is_err());
}

#[tokio::test]
async fn a_run_that_dies_before_its_commit_changes_nothing() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    run(lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..1)])
        .await
        .expect("create");
    let request = request(StageKind::Append, &id_and_text());
    // Dies while writing.
    let stage = lake.stage(&org("401"), "t", request.clone()).await.expect("stage");
    let mut writer = stage.writer();
    writer.write(rows(1..2)).await.expect("write");
    drop((writer, stage));
    assert_eq!(scratch.files("").iter().filter(|path| path.contains("/data/")).count(), 1);
    // Dies after writing: the files stay, and nobody names them.
    let stage = lake.stage(&org("401"), "t", request.clone()).await.expect("stage");
    let files = written(&stage, &[rows(1..2)]).await;
    drop((files, stage));
    assert_eq!(scratch.files(".parquet").len(), 2);
    assert_eq!(ids(&table(lake, "t").await).await, [0]);
    // And comes back.
    let done = run(lake, "t", request, &[rows(1..2)]).await.expect("again");
    assert!(!done.already);
    assert_eq!(ids(&table(lake, "t").await).await, [0, 1]);
}

#[tokio::test]
async fn rows_that_do_not_add_up_are_not_published() {
    let scratch = Scratch::new().await;
    let request = request(StageKind::Replace, &id_and_text());
    let stage = scratch.lake.stage(&org("401"), "t", request).await.expect("stage");
    let files = written(&stage, &[rows(0..3)]).await;
    let summary = polder_lake::RunSummary { rows: 4, ..Default::default() };
    let error = stage.commit(files, &checkpoint(0), summary).await.expect_err("refused");
    assert_eq!(error.code(), ErrorCode::Internal);
    assert!(scratch.lake.table(&org("401"), "t").await.expect("load").is_none());
    assert!(scratch.files(".parquet").is_empty());
}

#[tokio::test]
async fn an_aborted_stage_removes_its_files() {
    let scratch = Scratch::new().await;
    let request = request(StageKind::Replace, &id_and_text());
    let stage = scratch.lake.stage(&org("401"), "t", request).await.expect("stage");
    let files = written(&stage, &[rows(0..3)]).await;
    assert_eq!(scratch.files(".parquet").len(), 1);
    stage.abort(files).await;
    assert!(scratch.files(".parquet").is_empty());
}

#[tokio::test]
async fn metadata_remembers_a_bounded_past() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let first = request(StageKind::Replace, &id_and_text());
    let first_id = first.run_id;
    run(lake, "t", first, &[]).await.expect("create");
    for _ in 0..25 {
        run(lake, "t", request(StageKind::Append, &id_and_text()), &[]).await.expect("append");
    }
    let now = table(lake, "t").await;
    assert_eq!(now.run_ids().len(), 20);
    assert!(!now.run_ids().contains(&first_id));
    // Each run stages, then publishes.
    assert_eq!(metadata(&now)["metadata-log"].as_array().expect("log").len(), 51);
    assert_eq!(scratch.files(".metadata.json").len(), 52, "old metadata files are kept");
}
