//! Every change a commit can make, with the store failing at every one of its operations in turn.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use object_store::ObjectStore;
use polder_core::ErrorCode;
use polder_lake::StageKind;
use tempfile::TempDir;
use uuid::Uuid;

use crate::faulty::catalog::Fault as CatalogFault;
use crate::faulty::changes::{Before, CHANGES, Change, IDS, staged};
use crate::faulty::conditions::Conditions;
use crate::faulty::objects::{Fault, Op, Plan};
use crate::faulty::{Connect, Ground, side_by_side, sqlite};
use crate::support::*;

const FOREVER: usize = usize::MAX;

/// What fails at the n-th operation of a kind, and for how many of them.
const FAULTS: [(Op, Fault, usize); 9] = [
    (Op::Put, Fault::Before, 1),
    (Op::Put, Fault::After, 1),
    (Op::Put, Fault::Half, 1),
    (Op::Put, Fault::Before, FOREVER),
    (Op::Put, Fault::Slow, 1),
    (Op::Get, Fault::Before, 1),
    (Op::Get, Fault::Missing, 1),
    (Op::Get, Fault::Before, FOREVER),
    (Op::Delete, Fault::Before, 1),
];

/// What the process is doing when it dies.
const DEATHS: [(Op, Fault); 5] = [
    (Op::Put, Fault::DiesBefore),
    (Op::Put, Fault::DiesAfter),
    (Op::Get, Fault::DiesBefore),
    (Op::Delete, Fault::DiesBefore),
    (Op::Delete, Fault::DiesAfter),
];

/// How often the change does each thing when nothing fails.
async fn operations(connect: &Connect, change: Change) -> [usize; 4] {
    let ground = Ground::new(connect).await;
    let before = Before::make(&ground).await;
    ground.objects.plan(None);
    change.make(&ground.lake, &before, Uuid::new_v4()).await.expect("no fault");
    [Op::Put, Op::Part, Op::Get, Op::Delete].map(|op| ground.objects.calls(op))
}

/// Each change with each fault at each of its operations.
async fn everywhere(connect: &Connect, faults: &[(Op, Fault, usize)]) -> Vec<(Change, Plan)> {
    let mut cases = Vec::new();
    for change in CHANGES {
        let operations = operations(connect, change).await;
        for (op, fault, times) in faults.iter().copied() {
            let plan = |after| Plan { op, after, times, fault };
            cases.extend((0..operations[op as usize]).map(|after| (change, plan(after))));
        }
    }
    cases
}

/// One change with one fault, and the same again without.
async fn hold(ground: &Ground, change: Change, plan: Plan) {
    let case = format!("{change:?} {plan:?}");
    let before = Before::make(ground).await;
    let files = ground.contents().await;
    let id = Uuid::new_v4();
    ground.objects.plan(Some(plan));
    let done = change.make(&ground.lake, &before, id).await;
    let met = ground.objects.met();
    assert!(!met.is_empty(), "{case}: the fault came to pass");
    ground.objects.plan(None);
    // One hiccup while metadata is written is ridden out.
    let metadata = met.iter().all(|path| path.as_ref().contains("/metadata/"));
    if plan.times == 1 && metadata && plan.op == Op::Put || plan.fault == Fault::Slow {
        done.as_ref().expect(&case);
    }
    let ids = ground.ids().await;
    match done {
        Ok(already) => {
            assert!(!already, "{case}");
            assert_eq!(ids, change.expected(), "{case}");
            if plan.op != Op::Delete && change != Change::ExpireSnapshots {
                assert_eq!(ground.orphans().await, [].into(), "{case}");
            }
        }
        Err(error) if error.code() == ErrorCode::LakeUnknownOutcome => {
            panic!("{case}: the catalog has answered: {error:?}")
        }
        Err(_) => {
            assert_eq!(ids, IDS, "{case}");
            // A store that stays away keeps a run from taking back what it has staged.
            let refs = table(&ground.clean, &ground.table).await.refs();
            let staged = refs.iter().any(|found| found.name == "staging");
            assert!(!staged || plan.times == FOREVER, "{case}");
            if !staged {
                assert_eq!(ground.contents().await, files, "{case}");
            }
            assert_eq!(ground.orphans().await, [].into(), "{case}");
        }
    }
    change.make(&ground.clean, &before, id).await.expect(&case);
    assert_eq!(ground.ids().await, change.expected(), "{case}");
    let checked = ground.check().await;
    assert_eq!(checked.metadata.snapshots().len(), change.snapshots(), "{case}");
    assert_eq!(ground.orphans().await, [].into(), "{case}: all is cleaned up in the end");
}

