//! `optimize` by another engine, which is played here: it does as a test says, in commits of its own.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use polder_core::spec::EngineKind;
use polder_core::{Authorized, Error, Optimizer, OrgId, Result, RunProgress, SnapshotMark};
use polder_lake::Lake;

use super::*;

/// Rewrites the files as Polder does, after it was refused some times.
struct Other {
    lake: Lake,
    conflicts: u32,
    asked: AtomicU32,
}

impl std::fmt::Debug for Other {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Other({:?})", self.asked)
    }
}

#[async_trait]
impl Optimizer for Other {
    fn kind(&self) -> EngineKind {
        EngineKind::Trino
    }

    async fn optimize(
        &self,
        _org: &Authorized<OrgId>,
        table: &str,
        target_mb: u64,
        progress: &RunProgress,
    ) -> Result<SnapshotMark> {
        assert_eq!((table, target_mb), ("t", 64));
        if self.asked.fetch_add(1, Ordering::Relaxed) < self.conflicts {
            return Err(Error::new(ErrorCode::LakeConflict, "somebody was first"));
        }
        let own = spec(&json!({ "maintenance": { "target_file_mb": 64 } }));
        let report = maintain(&self.lake, &request(&own, Maintenance::Optimize)).await?;
        let done = rewritten(&report.done);
        progress.add_read(done.rows, done.bytes_read);
        // Counts are marks, too, where no other snapshot has them.
        let value = if done.commits == 0 { "none".to_owned() } else { done.rows.to_string() };
        Ok(SnapshotMark { key: "added-records", value })
    }
}

fn asked_of(other: &Arc<Other>, spec: &TableSpec) -> MaintainRequest {
    let optimizer: Arc<dyn Optimizer> = Arc::<Other>::clone(other);
    MaintainRequest { optimizer: Some(optimizer), ..request(spec, Maintenance::Optimize) }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_engine_s_commit_is_told_as_our_own_is() {
    let scratch = Scratch::new().await;
    let policy = spec(&json!({ "maintenance": { "target_file_mb": 64 }, "engine": "trino" }));
    trickle(&scratch, &policy, 0..12).await;
    scratch.delete(3, &mut Gone::new()).await.expect("deleted");
    let other =
        Arc::new(Other { lake: scratch.lake.clone(), conflicts: 2, asked: AtomicU32::new(0) });
    let dry = MaintainRequest { dry_run: true, ..asked_of(&other, &policy) };
    let planned = maintain(&scratch.lake, &dry).await.expect("planned");
    assert_eq!(rewritten(&planned.done).engine, EngineKind::Trino);
    assert_eq!((other.asked.load(Ordering::Relaxed), scratch.data_files().await), (0, 12));

    let asked = asked_of(&other, &policy);
    let report = maintain(&scratch.lake, &asked).await.expect("done");
    assert_eq!(other.asked.load(Ordering::Relaxed), 3, "it was asked again after each conflict");
    let done = rewritten(&report.done);
    assert_eq!((done.engine, done.commits), (EngineKind::Trino, 1));
    assert_eq!((done.files_replaced, done.files_written), (12, 1));
    assert_eq!((done.rows, done.rows_deleted), (23, 1));
    assert!(report.done.changed() && asked.progress.snapshot().rows_read == 23);
    let files = |size: Option<polder_lake::TableSize>| size.expect("size").files;
    assert_eq!((files(report.before), files(report.after)), (Some(12), Some(1)));
    assert_eq!(scratch.ids().await, (0..24).filter(|id| *id != 3).collect::<Vec<i64>>());

    let again = maintain(&scratch.lake, &asked_of(&other, &policy)).await.expect("again");
    assert!(!again.done.changed(), "there is no commit that it has to answer for");
    // What it has no word for is done here.
    let other_action = MaintainRequest { action: Maintenance::Repartition, ..asked };
    let report = maintain(&scratch.lake, &other_action).await.expect("repartitioned");
    assert_eq!(rewritten(&report.done).engine, EngineKind::Embedded);
    assert_eq!(other.asked.load(Ordering::Relaxed), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_always_late_and_a_maintenance_that_is_cancelled_end() {
    let scratch = Scratch::new().await;
    let policy = spec(&json!({ "maintenance": { "target_file_mb": 64 } }));
    trickle(&scratch, &policy, 0..3).await;
    let other =
        Arc::new(Other { lake: scratch.lake.clone(), conflicts: 99, asked: AtomicU32::new(0) });
    let error = maintain(&scratch.lake, &asked_of(&other, &policy)).await.expect_err("late");
    assert_eq!((error.code(), other.asked.load(Ordering::Relaxed)), (ErrorCode::LakeConflict, 5));
    let cancelled = asked_of(&other, &policy);
    cancelled.limits.cancel.cancel();
    let error = maintain(&scratch.lake, &cancelled).await.expect_err("cancelled");
    assert_eq!((error.code(), other.asked.load(Ordering::Relaxed)), (ErrorCode::Cancelled, 5));
    assert_eq!(scratch.ids().await, (0..6).collect::<Vec<i64>>());
}
