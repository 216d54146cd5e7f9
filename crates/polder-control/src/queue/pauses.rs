//! What is not to run for now: an org, a table of it, everything that reads a source. What waits goes on
//! waiting, and what runs goes on to its end.

use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::unreadable;
use crate::store::{Store, Transaction, commit, failed};

const PAUSES: &str = "SELECT table_name, who, why, at_ms FROM polder_pauses WHERE org = $1 \
                      ORDER BY table_name";
const SOURCES: &str = "SELECT source, paused, failures, open_until_ms FROM polder_sources";

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
    set_paused(store, org, table, Some(pausing), |_| Ok(())).await
}

/// Ends a pause, if there is one. That of a table and that of its org are two.
pub async fn resume(store: &Store, org: &Authorized<OrgId>, table: Option<&str>) -> Result<()> {
    set_paused(store, org, table, None, |_| Ok(())).await
}

/// As [`pause`], or [`resume`] where nobody pauses, if `check` has nothing against it: it gets what of the org is
/// paused then.
///
/// # Errors
/// What `check` says.
pub async fn set_paused(
    store: &Store,
    org: &Authorized<OrgId>,
    table: Option<&str>,
    pausing: Option<Pausing<'_>>,
    check: impl FnOnce(&[Pause]) -> Result<()>,
) -> Result<()> {
    let (id, name) = (org.get().as_str(), table.unwrap_or_default());
    let mut transaction = store.begin().await?;
    // Of one org's pauses one is set or ended at a time.
    let sql = "UPDATE polder_desired SET revision = revision WHERE kind = 'org' AND id = $1";
    let held = sqlx::query(sql).bind(id).execute(&mut *transaction).await;
    held.map_err(|error| failed("the org cannot be held", error))?;
    check(&pauses_in(&mut transaction, id).await?)?;
    let done = if let Some(Pausing { who, why }) = pausing {
        let sql = "INSERT INTO polder_pauses (org, table_name, who, why, at_ms) \
                   VALUES ($1, $2, $3, $4, $5) ON CONFLICT (org, table_name) DO NOTHING";
        let new = sqlx::query(sql).bind(id).bind(name).bind(who).bind(why);
        new.bind(store.now_ms()).execute(&mut *transaction).await
    } else {
        let sql = "DELETE FROM polder_pauses WHERE org = $1 AND table_name = $2";
        sqlx::query(sql).bind(id).bind(name).execute(&mut *transaction).await
    };
    done.map_err(|error| failed("the pause, or its end, cannot be recorded", error))?;
    commit(transaction).await
}

/// What of an org is paused.
pub async fn pauses(store: &Store, org: &Authorized<OrgId>) -> Result<Vec<Pause>> {
    let rows = sqlx::query(PAUSES).bind(org.get().as_str()).fetch_all(store.pool()).await;
    rows.map_err(unreadable)?.iter().map(read_pause).collect()
}

async fn pauses_in(transaction: &mut Transaction, org: &str) -> Result<Vec<Pause>> {
    let rows = sqlx::query(PAUSES).bind(org).fetch_all(&mut **transaction).await;
    rows.map_err(unreadable)?.iter().map(read_pause).collect()
}

fn read_pause(row: &AnyRow) -> Result<Pause> {
    let table: String = row.try_get("table_name").map_err(unreadable)?;
    Ok(Pause {
        table: Some(table).filter(|table| !table.is_empty()),
        who: row.try_get("who").map_err(unreadable)?,
        why: row.try_get("why").map_err(unreadable)?,
        at_ms: row.try_get("at_ms").map_err(unreadable)?,
    })
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
    set_source_paused_if(store, principal, source, paused, |_| Ok(())).await
}

/// As [`set_source_paused`], if `check` has nothing against it: it gets how the source is then.
///
/// # Errors
/// As [`set_source_paused`]; what `check` says.
pub async fn set_source_paused_if(
    store: &Store,
    principal: &Principal,
    source: &str,
    paused: bool,
    check: impl FnOnce(&SourceState) -> Result<()>,
) -> Result<()> {
    operator(principal)?;
    let wrong = |error| failed("the source's pause cannot be recorded", error);
    let mut transaction = store.begin().await?;
    // One of which nothing is known has a row from now on: nobody else changes it meanwhile.
    let sql = "INSERT INTO polder_sources (source, paused, failures, open_until_ms) \
               VALUES ($1, 0, 0, 0) ON CONFLICT (source) DO UPDATE SET \
               paused = polder_sources.paused";
    sqlx::query(sql).bind(source).execute(&mut *transaction).await.map_err(wrong)?;
    let sql = format!("{SOURCES} WHERE source = $1");
    let row = sqlx::query(&sql).bind(source).fetch_one(&mut *transaction).await;
    check(&read_source(&row.map_err(unreadable)?)?)?;
    sqlx::query(
        "INSERT INTO polder_sources (source, paused, failures, open_until_ms) \
         VALUES ($1, $2, 0, 0) ON CONFLICT (source) DO UPDATE SET paused = excluded.paused, \
         failures = CASE WHEN excluded.paused = 1 THEN polder_sources.failures ELSE 0 END, \
         open_until_ms = CASE WHEN excluded.paused = 1 THEN polder_sources.open_until_ms ELSE 0 END",
    )
    .bind(source)
    .bind(i64::from(paused))
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    commit(transaction).await
}

/// The sources that are paused, or could not be reached lately.
pub async fn sources(store: &Store) -> Result<Vec<SourceState>> {
    let sql = format!("{SOURCES} ORDER BY source");
    let rows = sqlx::query(&sql).fetch_all(store.pool()).await.map_err(unreadable)?;
    rows.iter().map(read_source).collect()
}

fn read_source(row: &AnyRow) -> Result<SourceState> {
    let number = |column: &str| row.try_get::<i64, _>(column).map_err(unreadable);
    Ok(SourceState {
        source: row.try_get("source").map_err(unreadable)?,
        paused: number("paused")? == 1,
        failures: number("failures")?,
        open_until_ms: number("open_until_ms")?,
    })
}

fn operator(principal: &Principal) -> Result<()> {
    if *principal == Principal::Operator {
        return Ok(());
    }
    let message = "only the operator may pause a source: every org's runs read it";
    Err(Error::new(ErrorCode::ControlDenied, message).hint("ask the operator"))
}
