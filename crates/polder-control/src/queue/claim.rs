//! Which run goes next: fair turns of orgs, limits, pauses, sources that are left alone.
//!
//! Claims are made one after the other, over all servers, so that limits hold exactly.

use polder_core::{Error, ErrorCode, Result};
use sqlx::Row;

use super::rules::{BREAKER_FAILURES, DEATHS_MAX, IDLE_WAIT_MS, PROBE_MS, turn};
use super::{LEASE, Lease, QueuedRun, find_in, unreadable};
use crate::store::{Store, Transaction, commit, failed};
use crate::usage;

/// A server that asks for work.
#[derive(Clone, Copy, Debug)]
pub struct Claimer<'a> {
    /// Its name in leases.
    pub owner: &'a str,
    /// Of the runs it works on, so many are one org's at most.
    pub per_org: usize,
}

/// What goes on of an org that has reached a limit of the day. The words are those of an index.
const BESIDE: &str = "AND c.kind <> 'ingest'";

/// Runs that may go now, but for the limits of their org. `$1` is now, `$2` whether nothing urgent waits.
fn eligible() -> String {
    format!(
        "c.state = 'queued' AND c.due_ms <= $1 \
         AND (c.kind <> 'maintain' OR $2 = 1 OR c.due_ms <= $1 - {IDLE_WAIT_MS}) \
         AND NOT EXISTS (SELECT 1 FROM polder_queue o WHERE o.org = c.org \
           AND o.table_name = c.table_name AND o.state = 'running') \
         AND NOT EXISTS (SELECT 1 FROM polder_pauses p WHERE p.org = c.org \
           AND p.table_name IN ('', c.table_name)) \
         AND NOT EXISTS (SELECT 1 FROM polder_sources s WHERE s.source = c.source \
           AND (s.paused = 1 OR s.open_until_ms > $1))"
    )
}

/// How often a run that was ended or renewed while it was being taken has the queue looked at again.
const TRIES_MAX: usize = 10;
/// A run's row as it was found: whoever does not take turns (a stop, a renewal, an end) may have changed it
/// since, where the store lets several write at once. `$1` is now.
const WAITS: &str = "state = 'queued' AND due_ms <= $1";
const IS_DEAD: &str = "state = 'running' AND lease_until_ms < $1";

/// What came of one look at the queue.
enum Look {
    Nothing,
    Taken(Box<(QueuedRun, Lease)>),
    /// The run was no longer as it was found.
    Gone,
}

/// Whose turn it is.
enum Next {
    Nothing,
    Run(String),
    /// The only run of the org whose turn it is was ended meanwhile.
    Gone,
}

/// Takes the next run that may go: one whose server is dead, or else one of the org whose turn it is.
pub async fn claim(store: &Store, claimer: Claimer<'_>) -> Result<Option<(QueuedRun, Lease)>> {
    for _ in 0..TRIES_MAX {
        match look(store, claimer).await? {
            Look::Nothing => return Ok(None),
            Look::Taken(taken) => return Ok(Some(*taken)),
            Look::Gone => {}
        }
    }
    // Somebody else comes by within a second.
    Ok(None)
}

async fn look(store: &Store, claimer: Claimer<'_>) -> Result<Look> {
    let now = store.now_ms();
    if !is_anything_due(store, now).await? {
        return Ok(Look::Nothing);
    }
    let mut transaction = store.begin().await?;
    let head = lock(&mut transaction).await?;
    let (run_id, as_found) = match dead(&mut transaction, now).await? {
        Some(run_id) => (run_id, IS_DEAD),
        None => match next(&mut transaction, now, head, claimer).await? {
            Next::Run(run_id) => (run_id, WAITS),
            Next::Nothing => {
                commit(transaction).await?;
                return Ok(Look::Nothing);
            }
            Next::Gone => {
                transaction.rollback().await.map_err(wrong)?;
                return Ok(Look::Gone);
            }
        },
    };
    let row = sqlx::query(&format!(
        "UPDATE polder_queue SET state = 'running', owner = $2, fence = fence + 1, \
         deaths = deaths + CASE WHEN state = 'running' THEN 1 ELSE 0 END, \
         lease_until_ms = $3, started_ms = COALESCE(started_ms, $1) \
         WHERE run_id = $4 AND {as_found} RETURNING fence"
    ))
    .bind(now)
    .bind(claimer.owner)
    .bind(now + LEASE.as_millis() as i64)
    .bind(&run_id)
    .fetch_optional(&mut *transaction)
    .await
    .map_err(wrong)?;
    let Some(row) = row else {
        // With it goes the turn that its org would have had.
        transaction.rollback().await.map_err(wrong)?;
        return Ok(Look::Gone);
    };
    let fence = row.try_get("fence").map_err(unreadable)?;
    let run = find_in(&mut transaction, &run_id).await?;
    commit(transaction).await?;
    let run = run.ok_or_else(|| Error::new(ErrorCode::ControlStore, "a taken run is gone"))?;
    let lease = Lease { run_id: run.run_id, owner: claimer.owner.to_owned(), fence };
    Ok(Look::Taken(Box::new((run, lease))))
}

