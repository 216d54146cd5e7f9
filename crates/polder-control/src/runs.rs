//! Records of runs: those of the command line begin with [`enqueue`] or are kept by [`keep_validation`];
//! those of servers begin in the queue, which writes their records here.
//!
//! What a run did to its table is in the table's snapshots; the report kept here is for people.

use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::alerts::{self, Alert};
use crate::churn;
use crate::queue::JobKind;
use crate::store::{Store, Transaction, commit, failed};
use crate::usage::{self, Spent};
use crate::verdicts;

/// Runs of one kind of one table that are kept once they have ended: the lake's snapshots and management
/// tables say what all did.
pub const KEPT_MAX: i64 = 200;
/// Who asked for the runs of a command line.
const COMMAND_LINE: &str = "cli";

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
    /// What is or was done with the table.
    pub kind: JobKind,
    /// Empty for runs of earlier versions.
    pub asked_by: String,
    /// Attempts that failed, and when the next one is due, where a server carries the run out.
    pub failures: i64,
    pub due_ms: Option<i64>,
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
    let run_id = store.new_id();
    let what = "the run cannot be recorded";
    let mut transaction = store.begin().await?;
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
    let new = NewRecord {
        run_id: &run_id.to_string(),
        org: org.get(),
        table,
        kind: JobKind::Ingest,
        asked_by: COMMAND_LINE,
        now_ms: store.now_ms(),
    };
    insert(&mut transaction, new).await?;
    commit(transaction).await?;
    Ok(run_id)
}

/// Keeps a validation that this process has carried out by itself, beside whatever runs of the table
/// there are: it changes nothing. With it are kept the alerts that are to be sent.
///
/// # Errors
/// `lake.fenced` for an org that has left or is leaving.
pub async fn keep_validation(
    store: &Store,
    org: &Authorized<OrgId>,
    (table, started_ms): (&str, i64),
    (state, report): (RunState, &str),
    alerts: &[Alert],
) -> Result<()> {
    let run_id = store.new_id();
    let mut transaction = store.begin().await?;
    let new = NewRecord {
        run_id: &run_id.to_string(),
        org: org.get(),
        table,
        kind: JobKind::Validate,
        asked_by: COMMAND_LINE,
        now_ms: started_ms,
    };
    // A write first: SQLite refuses one that comes after a look, where another process has written.
    insert(&mut transaction, new).await?;
    churn::check_none(&mut transaction, org).await?;
    let now = store.now_ms();
    end(&mut transaction, &run_id.to_string(), (state, Some(now)), report).await?;
    forget(&mut transaction, org.get(), table, JobKind::Validate).await?;
    if state == RunState::Succeeded {
        verdicts::keep(&mut transaction, (org.get(), table), report, now).await?;
    }
    alerts::insert(&mut transaction, now, alerts).await?;
    commit(transaction).await
}

/// A record that is not there yet.
pub(crate) struct NewRecord<'a> {
    pub(crate) run_id: &'a str,
    pub(crate) org: &'a OrgId,
    pub(crate) table: &'a str,
    pub(crate) kind: JobKind,
    pub(crate) asked_by: &'a str,
    pub(crate) now_ms: i64,
}

pub(crate) async fn insert(transaction: &mut Transaction, new: NewRecord<'_>) -> Result<()> {
    sqlx::query(
        "INSERT INTO polder_runs (run_id, org, table_name, kind, asked_by, state, enqueued_ms) \
         VALUES ($1, $2, $3, $4, $5, 'queued', $6)",
    )
    .bind(new.run_id)
    .bind(new.org.as_str())
    .bind(new.table)
    .bind(new.kind.as_str())
    .bind(new.asked_by)
    .bind(new.now_ms)
    .execute(&mut **transaction)
    .await
    .map_err(|error| failed("the run cannot be recorded", error))?;
    Ok(())
}

/// What became of a run, in its record.
pub(crate) async fn end(
    transaction: &mut Transaction,
    run_id: &str,
    (state, finished_ms): (RunState, Option<i64>),
    report: &str,
) -> Result<()> {
    let sql = "UPDATE polder_runs SET state = $1, finished_ms = $2, report = $3 WHERE run_id = $4";
    let done = sqlx::query(sql).bind(state.as_str()).bind(finished_ms).bind(report).bind(run_id);
    let done = done.execute(&mut **transaction).await;
    done.map(drop).map_err(|error| failed("the end of the run cannot be recorded", error))
}

/// Removes the oldest runs of a table that have ended, with their logs, where there are more than
/// [`KEPT_MAX`].
pub(crate) async fn forget(
    transaction: &mut Transaction,
    org: &OrgId,
    table: &str,
    kind: JobKind,
) -> Result<()> {
    let old = "SELECT run_id FROM polder_runs WHERE org = $1 AND table_name = $2 AND kind = $3 \
        AND state NOT IN ('queued', 'running') AND run_id <= ( \
          SELECT run_id FROM polder_runs WHERE org = $1 AND table_name = $2 AND kind = $3 \
          AND state NOT IN ('queued', 'running') ORDER BY run_id DESC LIMIT 1 OFFSET $4)";
    for list in ["polder_run_logs WHERE org = $1 AND", "polder_queue WHERE", "polder_runs WHERE"] {
        sqlx::query(&format!("DELETE FROM {list} run_id IN ({old})"))
            .bind(org.as_str())
            .bind(table)
            .bind(kind.as_str())
            .bind(KEPT_MAX)
            .execute(&mut **transaction)
            .await
            .map_err(|error| failed("old runs cannot be removed", error))?;
    }
    Ok(())
}

