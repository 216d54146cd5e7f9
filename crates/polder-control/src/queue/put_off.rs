//! Runs that a server gives back without having begun, or ended, them: for the next server, or for later.

use polder_core::{Authorized, OrgId, Result};
use uuid::Uuid;

use super::Lease;
use crate::store::{Store, failed};

/// Gives a run back that was not ended, for the next server: an orderly stop.
pub async fn release(store: &Store, lease: &Lease) -> Result<()> {
    sqlx::query(
        "UPDATE polder_queue SET state = 'queued', lease_until_ms = 0, progress = NULL \
         WHERE run_id = $1 AND owner = $2 AND fence = $3 AND state = 'running'",
    )
    .bind(lease.run_id.to_string())
    .bind(&lease.owner)
    .bind(lease.fence)
    .execute(store.pool())
    .await
    .map_err(|error| failed("the run cannot be given back", error))?;
    Ok(())
}

/// Puts a run off that was taken before its time, and was not begun: nobody takes it before then.
pub async fn postpone(store: &Store, lease: &Lease, until_ms: i64) -> Result<()> {
    sqlx::query(
        "UPDATE polder_queue SET state = 'queued', due_ms = $1, lease_until_ms = 0, started_ms = NULL \
         WHERE run_id = $2 AND owner = $3 AND fence = $4 AND state = 'running'",
    )
    .bind(until_ms)
    .bind(lease.run_id.to_string())
    .bind(&lease.owner)
    .bind(lease.fence)
    .execute(store.pool())
    .await
    .map(drop)
    .map_err(|error| failed("the run cannot be put off", error))
}

/// Has a run that waits for its hours go at once: somebody asked for it.
pub async fn at_once(store: &Store, org: &Authorized<OrgId>, run_id: Uuid) -> Result<()> {
    sqlx::query(
        "UPDATE polder_queue SET off_peak = 0, due_ms = CASE WHEN due_ms > $1 THEN $1 ELSE due_ms END \
         WHERE run_id = $2 AND org = $3 AND state = 'queued' AND off_peak = 1",
    )
    .bind(store.now_ms())
    .bind(run_id.to_string())
    .bind(org.get().as_str())
    .execute(store.pool())
    .await
    .map(drop)
    .map_err(|error| failed("the run cannot be brought forward", error))
}
