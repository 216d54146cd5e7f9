//! Expiry: what retention lets go leaves the table and the store; everything else can be read.

use iceberg::spec::{
    PartitionStatisticsFile, SnapshotReference, SnapshotRetention, StatisticsFile,
};
use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use polder_core::ErrorCode;
use polder_core::retention::Retention;
use polder_lake::{Catalog, CommitFailure, Expired, Predicate, SqlCatalog, StageKind};
use uuid::Uuid;

use crate::support::*;

/// Nothing stays for its age.
const NOW: Retention = Retention { versions: 2, history_ms: -1, history_min: 1 };
const LATER: Retention = Retention { history_ms: 86_400_000, ..NOW };

async fn load(scratch: &Scratch, kind: StageKind, ids: std::ops::Range<i64>) {
    let request = request(kind, &id_and_text());
    run(&scratch.lake, "t", request, &[rows(ids)]).await.expect("run");
}

/// v1 of one run, v2 and v3 of two each.
async fn three_versions() -> Scratch {
    let scratch = Scratch::new().await;
    load(&scratch, StageKind::Replace, 0..10).await;
    for first in [100, 200] {
        load(&scratch, StageKind::Replace, first..first + 10).await;
        load(&scratch, StageKind::Append, first + 10..first + 15).await;
    }
    scratch
}

async fn expire(scratch: &Scratch, retention: &Retention) -> Expired {
    scratch.lake.expire(&org("401"), "t", retention, Uuid::new_v4()).await.expect("expire")
}

async fn versions(scratch: &Scratch) -> Vec<u64> {
    table(&scratch.lake, "t").await.versions().iter().map(|version| version.number).collect()
}

#[tokio::test]
async fn what_nothing_keeps_goes_with_its_files() {
    let scratch = three_versions().await;
    assert_eq!(scratch.files(".parquet").len(), 5);
    let planned = scratch.lake.expiry(&org("401"), "t", &NOW).await.expect("plan");
    assert_eq!((planned.names, planned.snapshots.len()), (vec!["v1".to_owned()], 2));
    let done = expire(&scratch, &NOW).await;
    // v1, and v2's second run. Of v1 a list, a manifest and a data file; the same of the other.
    assert_eq!(
        done,
        Expired { names: vec!["v1".into()], snapshots: 2, files: 6, ..Expired::default() }
    );
    assert_eq!(scratch.files(".parquet").len(), 3);
    assert_eq!(versions(&scratch).await, [2, 3]);
    let now = table(&scratch.lake, "t").await;
    assert_eq!(ids(&now).await, (200..215).collect::<Vec<_>>());
    assert_eq!(now.checkpoint().expect("checkpoint"), Some(checkpoint(5)));
    let v2 = now.resolve("v2").expect("v2");
    let old = read_at(&now, Some(v2), Predicate::True).await;
    assert_eq!(longs(&old, "id"), (100..110).collect::<Vec<_>>());
    assert_eq!(expire(&scratch, &NOW).await, Expired::default(), "once is enough");
    load(&scratch, StageKind::Append, 300..301).await;
    assert_eq!(ids(&table(&scratch.lake, "t").await).await.len(), 16, "runs go on");
}

#[tokio::test]
async fn the_history_stays_for_its_time() {
    let scratch = three_versions().await;
    let opened = table(&scratch.lake, "t").await;
    let v1 = opened.resolve("v1").expect("v1");
    let done = expire(&scratch, &LATER).await;
    assert_eq!(done, Expired { names: vec!["v1".into()], ..Expired::default() });
    let old = read_at(&opened, Some(v1), Predicate::True).await;
    assert_eq!(longs(&old, "id").len(), 10, "a reader of the old state has time");
}

