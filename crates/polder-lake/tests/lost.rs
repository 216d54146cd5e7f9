//! Answers that are lost while others go on. A commit that landed, and whose snapshot has expired before
//! anybody asked for it, is found by what the table itself remembers; later snapshots have its manifests,
//! and what it has written and no state has is removed, and nothing else. One that may yet land keeps its
//! files.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use polder_lake::{
    Catalog, CommitFailure, Committed, Gate, Lake, LakeTable, Predicate, RowDelta, StageKind,
    StageRequest, TableState,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::between::{Between, Through};
use crate::faulty::changes::RETENTION;
use crate::faulty::{Place, check, files, sqlite};
use crate::support::*;

/// What happens to one commit.
#[derive(Clone, Copy, Debug)]
enum Step {
    Passes,
    /// It is not carried out, and no answer comes.
    IsLost,
    /// It is carried out, others go on, and no answer comes.
    LandsUnseen,
}

struct Meanwhile {
    inner: Arc<dyn Catalog>,
    others: Lake,
    steps: Mutex<VecDeque<Step>>,
}

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meanwhile").finish_non_exhaustive()
    }
}

impl Meanwhile {
    /// Another run adds a row, and all states but its own and the latest version expire.
    async fn go_on(&self) {
        let append = request(StageKind::Append, &id_and_text());
        run(&self.others, "t", append, &[rows(9..10)]).await.expect("another run");
        let id = Uuid::new_v4();
        let expired = self.others.expire(&org("401"), "t", &RETENTION, id).await.expect("expired");
        assert!(expired.snapshots > 0, "{expired:?}");
    }
}

#[async_trait]
impl Between for Meanwhile {
    fn inner(&self) -> &dyn Catalog {
        &*self.inner
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        let step = self.steps.lock().expect("steps").pop_front().unwrap_or(Step::Passes);
        let unknown = CommitFailure::Unknown(Error::new(ErrorCode::LakeUnavailable, "no answer"));
        match step {
            Step::Passes => self.inner.commit(ident, requirements, updates).await,
            Step::IsLost => Err(unknown),
            Step::LandsUnseen => {
                self.inner.commit(ident, requirements, updates).await?;
                self.go_on().await;
                Err(unknown)
            }
        }
    }
}

/// A table with the ids 0 to 2 in its first version: as others see it, and through the steps.
async fn under(steps: &[Step], act: impl AsyncFnOnce(&Lake)) {
    let folder = tempfile::tempdir().expect("folder");
    let (connect, (store, _)) = (sqlite(&folder), Place::Memory.store());
    let others = Lake::new(store.clone(), connect(store.clone()).await);
    let create = request(StageKind::Replace, &id_and_text());
    run(&others, "t", create, &[rows(0..3)]).await.expect("create");
    let meanwhile = Arc::new(Meanwhile {
        inner: connect(store.clone()).await,
        others: others.clone(),
        steps: Mutex::new(steps.iter().copied().collect()),
    });
    act(&Lake::new(store, Through::catalog(&meanwhile))).await;
    assert!(meanwhile.steps.lock().expect("steps").is_empty(), "every step was met");
    let now = table(&others, "t").await;
    assert_eq!(ids(&now).await, [0, 1, 2, 3, 4, 5, 9], "every row once");
    assert_eq!(now.snapshots().len(), 2, "the latest version and the present state");
    let reached = check::check(&others, &now).await.files;
    let mut left = files(&others, now.location()).await;
    left.retain(|file| !reached.contains(file));
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_run_that_has_expired_before_it_was_found_keeps_its_manifests() {
    under(&[Step::Passes, Step::LandsUnseen], async |lake| {
        let append = request(StageKind::Append, &id_and_text());
        let done = run(lake, "t", append, &[rows(3..6)]).await.expect("made");
        assert!(!done.already, "this very call made it");
    })
    .await;
}

#[tokio::test]
async fn a_change_of_files_that_has_expired_before_it_was_found_leaves_nothing_of_other_attempts() {
    under(&[Step::IsLost, Step::LandsUnseen], async |lake| {
        let now = table(lake, "t").await;
        let stage = lake.stage_on(&now, request(StageKind::Files, &id_and_text())).expect("stage");
        let files = written(&stage, &[rows(3..6)]).await;
        let done = stage.append_files(files).await.expect("made");
        assert!(!done.already, "this very call made it");
    })
    .await;
}

/// Waits with what is staged until it may go on.
#[derive(Default)]
struct Waits {
    staged: Notify,
    go_on: Notify,
}

#[async_trait]
impl Gate for Waits {
    async fn check(&self, _: &LakeTable, _: i64) -> Result<()> {
        self.staged.notify_one();
        self.go_on.notified().await;
        Ok(())
    }
}

/// Lets nothing pass.
struct Refuses;

#[async_trait]
impl Gate for Refuses {
    async fn check(&self, _: &LakeTable, _: i64) -> Result<()> {
        Err(Error::new(ErrorCode::LakeAuditFailed, "as the test says"))
    }
}

/// Appends rows under an id, past a gate.
async fn append_past(
    lake: Lake,
    run_id: Uuid,
    ids: Range<i64>,
    gate: &dyn Gate,
) -> Result<Committed> {
    let append = StageRequest { run_id, ..request(StageKind::Append, &id_and_text()) };
    let stage = lake.stage(&org("401"), "t", append).await?;
    let files = written(&stage, &[rows(ids)]).await;
    let rows = summary(&files);
    let delta = RowDelta { files, deletes: Vec::new(), among: Predicate::True };
    Box::pin(stage.commit_delta(delta, &checkpoint(0), rows, Some(gate))).await
}

type Request = (TableIdent, Vec<TableRequirement>, Vec<TableUpdate>);

/// Holds the first commit back, while another call publishes the run.
struct Overtaken {
    inner: Arc<dyn Catalog>,
    waiting: Arc<Waits>,
    other: tokio::sync::Mutex<JoinSet<Result<Committed>>>,
    late: Mutex<Option<Request>>,
}

impl fmt::Debug for Overtaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overtaken").finish_non_exhaustive()
    }
}

