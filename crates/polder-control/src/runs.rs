//! Records of runs: every run of the data plane begins with [`enqueue`], whoever asked for it.
//!
//! What a run did to its table is in the table's snapshots; the report kept here is for people.

use chrono::Utc;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::churn;
use crate::store::{Store, Transaction, failed};

/// Where a run is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Accepted. A run of `polder run`, which no server carries out, works already.
    Queued,
    /// A server works on it.
    Running,
    Succeeded,
    Failed,
    Cancelled,
    /// Its process ended without a word.
    Interrupted,
}

impl RunState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let running = [Self::Queued, Self::Running];
        let ended = [Self::Succeeded, Self::Failed, Self::Cancelled, Self::Interrupted];
        running.into_iter().chain(ended).find(|state| state.as_str() == text).ok_or_else(|| {
            Error::new(ErrorCode::ControlStore, format!("{text:?} is not a state of a run"))
                .hint("the store was written by a newer version of polder")
        })
    }
}

/// One run of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    pub run_id: Uuid,
    pub org: OrgId,
    pub table: String,
    pub state: RunState,
    /// Milliseconds since the epoch.
    pub enqueued_ms: i64,
    pub started_ms: Option<i64>,
    pub finished_ms: Option<i64>,
    /// The operation it is part of, where a server carries it out.
    pub operation: Option<Uuid>,
    /// The report's JSON, once the run ended.
    pub report: Option<String>,
}

/// Accepts a run of one table that this process carries out itself, and returns its id. Runs of the
/// same table whose process ended without a word are marked interrupted.
///
/// # Errors
/// `control.busy` while a server runs the table; `lake.fenced` for an org that has left or is leaving.
pub async fn enqueue(store: &Store, org: &Authorized<OrgId>, table: &str) -> Result<Uuid> {
    if crate::queue::is_running(store, org, table).await? {
        let message = format!("a server runs table {table} of org {}", org.get());
        return Err(Error::new(ErrorCode::ControlBusy, message).hint("try again when it is done"));
    }
    let run_id = Uuid::now_v7();
    let what = "the run cannot be recorded";
    let mut transaction = store.pool().begin().await.map_err(|error| failed(what, error))?;
    sqlx::query(
        "UPDATE polder_runs SET state = 'interrupted' \
         WHERE org = $1 AND table_name = $2 AND state = 'queued' \
         AND run_id NOT IN (SELECT run_id FROM polder_queue WHERE org = $1 AND table_name = $2)",
    )
    .bind(org.get().as_str())
    .bind(table)
    .execute(&mut *transaction)
    .await
    .map_err(|error| failed(what, error))?;
    churn::check_none(&mut transaction, org).await?;
    let now = Utc::now().timestamp_millis();
    insert(&mut transaction, &run_id.to_string(), org.get(), table, now).await?;
    transaction.commit().await.map_err(|error| failed(what, error))?;
    Ok(run_id)
}

/// A new run's record.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    run_id: &str,
    org: &OrgId,
    table: &str,
    now_ms: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO polder_runs (run_id, org, table_name, state, enqueued_ms) \
         VALUES ($1, $2, $3, 'queued', $4)",
    )
    .bind(run_id)
    .bind(org.as_str())
    .bind(table)
    .bind(now_ms)
    .execute(&mut **transaction)
    .await
    .map_err(|error| failed("the run cannot be recorded", error))?;
    Ok(())
}

/// Records how a run ended.
pub async fn finish(
    store: &Store,
    org: &Authorized<OrgId>,
    run_id: Uuid,
    state: RunState,
    report: &str,
) -> Result<()> {
    let what = "the end of the run cannot be recorded";
    sqlx::query(
        "UPDATE polder_runs SET state = $1, finished_ms = $2, report = $3 \
         WHERE run_id = $4 AND org = $5",
    )
    .bind(state.as_str())
    .bind(Utc::now().timestamp_millis())
    .bind(report)
    .bind(run_id.to_string())
    .bind(org.get().as_str())
    .execute(store.pool())
    .await
    .map_err(|error| failed(what, error))?;
    Ok(())
}

