//! The queue of runs that servers carry out: exactly one run of a table at a time, on one server.
//!
//! A run is one job for one table: it brings the table up to date, validates it or maintains it. Which
//! goes next is decided in `claim.rs`; a run that failed for now waits and is tried again, under the same
//! id; one that failed for good waits for a person (ADR 0022).
//!
//! A server that takes a run has a lease on it, which it renews while it works; when it dies, the
//! lease ends and another server takes the same run up, under the same run id, by which the lake
//! finds a commit that landed. Each taking has a higher fence, so that a server that was away too long
//! cannot speak for the run any more. What a run does is not known here.

mod claim;
mod finish;
mod pauses;
mod put_off;
mod requests;
mod rules;
#[cfg(test)]
mod tests;

use std::time::Duration;

use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::runs::{NewRecord, RunState};
use crate::store::{Store, Transaction, commit, failed};

pub use claim::{Claimer, claim};
pub use finish::{Ended, Outcome, finish, finish_telling};
pub use pauses::{
    Pause, Pausing, SourceState, pause, pauses, resume, set_paused, set_source_paused,
    set_source_paused_if, sources,
};
pub use put_off::{at_once, postpone, release};
pub use requests::{cancel, cancel_if, retry, retry_if};
pub use rules::{ATTEMPTS_MAX, BREAKER_FAILURES, DEATHS_MAX};

/// How long a lease lasts; it is renewed at a third of that.
pub const LEASE: Duration = Duration::from_secs(15);
/// Runs of one org that may wait: a limit on what one caller can pile up.
pub const WAITING_MAX: i64 = 10_000;

/// What a run does with its table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobKind {
    /// Brings it up to date with its source.
    #[default]
    Ingest,
    /// Holds it to its source.
    Validate,
    /// Looks after its files, versions and rows by its policies.
    Maintain,
}

impl JobKind {
    pub const ALL: [Self; 3] = [Self::Ingest, Self::Validate, Self::Maintain];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Validate => "validate",
            Self::Maintain => "maintain",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            Error::new(ErrorCode::ControlStore, format!("{text:?} is no kind of run"))
                .hint("the store was written by a newer version of polder")
        })
    }
}

/// One run as the queue has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedRun {
    pub run_id: Uuid,
    /// Runs asked for together are one operation.
    pub operation: Uuid,
    pub org: OrgId,
    pub table: String,
    pub kind: JobKind,
    pub full_refresh: bool,
    pub state: RunState,
    /// Attempts that failed.
    pub failures: i64,
    /// No attempt begins before; milliseconds since the epoch, as all times.
    pub due_ms: i64,
    pub enqueued_ms: i64,
    pub started_ms: Option<i64>,
    pub finished_ms: Option<i64>,
    pub asked_by: String,
    /// The report's JSON, or the error's, once the run ended; of one that waits to be tried again, why
    /// it failed.
    pub report: Option<String>,
    /// How far it is, as the server that works on it said last: JSON.
    pub progress: Option<String>,
    /// The trace of the request that asked for it, as a header of W3C Trace Context.
    pub traceparent: Option<String>,
    /// A validation that nobody asked for by hand: it waits for the hours that its schedule gives it.
    pub off_peak: bool,
}

impl QueuedRun {
    /// # Errors
    /// `control.conflict` for one that has ended: there is nothing to stop.
    pub fn check_open(&self) -> Result<()> {
        let is_open = matches!(self.state, RunState::Queued | RunState::Running);
        if is_open { Ok(()) } else { Err(self.conflict("has ended")) }
    }

    /// # Errors
    /// `control.conflict` for one that has not failed: there is nothing to try again.
    pub fn check_failed(&self) -> Result<()> {
        if self.state == RunState::Failed { Ok(()) } else { Err(self.conflict("has not failed")) }
    }

    fn conflict(&self, what: &str) -> Error {
        let message = format!("run {} {what}: {}", self.run_id, self.state.as_str());
        Error::new(ErrorCode::ControlConflict, message)
    }
}