fn wrong(error: sqlx::Error) -> Error {
    failed("no run can be taken from the queue", error)
}

/// A look that locks nothing.
async fn is_anything_due(store: &Store, now: i64) -> Result<bool> {
    let found = sqlx::query(
        "SELECT 1 AS one FROM polder_queue WHERE (state = 'queued' AND due_ms <= $1) \
         OR (state = 'running' AND lease_until_ms < $1) LIMIT 1",
    )
    .bind(now)
    .fetch_optional(store.pool())
    .await;
    Ok(found.map_err(wrong)?.is_some())
}

/// From here to the end of the transaction nobody else claims. Gives the turn that was had last.
async fn lock(transaction: &mut Transaction) -> Result<i64> {
    let sql = "UPDATE polder_turn_head SET turn = turn WHERE id = 1 RETURNING turn";
    let row = sqlx::query(sql).fetch_one(&mut **transaction).await.map_err(wrong)?;
    row.try_get("turn").map_err(unreadable)
}

/// A run whose server was not heard of; those whose servers died too often are ended.
async fn dead(transaction: &mut Transaction, now: i64) -> Result<Option<String>> {
    loop {
        let row = sqlx::query(&format!(
            "SELECT run_id, deaths FROM polder_queue WHERE {IS_DEAD} \
             ORDER BY lease_until_ms, run_id LIMIT 1"
        ))
        .bind(now)
        .fetch_optional(&mut **transaction)
        .await
        .map_err(wrong)?;
        let Some(row) = row else { return Ok(None) };
        let run_id: String = row.try_get("run_id").map_err(unreadable)?;
        let deaths: i64 = row.try_get("deaths").map_err(unreadable)?;
        if deaths + 1 < DEATHS_MAX {
            return Ok(Some(run_id));
        }
        bury(transaction, &run_id, now).await?;
    }
}

/// Ends a run that takes its servers with it, unless its server was heard of meanwhile.
async fn bury(transaction: &mut Transaction, run_id: &str, now: i64) -> Result<()> {
    let report = serde_json::json!({
        "code": ErrorCode::Internal.as_str(),
        "message": format!("the server died {DEATHS_MAX} times while it worked on this run"),
        "detail": null,
        "hint": "look at the servers' logs: memory may have run out ([limits] memory_mb)",
        "causes": [],
        "retryable": false,
    });
    let buried = sqlx::query(&format!(
        "UPDATE polder_queue SET state = 'failed', deaths = deaths + 1, finished_ms = $1 \
         WHERE run_id = $2 AND {IS_DEAD}"
    ))
    .bind(now)
    .bind(run_id)
    .execute(&mut **transaction)
    .await
    .map_err(wrong)?;
    if buried.rows_affected() == 0 {
        return Ok(());
    }
    let sql = "UPDATE polder_runs SET state = 'failed', finished_ms = $1, report = $2 \
               WHERE run_id = $3";
    let done = sqlx::query(sql).bind(now).bind(report.to_string()).bind(run_id);
    done.execute(&mut **transaction).await.map(drop).map_err(wrong)
}

