//! The queue of runs that servers carry out: exactly one run of a table at a time, on one server.
//!
//! A server that takes a run has a lease on it, which it renews while it works; when it dies, the
//! lease ends and another server takes the same run up, under the same run id, by which the lake
//! finds a commit that landed. Each taking has a higher fence, so that a server that was away too long
//! cannot speak for the run any more. What a run does is not known here.

use std::time::Duration;

use chrono::Utc;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::runs::RunState;
use crate::store::{Store, commit, failed};

/// How long a lease lasts; it is renewed at a third of that.
pub const LEASE: Duration = Duration::from_secs(15);
/// Runs of one org that may wait: a limit on what one caller can pile up.
pub const WAITING_MAX: i64 = 10_000;

/// One run as the queue has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedRun {
    pub run_id: Uuid,
    /// Runs asked for together are one operation.
    pub operation: Uuid,
    pub org: OrgId,
    pub table: String,
    pub full_refresh: bool,
    pub state: RunState,
    /// Milliseconds since the epoch.
    pub enqueued_ms: i64,
    pub started_ms: Option<i64>,
    pub finished_ms: Option<i64>,
    pub asked_by: String,
    /// The report's JSON, or the error's, once the run ended.
    pub report: Option<String>,
}

/// A server's hold on a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub run_id: Uuid,
    owner: String,
    fence: i64,
}

/// What a server learns when it renews a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// Go on.
    Held,
    /// Somebody asked for the run to stop.
    CancelWanted,
    /// The run is another server's, or has ended.
    Lost,
}

/// Runs to be queued together.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    pub tables: &'a [String],
    pub full_refresh: bool,
    pub asked_by: &'a str,
}

const COLUMNS: &str = "q.run_id, q.operation, q.org, q.table_name, q.full_refresh, q.state, \
     q.enqueued_ms, q.started_ms, q.finished_ms, q.asked_by, r.report";

/// Queues one run for each table and returns their operation.
///
/// # Errors
/// `control.conflict` when the org has too many runs waiting; `lake.fenced` for an org that has left or
/// is leaving.
pub async fn submit(store: &Store, org: &Authorized<OrgId>, order: Order<'_>) -> Result<Uuid> {
    let wrong = |error| failed("the runs cannot be queued", error);
    let operation = Uuid::now_v7();
    let now = Utc::now().timestamp_millis();
    let mut transaction = store.begin().await?;
    crate::churn::check_none(&mut transaction, org).await?;
    let row = sqlx::query(
        "SELECT count(*) AS waiting FROM polder_queue WHERE org = $1 AND state = 'queued'",
    )
    .bind(org.get().as_str())
    .fetch_one(&mut *transaction)
    .await
    .map_err(wrong)?;
    let waiting: i64 = row.try_get("waiting").map_err(wrong)?;
    if waiting + order.tables.len() as i64 > WAITING_MAX {
        let message = format!("org {} has {waiting} runs waiting", org.get());
        return Err(Error::new(ErrorCode::ControlConflict, message)
            .hint("wait until some have run, or cancel them"));
    }
    for table in order.tables {
        let run_id = Uuid::now_v7().to_string();
        sqlx::query(
            "INSERT INTO polder_queue (run_id, operation, org, table_name, full_refresh, state, \
             enqueued_ms, fence, lease_until_ms, cancel_wanted, asked_by) \
             VALUES ($1, $2, $3, $4, $5, 'queued', $6, 0, 0, 0, $7)",
        )
        .bind(&run_id)
        .bind(operation.to_string())
        .bind(org.get().as_str())
        .bind(table)
        .bind(i64::from(order.full_refresh))
        .bind(now)
        .bind(order.asked_by)
        .execute(&mut *transaction)
        .await
        .map_err(wrong)?;
        crate::runs::insert(&mut transaction, &run_id, org.get(), table, now).await?;
    }
    commit(transaction).await?;
    Ok(operation)
}

