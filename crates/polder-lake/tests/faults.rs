//! Every change a commit can make, under every fault of the catalog: each acknowledged row is there
//! exactly once, nothing the table reaches is missing, no failure is reported for what landed, and
//! what definitely failed leaves no file.

use std::cmp::Reverse;

use polder_core::ErrorCode;
use polder_lake::{Lake, Predicate, ScanRequest, StageKind};
use tempfile::TempDir;
use uuid::Uuid;

use crate::faulty::catalog::Fault::{
    self, AfterSend, AfterSendThenDark, AnswerLost, AnswerLostThenAway, AnswerLostThenDark,
    BeforeSend, Busy503, Conflict, ConflictAfterLanding, ConflictThenDark, Error500,
    Error500Landed, LateAtTheEnd, LateBeforeTheNext, Nothing, Refused, Slow, TrueConflictThenDark,
};
use crate::faulty::changes::{Before, CHANGES, Change, IDS};
use crate::faulty::{Connect, Ground, Place, side_by_side, sqlite};
use crate::support::*;

/// How the call that made the change has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The change is made.
    Made,
    /// The error says why it is not; nothing of it stays.
    Failed(ErrorCode),
    /// It says that it does not know. Whether the change is made in the end.
    Unknown { landed: bool },
}

/// The faults of one attempt after the other, how the call ends, and after how many attempts.
type Case = (&'static [Fault], End, usize);

const LANDED: End = End::Unknown { landed: true };
const NOT_LANDED: End = End::Unknown { landed: false };

const CASES: [Case; 28] = [
    (&[Nothing], End::Made, 1),
    (&[Slow], End::Made, 1),
    (&[BeforeSend], End::Made, 2),
    (&[AfterSend], End::Made, 2),
    (&[AfterSend, AfterSend], End::Made, 3),
    (&[AnswerLost], End::Made, 1),
    (&[AfterSend, AnswerLost], End::Made, 2),
    (&[AnswerLostThenAway], End::Made, 1),
    (&[ConflictAfterLanding], End::Made, 1),
    (&[AfterSend, ConflictAfterLanding], End::Made, 2),
    (&[Conflict], End::Made, 2),
    (&[Error500], End::Made, 2),
    (&[Error500Landed], End::Made, 1),
    (&[Busy503, Busy503], End::Made, 3),
    (&[LateBeforeTheNext], End::Made, 2),
    (&[LateBeforeTheNext, AfterSend], End::Made, 2),
    (&[LateAtTheEnd], End::Made, 2),
    (&[LateAtTheEnd, AfterSend, AnswerLost], End::Made, 3),
    (&[Refused], End::Failed(ErrorCode::LakeFailed), 1),
    (&[Busy503, Refused], End::Failed(ErrorCode::LakeFailed), 2),
    (&[Conflict, Refused], End::Failed(ErrorCode::LakeFailed), 2),
    (&[AfterSend, Refused], NOT_LANDED, 2),
    (&[AfterSendThenDark], NOT_LANDED, 1),
    (&[TrueConflictThenDark], NOT_LANDED, 1),
    (&[LateAtTheEnd, Refused], LANDED, 2),
    (&[AnswerLostThenDark], LANDED, 1),
    (&[ConflictThenDark], LANDED, 1),
    (&[LateAtTheEnd, AfterSendThenDark], LANDED, 2),
];

/// These end only after all attempts, with their pauses.
const LONG_CASES: [Case; 3] = [
    (&[Busy503; 8], End::Failed(ErrorCode::LakeUnavailable), 8),
    (&[AfterSend; 8], NOT_LANDED, 8),
    (&[Conflict; 8], End::Failed(ErrorCode::LakeConflict), 8),
];

/// The part of all cases that [`hold_some`] takes, one in so many.
const SHARE: usize = 5;

/// What others do before something late arrives.
const OTHERS: [Change; 4] =
    [Change::AppendFiles, Change::ReplaceTable, Change::DeleteFiles, Change::Rollback];

/// What arrives only when others have been there.
const LATE: [Case; 1] = [(&[LateAtTheEnd, AfterSendThenDark], LANDED, 2)];

/// The faults of a change, where it has them when it stages and when it publishes.
#[derive(Clone, Copy, Debug)]
enum When {
    /// The change is one commit.
    Once,
    Staging,
    Publishing,
}

impl When {
    fn all(change: Change) -> &'static [Self] {
        if change.stages() { &[Self::Staging, Self::Publishing] } else { &[Self::Once] }
    }

    /// The case with the commits before and after it.
    fn within(self, (faults, end, attempts): Case) -> (Vec<Fault>, End, usize) {
        match (self, end) {
            (Self::Once, _) | (Self::Staging, End::Failed(_)) => (faults.to_vec(), end, attempts),
            // Then it is published.
            (Self::Staging, End::Made) => (faults.to_vec(), end, attempts + 1),
            (Self::Staging, End::Unknown { .. }) => (faults.to_vec(), NOT_LANDED, attempts),
            (Self::Publishing, _) => {
                // What is not published is taken out of the table again.
                let withdrawn = usize::from(matches!(end, End::Failed(_)));
                let faults = [&[Nothing], faults].concat();
                (faults, end, 1 + attempts + withdrawn)
            }
        }
    }
}

