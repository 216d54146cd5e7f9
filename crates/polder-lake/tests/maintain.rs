//! Files and their deletes, orphans and their quarantine, old metadata, rows by their age.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use iceberg::{NamespaceIdent, TableIdent, TableUpdate};
use polder_core::retention::Retention;
use polder_core::{ErrorCode, LakeType, TableSchema};
use polder_lake::{
    Catalog, CmpOp, ExpiryRequest, Literal, MetadataRequest, OrphanRequest, Orphans, Predicate,
    RowsBefore, ScanRequest, StageKind, Store,
};
use uuid::Uuid;

use crate::faulty::check;
use crate::support::*;

const DAY_MS: i64 = 86_400_000;
/// Nothing is too young, and nothing waits in quarantine.
const AT_ONCE: i64 = -10_000;

fn orphan_request(older_than_ms: i64, purge_after_ms: i64) -> OrphanRequest {
    OrphanRequest { older_than_ms, purge_after_ms, tables: Vec::new(), dry_run: false }
}

async fn orphans(scratch: &Scratch, request: &OrphanRequest) -> Orphans {
    scratch.lake.orphans(&org("401"), request).await.expect("orphans")
}

async fn load(scratch: &Scratch, kind: StageKind, ids: std::ops::Range<i64>) {
    run(&scratch.lake, "t", request(kind, &id_and_text()), &[rows(ids)]).await.expect("run");
}

/// A table of two runs, and the files of one that died.
async fn crashed() -> Scratch {
    let scratch = Scratch::new().await;
    load(&scratch, StageKind::Replace, 0..10).await;
    load(&scratch, StageKind::Append, 10..20).await;
    let dying = request(StageKind::Append, &id_and_text());
    let stage = scratch.lake.stage(&org("401"), "t", dying).await.expect("stage");
    drop(written(&stage, &[rows(90..95)]).await);
    let temporary = format!("{}/data/.tmp-of-a-process-that-died", location(&scratch).await);
    std::fs::write(temporary, "half a file").expect("file");
    scratch
}

async fn location(scratch: &Scratch) -> String {
    let table = table(&scratch.lake, "t").await;
    table.location().strip_prefix("file://").expect("local").to_owned()
}