/// Orgs with a run that may go now, within their limits. Of one that has reached a limit of the day only
/// what is no ingestion is looked at, by an index of that alone: ten thousand ingestions that wait cost as
/// much as none.
fn lined_up() -> String {
    let (eligible, reached) = (eligible(), usage::reached("t", "$1"));
    let orgs = |limited: u8, only: &str, day: &str| {
        format!(
            "SELECT t.org AS org, t.turn AS turn, t.weight AS weight, \
             CAST({limited} AS BIGINT) AS limited FROM polder_turns t \
             WHERE EXISTS (SELECT 1 FROM polder_queue c WHERE c.org = t.org {only} AND {eligible}) \
             AND (SELECT count(*) FROM polder_queue r WHERE r.org = t.org \
               AND r.state = 'running') < COALESCE(t.runs_max, $3) \
             AND (SELECT count(*) FROM polder_queue r WHERE r.org = t.org \
               AND r.state = 'running' AND r.owner = $4) \
               < CASE WHEN t.here_max < $5 THEN t.here_max ELSE $5 END AND {day}"
        )
    };
    let free = orgs(0, "", &format!("NOT {reached}"));
    let has_limit = "(t.rows_max IS NOT NULL OR t.bytes_max IS NOT NULL)";
    let limited = orgs(1, BESIDE, &format!("{has_limit} AND {reached}"));
    format!("{free} UNION ALL {limited}")
}

/// The run whose turn it is. Maintenance goes when nothing else may.
async fn next(
    transaction: &mut Transaction,
    now: i64,
    head: i64,
    claimer: Claimer<'_>,
) -> Result<Next> {
    let org = format!(
        "SELECT n.org, n.turn, n.weight, n.limited FROM ({}) n \
         ORDER BY CASE WHEN n.turn < $6 THEN $6 ELSE n.turn END, n.turn, n.org LIMIT 1",
        lined_up()
    );
    for idle in [0_i64, 1] {
        let found = sqlx::query(&org)
            .bind(now)
            .bind(idle)
            .bind(i64::MAX)
            .bind(claimer.owner)
            .bind(claimer.per_org as i64)
            .bind(head)
            .fetch_optional(&mut **transaction)
            .await
            .map_err(wrong)?;
        let Some(found) = found else { continue };
        let id: String = found.try_get("org").map_err(unreadable)?;
        let number = |column: &str| found.try_get::<i64, _>(column).map_err(unreadable);
        let turns = turn(head, number("turn")?, number("weight")?);
        let only = if number("limited")? == 1 { BESIDE } else { "" };
        let Some((run_id, source)) = first(transaction, (now, idle), &id, only).await? else {
            return Ok(Next::Gone);
        };
        move_on(transaction, &id, turns).await?;
        probe(transaction, &source, now).await?;
        return Ok(Next::Run(run_id));
    }
    Ok(Next::Nothing)
}

/// The org's run that is due longest, and its source; maintenance only where there is no other. `None` where
/// the store lets others end runs meanwhile, and the last one was. `only` bounds what is looked at.
async fn first(
    transaction: &mut Transaction,
    (now, idle): (i64, i64),
    org: &str,
    only: &str,
) -> Result<Option<(String, String)>> {
    for kinds in ["AND c.kind <> 'maintain'", ""] {
        // In the index's order, so that it ends with the first one of ten thousand.
        let sql = format!(
            "SELECT c.run_id, c.source FROM polder_queue c WHERE c.org = $3 {only} AND {} {kinds} \
             ORDER BY c.due_ms, c.run_id LIMIT 1",
            eligible()
        );
        let row = sqlx::query(&sql).bind(now).bind(idle).bind(org);
        let row = row.fetch_optional(&mut **transaction).await.map_err(wrong)?;
        if let Some(row) = row {
            let text = |column: &str| row.try_get(column).map_err(unreadable);
            return Ok(Some((text("run_id")?, text("source")?)));
        }
    }
    Ok(None)
}

async fn move_on(transaction: &mut Transaction, org: &str, turns: (i64, i64)) -> Result<()> {
    let (start, end) = turns;
    let sql = "UPDATE polder_turn_head SET turn = $1 WHERE id = 1";
    sqlx::query(sql).bind(start).execute(&mut **transaction).await.map_err(wrong)?;
    let sql = "UPDATE polder_turns SET turn = $1 WHERE org = $2";
    let done = sqlx::query(sql).bind(end).bind(org).execute(&mut **transaction).await;
    done.map(drop).map_err(wrong)
}

/// A source that was left alone is tried by one run first.
async fn probe(transaction: &mut Transaction, source: &str, now: i64) -> Result<()> {
    let sql = "UPDATE polder_sources SET open_until_ms = $1 WHERE source = $2 AND failures >= $3";
    let done = sqlx::query(sql).bind(now + PROBE_MS).bind(source).bind(BREAKER_FAILURES);
    done.execute(&mut **transaction).await.map(drop).map_err(wrong)
}
