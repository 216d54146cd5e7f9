//! The end of an org: its fence, and what is left when everything of it is removed.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use polder_core::{ErrorCode, Field, LakeType, ManagementTable, Principal};
use polder_lake::{Lake, StageKind};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::*;

/// What a row of org 401 in a management table says: short enough to be a bound as a whole.
const CANARY: &str = "canary-org-401";
const EVENTS: ManagementTable =
    ManagementTable { name: "events", columns: || vec![Field::new("text", LakeType::String)] };

async fn load(lake: &Lake, id: &str, kind: StageKind, ids: std::ops::Range<i64>) {
    let stage = lake.stage(&org(id), "t", request(kind, &id_and_text())).await.expect("stage");
    let files = written(&stage, &[rows(ids)]).await;
    let summary = summary(&files);
    stage.commit(files, &checkpoint(0), summary).await.expect("commit");
}

/// Everything that an erasure does in the lake, once.
pub(crate) async fn erase(lake: &Lake, id: &str) {
    lake.fence(&org(id), "e1").await.expect("fence");
    lake.clear_catalog(&org(id)).await.expect("catalog");
    let files = lake.org_files(&org(id)).await.expect("list");
    let kept = lake.remove_org_files(&org(id), &files).await.expect("remove");
    assert!(kept.is_empty(), "{kept:?}");
    lake.forget(&org(id)).await.expect("forget");
}

/// What was under way when the org was fenced, through other connections, is refused.
pub(crate) async fn nothing_passes_a_fence(lake: &Lake, other: &Lake) {
    for id in ["401", "402"] {
        load(lake, id, StageKind::Replace, 0..10).await;
        load(lake, id, StageKind::Append, 10..20).await;
    }
    let schema = id_and_text();
    let append = other.stage(&org("401"), "t", request(StageKind::Append, &schema)).await;
    let append = append.expect("an append under way");
    let appended = written(&append, &[rows(20..30)]).await;
    let create = other.stage(&org("401"), "new", request(StageKind::Replace, &schema)).await;
    let create = create.expect("a new table under way");
    let created = written(&create, &[rows(0..10)]).await;

    let by = lake.fence(&org("401"), "e1").await.expect("fence");
    assert_eq!(by, "e1");
    assert_eq!(other.fence(&org("401"), "e2").await.expect("again"), "e1", "the first wins");
    let fenced = |outcome: Result<(), polder_core::Error>, what: &str| {
        assert_eq!(outcome.expect_err(what).code(), ErrorCode::LakeFenced, "{what}");
    };
    let (done, made) = (summary(&appended), summary(&created));
    let append = append.commit(appended, &checkpoint(1), done).await;
    fenced(append.map(drop), "append");
    let create = create.commit(created, &checkpoint(1), made).await;
    fenced(create.map(drop), "create");
    let back = lake.rollback(&org("401"), "t", "v1", Uuid::new_v4()).await;
    fenced(back.map(drop), "rollback");
    fenced(lake.table(&org("401"), "t").await.map(drop), "read");
    fenced(lake.tables(&org("401")).await.map(drop), "list");
    let stage = lake.stage(&org("401"), "u", request(StageKind::Replace, &schema)).await;
    fenced(stage.map(drop), "stage");
    fenced(lake.check_open(&org("401")).await, "ask");

    erase(lake, "401").await;
    let entries = lake.org_entries(&org("401")).await.expect("catalog");
    assert_eq!(entries.count, 0);
    let files = lake.org_files(&org("401")).await.expect("files");
    assert!(files.is_empty(), "{files:?}");
    let theirs = lake.table(&org("402"), "t").await.expect("load").expect("table");
    assert_eq!(ids(&theirs).await, (0..20).collect::<Vec<_>>());
    load(other, "402", StageKind::Append, 20..21).await;
}