/// Records how a run of [`enqueue`] ended, and what it used if it succeeded; nothing where the org has no
/// such run.
pub async fn finish(
    store: &Store,
    org: &Authorized<OrgId>,
    run_id: Uuid,
    spent: Spent,
    (state, report): (RunState, &str),
) -> Result<()> {
    let now = store.now_ms();
    let what = "the end of the run cannot be recorded";
    let mut transaction = store.begin().await?;
    let row = sqlx::query(
        "UPDATE polder_runs SET state = $1, finished_ms = $2, report = $3 \
         WHERE run_id = $4 AND org = $5 RETURNING table_name",
    )
    .bind(state.as_str())
    .bind(now)
    .bind(report)
    .bind(run_id.to_string())
    .bind(org.get().as_str())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(|error| failed(what, error))?;
    let Some(row) = row else { return Ok(()) };
    let table: String = row.try_get("table_name").map_err(|error| failed(what, error))?;
    forget(&mut transaction, org.get(), &table, JobKind::Ingest).await?;
    if state == RunState::Succeeded {
        usage::add(&mut transaction, org.get(), now, spent).await?;
    }
    commit(transaction).await
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

/// As [`page`], of one kind and one table.
pub async fn page_of_table(
    store: &Store,
    org: &Authorized<OrgId>,
    (table, kind): (&str, JobKind),
    before: Option<Uuid>,
    limit: u16,
) -> Result<Vec<RunRecord>> {
    let sql = format!(
        "{RECORDS} WHERE r.org = $1 AND r.table_name = $2 AND r.kind = $3 AND r.run_id < $4 \
         ORDER BY r.run_id DESC LIMIT $5"
    );
    let rows = sqlx::query(&sql)
        .bind(org.get().as_str())
        .bind(table)
        .bind(kind.as_str())
        .bind(before.unwrap_or(Uuid::max()).to_string())
        .bind(i64::from(limit))
        .fetch_all(store.pool())
        .await
        .map_err(|error| failed("the table's runs cannot be listed", error))?;
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

/// Where a server carries the run out, the queue knows its state; a command line begins at once.
const RECORDS: &str = "SELECT r.run_id, r.org, r.table_name, COALESCE(q.state, r.state) AS state, \
     q.operation, r.kind, COALESCE(q.asked_by, r.asked_by) AS asked_by, \
     COALESCE(q.failures, 0) AS failures, q.due_ms, r.enqueued_ms, \
     CASE WHEN q.run_id IS NULL THEN r.enqueued_ms ELSE q.started_ms END AS started_ms, \
     r.finished_ms, r.report \
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
        kind: JobKind::parse(&text("kind")?)?,
        asked_by: text("asked_by")?,
        failures: row.try_get("failures").map_err(damaged)?,
        due_ms: row.try_get("due_ms").map_err(damaged)?,
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
        let none = Spent::default();
        let failed = (RunState::Failed, "{}");
        finish(&store, &org("2"), second, none, failed).await.expect("not ours");
        let succeeded = (RunState::Succeeded, "{}");
        finish(&store, &org("1"), second, none, succeeded).await.expect("ours");
        let runs = latest(&store, &org("1"), 10).await.expect("runs");
        let states: Vec<_> = runs.iter().map(|run| (run.run_id, run.state)).collect();
        assert_eq!(states, [(second, RunState::Succeeded), (first, RunState::Interrupted)]);
        assert!(latest(&store, &org("2"), 10).await.expect("runs").is_empty());
        let again = Store::open(&url).await.expect("opens twice");
        assert_eq!(latest(&again, &org("1"), 1).await.expect("runs").len(), 1);
    }
    #[tokio::test]
    async fn the_newest_that_ended_are_kept_of_each_table_and_kind() {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("polder.db").display());
        let store = Store::open(&url).await.expect("store");
        let org = |id: &str| Principal::Operator.authorize(&id.parse().expect("id")).expect("org");
        let keep = async |id: &str, report: &str| {
            let ended = (RunState::Succeeded, report);
            keep_validation(&store, &org(id), ("t", 1), ended, &[]).await.expect("kept");
        };
        keep("2", "other").await;
        let run = enqueue(&store, &org("1"), "t").await.expect("run");
        let succeeded = (RunState::Succeeded, "{}");
        finish(&store, &org("1"), run, Spent::default(), succeeded).await.expect("ended");
        for number in 0..KEPT_MAX + 3 {
            keep("1", &number.to_string()).await;
        }
        let page = async |id: &str, kind| {
            let found = page_of_table(&store, &org(id), ("t", kind), None, 500).await;
            let report = |run: RunRecord| run.report.expect("it has ended");
            found.expect("runs").into_iter().map(report).collect::<Vec<_>>()
        };
        let kept: Vec<String> = (3..KEPT_MAX + 3).rev().map(|number| number.to_string()).collect();
        assert_eq!(page("1", JobKind::Validate).await, kept);
        assert_eq!(page("1", JobKind::Ingest).await, ["{}"], "another kind");
        assert_eq!(page("2", JobKind::Validate).await, ["other"], "another org");
    }
}
