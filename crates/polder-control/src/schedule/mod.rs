//! What runs by itself, and when: puts runs into the queue at the times that the desired state says.
//!
//! The next time of every schedule stands in the store, where `follow.rs` keeps it as the desired state has
//! it. A run is queued in the transaction that moves its schedule on, and only if nobody else has moved it:
//! of several servers one queues it. Which time comes next is a pure rule in `polder_core::spec`; the time
//! itself is the store's clock's.

mod follow;
#[cfg(test)]
mod tests;

use polder_core::spec::{CatchUp, Overlap, ScheduleSpec, ValidateWhen};
use polder_core::{Authorized, Error, OrgId, Result};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::queue::{JobKind, NewRun, Open, insert, is_open};
use crate::store::{Store, Transaction, commit, failed};
use crate::usage;

#[cfg(test)]
pub(crate) use follow::bring;
pub use follow::follow;

/// A time that is past by more than this was missed: `catch_up` decides.
pub const LATE_MS: i64 = 60_000;
/// Who asks for runs of schedules.
pub const ASKED_BY: &str = "schedule";
/// Schedules that are moved on in one transaction, or written by one statement.
const BATCH: usize = 100;
/// Where a schedule stands that has no next time.
const NEVER: i64 = i64::MAX;

/// A schedule as an org sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    pub table: String,
    pub kind: JobKind,
    /// Milliseconds since the epoch; `None` if it has no next time.
    pub next_ms: Option<i64>,
    /// The time it was due last.
    pub last_ms: Option<i64>,
}

/// What one look at the schedules did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticked {
    /// Runs that were queued.
    pub queued: usize,
    /// Times that passed without a run: missed, or the last run had not ended.
    pub skipped: usize,
}

/// One row of the store.
#[derive(Clone, Debug)]
struct Entry {
    org: OrgId,
    table: String,
    kind: JobKind,
    source: String,
    spec: String,
    next_ms: i64,
}

/// Queues what is due by the store's clock. Nothing is queued of what is paused, and no ingestion of an org
/// that has reached a limit of the day: its time is missed, or caught up, when that is over.
///
/// # Errors
/// `control.store`.
pub async fn tick(store: &Store) -> Result<Ticked> {
    let mut ticked = Ticked::default();
    loop {
        let due = due(store).await?;
        if due.is_empty() {
            return Ok(ticked);
        }
        let mut transaction = store.begin().await?;
        lock(&mut transaction).await?;
        for row in &due {
            match fire(&mut transaction, store, row).await? {
                Fired::Queued => ticked.queued += 1,
                Fired::Skipped => ticked.skipped += 1,
                Fired::Elsewhere => {}
            }
        }
        commit(transaction).await?;
        if due.len() < BATCH {
            return Ok(ticked);
        }
    }
}

/// From here to the end of the transaction nobody else writes schedules. They are written in several orders -
/// as they are due, as orgs changed, all of an org at once - and two who held some of each other's would wait
/// for ever.
pub(crate) async fn lock(transaction: &mut Transaction) -> Result<()> {
    let sql = "UPDATE polder_schedule_head SET id = id WHERE id = 1";
    sqlx::query(sql).execute(&mut **transaction).await.map(drop).map_err(wrong)
}

/// When such a run is due next.
fn next_of(spec: &ScheduleSpec, kind: JobKind, org: &OrgId, after_ms: i64) -> Option<i64> {
    match kind {
        JobKind::Ingest => spec.next_ms(org, after_ms),
        JobKind::Validate => spec.next_validation_ms(org, after_ms),
        JobKind::Maintain => spec.next_maintenance_ms(org, after_ms),
    }
}

async fn due(store: &Store) -> Result<Vec<Entry>> {
    let sql = format!(
        "SELECT s.org, s.table_name, s.kind, s.source, s.spec, s.next_ms \
         FROM polder_schedules s WHERE s.next_ms <= $1 \
         AND NOT EXISTS (SELECT 1 FROM polder_pauses p WHERE p.org = s.org \
           AND p.table_name IN ('', s.table_name)) \
         AND NOT EXISTS (SELECT 1 FROM polder_sources o WHERE o.source = s.source \
           AND o.paused = 1) \
         AND NOT (s.kind = 'ingest' AND EXISTS (SELECT 1 FROM polder_turns t \
           WHERE t.org = s.org AND {})) \
         ORDER BY s.next_ms, s.org, s.table_name, s.kind LIMIT $2",
        usage::reached("t", "$1")
    );
    let rows = sqlx::query(&sql).bind(store.now_ms()).bind(BATCH as i64);
    let rows = rows.fetch_all(store.pool()).await.map_err(wrong)?;
    rows.iter().map(read).collect()
}