/// A server's hold on a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub run_id: Uuid,
    owner: String,
    fence: i64,
}

impl Lease {
    /// Which taking of the run it is: each has a higher number than all before.
    pub const fn attempt(&self) -> i64 {
        self.fence
    }
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
    pub kind: JobKind,
    pub tables: &'a [Asked],
    pub full_refresh: bool,
    pub asked_by: &'a str,
    /// See [`QueuedRun::traceparent`].
    pub traceparent: Option<&'a str>,
}

/// A table that is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub table: String,
    /// What it is read from, for the pauses and failures of that.
    pub source: String,
    /// A run that succeeds is followed by a validation.
    pub validate: bool,
}

const COLUMNS: &str = "q.run_id, q.operation, q.org, q.table_name, q.kind, q.full_refresh, q.state, \
     q.failures, q.due_ms, q.enqueued_ms, q.started_ms, q.finished_ms, q.asked_by, q.progress, \
     q.traceparent, q.off_peak, r.report";

/// Queues one run for each table and returns their operation.
///
/// # Errors
/// `control.conflict` when the org has too many runs waiting; `lake.fenced` for an org that has left or
/// is leaving.
pub async fn submit(store: &Store, org: &Authorized<OrgId>, order: Order<'_>) -> Result<Uuid> {
    let operation = store.new_id();
    let mut transaction = store.begin().await?;
    crate::churn::check_none(&mut transaction, org).await?;
    check_room(&mut transaction, org, order.tables.len()).await?;
    for asked in order.tables {
        let new = NewRun {
            operation,
            org: org.get(),
            table: &asked.table,
            source: &asked.source,
            kind: order.kind,
            full_refresh: order.full_refresh,
            validate: asked.validate,
            asked_by: order.asked_by,
            traceparent: order.traceparent,
            off_peak: false,
        };
        insert(&mut transaction, store, new).await?;
    }
    commit(transaction).await?;
    Ok(operation)
}

async fn check_room(
    transaction: &mut Transaction,
    org: &Authorized<OrgId>,
    more: usize,
) -> Result<()> {
    let row = sqlx::query(
        "SELECT count(*) AS waiting FROM polder_queue WHERE org = $1 AND state = 'queued'",
    )
    .bind(org.get().as_str())
    .fetch_one(&mut **transaction)
    .await
    .map_err(unreadable)?;
    let waiting: i64 = row.try_get("waiting").map_err(unreadable)?;
    if waiting + more as i64 > WAITING_MAX {
        let message = format!("org {} has {waiting} runs waiting", org.get());
        return Err(Error::new(ErrorCode::ControlConflict, message)
            .hint("wait until some have run, or cancel them"));
    }
    Ok(())
}

/// A run that the queue does not have yet.
pub(crate) struct NewRun<'a> {
    pub(crate) operation: Uuid,
    pub(crate) org: &'a OrgId,
    pub(crate) table: &'a str,
    pub(crate) source: &'a str,
    pub(crate) kind: JobKind,
    pub(crate) full_refresh: bool,
    pub(crate) validate: bool,
    pub(crate) asked_by: &'a str,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) off_peak: bool,
}

