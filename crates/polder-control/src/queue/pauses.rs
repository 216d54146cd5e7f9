//! What is not to run for now: an org, a table of it, everything that reads a source. What waits goes on
//! waiting, and what runs goes on to its end.

use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use sqlx::Row;

use super::unreadable;
use crate::store::{Store, failed};

/// Something that is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// `None`: the whole org.
    pub table: Option<String>,
    pub who: String,
    pub why: Option<String>,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
}

/// Who pauses something, and why.
#[derive(Clone, Copy, Debug)]
pub struct Pausing<'a> {
    pub who: &'a str,
    pub why: Option<&'a str>,
}

/// How runs fare that read a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    pub source: String,
    pub paused: bool,
    /// Runs in a row that could not reach it.
    pub failures: i64,
    /// No run is begun before this moment, in milliseconds since the epoch; 0 where it may be.
    pub open_until_ms: i64,
}

/// Pauses an org, or one of its tables. Twice is once; the first reason stays.
pub async fn pause(
    store: &Store,
    org: &Authorized<OrgId>,
    table: Option<&str>,
    pausing: Pausing<'_>,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO polder_pauses (org, table_name, who, why, at_ms) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (org, table_name) DO NOTHING",
    )
    .bind(org.get().as_str())
    .bind(table.unwrap_or_default())
    .bind(pausing.who)
    .bind(pausing.why)
    .bind(store.now_ms())
    .execute(store.pool())
    .await
    .map(drop)
    .map_err(|error| failed("the pause cannot be recorded", error))
}

/// Ends a pause, if there is one. That of a table and that of its org are two.
pub async fn resume(store: &Store, org: &Authorized<OrgId>, table: Option<&str>) -> Result<()> {
    let sql = "DELETE FROM polder_pauses WHERE org = $1 AND table_name = $2";
    let done = sqlx::query(sql).bind(org.get().as_str()).bind(table.unwrap_or_default());
    let done = done.execute(store.pool()).await;
    done.map(drop).map_err(|error| failed("the pause cannot be ended", error))
}

/// What of an org is paused.
pub async fn pauses(store: &Store, org: &Authorized<OrgId>) -> Result<Vec<Pause>> {
    let sql = "SELECT table_name, who, why, at_ms FROM polder_pauses WHERE org = $1 \
               ORDER BY table_name";
    let rows = sqlx::query(sql).bind(org.get().as_str()).fetch_all(store.pool()).await;
    let pause = |row: &sqlx::any::AnyRow| -> Result<Pause> {
        let table: String = row.try_get("table_name").map_err(unreadable)?;
        Ok(Pause {
            table: Some(table).filter(|table| !table.is_empty()),
            who: row.try_get("who").map_err(unreadable)?,
            why: row.try_get("why").map_err(unreadable)?,
            at_ms: row.try_get("at_ms").map_err(unreadable)?,
        })
    };
    rows.map_err(unreadable)?.iter().map(pause).collect()
}

/// Pauses a source, over all orgs, or lets its runs go on; then it is tried at once, too, if it was left
/// alone after failures.
///
/// # Errors
/// `control.denied` for anybody but the operator.
pub async fn set_source_paused(
    store: &Store,
    principal: &Principal,
    source: &str,
    paused: bool,
) -> Result<()> {
    operator(principal)?;
    sqlx::query(
        "INSERT INTO polder_sources (source, paused, failures, open_until_ms) \
         VALUES ($1, $2, 0, 0) ON CONFLICT (source) DO UPDATE SET paused = excluded.paused, \
         failures = CASE WHEN excluded.paused = 1 THEN polder_sources.failures ELSE 0 END, \
         open_until_ms = CASE WHEN excluded.paused = 1 THEN polder_sources.open_until_ms ELSE 0 END",
    )
    .bind(source)
    .bind(i64::from(paused))
    .execute(store.pool())
    .await
    .map(drop)
    .map_err(|error| failed("the source's pause cannot be recorded", error))
}

/// The sources that are paused, or could not be reached lately.
pub async fn sources(store: &Store) -> Result<Vec<SourceState>> {
    let sql = "SELECT source, paused, failures, open_until_ms FROM polder_sources ORDER BY source";
    let rows = sqlx::query(sql).fetch_all(store.pool()).await.map_err(unreadable)?;
    let state = |row: &sqlx::any::AnyRow| -> Result<SourceState> {
        let number = |column: &str| row.try_get::<i64, _>(column).map_err(unreadable);
        Ok(SourceState {
            source: row.try_get("source").map_err(unreadable)?,
            paused: number("paused")? == 1,
            failures: number("failures")?,
            open_until_ms: number("open_until_ms")?,
        })
    };
    rows.iter().map(state).collect()
}

fn operator(principal: &Principal) -> Result<()> {
    if *principal == Principal::Operator {
        return Ok(());
    }
    let message = "only the operator may pause a source: every org's runs read it";
    Err(Error::new(ErrorCode::ControlDenied, message).hint("ask the operator"))
}