/// Writers that loop while their org is erased, through other connections, bring nothing back.
pub(crate) async fn nothing_comes_back(lake: &Lake, others: &[Lake]) {
    load(lake, "401", StageKind::Replace, 0..1).await;
    let mut writers = JoinSet::new();
    let (begun, mut under_way) = tokio::sync::mpsc::channel(others.len());
    for (number, other) in others.iter().cloned().enumerate() {
        let begun = begun.clone();
        writers.spawn(async move {
            for round in 0_i64.. {
                if round == 1 {
                    begun.send(()).await.expect("somebody waits");
                }
                let (kind, table) = match round % 3 {
                    0 => (StageKind::Replace, format!("new{number}-{round}")),
                    1 => (StageKind::Replace, "t".to_owned()),
                    _ => (StageKind::Append, "t".to_owned()),
                };
                let run = async {
                    let stage =
                        other.stage(&org("401"), &table, request(kind, &id_and_text())).await?;
                    let mut writer = stage.writer();
                    writer.write(rows(0..2)).await?;
                    let files = writer.finish().await?;
                    let summary = summary(&files);
                    stage.commit(files, &checkpoint(0), summary).await
                };
                match run.await {
                    Err(error) if error.code() == ErrorCode::LakeFenced => return round,
                    // It may stumble over what is gone already; the next time it is told why.
                    Err(error) => assert!(round < 100_000, "{error:?}"),
                    Ok(_) => {}
                }
            }
            unreachable!("a fence ends it");
        });
    }
    for _ in others {
        under_way.recv().await.expect("a round");
    }
    erase(lake, "401").await;
    let entries = lake.org_entries(&org("401")).await.expect("catalog");
    let rounds: i64 = writers.join_all().await.into_iter().sum();
    assert!(rounds >= others.len() as i64, "all were in the way");
    assert_eq!(entries.count, 0);
    let after = lake.org_entries(&org("401")).await.expect("catalog");
    assert_eq!(after.count, 0, "nor later");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_is_refused_behind_a_fence() {
    let scratch = Scratch::new().await;
    let other = Lake::open(Scratch::settings(&scratch.folder)).await.expect("lake");
    nothing_passes_a_fence(&scratch.lake, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_org_without_a_fence_is_not_erased() {
    let scratch = Scratch::new().await;
    load(&scratch.lake, "401", StageKind::Replace, 0..10).await;
    let denied = scratch.lake.clear_catalog(&org("401")).await.expect_err("no fence");
    assert_eq!(denied.code(), ErrorCode::ControlDenied);
    scratch.lake.org_files(&org("401")).await.expect_err("no fence");
    scratch.lake.forget(&org("401")).await.expect_err("no fence");
    scratch.lake.release_id(&org("401")).await.expect_err("no fence");
    assert_eq!(ids(&table(&scratch.lake, "t").await).await.len(), 10);
}

fn events(orgs: &[&str]) -> RecordBatch {
    let texts = orgs.iter().map(|org| if *org == "401" { CANARY } else { "nothing" });
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(orgs.to_vec())),
        Arc::new(StringArray::from_iter_values(texts)),
    ];
    RecordBatch::try_new(EVENTS.schema().to_arrow(), columns).expect("batch")
}

/// Every file below the warehouse with the text in it, the blocks of Avro files inflated.
fn found(scratch: &Scratch, text: &str) -> Vec<String> {
    let mut files = scratch.files("");
    files.retain(|path| {
        let bytes = std::fs::read(path).expect("file");
        let has = |bytes: &[u8]| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        has(&bytes) || (path.ends_with("avro") && inflated(&bytes).iter().any(|block| has(block)))
    });
    files
}

/// Whatever can be inflated from any byte on.
fn inflated(bytes: &[u8]) -> Vec<Vec<u8>> {
    use std::io::Read;
    let try_at = |at: usize| {
        let mut block = Vec::new();
        let mut decoder = flate2::read::DeflateDecoder::new(&bytes[at..]);
        let _ = decoder.read_to_end(&mut block);
        (block.len() > 16).then_some(block)
    };
    (0..bytes.len()).filter_map(try_at).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_management_tables_go_with_their_bounds_and_history() {
    let scratch = Scratch::new().await;
    let (lake, operator) = (&scratch.lake, Principal::Operator);
    load(lake, "401", StageKind::Replace, 0..1).await;
    load(lake, "402", StageKind::Replace, 0..1).await;
    // In one commit with others' rows, and in one of their own.
    lake.record(&operator, &EVENTS, events(&["401", "402", "401"])).await.expect("recorded");
    lake.record(&operator, &EVENTS, events(&["402"])).await.expect("recorded");
    lake.record(&operator, &EVENTS, events(&["401"])).await.expect("recorded");
    let before = found(&scratch, CANARY);
    assert!(before.iter().any(|path| path.ends_with("avro")), "bounds are looked for: {before:?}");
    assert!(before.iter().any(|path| path.ends_with(".parquet")), "{before:?}");

    lake.fence(&org("401"), "e1").await.expect("fence");
    let refused = lake.record(&operator, &EVENTS, events(&["401"])).await.expect_err("fenced");
    assert_eq!(refused.code(), ErrorCode::LakeFenced);
    assert_eq!(lake.management_rows(&org("401")).await.expect("rows"), 3);
    let forgotten = lake.forget(&org("401")).await.expect("forget");
    assert_eq!(forgotten, [("events".to_owned(), 3)]);
    assert!(lake.forget(&org("401")).await.expect("again").is_empty());
    assert_eq!(lake.management_rows(&org("401")).await.expect("rows"), 0);
    assert_eq!(found(&scratch, CANARY), Vec::<String>::new());
    let events = lake.management_table(&operator, "events").await.expect("load").expect("table");
    assert_eq!(events.snapshots().len(), 1);
    assert_eq!(read(&events, polder_lake::Predicate::True).await.num_rows(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_of_others_lose_no_row() {
    let scratch = Scratch::new().await;
    let (lake, operator) = (&scratch.lake, Principal::Operator);
    for round in 0..3_i64 {
        let orgs: Vec<String> = (400..404).map(|id| (id + round % 2).to_string()).collect();
        let orgs: Vec<&str> = orgs.iter().map(String::as_str).collect();
        lake.record(&operator, &EVENTS, events(&orgs)).await.expect("recorded");
    }
    lake.fence(&org("401"), "e1").await.expect("fence");
    assert_eq!(lake.forget(&org("401")).await.expect("forget"), [("events".to_owned(), 3)]);
    let events = lake.management_table(&operator, "events").await.expect("load").expect("table");
    let left = read(&events, polder_lake::Predicate::True).await;
    assert_eq!(left.num_rows(), 9);
}