/// One change under one series of faults, and the same again.
async fn hold(ground: &Ground, change: Change, when: When, case: Case) {
    let (faults, end, attempts) = when.within(case);
    let case = format!("{change:?} {when:?} {faults:?}");
    let before = Before::make(ground).await;
    let files = ground.contents().await;
    assert_eq!(ground.orphans().await, [].into(), "{case}");
    let id = Uuid::new_v4();
    ground.catalog.next(&faults);
    let done = change.make(&ground.lake, &before, id).await;
    assert_eq!(ground.catalog.attempts(), attempts, "{case}: {done:?}");
    ground.catalog.settle().await;
    ground.catalog.next(&[]);
    let landed = match end {
        End::Made => {
            assert!(!done.expect(&case), "{case}: this very call made it");
            assert_eq!(ground.orphans().await, [].into(), "{case}");
            true
        }
        End::Failed(code) => {
            assert_eq!(done.expect_err(&case).code(), code, "{case}");
            assert_eq!(ground.contents().await, files, "{case}");
            assert_eq!(ground.orphans().await, [].into(), "{case}");
            false
        }
        End::Unknown { landed } => {
            let error = done.expect_err(&case);
            assert_eq!(error.code(), ErrorCode::LakeUnknownOutcome, "{case}: {error:?}");
            assert!(error.retryable());
            landed
        }
    };
    let expected = if landed { change.expected() } else { &IDS };
    assert_eq!(ground.ids().await, expected, "{case}");
    let left = ground.orphans().await;
    let again = change.make(&ground.clean, &before, id).await.expect(&case);
    let runs_once = !matches!(change, Change::Rollback | Change::ExpireSnapshots);
    assert_eq!(again, landed && runs_once, "{case}: found, or made now");
    assert_eq!(ground.ids().await, change.expected(), "{case}: once and no more");
    let checked = ground.check().await;
    assert_eq!(checked.metadata.snapshots().len(), change.snapshots(), "{case}");
    assert_eq!(checked.delete_files, change.delete_files(), "{case}");
    let more: Vec<_> = ground.orphans().await.difference(&left).cloned().collect();
    assert!(more.is_empty(), "{case}: the second call left {more:?}");
}

/// Each change with each case, each time it commits.
fn each(cases: &[Case]) -> impl Iterator<Item = (Change, When, Case)> {
    CHANGES.iter().flat_map(move |change| {
        let whens = When::all(*change).iter();
        whens.flat_map(move |when| cases.iter().map(move |case| (*change, *when, *case)))
    })
}

/// So many of the cases that each change still meets each fault each time it commits. Long series come
/// first, as they have most; one that brings no fault that was not met is left out.
fn sample() -> Vec<Case> {
    let mut cases = CASES;
    cases.sort_by_key(|(faults, ..)| Reverse(faults.len()));
    let mut met = Vec::new();
    let brings_more = |(faults, ..): &Case| {
        let more: Vec<Fault> = faults.iter().copied().filter(|one| !met.contains(one)).collect();
        met.extend(&more);
        !more.is_empty()
    };
    cases.into_iter().filter(brings_more).collect()
}

