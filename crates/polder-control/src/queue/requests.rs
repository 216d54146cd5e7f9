//! What people ask of a run that is there: to stop, and to be tried again. Each may be asked under a condition,
//! which is looked at while nobody else changes the run.

use polder_core::{Authorized, OrgId, Result};
use uuid::Uuid;

use super::{QueuedRun, check_room, find_in, unknown};
use crate::churn;
use crate::runs::RunState;
use crate::store::{Store, Transaction, commit, failed};

/// Asks for a run to stop: one that waits ends at once, a running one at its next batch, unless its
/// commit has begun.
///
/// # Errors
/// `control.not_found`; `control.conflict` for one that has ended.
pub async fn cancel(store: &Store, org: &Authorized<OrgId>, run_id: Uuid) -> Result<QueuedRun> {
    cancel_if(store, org, run_id, |_| Ok(())).await
}

/// As [`cancel`], if `check` has nothing against it: it gets the run as it is then.
///
/// # Errors
/// As [`cancel`]; before `control.conflict` what `check` says.
pub async fn cancel_if(
    store: &Store,
    org: &Authorized<OrgId>,
    run_id: Uuid,
    check: impl FnOnce(&QueuedRun) -> Result<()>,
) -> Result<QueuedRun> {
    let wrong = |error| failed("the run cannot be cancelled", error);
    let now = store.now_ms();
    let mut transaction = store.begin().await?;
    let found = held(&mut transaction, org, run_id).await?;
    check(&found)?;
    found.check_open()?;
    let id = run_id.to_string();
    if found.state == RunState::Queued {
        for list in ["polder_queue", "polder_runs"] {
            let sql = format!(
                "UPDATE {list} SET state = 'cancelled', finished_ms = $1 WHERE run_id = $2"
            );
            let ended = sqlx::query(&sql).bind(now).bind(&id).execute(&mut *transaction).await;
            ended.map_err(wrong)?;
        }
    } else {
        let sql = "UPDATE polder_queue SET cancel_wanted = 1 WHERE run_id = $1";
        sqlx::query(sql).bind(&id).execute(&mut *transaction).await.map_err(wrong)?;
    }
    let asked = find_in(&mut transaction, &id).await?;
    commit(transaction).await?;
    asked.ok_or_else(|| unknown(run_id))
}

/// Puts a run back into the queue that failed for good, as if it had never been tried.
///
/// # Errors
/// `control.not_found`; `control.conflict` for one that has not failed, or when too many wait.
pub async fn retry(store: &Store, org: &Authorized<OrgId>, run_id: Uuid) -> Result<QueuedRun> {
    retry_if(store, org, run_id, |_| Ok(())).await
}

/// As [`retry`], if `check` has nothing against it: it gets the run as it is then.
///
/// # Errors
/// As [`retry`]; what `check` says, before whether the run has failed.
pub async fn retry_if(
    store: &Store,
    org: &Authorized<OrgId>,
    run_id: Uuid,
    check: impl FnOnce(&QueuedRun) -> Result<()>,
) -> Result<QueuedRun> {
    let wrong = |error| failed("the run cannot be queued again", error);
    let mut transaction = store.begin().await?;
    churn::check_none(&mut transaction, org).await?;
    check_room(&mut transaction, org, 1).await?;
    let found = held(&mut transaction, org, run_id).await?;
    check(&found)?;
    found.check_failed()?;
    sqlx::query(
        "UPDATE polder_queue SET state = 'queued', failures = 0, deaths = 0, cancel_wanted = 0, \
         off_peak = 0, due_ms = $1, started_ms = NULL, finished_ms = NULL WHERE run_id = $2",
    )
    .bind(store.now_ms())
    .bind(run_id.to_string())
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    sqlx::query(
        "UPDATE polder_runs SET state = 'queued', finished_ms = NULL, report = NULL \
         WHERE run_id = $1",
    )
    .bind(run_id.to_string())
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    let again = find_in(&mut transaction, &run_id.to_string()).await?;
    commit(transaction).await?;
    again.ok_or_else(|| unknown(run_id))
}

/// A run of an org, as it stays until the transaction ends.
///
/// # Errors
/// `control.not_found`.
async fn held(
    transaction: &mut Transaction,
    org: &Authorized<OrgId>,
    run_id: Uuid,
) -> Result<QueuedRun> {
    let id = run_id.to_string();
    let sql = "UPDATE polder_queue SET fence = fence WHERE run_id = $1 AND org = $2";
    let held = sqlx::query(sql).bind(&id).bind(org.get().as_str());
    let held = held.execute(&mut **transaction).await;
    held.map_err(|error| failed("the run cannot be held", error))?;
    let found = find_in(transaction, &id).await?;
    found.filter(|run| run.org == *org.get()).ok_or_else(|| unknown(run_id))
}