/// The process dies in the middle of a change. Another one finds all of it or nothing, and makes it
/// once.
async fn die(ground: &Ground, change: Change, plan: Plan) {
    let case = format!("{change:?} {plan:?}");
    let before = Before::make(ground).await;
    let id = Uuid::new_v4();
    ground.objects.plan(Some(plan));
    tokio::select! {
        done = change.make(&ground.lake, &before, id) => panic!("{case}: {done:?}"),
        () = ground.objects.died() => {}
    }
    let ids = ground.ids().await;
    assert!(ids == IDS || ids == change.expected(), "{case}: {ids:?}");
    ground.check().await;
    change.make(&ground.clean, &before, id).await.expect(&case);
    assert_eq!(ground.ids().await, change.expected(), "{case}");
    let checked = ground.check().await;
    assert_eq!(checked.metadata.snapshots().len(), change.snapshots(), "{case}");
    let expires = change == Change::ExpireSnapshots;
    assert!(
        !expires || ground.orphans().await.iter().all(|file| file.contains(".metadata.")),
        "{case}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_whole_or_not_there_wherever_the_store_fails() {
    let folder = TempDir::new().expect("folder");
    let connect = sqlite(&folder);
    let cases = everywhere(&connect, &FAULTS).await;
    assert!(cases.len() > 200, "{} cases", cases.len());
    let cases = cases.into_iter().map(|(change, plan)| {
        let connect = connect.clone();
        async move { hold(&Ground::new(&connect).await, change, plan).await }
    });
    side_by_side(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_whole_or_not_there_wherever_the_process_dies() {
    let folder = TempDir::new().expect("folder");
    let connect = sqlite(&folder);
    let cases = everywhere(&connect, &DEATHS.map(|(op, fault)| (op, fault, 1))).await;
    assert!(cases.len() > 100, "{} cases", cases.len());
    let cases = cases.into_iter().map(|(change, plan)| {
        let connect = connect.clone();
        async move { die(&Ground::new(&connect).await, change, plan).await }
    });
    side_by_side(cases).await;
}

/// Old stores refuse `If-None-Match` and `If-Match` with 501, others pass over them. Names that are never
/// used twice have to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_conditional_puts_is_held_to_the_same() {
    let folder = TempDir::new().expect("folder");
    let connect = sqlite(&folder);
    let of_puts = |(_, plan): &(Change, Plan)| plan.op == Op::Put;
    let deaths = everywhere(&connect, &DEATHS.map(|(op, fault)| (op, fault, 1))).await;
    let deaths: Vec<_> = deaths.into_iter().filter(of_puts).collect();
    let faults: Vec<_> = everywhere(&connect, &FAULTS).await.into_iter().filter(of_puts).collect();
    assert!(faults.len() > 100 && deaths.len() > 40, "{} {}", faults.len(), deaths.len());
    for conditions in [Conditions::Refused, Conditions::Ignored] {
        let faults = faults.clone().into_iter().map(|(change, plan)| {
            let connect = connect.clone();
            async move {
                hold(&Ground::unconditional(&connect, conditions).await, change, plan).await;
            }
        });
        side_by_side(faults).await;
        let deaths = deaths.clone().into_iter().map(|(change, plan)| {
            let connect = connect.clone();
            async move {
                die(&Ground::unconditional(&connect, conditions).await, change, plan).await;
            }
        });
        side_by_side(deaths).await;
    }
}

/// The audit log's head on such stores: what was kept by others meanwhile stays where it can be seen.
#[tokio::test]
async fn what_is_kept_of_the_audit_log_needs_no_conditional_put() {
    let folder = TempDir::new().expect("folder");
    let ground = Ground::unconditional(&sqlite(&folder), Conditions::Refused).await;
    let lake = &ground.lake;
    assert!(lake.audit_head().await.expect("nothing yet").is_none());
    assert!(lake.keep_audit_head(None, b"1".to_vec()).await.expect("kept"));
    assert!(!lake.keep_audit_head(None, b"2".to_vec()).await.expect("others were there"));
    let first = lake.audit_head().await.expect("read").expect("kept");
    assert_eq!(first.bytes(), b"1");
    assert!(lake.keep_audit_head(Some(&first), b"3".to_vec()).await.expect("kept"));
    assert!(!lake.keep_audit_head(Some(&first), b"4".to_vec()).await.expect("others were there"));
    let last = lake.audit_head().await.expect("read").expect("kept");
    assert_eq!(last.bytes(), b"3");
}

/// A sample of all that, on whichever store.
pub(crate) async fn hold_on(connect: &Connect, objects: impl Fn() -> Arc<dyn ObjectStore>) {
    let faults =
        [(Op::Put, Fault::After, 1), (Op::Put, Fault::Half, 1), (Op::Get, Fault::Before, 1)];
    let mut cases = everywhere(connect, &faults).await;
    cases.retain(|(change, _)| matches!(change, Change::RowDelta | Change::RewriteFiles));
    let cases = cases.into_iter().map(|(change, plan)| {
        let (connect, objects) = (connect.clone(), objects());
        async move { hold(&Ground::over(&connect, objects).await, change, plan).await }
    });
    side_by_side(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_is_to_be_removed_only_what_cannot_be_stays() {
    let folder = TempDir::new().expect("folder");
    let connect = sqlite(&folder);
    let cases = CHANGES.into_iter().map(|change| {
        let connect = connect.clone();
        async move {
            let ground = Ground::new(&connect).await;
            let before = Before::make(&ground).await;
            let files = ground.files().await;
            ground.catalog.next(&[CatalogFault::Refused]);
            let plan = Plan { op: Op::Delete, after: 0, times: 1, fault: Fault::Before };
            ground.objects.plan(Some(plan));
            let error =
                change.make(&ground.lake, &before, Uuid::new_v4()).await.expect_err("refused");
            assert_eq!(error.code(), ErrorCode::LakeFailed, "{change:?}");
            let met: BTreeSet<_> = ground.objects.met().iter().map(ToString::to_string).collect();
            let now = ground.files().await;
            let left: Vec<_> = now.difference(&files).collect();
            assert_eq!(left.len(), met.len(), "{change:?} {left:?}");
            assert_eq!(ground.ids().await, IDS, "{change:?}");
        }
    });
    side_by_side(cases).await;
}

/// An expiry whose files cannot be removed has succeeded, and the next one removes them.
#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_that_was_cut_off_is_ended_by_the_next() {
    let folder = TempDir::new().expect("folder");
    let connect = sqlite(&folder);
    let deletes = operations(&connect, Change::ExpireSnapshots).await[Op::Delete as usize];
    assert!(deletes > 3, "data, manifests and lists");
    let cases = (0..deletes).map(|after| {
        let connect = connect.clone();
        async move {
            let ground = Ground::new(&connect).await;
            let before = Before::make(&ground).await;
            let expire = || Change::ExpireSnapshots.make(&ground.lake, &before, Uuid::new_v4());
            ground.objects.plan(Some(Plan {
                op: Op::Delete,
                after,
                times: FOREVER,
                fault: Fault::Before,
            }));
            expire().await.expect("expired");
            assert_eq!(ground.check().await.metadata.snapshots().len(), 2);
            assert_ne!(ground.orphans().await, [].into(), "cut off after {after}");
            // Not yet: it must not forget what is left either.
            expire().await.expect_err("the store still fails");
            ground.objects.plan(None);
            expire().await.expect("ended");
            assert_eq!(ground.orphans().await, [].into(), "cut off after {after}");
            assert_eq!(ground.ids().await, IDS);
        }
    });
    side_by_side(cases).await;
}

/// On local disk, where writing bypasses the store that fails.
#[tokio::test]
async fn a_disk_that_takes_no_file_leaves_the_table_as_it_was() {
    let scratch = Scratch::new().await;
    let lake = &scratch.lake;
    let request = |kind| request(kind, &id_and_text());
    run(lake, "t", request(StageKind::Replace), &[rows(0..3)]).await.expect("create");
    let files = scratch.files("");
    let location = table(lake, "t").await.location().to_owned();
    let folder = std::path::Path::new(location.strip_prefix("file://").expect("local"));
    let (data, aside) = (folder.join("data"), folder.join("data-aside"));
    for kind in [StageKind::Append, StageKind::Replace, StageKind::Files] {
        std::fs::rename(&data, &aside).expect("aside");
        std::fs::write(&data, b"no folder").expect("in its place");
        let stage = lake.stage(&org("401"), "t", request(kind)).await.expect("stage");
        staged(&stage, vec![rows(3..6)]).await.expect_err("no file can be made");
        stage.abort(Vec::new()).await;
        std::fs::remove_file(&data).expect("remove");
        std::fs::rename(&aside, &data).expect("back");
        assert_eq!(scratch.files(""), files, "{kind:?}");
        assert_eq!(ids(&table(lake, "t").await).await, [0, 1, 2], "{kind:?}");
    }
    run(lake, "t", request(StageKind::Append), &[rows(3..6)]).await.expect("append");
    assert_eq!(ids(&table(lake, "t").await).await, [0, 1, 2, 3, 4, 5]);
}

/// Text that compresses by half, 2.5 MB a batch.
fn large(batches: i64) -> Vec<RecordBatch> {
    let text = |_| (0..4).map(|_| Uuid::new_v4().simple().to_string()).collect::<String>();
    let part = |part: i64| {
        let ids = part * 20_000..(part + 1) * 20_000;
        let text: Vec<String> = ids.clone().map(text).collect();
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
        batch(&id_and_text(), vec![ids, Arc::new(StringArray::from(text))])
    };
    (0..batches).map(part).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_parts_that_fails_or_is_dropped_is_taken_back() {
    let folder = TempDir::new().expect("folder");
    let ground = Ground::new(&sqlite(&folder)).await;
    let name = ground.table.as_str();
    let request = || request(StageKind::Replace, &id_and_text());
    run(&ground.lake, name, request(), &[]).await.expect("create");
    // One row group, which is more than a part of an upload.
    let batches = large(10);
    let faults = [(Op::Part, Fault::Before), (Op::Put, Fault::Before), (Op::Put, Fault::After)];
    for (op, fault) in faults {
        let files = ground.files().await;
        let stage = ground.lake.stage(&org("401"), name, request()).await.expect("stage");
        ground.objects.plan(Some(Plan { op, after: 0, times: 1, fault }));
        staged(&stage, batches.clone()).await.expect_err("the store fails");
        ground.objects.plan(None);
        stage.abort(Vec::new()).await;
        assert_eq!(ground.objects.uploads(), 0, "{op:?} {fault:?}");
        assert_eq!(ground.files().await, files, "{op:?} {fault:?}");
    }
    let files = ground.files().await;
    let stage = ground.lake.stage(&org("401"), name, request()).await.expect("stage");
    let mut writer = stage.writer();
    for batch in large(32) {
        writer.write(batch).await.expect("write");
    }
    // A run's first split may be done when another one fails.
    assert_eq!(ground.objects.uploads(), 1);
    drop(writer);
    stage.abort(Vec::new()).await;
    assert_eq!(ground.objects.uploads(), 0);
    assert_eq!(ground.files().await, files);
}