#[async_trait]
impl Between for Overtaken {
    fn inner(&self) -> &dyn Catalog {
        &*self.inner
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        let mut other = self.other.lock().await;
        if other.is_empty() {
            drop(other);
            return self.inner.commit(ident, requirements, updates).await;
        }
        self.waiting.go_on.notify_one();
        let published = other.join_next().await.expect("it was under way").expect("no panic");
        assert!(!published.expect("published").already);
        *self.late.lock().expect("late") = Some((ident.clone(), requirements.to_vec(), updates));
        Err(CommitFailure::Unknown(Error::new(ErrorCode::LakeUnavailable, "no answer")))
    }
}

/// Two calls for one run, as after a lease that was lost: one publishes while what the other one has sent is
/// still under way. It lands after a rollback, as then all is as it was, and has to find its files.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_yet_land_keeps_its_files_though_another_call_was_faster() {
    let folder = tempfile::tempdir().expect("folder");
    let (connect, (store, _)) = (sqlite(&folder), Place::Memory.store());
    let others = Lake::new(store.clone(), connect(store.clone()).await);
    let create = request(StageKind::Replace, &id_and_text());
    run(&others, "t", create, &[rows(0..3)]).await.expect("create");
    let (run_id, waiting, mut call) = (Uuid::new_v4(), Arc::<Waits>::default(), JoinSet::new());
    let (lake, gate) = (others.clone(), Arc::clone(&waiting));
    call.spawn(async move { append_past(lake, run_id, 3..6, &*gate).await });
    waiting.staged.notified().await;
    // The branch `staging` is somebody else's meanwhile, and then nobody's.
    let refused = append_past(others.clone(), Uuid::new_v4(), 6..7, &Refuses).await;
    assert_eq!(refused.expect_err("refused").code(), ErrorCode::LakeAuditFailed);
    let inner = connect(store.clone()).await;
    let call = tokio::sync::Mutex::new(call);
    let catalog = Arc::new(Overtaken { inner, waiting, other: call, late: Mutex::default() });
    let lake = Lake::new(store, Through::catalog(&catalog));
    let append = || StageRequest { run_id, ..request(StageKind::Append, &id_and_text()) };
    let error = run(&lake, "t", append(), &[rows(3..6)]).await.expect_err("not known yet");
    assert_eq!(error.code(), ErrorCode::LakeUnknownOutcome);
    assert_eq!(ids(&table(&others, "t").await).await, [0, 1, 2, 3, 4, 5]);
    let back = others.rollback(&org("401"), "t", "v1", Uuid::new_v4()).await;
    back.expect("rolled back");
    let (ident, requirements, updates) = catalog.late.lock().expect("late").take().expect("sent");
    catalog.inner.commit(&ident, &requirements, updates).await.expect("it lands");
    check::check(&others, &table(&others, "t").await).await;
    let again = run(&others, "t", append(), &[rows(3..6)]).await.expect("found");
    assert!(again.already, "the run is published, and rolled back");
    assert_eq!(ids(&table(&others, "t").await).await, [0, 1, 2]);
}