async fn hold_each(
    connect: &Connect,
    place: &Place,
    cases: impl Iterator<Item = (Change, When, Case)>,
) {
    let cases = cases.map(|(change, when, case)| {
        let (connect, place) = (connect.clone(), place.clone());
        async move { hold(&Ground::on(&connect, &place).await, change, when, case).await }
    });
    side_by_side(cases).await;
}

/// The whole matrix over one kind of catalog.
pub(crate) async fn hold_all(connect: &Connect) {
    hold_each(connect, &Place::Memory, each(&CASES)).await;
}

/// The matrix over a server that takes its time: each change with each fault, and what is late.
pub(crate) async fn hold_sample(connect: &Connect, place: &Place) {
    hold_each(connect, place, each(&sample())).await;
    hold_new_and_late(connect, place).await;
}

/// Each change and each fault, but not each with each: over a server with which every file takes its time.
pub(crate) async fn hold_some(connect: &Connect, place: &Place) {
    let cases = sample();
    // One further with each change.
    let some = each(&cases).enumerate().filter(|(number, _)| {
        let (change, case) = (number / cases.len(), number % cases.len());
        (change + case) % SHARE == 0
    });
    hold_each(connect, place, some.map(|(_, case)| case)).await;
    let some: Vec<Case> = cases.iter().step_by(SHARE).copied().collect();
    create_each(connect, place, &some).await;
    refuse_late_on_another_state(connect, place, &[Change::AppendFiles]).await;
    refuse_late_on_the_same_state(connect, place).await;
}