/// Takes the next run that may go: of a table of which none is running, or one whose server is dead.
pub async fn claim(store: &Store, owner: &str) -> Result<Option<(QueuedRun, Lease)>> {
    let now = Utc::now().timestamp_millis();
    let taken = sqlx::query(
        "UPDATE polder_queue SET state = 'running', owner = $1, fence = fence + 1, \
         lease_until_ms = $2, started_ms = COALESCE(started_ms, $3) \
         WHERE run_id = ( \
           SELECT c.run_id FROM polder_queue c \
           WHERE (c.state = 'running' AND c.lease_until_ms < $3) \
              OR (c.state = 'queued' AND NOT EXISTS ( \
                SELECT 1 FROM polder_queue o WHERE o.org = c.org \
                AND o.table_name = c.table_name AND o.state = 'running')) \
           ORDER BY c.enqueued_ms, c.run_id LIMIT 1) \
         AND (state = 'queued' OR (state = 'running' AND lease_until_ms < $3)) \
         RETURNING run_id, fence",
    )
    .bind(owner)
    .bind(now + LEASE.as_millis() as i64)
    .bind(now)
    .fetch_optional(store.pool())
    .await;
    let row = match taken {
        Ok(Some(row)) => row,
        Ok(None) => return Ok(None),
        // Two servers took runs of one table at the same moment: the other one has it.
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(None),
        Err(error) => return Err(failed("no run can be taken from the queue", error)),
    };
    let run_id = uuid(&row, "run_id")?;
    let fence = row.try_get("fence").map_err(unreadable)?;
    let run = find(store, run_id).await?;
    let lease = Lease { run_id, owner: owner.to_owned(), fence };
    Ok(run.map(|run| (run, lease)))
}

/// Holds on to a run for another [`LEASE`].
pub async fn renew(store: &Store, lease: &Lease) -> Result<Renewed> {
    let row = sqlx::query(
        "UPDATE polder_queue SET lease_until_ms = $1 \
         WHERE run_id = $2 AND owner = $3 AND fence = $4 AND state = 'running' \
         RETURNING cancel_wanted",
    )
    .bind(Utc::now().timestamp_millis() + LEASE.as_millis() as i64)
    .bind(lease.run_id.to_string())
    .bind(&lease.owner)
    .bind(lease.fence)
    .fetch_optional(store.pool())
    .await
    .map_err(|error| failed("the lease cannot be renewed", error))?;
    let Some(row) = row else { return Ok(Renewed::Lost) };
    let wanted: i64 = row.try_get("cancel_wanted").map_err(unreadable)?;
    Ok(if wanted == 0 { Renewed::Held } else { Renewed::CancelWanted })
}

/// Records how a run ended. False if it was another server's by then: its word counts.
pub async fn finish(store: &Store, lease: &Lease, state: RunState, report: &str) -> Result<bool> {
    let wrong = |error| failed("the end of the run cannot be recorded", error);
    let now = Utc::now().timestamp_millis();
    let mut transaction = store.begin().await?;
    let done = sqlx::query(
        "UPDATE polder_queue SET state = $1, finished_ms = $2 \
         WHERE run_id = $3 AND owner = $4 AND fence = $5 AND state = 'running'",
    )
    .bind(state.as_str())
    .bind(now)
    .bind(lease.run_id.to_string())
    .bind(&lease.owner)
    .bind(lease.fence)
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "UPDATE polder_runs SET state = $1, finished_ms = $2, report = $3 WHERE run_id = $4",
    )
    .bind(state.as_str())
    .bind(now)
    .bind(report)
    .bind(lease.run_id.to_string())
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    commit(transaction).await?;
    Ok(true)
}