#[tokio::test]
async fn what_a_crash_left_goes_to_quarantine_and_comes_back_until_it_is_purged() {
    let scratch = crashed().await;
    let before = scratch.files("");
    let young = orphans(&scratch, &orphan_request(3 * DAY_MS, 0)).await;
    assert_eq!((young.young, young.quarantined), (2, 0), "a run may be under way");
    let dry = OrphanRequest { dry_run: true, ..orphan_request(AT_ONCE, DAY_MS) };
    assert_eq!(orphans(&scratch, &dry).await.quarantined, 2);
    assert_eq!(scratch.files(""), before, "nothing was moved");

    let found = orphans(&scratch, &orphan_request(AT_ONCE, DAY_MS)).await;
    assert_eq!((found.quarantined, found.waiting, found.purged), (2, 2, 0));
    let away = |files: &[String]| files.iter().filter(|f| f.contains("/.quarantine/")).count();
    assert_eq!(away(&scratch.files("")), 2);
    assert_eq!(ids(&table(&scratch.lake, "t").await).await, (0..20).collect::<Vec<_>>());

    assert_eq!(scratch.lake.restore_orphans(&org("401")).await.expect("restored"), 2);
    assert_eq!(scratch.files(""), before, "all is where it was");
    orphans(&scratch, &orphan_request(AT_ONCE, DAY_MS)).await;
    let again = orphans(&scratch, &orphan_request(AT_ONCE, DAY_MS)).await;
    assert_eq!((again.quarantined, again.waiting), (0, 2), "they wait");
    let purged = orphans(&scratch, &orphan_request(AT_ONCE, AT_ONCE)).await;
    assert_eq!((purged.purged, purged.waiting), (2, 0));
    assert_eq!(scratch.files("").len(), before.len() - 2);
    assert_eq!(ids(&table(&scratch.lake, "t").await).await, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_an_expiry_that_was_cut_off_left_goes_too() {
    let scratch = Scratch::new().await;
    for first in [0, 100, 200] {
        load(&scratch, StageKind::Replace, first..first + 10).await;
    }
    let old = table(&scratch.lake, "t").await;
    let kept: Vec<(String, Vec<u8>)> = scratch
        .files("")
        .into_iter()
        .filter(|file| !file.ends_with("json"))
        .map(|file| (file.clone(), std::fs::read(&file).expect("file")))
        .collect();
    let retention = Retention { versions: 2, history_ms: -1, history_min: 1 };
    let done = scratch.lake.expire(&org("401"), "t", &retention, Uuid::new_v4()).await;
    assert_eq!(done.expect("expired").files, 3);
    // As if the process had died after its commit, and another engine had taken away the property by
    // which the next expiry would go on.
    for (file, bytes) in kept {
        std::fs::write(file, bytes).expect("file");
    }
    let (catalog, ident) = catalog(&scratch).await;
    let removals = vec!["polder.expired-from".to_owned()];
    let update = TableUpdate::RemoveProperties { removals };
    catalog.commit(&ident, &[], vec![update]).await.expect("property");
    let found = orphans(&scratch, &orphan_request(AT_ONCE, AT_ONCE)).await;
    assert_eq!(found.quarantined, 3, "a manifest list, a manifest and a data file");
    let recent = orphans(&scratch, &orphan_request(AT_ONCE, AT_ONCE)).await;
    assert_eq!((recent.quarantined, recent.purged), (0, 3));
    let now = table(&scratch.lake, "t").await;
    for (version, first) in [("v2", 100), ("v3", 200)] {
        let snapshot = now.resolve(version).expect("version");
        let rows = read_at(&now, Some(snapshot), Predicate::True).await;
        assert_eq!(longs(&rows, "id"), (first..first + 10).collect::<Vec<_>>());
    }
    assert!(old.resolve("v1").is_ok() && now.resolve("v1").is_err());
}

async fn catalog(scratch: &Scratch) -> (polder_lake::SqlCatalog, TableIdent) {
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    let catalog = Scratch::catalog(&settings, store).await;
    (catalog, TableIdent::new(NamespaceIdent::new("org_401".into()), "t".into()))
}

#[tokio::test]
async fn views_dropped_tables_other_orgs_and_tables_that_keep_their_files() {
    let scratch = crashed().await;
    let folder = std::path::PathBuf::from(location(&scratch).await);
    let org_folder = folder.parent().expect("folder");
    let put = |path: &str, text: &str| {
        let path = org_folder.join(path);
        std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        std::fs::write(path, text).expect("file");
    };
    put("view/metadata/1.metadata.json", r#"{"view-uuid": "u"}"#);
    put("view/other", "of the view");
    put("dropped/metadata/1.metadata.json", r#"{"table-uuid": "u"}"#);
    put("dropped/data/1 é%20.parquet", "rows");
    let other = request(StageKind::Replace, &id_and_text());
    let stage = scratch.lake.stage(&org("402"), "t", other).await.expect("stage");
    drop(written(&stage, &[rows(0..1)]).await);

    let only = OrphanRequest { tables: vec!["t".into()], ..orphan_request(AT_ONCE, DAY_MS) };
    let dry = OrphanRequest { dry_run: true, ..only };
    assert_eq!(orphans(&scratch, &dry).await.quarantined, 2, "of the table alone");
    let found = orphans(&scratch, &orphan_request(AT_ONCE, DAY_MS)).await;
    assert_eq!(found.quarantined, 4, "the crash's and the dropped table's");
    assert!(org_folder.join("view/other").exists());
    assert_eq!(scratch.lake.restore_orphans(&org("401")).await.expect("restored"), 4);
    assert!(org_folder.join("dropped/data/1 é%20.parquet").exists(), "under its own name");

    let (catalog, ident) = catalog(&scratch).await;
    let keep = [("gc.enabled".to_owned(), "false".to_owned())];
    let update = TableUpdate::SetProperties { updates: keep.into() };
    catalog.commit(&ident, &[], vec![update]).await.expect("property");
    let found = orphans(&scratch, &orphan_request(AT_ONCE, DAY_MS)).await;
    assert_eq!(found.quarantined, 2, "the dropped table's alone");
    let theirs = scratch.lake.orphans(&org("402"), &orphan_request(AT_ONCE, DAY_MS)).await;
    assert_eq!(theirs.expect("orphans").quarantined, 1, "a first load that died");
    let nobody = scratch.lake.orphans(&org("nobody"), &orphan_request(0, 0)).await;
    assert_eq!(nobody.expect("none"), Orphans::default());
}

#[tokio::test]
async fn nothing_is_moved_if_anything_cannot_be_read_and_what_is_reached_comes_back() {
    let scratch = crashed().await;
    let request = orphan_request(AT_ONCE, DAY_MS);
    let manifest =
        scratch.files(".avro").into_iter().find(|file| file.contains("-m")).expect("one");
    let whole = std::fs::read(&manifest).expect("manifest");
    std::fs::write(&manifest, "damaged").expect("file");
    let failed = scratch.lake.orphans(&org("401"), &request).await.expect_err("damaged");
    assert_eq!(failed.code(), ErrorCode::LakeCorrupt);
    assert!(!scratch.files("").iter().any(|file| file.contains("/.quarantine/")));
    std::fs::write(&manifest, whole).expect("file");

    orphans(&scratch, &request).await;
    // A table's file in quarantine: as if somebody had put an older state back in its place.
    let root = std::path::PathBuf::from(location(&scratch).await);
    let data = scratch.files(".parquet").into_iter().find(|f| !f.contains("/.quarantine/"));
    let data = std::path::PathBuf::from(data.expect("a file"));
    let org_folder = root.parent().expect("folder");
    let below = data.strip_prefix(org_folder).expect("below");
    let away = org_folder.join(".quarantine/0").join(below);
    std::fs::create_dir_all(away.parent().expect("folder")).expect("folder");
    std::fs::rename(&data, away).expect("moved");
    let found = orphans(&scratch, &orphan_request(AT_ONCE, AT_ONCE)).await;
    assert_eq!((found.restored, found.purged), (1, 2));
    assert_eq!(ids(&table(&scratch.lake, "t").await).await, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn many_manifests_become_few_and_old_metadata_goes() {
    let scratch = Scratch::new().await;
    load(&scratch, StageKind::Replace, 0..2).await;
    for first in (2..24).step_by(2) {
        load(&scratch, StageKind::Append, first..first + 2).await;
    }
    let wanted = MetadataRequest { files: 3, older_than_ms: AT_ONCE, dry_run: true };
    let tidy = async |request: &MetadataRequest| {
        scratch.lake.tidy_metadata(&org("401"), "t", request).await.expect("tidied")
    };
    let planned = tidy(&wanted).await;
    assert_eq!((planned.manifests_before, planned.manifests_after), (12, 1));
    let before = scratch.files(".metadata.json").len();
    assert_eq!(planned.files, before - 4, "the present one and three before it stay");
    let done = tidy(&MetadataRequest { dry_run: false, ..wanted }).await;
    assert_eq!((done.manifests_before, done.manifests_after), (12, 1));
    let now = table(&scratch.lake, "t").await;
    assert_eq!(scratch.files(".metadata.json").len(), 4);
    assert_eq!(metadata(&now)["metadata-log"].as_array().expect("log").len(), 3);
    assert_eq!(ids(&now).await, (0..24).collect::<Vec<_>>());
    assert_eq!(now.checkpoint().expect("checkpoint"), Some(checkpoint(2)), "runs go on from here");
    let summary = summary_of(&now);
    assert_eq!(summary["total-records"], "24");
    assert_eq!(summary["total-data-files"], "12");
    let files = now.files(&[], &[]).await.expect("files");
    assert_eq!(files.files().len(), 12);
    let again = tidy(&MetadataRequest { dry_run: false, ..wanted }).await;
    assert_eq!((again.files, again.manifests_before, again.manifests_after), (0, 1, 1));
    load(&scratch, StageKind::Append, 24..26).await;
    let kept = RowsBefore { column: "id".into(), micros: 0 }.older(&id_and_text());
    assert_eq!(kept.expect_err("no times").code(), ErrorCode::SpecInvalid);
}

/// Entries hold partitions and bounds in the types that their manifest says, and can be written into one
/// of the same alone.
#[tokio::test]
async fn manifests_of_another_shape_are_not_mixed() {
    let scratch = Scratch::new().await;
    let narrow = schema(&[("id", LakeType::Int), ("text", LakeType::String)]);
    for number in 0..8_i32 {
        let ids: ArrayRef = Arc::new(Int32Array::from(vec![number]));
        let text: ArrayRef = Arc::new(StringArray::from(vec!["narrow"]));
        let kind = if number == 0 { StageKind::Replace } else { StageKind::Append };
        let rows = [batch(&narrow, vec![ids, text])];
        run(&scratch.lake, "t", request(kind, &narrow), &rows).await.expect("run");
    }
    for id in 8..16 {
        load(&scratch, StageKind::Append, id..id + 1).await;
    }
    for id in 16..24 {
        let mut other = request(StageKind::Append, &id_and_text());
        other.partition = vec!["bucket(2, id)".parse().expect("partition")];
        run(&scratch.lake, "t", other, &[rows(id..id + 1)]).await.expect("run");
    }
    let wanted = MetadataRequest { files: 100, older_than_ms: DAY_MS, dry_run: false };
    let done = scratch.lake.tidy_metadata(&org("401"), "t", &wanted).await.expect("tidied");
    assert_eq!((done.manifests_before, done.manifests_after), (24, 3), "one of each shape");
    let now = table(&scratch.lake, "t").await;
    check::check(&scratch.lake, &now).await;
    assert_eq!(ids(&now).await, (0..24).collect::<Vec<_>>());
    for id in [0, 7, 8, 15, 16, 23] {
        let filter =
            Predicate::Cmp { column: "id".to_owned(), op: CmpOp::Eq, value: Literal::Long(id) };
        assert_eq!(longs(&read(&now, filter).await, "id"), [id]);
    }
}

fn dated() -> TableSchema {
    schema(&[("id", LakeType::Long), ("at", LakeType::Timestamptz)])
}

/// Rows with an id and a time of as many days.
fn dated_rows(days: &[Option<i64>]) -> arrow::array::RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..days.len() as i64));
    let times = days.iter().map(|day| day.map(|day| day * DAY_MS * 1000));
    let times = times.collect::<TimestampMicrosecondArray>().with_timezone_utc();
    batch(&dated(), vec![ids, Arc::new(times)])
}

#[tokio::test]
async fn states_that_hold_overdue_rows_go_with_their_files() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let replace = || request(StageKind::Replace, &dated());
    run(lake, "t", replace(), &[dated_rows(&[Some(1), Some(9)])]).await.expect("run");
    run(lake, "t", replace(), &[dated_rows(&[Some(2), Some(9), None])]).await.expect("run");
    let now = table(lake, "t").await;
    let v1 = now.resolve("v1").expect("v1");
    let (catalog, ident) = catalog(&scratch).await;
    let reference = SnapshotReference::new(v1, SnapshotRetention::Tag { max_ref_age_ms: None });
    let tag = TableUpdate::SetSnapshotRef { ref_name: "audit".into(), reference };
    catalog.commit(&ident, &[], vec![tag]).await.expect("tag");

    let old = RowsBefore { column: "at".into(), micros: 5 * DAY_MS * 1000 };
    let now = table(lake, "t").await;
    let files = now.files(&[], &[]).await.expect("files");
    let stage = lake.stage_on(&now, request(StageKind::Files, &dated())).expect("stage");
    let others = old.others(&dated()).expect("filter");
    let stream = files.read(&[0], others).expect("read");
    let left: Vec<_> = futures::TryStreamExt::try_collect(stream).await.expect("rows");
    let made = written(&stage, &left).await;
    let replaced = vec![files.files()[0].path.clone()];
    stage.remove_rows(Vec::new(), replaced, made).await.expect("removed");
    let now = table(lake, "t").await;
    assert_eq!(ids(&now).await, [1, 2], "a row without a time stays");

    let retention = Retention { versions: 2, history_ms: i64::MAX, history_min: 5 };
    let request = ExpiryRequest { retention, overdue: Some(old.clone()) };
    let done = lake.expire(&org("401"), "t", request, Uuid::new_v4()).await.expect("expired");
    assert_eq!(done.names, ["v1"]);
    assert_eq!(done.moved, ["v2"], "it names what is left of it");
    assert_eq!(done.holding, ["audit"], "as long as others name it, it stays");
    assert_eq!(done.snapshots, 1);
    let now = table(lake, "t").await;
    assert_eq!(now.resolve("v2").ok(), now.current_snapshot().map(|snapshot| snapshot.id));
    let scan =
        ScanRequest { snapshot: None, filter: old.older(&dated()).expect("filter"), columns: None };
    assert!(now.plan(scan).await.expect("plan").files.is_empty());
    assert_eq!(scratch.files(".parquet").len(), 2, "v1's by its other name, and the present one");
}
