//! What becomes of a run after an attempt: it is over, or it waits to be tried again; what its source is
//! to be thought of; and what follows.

use polder_core::{ErrorCode, OrgId, Result};
use sqlx::Row;
use uuid::Uuid;

use super::rules::{self, ATTEMPTS_MAX};
use super::{JobKind, Lease, NewRun, Open, insert, is_open, unreadable, uuid};
use crate::alerts::{self, Alert};
use crate::runs::{self, RunState};
use crate::store::{Store, Transaction, commit, failed};
use crate::usage::{self, Spent};
use crate::verdicts;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeeded,
    /// By this error; it is tried again if that is of use.
    Failed(ErrorCode),
    Cancelled,
}

/// What became of a run after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Done(RunState),
    /// It is tried again then, in milliseconds since the epoch.
    Again(i64),
    /// It was another server's by then: its word counts.
    Lost,
}

/// What `finish` has to know of a run that it ends.
struct Ending {
    org: OrgId,
    table: String,
    kind: JobKind,
    source: String,
    operation: Uuid,
    asked_by: String,
    traceparent: Option<String>,
    failures: i64,
    validate: bool,
    cancel_wanted: bool,
}

/// Records how an attempt ended: the run with it, or it waits to be tried again. What it used counts if it
/// succeeded. A validation that is to follow is queued in the same transaction.
pub async fn finish(
    store: &Store,
    lease: &Lease,
    outcome: Outcome,
    spent: Spent,
    report: &str,
) -> Result<Ended> {
    finish_telling(store, lease, outcome, (spent, report), &[]).await
}

/// As [`finish`]; alerts that it gives rise to are kept in the same transaction, if it succeeded.
pub async fn finish_telling(
    store: &Store,
    lease: &Lease,
    outcome: Outcome,
    (spent, report): (Spent, &str),
    alerts: &[Alert],
) -> Result<Ended> {
    let wrong = |error| failed("the end of the run cannot be recorded", error);
    let now = store.now_ms();
    let mut transaction = store.begin().await?;
    let Some(ending) = ending(&mut transaction, lease).await? else { return Ok(Ended::Lost) };
    let ended = after(&ending, outcome, lease.run_id, now);
    let (state, due, finished) = match ended {
        Ended::Again(due) => (RunState::Queued, due, None),
        Ended::Done(state) => (state, now, Some(now)),
        Ended::Lost => return Ok(Ended::Lost),
    };
    let failed_now = i64::from(matches!(outcome, Outcome::Failed(_)));
    let done = sqlx::query(
        "UPDATE polder_queue SET state = $1, due_ms = $2, finished_ms = $3, \
         failures = failures + $4, lease_until_ms = 0, progress = NULL \
         WHERE run_id = $5 AND owner = $6 AND fence = $7 AND state = 'running'",
    )
    .bind(state.as_str())
    .bind(due)
    .bind(finished)
    .bind(failed_now)
    .bind(lease.run_id.to_string())
    .bind(&lease.owner)
    .bind(lease.fence)
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    if done.rows_affected() == 0 {
        return Ok(Ended::Lost);
    }
    runs::end(&mut transaction, &lease.run_id.to_string(), (state, finished), report).await?;
    if finished.is_some() {
        runs::forget(&mut transaction, &ending.org, &ending.table, ending.kind).await?;
    }
    if outcome == Outcome::Succeeded {
        usage::add(&mut transaction, &ending.org, now, spent).await?;
        if ending.validate {
            follow(&mut transaction, store, &ending).await?;
        }
        if ending.kind == JobKind::Validate {
            verdicts::keep(&mut transaction, (&ending.org, &ending.table), report, now).await?;
        }
        alerts::insert(&mut transaction, now, alerts).await?;
    }
    // Turns of orgs before sources, as a claim does: or each could wait for the other.
    note_source(&mut transaction, &ending.source, outcome, now).await?;
    commit(transaction).await?;
    Ok(ended)
}

