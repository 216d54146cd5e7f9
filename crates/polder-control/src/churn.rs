//! Orgs that leave: who asked for it and how far it is. One row an event; it is what remains of the
//! org here, beside the certificate in it.
//!
//! What is removed from the lake, and when the org's own processes stop, is not decided here.

use std::collections::HashSet;

use chrono::Utc;
use polder_core::{Authorized, Erasure, Error, ErrorCode, Hold, OrgId, Result};
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};
use uuid::Uuid;

use crate::store::{Store, commit, failed};

/// The tables of the store with rows of orgs, by their column `org`, that go with the org. What an
/// erasure leaves is the row about itself and those about legal holds.
const TABLES_OF_ORGS: &[&str] = &[
    "polder_queue",
    "polder_runs",
    // After the runs: see `run_logs::append`.
    "polder_run_logs",
    "polder_turns",
    "polder_pauses",
    "polder_schedules",
    "polder_usage",
    "polder_undo",
    // After the queue and the runs: they are written with these.
    "polder_alerts",
    "polder_verdicts",
];
/// What else is an org's, and has no such column. A key of several orgs stays, for the others.
const ROWS_OF_ORGS: &[&str] = &[
    "DELETE FROM polder_desired WHERE kind = 'org' AND id = $1",
    "DELETE FROM polder_desired_history WHERE kind = 'org' AND id = $1",
    "DELETE FROM polder_keys WHERE orgs = $1",
];
#[cfg(test)]
const TABLES_THAT_STAY: &[&str] = &["polder_audit", "polder_churns", "polder_holds"];
/// The states in which an org is not to be worked for.
const IN_FORCE: &str = "state IN ('waiting', 'erasing', 'erased')";
const COLUMNS: &str =
    "event_id, org, asked_by, via, reason, asked_ms, due_ms, state, erasure, certificate";

/// Where an org is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChurnState {
    /// Fenced, and nothing is removed yet.
    Waiting,
    Erasing,
    Erased,
    /// Brought back before anything was removed.
    Undone,
    /// Erased, and the id may be used anew.
    Released,
}

impl ChurnState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Erasing => "erasing",
            Self::Erased => "erased",
            Self::Undone => "undone",
            Self::Released => "released",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        [Self::Waiting, Self::Erasing, Self::Erased, Self::Undone, Self::Released]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| {
                Error::new(ErrorCode::ControlStore, format!("{text:?} is not a state of a churn"))
                    .hint("the store was written by a newer version of polder")
            })
    }
}

/// That an org leaves, as somebody says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Given twice, it is one event.
    pub event_id: String,
    pub asked_by: String,
    /// `cli` or `webhook`.
    pub via: &'static str,
    pub reason: Option<String>,
    /// Milliseconds from now until it may be erased.
    pub grace_ms: i64,
}

/// An org that leaves or has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Churn {
    pub event_id: String,
    pub org: OrgId,
    pub asked_by: String,
    pub via: String,
    pub reason: Option<String>,
    /// Milliseconds since the epoch, as all times here.
    pub asked_ms: i64,
    /// When it may be erased.
    pub due_ms: i64,
    pub state: ChurnState,
    /// How far the erasure is, once it has begun.
    pub erasure: Option<Erasure>,
    /// The certificate's document, once there is one.
    pub certificate: Option<String>,
}

/// Takes a notice down. One that is known already, or of an org that is leaving already, gives the
/// event in force.
///
/// # Errors
/// `spec.invalid` for an event that was another org's.
pub async fn ask(store: &Store, org: &Authorized<OrgId>, notice: &Notice) -> Result<Churn> {
    let what = "the churn cannot be recorded";
    if let Some(known) = find(store, &notice.event_id).await? {
        if known.org != *org.get() {
            let message = format!("event {} is another org's", notice.event_id);
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("an event's id is used once: send this one under its own"));
        }
        return Ok(known);
    }
    let now_ms = Utc::now().timestamp_millis();
    // Of two at the same time one is taken, by the table's indexes.
    sqlx::query(
        "INSERT INTO polder_churns \
         (event_id, org, asked_by, via, reason, asked_ms, due_ms, state) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'waiting') ON CONFLICT DO NOTHING",
    )
    .bind(&notice.event_id)
    .bind(org.get().as_str())
    .bind(&notice.asked_by)
    .bind(notice.via)
    .bind(notice.reason.as_deref())
    .bind(now_ms)
    .bind(now_ms.saturating_add(notice.grace_ms))
    .execute(store.pool())
    .await
    .map_err(|error| failed(what, error))?;
    let known = match find(store, &notice.event_id).await? {
        Some(own) => Some(own),
        None => in_force(store, org).await?,
    };
    known.ok_or_else(|| Error::new(ErrorCode::ControlStore, what))
}