/// However long a state was the present one, who opened it then has all of the time.
#[tokio::test]
async fn a_state_stays_for_its_time_from_when_it_was_replaced() {
    let scratch = Scratch::new().await;
    load(&scratch, StageKind::Replace, 0..10).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let opened = table(&scratch.lake, "t").await;
    load(&scratch, StageKind::Append, 10..20).await;
    load(&scratch, StageKind::Append, 20..30).await;
    // `v1` names the first state; without it, that state is kept for its age alone.
    let (other, ident) = another_client(&scratch).await;
    let gone = TableUpdate::RemoveSnapshotRef { ref_name: "v1".to_owned() };
    other.commit(&ident, &[], vec![gone]).await.expect("untagged");
    // However long all that took: the state is older, and was replaced some seconds later.
    let made_ms = opened.current_snapshot().expect("current").timestamp_ms;
    let history_ms = chrono::Utc::now().timestamp_millis() - made_ms - 100;
    let shorter = Retention { versions: 0, history_ms, ..NOW };
    assert_eq!(expire(&scratch, &shorter).await, Expired::default());
    assert_eq!(ids(&opened).await, (0..10).collect::<Vec<_>>());
    let none = Retention { history_ms: -1, ..shorter };
    assert_eq!(expire(&scratch, &none).await.snapshots, 2);
}

#[tokio::test]
async fn what_was_gone_back_to_stays_and_so_does_the_way_back() {
    let scratch = three_versions().await;
    let lake = &scratch.lake;
    let back = lake.rollback(&org("401"), "t", "v1", Uuid::new_v4()).await.expect("rollback");
    let kept_as = back.done.expect("moved").kept_as;
    let day = Retention { history_ms: 86_400_000, ..NOW };
    expire(&scratch, &day).await;
    assert_eq!(versions(&scratch).await, [1, 2, 3]);
    lake.rollback(&org("401"), "t", &kept_as, Uuid::new_v4()).await.expect("and back");
    assert_eq!(ids(&table(lake, "t").await).await, (200..215).collect::<Vec<_>>());
}