async fn ending(transaction: &mut Transaction, lease: &Lease) -> Result<Option<Ending>> {
    let row = sqlx::query(
        // A write, so that the transaction is one from its beginning.
        "UPDATE polder_queue SET fence = fence \
         WHERE run_id = $1 AND owner = $2 AND fence = $3 AND state = 'running' \
         RETURNING org, table_name, kind, source, operation, asked_by, failures, validate_after, \
         cancel_wanted, traceparent",
    )
    .bind(lease.run_id.to_string())
    .bind(&lease.owner)
    .bind(lease.fence)
    .fetch_optional(&mut **transaction)
    .await
    .map_err(unreadable)?;
    let Some(row) = row else { return Ok(None) };
    let text = |column: &str| row.try_get::<String, _>(column).map_err(unreadable);
    let number = |column: &str| row.try_get::<i64, _>(column).map_err(unreadable);
    Ok(Some(Ending {
        org: text("org")?.parse()?,
        table: text("table_name")?,
        kind: JobKind::parse(&text("kind")?)?,
        source: text("source")?,
        operation: uuid(&row, "operation")?,
        asked_by: text("asked_by")?,
        traceparent: row.try_get("traceparent").map_err(unreadable)?,
        failures: number("failures")?,
        validate: number("validate_after")? == 1,
        cancel_wanted: number("cancel_wanted")? == 1,
    }))
}

/// Whether a run is over after an attempt.
fn after(ending: &Ending, outcome: Outcome, run_id: Uuid, now: i64) -> Ended {
    match outcome {
        Outcome::Succeeded => Ended::Done(RunState::Succeeded),
        Outcome::Cancelled => Ended::Done(RunState::Cancelled),
        Outcome::Failed(code) => {
            let failures = ending.failures + 1;
            if code.retryable() && failures < ATTEMPTS_MAX && !ending.cancel_wanted {
                Ended::Again(now + rules::backoff_ms(failures, run_id))
            } else {
                Ended::Done(RunState::Failed)
            }
        }
    }
}

/// Counts failures to reach a source, and forgets them once it was reached.
async fn note_source(
    transaction: &mut Transaction,
    source: &str,
    outcome: Outcome,
    now: i64,
) -> Result<()> {
    let wrong = |error| failed("the source's state cannot be recorded", error);
    if source.is_empty() {
        return Ok(());
    }
    match outcome {
        Outcome::Succeeded => {
            let sql = "UPDATE polder_sources SET failures = 0, open_until_ms = 0 \
                       WHERE source = $1 AND failures > 0";
            let done = sqlx::query(sql).bind(source).execute(&mut **transaction).await;
            done.map(drop).map_err(wrong)
        }
        Outcome::Failed(ErrorCode::SourceUnavailable) => {
            let row = sqlx::query(
                "INSERT INTO polder_sources (source, paused, failures, open_until_ms) \
                 VALUES ($1, 0, 1, 0) ON CONFLICT (source) DO UPDATE SET \
                 failures = polder_sources.failures + 1 RETURNING failures",
            )
            .bind(source)
            .fetch_one(&mut **transaction)
            .await
            .map_err(wrong)?;
            let pause = rules::break_ms(row.try_get("failures").map_err(unreadable)?);
            if pause == 0 {
                return Ok(());
            }
            let sql = "UPDATE polder_sources SET open_until_ms = $1 WHERE source = $2";
            let done = sqlx::query(sql).bind(now + pause).bind(source);
            done.execute(&mut **transaction).await.map(drop).map_err(wrong)
        }
        Outcome::Failed(_) | Outcome::Cancelled => Ok(()),
    }
}

/// Queues the validation of what was ingested, unless one waits already.
async fn follow(transaction: &mut Transaction, store: &Store, ending: &Ending) -> Result<()> {
    let waiting = is_open(transaction, &ending.org, &ending.table, JobKind::Validate).await?;
    if waiting == Open::Waiting {
        return Ok(());
    }
    let new = NewRun {
        operation: ending.operation,
        org: &ending.org,
        table: &ending.table,
        source: &ending.source,
        kind: JobKind::Validate,
        full_refresh: false,
        validate: false,
        asked_by: &ending.asked_by,
        traceparent: ending.traceparent.as_deref(),
        off_peak: true,
    };
    insert(transaction, store, new).await
}