/// Takes a notice out again that nothing was done about.
pub async fn withdraw(store: &Store, event_id: &str) -> Result<()> {
    let sql = "DELETE FROM polder_churns WHERE event_id = $1 AND state = 'waiting'";
    let done = sqlx::query(sql).bind(event_id).execute(store.pool()).await;
    done.map(drop).map_err(|error| failed("the churn cannot be withdrawn", error))
}

/// One event.
pub async fn find(store: &Store, event_id: &str) -> Result<Option<Churn>> {
    let sql = format!("SELECT {COLUMNS} FROM polder_churns WHERE event_id = $1");
    let found = sqlx::query(&sql).bind(event_id).fetch_optional(store.pool()).await;
    read(found)
}

/// The event by which an org is leaving or has left.
pub async fn in_force(store: &Store, org: &Authorized<OrgId>) -> Result<Option<Churn>> {
    let sql = format!("SELECT {COLUMNS} FROM polder_churns WHERE org = $1 AND {IN_FORCE}");
    let found = sqlx::query(&sql).bind(org.get().as_str()).fetch_optional(store.pool()).await;
    read(found)
}

/// The orgs that are leaving or have left.
pub async fn leaving(store: &Store) -> Result<HashSet<String>> {
    let sql = format!("SELECT DISTINCT org FROM polder_churns WHERE {IN_FORCE}");
    let rows = sqlx::query(&sql).fetch_all(store.pool()).await;
    let rows = rows.map_err(|error| failed("the orgs that leave cannot be listed", error))?;
    rows.iter().map(|row| row.try_get("org").map_err(damaged)).collect()
}

/// The newest event of an org, whatever has become of it.
pub async fn latest(store: &Store, org: &Authorized<OrgId>) -> Result<Option<Churn>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM polder_churns WHERE org = $1 ORDER BY asked_ms DESC, event_id LIMIT 1"
    );
    let found = sqlx::query(&sql).bind(org.get().as_str()).fetch_optional(store.pool()).await;
    read(found)
}

/// The events that wait for their erasure, or for its end, and may go on now; oldest first.
pub async fn due(store: &Store) -> Result<Vec<Churn>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM polder_churns \
         WHERE state = 'erasing' OR (state = 'waiting' AND due_ms <= $1) ORDER BY asked_ms"
    );
    let rows = sqlx::query(&sql).bind(Utc::now().timestamp_millis()).fetch_all(store.pool()).await;
    let rows = rows.map_err(|error| failed("the churns cannot be listed", error))?;
    rows.iter().map(record).collect()
}

/// Moves an event on from one state; false if it is in another.
pub async fn turn(
    store: &Store,
    event_id: &str,
    (from, to): (ChurnState, ChurnState),
) -> Result<bool> {
    let sql = "UPDATE polder_churns SET state = $1 WHERE event_id = $2 AND state = $3";
    let done = sqlx::query(sql)
        .bind(to.as_str())
        .bind(event_id)
        .bind(from.as_str())
        .execute(store.pool())
        .await
        .map_err(|error| failed("the churn's state cannot be recorded", error))?;
    Ok(done.rows_affected() == 1)
}

/// Keeps how far an erasure is.
pub async fn save(store: &Store, event_id: &str, erasure: &Erasure) -> Result<()> {
    let text = serde_json::to_string(erasure).map_err(|cause| {
        Error::new(ErrorCode::Internal, "an erasure cannot be written as JSON").caused_by(cause)
    })?;
    sqlx::query("UPDATE polder_churns SET erasure = $1 WHERE event_id = $2 AND state = 'erasing'")
        .bind(text)
        .bind(event_id)
        .execute(store.pool())
        .await
        .map_err(|error| failed("how far the erasure is cannot be recorded", error))?;
    Ok(())
}

/// Keeps the event's certificate, unless it has one: returns the one that is kept.
pub async fn certify(store: &Store, event_id: &str, document: &str) -> Result<String> {
    let what = "the certificate cannot be recorded";
    sqlx::query(
        "UPDATE polder_churns SET certificate = $1 \
         WHERE event_id = $2 AND certificate IS NULL",
    )
    .bind(document)
    .bind(event_id)
    .execute(store.pool())
    .await
    .map_err(|error| failed(what, error))?;
    let kept = find(store, event_id).await?.and_then(|churn| churn.certificate);
    kept.ok_or_else(|| Error::new(ErrorCode::ControlStore, what))
}