/// The newest runs of one org, at most `limit`.
pub async fn latest(store: &Store, org: &Authorized<OrgId>, limit: u16) -> Result<Vec<RunRecord>> {
    page(store, org, None, limit).await
}

/// As [`latest`], those before a run of which all later ones were seen. Ids of runs grow with time.
pub async fn page(
    store: &Store,
    org: &Authorized<OrgId>,
    before: Option<Uuid>,
    limit: u16,
) -> Result<Vec<RunRecord>> {
    let before = before.unwrap_or(Uuid::max()).to_string();
    let sql =
        format!("{RECORDS} WHERE r.org = $1 AND r.run_id < $2 ORDER BY r.run_id DESC LIMIT $3");
    let rows = sqlx::query(&sql)
        .bind(org.get().as_str())
        .bind(before)
        .bind(i64::from(limit))
        .fetch_all(store.pool())
        .await
        .map_err(|error| failed("the runs cannot be listed", error))?;
    rows.iter().map(record).collect()
}

/// One run of an org; `None` where it has no such run.
pub async fn find(
    store: &Store,
    org: &Authorized<OrgId>,
    run_id: Uuid,
) -> Result<Option<RunRecord>> {
    let sql = format!("{RECORDS} WHERE r.org = $1 AND r.run_id = $2");
    let row = sqlx::query(&sql)
        .bind(org.get().as_str())
        .bind(run_id.to_string())
        .fetch_optional(store.pool())
        .await
        .map_err(|error| failed("the run cannot be read", error))?;
    row.as_ref().map(record).transpose()
}

/// Where a server carries the run out, the queue knows its state.
const RECORDS: &str = "SELECT r.run_id, r.org, r.table_name, COALESCE(q.state, r.state) AS state, \
     q.operation, r.enqueued_ms, q.started_ms, r.finished_ms, r.report \
     FROM polder_runs r LEFT JOIN polder_queue q ON q.run_id = r.run_id";

fn record(row: &AnyRow) -> Result<RunRecord> {
    let damaged = |error: sqlx::Error| failed("a run's record cannot be read", error);
    let text = |column: &str| row.try_get::<String, _>(column).map_err(damaged);
    let operation: Option<String> = row.try_get("operation").map_err(damaged)?;
    let run_id = Uuid::parse_str(&text("run_id")?).map_err(|error| {
        Error::new(ErrorCode::ControlStore, "a run's id cannot be read").caused_by(error)
    })?;
    Ok(RunRecord {
        run_id,
        org: text("org")?.parse()?,
        table: text("table_name")?,
        state: RunState::parse(&text("state")?)?,
        enqueued_ms: row.try_get("enqueued_ms").map_err(damaged)?,
        started_ms: row.try_get("started_ms").map_err(damaged)?,
        operation: operation.and_then(|text| Uuid::parse_str(&text).ok()),
        finished_ms: row.try_get("finished_ms").map_err(damaged)?,
        report: row.try_get("report").map_err(damaged)?,
    })
}

#[cfg(test)]
mod tests {
    use polder_core::Principal;

    use super::*;

    #[tokio::test]
    async fn runs_are_recorded_for_their_org_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("deep/polder.db").display());
        let store = Store::open(&url).await.expect("store");
        let org = |id: &str| Principal::Operator.authorize(&id.parse().expect("id")).expect("org");
        let first = enqueue(&store, &org("1"), "t").await.expect("run");
        let second = enqueue(&store, &org("1"), "t").await.expect("run");
        finish(&store, &org("2"), second, RunState::Failed, "{}").await.expect("not ours");
        finish(&store, &org("1"), second, RunState::Succeeded, "{}").await.expect("ours");
        let runs = latest(&store, &org("1"), 10).await.expect("runs");
        let states: Vec<_> = runs.iter().map(|run| (run.run_id, run.state)).collect();
        assert_eq!(states, [(second, RunState::Succeeded), (first, RunState::Interrupted)]);
        assert!(latest(&store, &org("2"), 10).await.expect("runs").is_empty());
        let again = Store::open(&url).await.expect("opens twice");
        assert_eq!(latest(&again, &org("1"), 1).await.expect("runs").len(), 1);
    }
}