/// Puts a run into the queue, its record beside it, and its org into line.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    store: &Store,
    new: NewRun<'_>,
) -> Result<()> {
    let wrong = |error| failed("the run cannot be queued", error);
    let (now, run_id) = (store.now_ms(), store.new_id().to_string());
    sqlx::query(
        "INSERT INTO polder_queue (run_id, operation, org, table_name, source, kind, full_refresh, \
         validate_after, state, enqueued_ms, due_ms, fence, lease_until_ms, cancel_wanted, asked_by, \
         traceparent, off_peak) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', $9, $9, 0, 0, 0, $10, $11, $12)",
    )
    .bind(&run_id)
    .bind(new.operation.to_string())
    .bind(new.org.as_str())
    .bind(new.table)
    // Maintenance reads nothing of the source: it tells nothing of it, and does not wait for it.
    .bind(if new.kind == JobKind::Maintain { "" } else { new.source })
    .bind(new.kind.as_str())
    .bind(i64::from(new.full_refresh))
    .bind(i64::from(new.validate))
    .bind(now)
    .bind(new.asked_by)
    .bind(new.traceparent)
    .bind(i64::from(new.off_peak))
    .execute(&mut **transaction)
    .await
    .map_err(wrong)?;
    sqlx::query(
        "INSERT INTO polder_turns (org, turn, weight) VALUES ($1, 0, 1) ON CONFLICT (org) DO NOTHING",
    )
    .bind(new.org.as_str())
    .execute(&mut **transaction)
    .await
    .map_err(wrong)?;
    let record = NewRecord {
        run_id: &run_id,
        org: new.org,
        table: new.table,
        kind: new.kind,
        asked_by: new.asked_by,
        now_ms: now,
    };
    crate::runs::insert(transaction, record).await
}

/// Holds on to a run for another [`LEASE`].
pub async fn renew(store: &Store, lease: &Lease) -> Result<Renewed> {
    let row = sqlx::query(
        "UPDATE polder_queue SET lease_until_ms = $1 \
         WHERE run_id = $2 AND owner = $3 AND fence = $4 AND state = 'running' \
         RETURNING cancel_wanted",
    )
    .bind(store.now_ms() + LEASE.as_millis() as i64)
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

/// Says how far a run is, for whoever watches. Nothing if it is another server's by then.
pub async fn tell(store: &Store, lease: &Lease, progress: &str) -> Result<()> {
    sqlx::query(
        "UPDATE polder_queue SET progress = $1 \
         WHERE run_id = $2 AND owner = $3 AND fence = $4 AND state = 'running'",
    )
    .bind(progress)
    .bind(lease.run_id.to_string())
    .bind(&lease.owner)
    .bind(lease.fence)
    .execute(store.pool())
    .await
    .map(drop)
    .map_err(|error| failed("the run's progress cannot be recorded", error))
}

/// Whether a table has a run of a kind that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    None,
    Running,
    /// One waits, whether or not another runs.
    Waiting,
}

pub(crate) async fn is_open(
    transaction: &mut Transaction,
    org: &OrgId,
    table: &str,
    kind: JobKind,
) -> Result<Open> {
    let row = sqlx::query(
        "SELECT state FROM polder_queue WHERE org = $1 AND table_name = $2 AND kind = $3 \
         AND state IN ('queued', 'running') ORDER BY state LIMIT 1",
    )
    .bind(org.as_str())
    .bind(table)
    .bind(kind.as_str())
    .fetch_optional(&mut **transaction)
    .await
    .map_err(unreadable)?;
    let Some(row) = row else { return Ok(Open::None) };
    let state: String = row.try_get("state").map_err(unreadable)?;
    Ok(if state == "queued" { Open::Waiting } else { Open::Running })
}

fn unknown(run_id: Uuid) -> Error {
    Error::new(ErrorCode::ControlNotFound, format!("there is no run {run_id} that a server runs"))
}

/// An org's open runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth {
    pub org: OrgId,
    pub waiting: u64,
    pub running: u64,
    /// When the one was due that waits longest.
    pub oldest_due_ms: Option<i64>,
}