/// New tables under each fault, and what arrives late.
pub(crate) async fn hold_new_and_late(connect: &Connect, place: &Place) {
    create_each(connect, place, &sample()).await;
    refuse_late_on_another_state(connect, place, &OTHERS).await;
    refuse_late_on_the_same_state(connect, place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_made_once_whatever_the_catalog_does() {
    let folder = TempDir::new().expect("folder");
    hold_all(&sqlite(&folder)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_again_and_again_ends_and_says_what_is_known() {
    let folder = TempDir::new().expect("folder");
    hold_each(&sqlite(&folder), &Place::Memory, each(&LONG_CASES)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_on_local_disk_are_kept_and_removed_alike() {
    let folder = TempDir::new().expect("folder");
    let cases: [Case; 5] = [
        (&[AfterSend, AnswerLost], End::Made, 2),
        (&[ConflictAfterLanding], End::Made, 1),
        (&[Busy503, Refused], End::Failed(ErrorCode::LakeFailed), 2),
        (&[LateAtTheEnd, Refused], LANDED, 2),
        (&[ConflictThenDark], LANDED, 1),
    ];
    hold_each(&sqlite(&folder), &Place::Disk, each(&cases)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_a_table_is_a_commit_as_well() {
    let folder = TempDir::new().expect("folder");
    create_each(&sqlite(&folder), &Place::Memory, &CASES).await;
}

async fn create_each(connect: &Connect, place: &Place, cases: &[Case]) {
    let whens = [When::Staging, When::Publishing].into_iter();
    let cases = whens.flat_map(|when| cases.iter().map(move |case| when.within(*case)));
    let cases = cases.map(|(faults, end, attempts)| {
        let (connect, place) = (connect.clone(), place.clone());
        async move {
            let ground = Ground::on(&connect, &place).await;
            let request = request(StageKind::Replace, &id_and_text());
            let name = (&ground.org, ground.table.as_str());
            ground.catalog.next(&faults);
            let done = run_of(&ground.lake, name, request.clone(), &[rows(0..3)]).await;
            assert_eq!(ground.catalog.attempts(), attempts, "{faults:?}: {done:?}");
            ground.catalog.settle().await;
            ground.catalog.next(&[]);
            match end {
                End::Made => assert!(!done.expect("made").already),
                End::Failed(code) => {
                    assert_eq!(done.expect_err("failed").code(), code);
                    assert_eq!(ground.contents().await, [].into(), "{faults:?}");
                }
                End::Unknown { .. } => {
                    let code = done.expect_err("unknown").code();
                    assert_eq!(code, ErrorCode::LakeUnknownOutcome);
                }
            }
            let again = run_of(&ground.clean, name, request, &[rows(0..3)]).await;
            let landed = matches!(end, End::Made | End::Unknown { landed: true });
            assert_eq!(again.expect("once").already, landed, "{faults:?}");
            assert_eq!(ground.ids().await, [0, 1, 2], "{faults:?}");
            assert_eq!(ground.check().await.metadata.snapshots().len(), 1);
        }
    });
    side_by_side(cases).await;
}

/// What is late may arrive after others have changed the table: then it is refused, and its files are
/// those of a failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_does_not_land_on_another_state() {
    let folder = TempDir::new().expect("folder");
    refuse_late_on_another_state(&sqlite(&folder), &Place::Memory, &OTHERS).await;
}

async fn refuse_late_on_another_state(connect: &Connect, place: &Place, others: &[Change]) {
    let cases = each(&LATE).flat_map(|(late, when, case)| {
        others.iter().map(move |other| (late, when, when.within(case).0, *other))
    });
    let cases: Vec<_> = cases.collect();
    let cases = cases.into_iter().map(|(late, when, faults, other)| {
        let (connect, place) = (connect.clone(), place.clone());
        async move {
            let case = format!("{late:?} {when:?} after {other:?}");
            let ground = Ground::on(&connect, &place).await;
            let before = Before::make(&ground).await;
            ground.catalog.next(&faults);
            let error = late.make(&ground.lake, &before, Uuid::new_v4()).await.expect_err(&case);
            assert_eq!(error.code(), ErrorCode::LakeUnknownOutcome, "{case}");
            other.make(&ground.clean, &before, Uuid::new_v4()).await.expect(&case);
            assert_eq!(ground.catalog.settle().await, 0, "{case}");
            assert_eq!(ground.ids().await, other.expected(), "{case}");
            ground.check().await;
        }
    });
    side_by_side(cases).await;
}

/// Not even where everything it requires is so again, because the table was rolled back meanwhile: its
/// sequence number is taken. What moves `main` or lets snapshots go brings no files, and may.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_does_not_land_on_the_same_state_again() {
    let folder = TempDir::new().expect("folder");
    refuse_late_on_the_same_state(&sqlite(&folder), &Place::Memory).await;
}

async fn refuse_late_on_the_same_state(connect: &Connect, place: &Place) {
    let files = each(&LATE).filter(|(change, ..)| change.snapshots() == 5);
    let cases: Vec<_> = files.map(|(late, when, case)| (late, when, when.within(case).0)).collect();
    let cases = cases.into_iter().map(|(late, when, faults)| {
        let (connect, place) = (connect.clone(), place.clone());
        async move {
            let ground = Ground::on(&connect, &place).await;
            let before = Before::make(&ground).await;
            let name = ground.table.as_str();
            let was = ground.now().await.current_snapshot().expect("current").id;
            ground.catalog.next(&faults);
            let id = Uuid::new_v4();
            late.make(&ground.lake, &before, id).await.expect_err("unknown");
            let other = Change::AppendFiles.make(&ground.clean, &before, Uuid::new_v4()).await;
            assert!(!other.expect("appended"));
            let (org, to) = (&ground.org, was.to_string());
            let back = ground.clean.rollback(org, name, &to, Uuid::new_v4()).await;
            assert_eq!(back.expect("rolled back").snapshot_id, was);
            assert_eq!(ground.catalog.settle().await, 0, "{late:?} {when:?}");
            assert_eq!(ground.ids().await, IDS, "{late:?} {when:?}");
            ground.check().await;
        }
    });
    side_by_side(cases).await;
}

#[tokio::test]
async fn a_missing_data_folder_is_an_error_and_not_an_empty_table() {
    let scratch = Scratch::new().await;
    run(&scratch.lake, "t", request(StageKind::Replace, &id_and_text()), &[rows(0..1)])
        .await
        .expect("create");
    let now = table(&scratch.lake, "t").await;
    for path in scratch.files(".metadata.json") {
        std::fs::remove_file(path).expect("remove");
    }
    let lake = Lake::open(Scratch::settings(&scratch.folder)).await.expect("lake");
    let error = lake.table(&org("401"), "t").await.expect_err("missing");
    assert_eq!(error.code(), ErrorCode::LakeCorrupt);
    for path in scratch.files(".avro") {
        std::fs::remove_file(path).expect("remove");
    }
    let scan = ScanRequest { snapshot: None, filter: Predicate::True, columns: None };
    assert!(now.read(scan).await.is_err());
}