/// Runs of the org whose end is not recorded.
pub async fn running(store: &Store, org: &Authorized<OrgId>) -> Result<u64> {
    let sql = "SELECT COUNT(*) AS running FROM polder_runs WHERE org = $1 AND state = 'queued'";
    let row = sqlx::query(sql).bind(org.get().as_str()).fetch_one(store.pool()).await;
    let row = row.map_err(|error| failed("the org's runs cannot be counted", error))?;
    let running: i64 = row.try_get("running").map_err(damaged)?;
    Ok(running.unsigned_abs())
}

/// Removes every row of the org but those about its leaving and about legal holds. Returns how many.
pub async fn forget(store: &Store, org: &Authorized<OrgId>) -> Result<u64> {
    let mut rows = 0;
    // Names of ours, from the list above.
    let of_tables =
        TABLES_OF_ORGS.iter().map(|table| format!("DELETE FROM {table} WHERE org = $1"));
    // The desired state first: what is written by it, such as schedules, asks for its row.
    for sql in ROWS_OF_ORGS.iter().map(|sql| (*sql).to_owned()).chain(of_tables) {
        let mut transaction = store.begin().await?;
        if sql.contains("polder_schedules") {
            crate::schedule::lock(&mut transaction).await?;
        }
        let done = sqlx::query(&sql).bind(org.get().as_str()).execute(&mut *transaction).await;
        rows += done
            .map_err(|error| failed("the org's rows cannot be removed", error))?
            .rows_affected();
        commit(transaction).await?;
    }
    Ok(rows)
}

/// Whether an org has left or is leaving. For the scheduler, which works for all orgs.
pub(crate) async fn is_leaving(
    transaction: &mut Transaction<'_, Any>,
    org: &OrgId,
) -> Result<bool> {
    let sql = format!("SELECT event_id FROM polder_churns WHERE org = $1 AND {IN_FORCE}");
    let found = sqlx::query(&sql).bind(org.as_str()).fetch_optional(&mut **transaction).await;
    found.map(|row| row.is_some()).map_err(|error| failed("the org's churns cannot be read", error))
}

/// # Errors
/// `lake.fenced` for an org that has left or is leaving.
pub(crate) async fn check_none(
    transaction: &mut Transaction<'_, Any>,
    org: &Authorized<OrgId>,
) -> Result<()> {
    if !is_leaving(transaction, org.get()).await? {
        return Ok(());
    }
    let message = format!("org {} has left or is leaving: nothing runs for it", org.get());
    Err(Error::new(ErrorCode::LakeFenced, message).hint(format!(
        "take it out of pipelines/*.yaml; `polder churn --org {} --status` says how far it is",
        org.get()
    )))
}

/// Takes down that a hold was set, for later questions. What holds is the mark in the lake's catalog.
pub async fn hold_set(store: &Store, org: &Authorized<OrgId>, hold: &Hold) -> Result<()> {
    sqlx::query(
        "INSERT INTO polder_holds (hold_id, org, table_name, reason, set_by, set_ms) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(Uuid::now_v7().to_string())
    .bind(org.get().as_str())
    .bind(hold.table.as_deref())
    .bind(&hold.reason)
    .bind(&hold.set_by)
    .bind(hold.set_ms)
    .execute(store.pool())
    .await
    .map_err(|error| failed("the hold cannot be recorded", error))?;
    Ok(())
}

/// Takes down that the holds on an org or a table were ended.
pub async fn hold_released(
    store: &Store,
    org: &Authorized<OrgId>,
    table: Option<&str>,
    (by, reason): (&str, &str),
) -> Result<()> {
    sqlx::query(
        "UPDATE polder_holds SET released_by = $1, released_ms = $2, release_reason = $3 \
         WHERE org = $4 AND COALESCE(table_name, '') = $5 AND released_ms IS NULL",
    )
    .bind(by)
    .bind(Utc::now().timestamp_millis())
    .bind(reason)
    .bind(org.get().as_str())
    .bind(table.unwrap_or_default())
    .execute(store.pool())
    .await
    .map_err(|error| failed("the end of the hold cannot be recorded", error))?;
    Ok(())
}

fn read(found: Result<Option<AnyRow>, sqlx::Error>) -> Result<Option<Churn>> {
    let found = found.map_err(|error| failed("the churn cannot be read", error))?;
    found.as_ref().map(record).transpose()
}

fn damaged(error: sqlx::Error) -> Error {
    failed("a churn's record cannot be read", error)
}

fn record(row: &AnyRow) -> Result<Churn> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(damaged);
    let maybe = |column: &str| row.try_get::<Option<String>, _>(column).map_err(damaged);
    let erasure = maybe("erasure")?.map(|text| {
        serde_json::from_str(&text).map_err(|cause| {
            Error::new(ErrorCode::ControlStore, "how far an erasure is cannot be read")
                .hint("the store was written by a newer version of polder")
                .caused_by(cause)
        })
    });
    Ok(Churn {
        event_id: text("event_id")?,
        org: text("org")?.parse()?,
        asked_by: text("asked_by")?,
        via: text("via")?,
        reason: maybe("reason")?,
        asked_ms: row.try_get("asked_ms").map_err(damaged)?,
        due_ms: row.try_get("due_ms").map_err(damaged)?,
        state: ChurnState::parse(&text("state")?)?,
        erasure: erasure.transpose()?,
        certificate: maybe("certificate")?,
    })
}