/// Open runs by org, in order of the orgs.
///
/// # Errors
/// `control.denied` for anybody but the operator: it spans orgs.
pub async fn depths(store: &Store, principal: &Principal) -> Result<Vec<Depth>> {
    if *principal != Principal::Operator {
        let message = "only the operator may see every org's queue";
        return Err(Error::new(ErrorCode::ControlDenied, message));
    }
    let rows = sqlx::query(
        "SELECT org, state, count(*) AS runs, min(due_ms) AS due FROM polder_queue \
         WHERE state IN ('queued', 'running') GROUP BY org, state ORDER BY org",
    )
    .fetch_all(store.pool())
    .await
    .map_err(unreadable)?;
    let mut depths: Vec<Depth> = Vec::new();
    for row in &rows {
        let text = |column: &str| row.try_get::<String, _>(column).map_err(unreadable);
        let (org, state): (OrgId, String) = (text("org")?.parse()?, text("state")?);
        let runs: i64 = row.try_get("runs").map_err(unreadable)?;
        if depths.last().is_none_or(|depth| depth.org != org) {
            depths.push(Depth { org, waiting: 0, running: 0, oldest_due_ms: None });
        }
        let Some(depth) = depths.last_mut() else { continue };
        if state == "running" {
            depth.running = runs.unsigned_abs();
        } else {
            depth.waiting = runs.unsigned_abs();
            depth.oldest_due_ms = Some(row.try_get("due").map_err(unreadable)?);
        }
    }
    Ok(depths)
}

/// A run of a kind that waits for the table.
pub async fn waiting(
    store: &Store,
    org: &Authorized<OrgId>,
    table: &str,
    kind: JobKind,
) -> Result<Option<QueuedRun>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM polder_queue q LEFT JOIN polder_runs r ON r.run_id = q.run_id \
         WHERE q.org = $1 AND q.table_name = $2 AND q.kind = $3 AND q.state = 'queued' LIMIT 1"
    );
    let row = sqlx::query(&sql).bind(org.get().as_str()).bind(table).bind(kind.as_str());
    let row = row.fetch_optional(store.pool()).await;
    row.map_err(unreadable)?.as_ref().map(queued_run).transpose()
}

/// A run of an org that servers carry out.
pub async fn run(
    store: &Store,
    org: &Authorized<OrgId>,
    run_id: Uuid,
) -> Result<Option<QueuedRun>> {
    Ok(find(store, run_id).await?.filter(|run| run.org == *org.get()))
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
    .bind(store.now_ms())
    .fetch_optional(store.pool())
    .await
    .map_err(unreadable)?;
    Ok(row.is_some())
}

async fn find(store: &Store, run_id: Uuid) -> Result<Option<QueuedRun>> {
    let row = sqlx::query(&one()).bind(run_id.to_string()).fetch_optional(store.pool()).await;
    row.map_err(unreadable)?.as_ref().map(queued_run).transpose()
}

async fn find_in(transaction: &mut Transaction, run_id: &str) -> Result<Option<QueuedRun>> {
    let row = sqlx::query(&one()).bind(run_id).fetch_optional(&mut **transaction).await;
    row.map_err(unreadable)?.as_ref().map(queued_run).transpose()
}

fn one() -> String {
    format!(
        "SELECT {COLUMNS} FROM polder_queue q LEFT JOIN polder_runs r ON r.run_id = q.run_id \
         WHERE q.run_id = $1"
    )
}

fn queued_run(row: &AnyRow) -> Result<QueuedRun> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(unreadable);
    let number = |column: &str| row.try_get::<Option<i64>, _>(column).map_err(unreadable);
    Ok(QueuedRun {
        run_id: uuid(row, "run_id")?,
        operation: uuid(row, "operation")?,
        org: text("org")?.parse()?,
        table: text("table_name")?,
        kind: JobKind::parse(&text("kind")?)?,
        full_refresh: number("full_refresh")? == Some(1),
        state: RunState::parse(&text("state")?)?,
        failures: row.try_get("failures").map_err(unreadable)?,
        due_ms: row.try_get("due_ms").map_err(unreadable)?,
        enqueued_ms: row.try_get("enqueued_ms").map_err(unreadable)?,
        started_ms: number("started_ms")?,
        finished_ms: number("finished_ms")?,
        asked_by: text("asked_by")?,
        report: row.try_get("report").map_err(unreadable)?,
        progress: row.try_get("progress").map_err(unreadable)?,
        traceparent: row.try_get("traceparent").map_err(unreadable)?,
        off_peak: number("off_peak")? == Some(1),
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