/// A pin that is released does not take along what queries have opened before a rollback.
#[tokio::test]
async fn what_was_current_stays_for_its_time_whatever_other_name_it_had() {
    let scratch = three_versions().await;
    let (lake, org) = (&scratch.lake, org("401"));
    let opened = table(lake, "t").await;
    let current = opened.current_snapshot().expect("current").id;
    let v3 = opened.resolve("v3").expect("v3");
    let before = opened.snapshots().into_iter().find(|found| found.id == v3).expect("v3").parent;
    lake.pin(&org, "t", "model", current).await.expect("pin");
    lake.rollback(&org, "t", "v1", Uuid::new_v4()).await.expect("rollback");
    lake.release_pin(&org, "t", "model").await.expect("released");
    expire(&scratch, &LATER).await;
    assert_eq!(ids(&opened).await, (200..215).collect::<Vec<_>>());
    let history = read_at(&opened, before, Predicate::True).await;
    assert_eq!(longs(&history, "id"), (100..115).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_rewrite_s_old_files_go_and_deleted_rows_stay_deleted() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    for ids in [0..3, 3..6, 6..9] {
        let kind = if ids.start == 0 { StageKind::Replace } else { StageKind::Append };
        load(&scratch, kind, ids).await;
    }
    let now = table(lake, "t").await;
    let scan = polder_lake::ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    let files = now.plan(scan).await.expect("plan").files;
    let stage = |kind| async move {
        lake.stage(&org("401"), "t", request(kind, &id_and_text())).await.expect("stage")
    };
    let deleting = stage(StageKind::Files).await;
    let deletes = deleting.write_deletes(&[(files[0].clone(), vec![1])]).await.expect("deletes");
    deleting.row_delta(deletes, Vec::new()).await.expect("row delta");
    let left = ids(&table(lake, "t").await).await;
    assert_eq!(left.len(), 8);
    let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
    let now = table(lake, "t").await;
    let stream = now.read_files(&paths.iter().cloned().collect()).await.expect("read");
    let batches: Vec<_> = futures::TryStreamExt::try_collect(stream).await.expect("rows");
    let rewriting = stage(StageKind::Files).await;
    let made = written(&rewriting, &batches).await;
    rewriting.rewrite_files(paths, made).await.expect("rewrite");
    // v1 keeps its file; the other two go, and the deletes, which went from the table with them.
    let none = Retention { versions: 0, ..NOW };
    let done = expire(&scratch, &none).await;
    assert_eq!((done.names, done.snapshots), (vec![], 3), "v1 is the current version");
    assert_eq!(ids(&table(lake, "t").await).await, left);
    assert_eq!(scratch.files(".parquet").len(), 2, "v1's and the rewritten one");
}

/// Another client of the same catalog, and the table's name there.
async fn another_client(scratch: &Scratch) -> (SqlCatalog, TableIdent) {
    let settings = Scratch::settings(&scratch.folder);
    let store = polder_lake::Store::open(&settings).expect("store");
    let catalog = Scratch::catalog(&settings, store).await;
    (catalog, TableIdent::new(NamespaceIdent::new("org_401".into()), "t".into()))
}

#[tokio::test]
async fn statistics_go_with_their_snapshot_and_files_of_others_stay() {
    let scratch = three_versions().await;
    let now = table(&scratch.lake, "t").await;
    let (catalog, ident) = another_client(&scratch).await;
    let place = |name: &str| format!("{}/metadata/{name}.stats", now.location());
    let outside = format!("{}/../other.stats", now.location());
    let local = |path: &str| path.strip_prefix("file://").expect("local").to_owned();
    let mut updates = Vec::new();
    for (version, path) in [("v1", place("v1")), ("v3", place("v3"))] {
        std::fs::write(local(&path), "statistics").expect("file");
        updates.push(TableUpdate::SetStatistics {
            statistics: StatisticsFile {
                snapshot_id: now.resolve(version).expect("version"),
                statistics_path: path,
                file_size_in_bytes: 10,
                file_footer_size_in_bytes: 1,
                key_metadata: None,
                blob_metadata: Vec::new(),
            },
        });
    }
    std::fs::write(local(&outside), "another's").expect("file");
    updates.push(TableUpdate::SetPartitionStatistics {
        partition_statistics: PartitionStatisticsFile {
            snapshot_id: now.resolve("v1").expect("v1"),
            statistics_path: outside.clone(),
            file_size_in_bytes: 9,
        },
    });
    catalog.commit(&ident, &[], updates).await.expect("statistics");
    assert_eq!(expire(&scratch, &NOW).await.files, 7, "v1's statistics beside its own files");
    let names = scratch.files(".stats");
    assert_eq!(names.len(), 2, "v3's and the one that lies elsewhere: {names:?}");
    let after = metadata(&table(&scratch.lake, "t").await);
    assert_eq!(after["statistics"].as_array().expect("statistics").len(), 1);
    let partitions = after["partition-statistics"].as_array();
    assert!(partitions.is_none_or(Vec::is_empty), "nothing refers to a snapshot that is gone");
}

#[tokio::test]
async fn a_name_made_meanwhile_keeps_its_snapshot() {
    let scratch = three_versions().await;
    let lake = &scratch.lake;
    let now = table(lake, "t").await;
    let v1 = now.resolve("v1").expect("v1");
    let (catalog, ident) = another_client(&scratch).await;
    let retention = SnapshotRetention::Tag { max_ref_age_ms: None };
    let reference = SnapshotReference::new(v1, retention);
    let tag = TableUpdate::SetSnapshotRef { ref_name: "audit".into(), reference };
    catalog.commit(&ident, &[], vec![tag]).await.expect("tag");
    let updates = vec![
        TableUpdate::RemoveSnapshotRef { ref_name: "v1".into() },
        TableUpdate::RemoveSnapshots { snapshot_ids: vec![v1] },
    ];
    let refused = catalog.commit(&ident, &[], updates).await.expect_err("named");
    assert!(matches!(refused, CommitFailure::Conflict(_)), "{refused:?}");
    let done = expire(&scratch, &NOW).await;
    assert_eq!((done.names, done.snapshots), (vec!["v1".to_owned()], 1));
    let old = read_at(&table(lake, "t").await, Some(v1), Predicate::True).await;
    assert_eq!(longs(&old, "id").len(), 10);
    let error = lake.expire(&org("401"), "none", &NOW, Uuid::new_v4()).await.expect_err("none");
    assert_eq!(error.code(), ErrorCode::LakeNotFound);
}