enum Fired {
    Queued,
    Skipped,
    /// Another server was first.
    Elsewhere,
}

async fn fire(transaction: &mut Transaction, store: &Store, row: &Entry) -> Result<Fired> {
    let now = store.now_ms();
    let spec: Option<ScheduleSpec> = serde_json::from_str(&row.spec).ok();
    let next = spec.as_ref().and_then(|spec| next_of(spec, row.kind, &row.org, now));
    let moved = sqlx::query(
        "UPDATE polder_schedules SET next_ms = $1, last_ms = $2 \
         WHERE org = $3 AND table_name = $4 AND kind = $5 AND next_ms = $2",
    )
    .bind(next.unwrap_or(NEVER))
    .bind(row.next_ms)
    .bind(row.org.as_str())
    .bind(&row.table)
    .bind(row.kind.as_str())
    .execute(&mut **transaction)
    .await
    .map_err(wrong)?;
    if moved.rows_affected() == 0 {
        return Ok(Fired::Elsewhere);
    }
    // A spec that cannot be read any more is written anew by the next look at its org.
    let Some(spec) = spec else { return Ok(Fired::Skipped) };
    let missed = now - row.next_ms > LATE_MS && spec.catch_up == CatchUp::Skip;
    let open = is_open(transaction, &row.org, &row.table, row.kind).await?;
    let overlaps = match spec.overlap {
        Overlap::Skip => open != Open::None,
        Overlap::Queue => open == Open::Waiting,
    };
    if missed || overlaps || crate::churn::is_leaving(transaction, &row.org).await? {
        return Ok(Fired::Skipped);
    }
    let new = NewRun {
        operation: store.new_id(),
        org: &row.org,
        table: &row.table,
        source: &row.source,
        kind: row.kind,
        full_refresh: false,
        validate: spec.validate == ValidateWhen::AfterRun && row.kind == JobKind::Ingest,
        asked_by: ASKED_BY,
        traceparent: None,
        off_peak: row.kind == JobKind::Validate,
    };
    insert(transaction, store, new).await?;
    Ok(Fired::Queued)
}

/// The first time at which a schedule is due.
pub async fn next_ms(store: &Store) -> Result<Option<i64>> {
    let sql = "SELECT next_ms FROM polder_schedules ORDER BY next_ms LIMIT 1";
    let row = sqlx::query(sql).fetch_optional(store.pool()).await.map_err(wrong)?;
    let next: Option<i64> = row.map(|row| row.try_get("next_ms").map_err(wrong)).transpose()?;
    Ok(next.filter(|next| *next != NEVER))
}

/// When a table is to be brought up to date next.
pub async fn next_ingest_ms(
    store: &Store,
    org: &Authorized<OrgId>,
    table: &str,
) -> Result<Option<i64>> {
    let sql = "SELECT next_ms FROM polder_schedules \
               WHERE org = $1 AND table_name = $2 AND kind = 'ingest'";
    let row = sqlx::query(sql).bind(org.get().as_str()).bind(table);
    let row = row.fetch_optional(store.pool()).await.map_err(wrong)?;
    let next: Option<i64> = row.map(|row| row.try_get("next_ms").map_err(wrong)).transpose()?;
    Ok(next.filter(|next| *next != NEVER))
}

/// The schedules of an org, as the scheduler has them.
pub async fn of_org(store: &Store, org: &Authorized<OrgId>) -> Result<Vec<Scheduled>> {
    let sql = "SELECT table_name, kind, next_ms, last_ms FROM polder_schedules WHERE org = $1 \
               ORDER BY table_name, kind";
    let rows = sqlx::query(sql).bind(org.get().as_str()).fetch_all(store.pool()).await;
    let one = |row: &AnyRow| -> Result<Scheduled> {
        let next: i64 = row.try_get("next_ms").map_err(wrong)?;
        Ok(Scheduled {
            table: row.try_get("table_name").map_err(wrong)?,
            kind: JobKind::parse(&row.try_get::<String, _>("kind").map_err(wrong)?)?,
            next_ms: Some(next).filter(|next| *next != NEVER),
            last_ms: row.try_get("last_ms").map_err(wrong)?,
        })
    };
    rows.map_err(wrong)?.iter().map(one).collect()
}

fn read(row: &AnyRow) -> Result<Entry> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(wrong);
    Ok(Entry {
        org: text("org")?.parse()?,
        table: text("table_name")?,
        kind: JobKind::parse(&text("kind")?)?,
        source: text("source")?,
        spec: text("spec")?,
        next_ms: row.try_get("next_ms").map_err(wrong)?,
    })
}

fn wrong(error: sqlx::Error) -> Error {
    failed("the schedules cannot be read or moved on", error)
}