#[cfg(test)]
mod tests {
    use polder_core::{ErasureStep, Principal};

    use super::*;
    use crate::runs;

    async fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("polder.db").display());
        let store = Store::open(&url).await.expect("store");
        (folder, store)
    }

    fn org(id: &str) -> Authorized<OrgId> {
        Principal::Operator.authorize(&id.parse().expect("id")).expect("org")
    }

    fn notice(event: &str) -> Notice {
        Notice {
            event_id: event.into(),
            asked_by: "eve".into(),
            via: "cli",
            reason: None,
            grace_ms: 0,
        }
    }

    #[tokio::test]
    async fn an_event_is_one_however_often_it_comes_and_nothing_runs_after_it() {
        let (_folder, store) = store().await;
        runs::enqueue(&store, &org("1"), "t").await.expect("run");
        runs::enqueue(&store, &org("2"), "t").await.expect("run");
        let first = ask(&store, &org("1"), &notice("a")).await.expect("first");
        assert_eq!(ask(&store, &org("1"), &notice("a")).await.expect("again"), first);
        assert_eq!(ask(&store, &org("1"), &notice("b")).await.expect("another"), first);
        let error = ask(&store, &org("2"), &notice("a")).await.expect_err("not theirs");
        assert_eq!(error.code(), ErrorCode::SpecInvalid);
        let error = runs::enqueue(&store, &org("1"), "t").await.expect_err("fenced");
        assert_eq!(error.code(), ErrorCode::LakeFenced);
        assert_eq!(running(&store, &org("1")).await.expect("count"), 1);
        assert_eq!(forget(&store, &org("1")).await.expect("rows"), 1);
        assert_eq!(forget(&store, &org("1")).await.expect("none"), 0);
        assert_eq!(runs::latest(&store, &org("2"), 9).await.expect("theirs").len(), 1);
        let back = (ChurnState::Waiting, ChurnState::Undone);
        assert!(turn(&store, "a", back).await.expect("undone"));
        assert!(!turn(&store, "a", back).await.expect("once"));
        runs::enqueue(&store, &org("1"), "t").await.expect("open again");
        let second = ask(&store, &org("1"), &notice("b")).await.expect("leaves again");
        assert_eq!((second.event_id.as_str(), second.state), ("b", ChurnState::Waiting));
    }

    #[tokio::test]
    async fn what_an_erasure_has_reached_and_its_first_certificate_are_kept() {
        let (_folder, store) = store().await;
        let later = Notice { grace_ms: 3_600_000, ..notice("a") };
        ask(&store, &org("1"), &later).await.expect("asked");
        assert!(due(&store).await.expect("none").is_empty(), "in its grace period");
        let begin = (ChurnState::Waiting, ChurnState::Erasing);
        assert!(turn(&store, "a", begin).await.expect("begun"));
        let erasure = Erasure { step: ErasureStep::Remove, ..Erasure::default() };
        save(&store, "a", &erasure).await.expect("saved");
        let found = due(&store).await.expect("due");
        assert_eq!((found.len(), found[0].erasure.as_ref()), (1, Some(&erasure)));
        assert_eq!(certify(&store, "a", "one").await.expect("first"), "one");
        assert_eq!(certify(&store, "a", "two").await.expect("second"), "one");
    }

    /// Whoever gives the store another table with rows of orgs has to say whether they go.
    #[tokio::test]
    async fn every_table_with_rows_of_orgs_is_on_a_list() {
        let (_folder, store) = store().await;
        let sql = "SELECT m.name AS name FROM sqlite_master m, pragma_table_info(m.name) c \
                   WHERE m.type = 'table' AND c.name = 'org' ORDER BY m.name";
        let rows = sqlx::query(sql).fetch_all(store.pool()).await.expect("tables");
        let found: Vec<String> =
            rows.iter().map(|row| row.try_get("name").expect("name")).collect();
        let mut listed = [TABLES_OF_ORGS, TABLES_THAT_STAY].concat();
        listed.sort_unstable();
        assert_eq!(found, listed);
    }
}