/// Gives a run back that was not ended, for the next server: an orderly stop.
pub async fn release(store: &Store, lease: &Lease) -> Result<()> {
    sqlx::query(
        "UPDATE polder_queue SET state = 'queued', lease_until_ms = 0 \
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

/// Asks for a run to stop: one that waits ends at once, a running one at its next batch, unless its
/// commit has begun.
///
/// # Errors
/// `control.not_found`; `control.conflict` for one that has ended.
pub async fn cancel(store: &Store, org: &Authorized<OrgId>, run_id: Uuid) -> Result<QueuedRun> {
    let wrong = |error| failed("the run cannot be cancelled", error);
    let now = Utc::now().timestamp_millis();
    let mut transaction = store.begin().await?;
    let waiting = sqlx::query(
        "UPDATE polder_queue SET state = 'cancelled', finished_ms = $1 \
         WHERE run_id = $2 AND org = $3 AND state = 'queued'",
    )
    .bind(now)
    .bind(run_id.to_string())
    .bind(org.get().as_str())
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    if waiting.rows_affected() > 0 {
        sqlx::query(
            "UPDATE polder_runs SET state = 'cancelled', finished_ms = $1 WHERE run_id = $2",
        )
        .bind(now)
        .bind(run_id.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(wrong)?;
    }
    let running = sqlx::query(
        "UPDATE polder_queue SET cancel_wanted = 1 \
         WHERE run_id = $1 AND org = $2 AND state = 'running'",
    )
    .bind(run_id.to_string())
    .bind(org.get().as_str())
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    commit(transaction).await?;
    let found = find(store, run_id).await?.filter(|run| run.org == *org.get());
    let found = found.ok_or_else(|| {
        Error::new(
            ErrorCode::ControlNotFound,
            format!("there is no run {run_id} that a server runs"),
        )
    })?;
    if waiting.rows_affected() + running.rows_affected() == 0 {
        let message = format!("run {run_id} has ended: {}", found.state.as_str());
        return Err(Error::new(ErrorCode::ControlConflict, message));
    }
    Ok(found)
}

/// The runs of one operation, in the order they were asked for. Empty for an unknown one; whoever
/// shows them has to authorize their org.
pub async fn operation(store: &Store, operation: Uuid) -> Result<Vec<QueuedRun>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM polder_queue q LEFT JOIN polder_runs r ON r.run_id = q.run_id \
         WHERE q.operation = $1 ORDER BY q.enqueued_ms, q.run_id"
    );
    let rows = sqlx::query(&sql).bind(operation.to_string()).fetch_all(store.pool()).await;
    rows.map_err(unreadable)?.iter().map(queued_run).collect()
}

/// Whether a server that lives holds a run of the table.
pub async fn is_running(store: &Store, org: &Authorized<OrgId>, table: &str) -> Result<bool> {
    let row = sqlx::query(
        "SELECT 1 AS one FROM polder_queue WHERE org = $1 AND table_name = $2 \
         AND state = 'running' AND lease_until_ms >= $3 LIMIT 1",
    )
    .bind(org.get().as_str())
    .bind(table)
    .bind(Utc::now().timestamp_millis())
    .fetch_optional(store.pool())
    .await
    .map_err(unreadable)?;
    Ok(row.is_some())
}

async fn find(store: &Store, run_id: Uuid) -> Result<Option<QueuedRun>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM polder_queue q LEFT JOIN polder_runs r ON r.run_id = q.run_id \
         WHERE q.run_id = $1"
    );
    let row = sqlx::query(&sql).bind(run_id.to_string()).fetch_optional(store.pool()).await;
    row.map_err(unreadable)?.as_ref().map(queued_run).transpose()
}

fn queued_run(row: &AnyRow) -> Result<QueuedRun> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(unreadable);
    let number = |column: &str| row.try_get::<Option<i64>, _>(column).map_err(unreadable);
    Ok(QueuedRun {
        run_id: uuid(row, "run_id")?,
        operation: uuid(row, "operation")?,
        org: text("org")?.parse()?,
        table: text("table_name")?,
        full_refresh: number("full_refresh")? == Some(1),
        state: RunState::parse(&text("state")?)?,
        enqueued_ms: row.try_get("enqueued_ms").map_err(unreadable)?,
        started_ms: number("started_ms")?,
        finished_ms: number("finished_ms")?,
        asked_by: text("asked_by")?,
        report: row.try_get("report").map_err(unreadable)?,
    })
}

fn uuid(row: &AnyRow, column: &str) -> Result<Uuid> {
    let text: String = row.try_get(column).map_err(unreadable)?;
    Uuid::parse_str(&text).map_err(|error| {
        Error::new(ErrorCode::ControlStore, "an id in the queue cannot be read").caused_by(error)
    })
}

fn unreadable(error: sqlx::Error) -> Error {
    failed("the queue cannot be read", error)
}

#[cfg(test)]
mod tests {
    use polder_core::Principal;

    use super::*;

    struct Queue {
        store: Store,
        _folder: tempfile::TempDir,
    }

    async fn queue() -> Queue {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        Queue { store: Store::open(&url).await.expect("store"), _folder: folder }
    }

    fn org(id: &str) -> Authorized<OrgId> {
        Principal::Operator.authorize(&id.parse().expect("id")).expect("org")
    }

    impl Queue {
        async fn submit(&self, id: &str, tables: &[&str]) -> Uuid {
            let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
            let order = Order { tables: &tables, full_refresh: false, asked_by: "test" };
            submit(&self.store, &org(id), order).await.expect("queued")
        }

        async fn states(&self, id: Uuid) -> Vec<RunState> {
            let runs = operation(&self.store, id).await.expect("operation");
            runs.iter().map(|run| run.state).collect()
        }

        /// As if a lease's server had not been heard of for long.
        async fn let_leases_end(&self) {
            let ended =
                sqlx::query("UPDATE polder_queue SET lease_until_ms = 1 WHERE state = 'running'");
            ended.execute(self.store.pool()).await.expect("updated");
        }
    }

    #[tokio::test]
    async fn a_table_has_one_run_at_a_time_and_others_go_on() {
        let queue = queue().await;
        let first = queue.submit("1", &["a"]).await;
        let second = queue.submit("1", &["a", "b"]).await;
        queue.submit("2", &["a"]).await;
        let claim = || claim(&queue.store, "s");
        let (run, lease) = claim().await.expect("asked").expect("a of 1");
        assert_eq!((run.operation, run.table.as_str()), (first, "a"));
        let mut others = Vec::new();
        while let Some((run, _)) = claim().await.expect("asked") {
            others.push(format!("{}/{}", run.org, run.table));
        }
        assert_eq!(others, ["1/b", "2/a"], "the second run of 1/a waits for the first");
        assert!(finish(&queue.store, &lease, RunState::Succeeded, "{}").await.expect("ended"));
        let (run, _) = claim().await.expect("asked").expect("now it may");
        assert_eq!((run.operation, run.table.as_str()), (second, "a"));
        assert_eq!(queue.states(first).await, [RunState::Succeeded]);
        assert_eq!(queue.states(second).await, [RunState::Running; 2]);
    }

    #[tokio::test]
    async fn a_dead_servers_run_is_taken_up_and_its_late_word_does_not_count() {
        let queue = queue().await;
        let operation = queue.submit("1", &["a"]).await;
        let (run, old) = claim(&queue.store, "s1").await.expect("asked").expect("run");
        assert!(claim(&queue.store, "s2").await.expect("asked").is_none(), "it is held");
        assert_eq!(renew(&queue.store, &old).await.expect("renewed"), Renewed::Held);
        assert!(is_running(&queue.store, &org("1"), "a").await.expect("asked"));
        queue.let_leases_end().await;
        assert!(!is_running(&queue.store, &org("1"), "a").await.expect("asked"));
        let (again, new) = claim(&queue.store, "s2").await.expect("asked").expect("run");
        assert_eq!(again.run_id, run.run_id, "the same run");
        assert_eq!(renew(&queue.store, &old).await.expect("renewed"), Renewed::Lost);
        assert!(!finish(&queue.store, &old, RunState::Failed, "{}").await.expect("asked"));
        assert_eq!(queue.states(operation).await, [RunState::Running]);
        assert!(finish(&queue.store, &new, RunState::Succeeded, "{}").await.expect("ended"));
        assert_eq!(queue.states(operation).await, [RunState::Succeeded]);
        assert!(claim(&queue.store, "s1").await.expect("asked").is_none());
    }

    #[tokio::test]
    async fn a_stop_gives_runs_back_and_a_cancelled_one_ends() {
        let queue = queue().await;
        let operation = queue.submit("1", &["a", "b"]).await;
        let (run, lease) = claim(&queue.store, "s").await.expect("asked").expect("run");
        release(&queue.store, &lease).await.expect("given back");
        assert_eq!(queue.states(operation).await, [RunState::Queued; 2]);
        let (same, lease) = claim(&queue.store, "s").await.expect("asked").expect("run");
        assert_eq!(same.run_id, run.run_id);
        let foreign = cancel(&queue.store, &org("2"), run.run_id).await.expect_err("not theirs");
        assert_eq!(foreign.code(), ErrorCode::ControlNotFound);
        assert_eq!(renew(&queue.store, &lease).await.expect("renewed"), Renewed::Held);
        cancel(&queue.store, &org("1"), run.run_id).await.expect("asked to stop");
        assert_eq!(renew(&queue.store, &lease).await.expect("renewed"), Renewed::CancelWanted);
        finish(&queue.store, &lease, RunState::Cancelled, "{}").await.expect("ended");
        let late = cancel(&queue.store, &org("1"), run.run_id).await.expect_err("it ended");
        assert_eq!(late.code(), ErrorCode::ControlConflict);
        let runs = super::operation(&queue.store, operation).await.expect("operation");
        let waiting = runs.iter().find(|run| run.state == RunState::Queued).expect("one waits");
        let gone = cancel(&queue.store, &org("1"), waiting.run_id).await.expect("cancelled");
        assert_eq!(gone.state, RunState::Cancelled);
        assert!(claim(&queue.store, "s").await.expect("asked").is_none());
    }
}
