//! Alerts that nobody has taken yet: kept until they are taken, refused for good, or too old.
//!
//! One is put down in the transaction that records what it tells, so that none is lost with its server; one that
//! was taken may be sent once more where a server dies right then, under the same id. Who is called and what is
//! said is the caller's business.

use polder_core::{Authorized, OrgId, Result};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::store::{Store, Transaction, failed};

/// For how long one is sent again.
pub const KEPT_MS: i64 = 3 * 24 * 3_600_000;
/// Alerts that one receiver may have waiting.
pub const WAITING_MAX: i64 = 10_000;
/// For how long one is its sender's; longer than it may take to send it.
const HELD_MS: i64 = 2 * 60_000;
/// The first pause, and the longest.
const PAUSE_MS: (i64, i64) = (60_000, 3_600_000);

/// What is to be told to one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    pub org: OrgId,
    /// The receiver's name in `[alerts]`.
    pub alert: String,
    /// The same however often it is sent.
    pub id: String,
    pub body: String,
}

/// An alert in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub alert: Alert,
    /// How often it was sent in vain.
    pub tries: i64,
    asked_ms: i64,
    next_ms: i64,
}

const COLUMNS: &str = "alert, id, org, body, asked_ms, next_ms, tries";

/// Puts alerts down. Those of a receiver that has too many waiting are not kept; the log says so.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    now_ms: i64,
    alerts: &[Alert],
) -> Result<()> {
    for alert in alerts {
        let sql = "SELECT count(*) AS waiting FROM polder_alerts WHERE alert = $1";
        let row = sqlx::query(sql).bind(&alert.alert).fetch_one(&mut **transaction).await;
        let waiting: i64 = row.map_err(wrong)?.try_get("waiting").map_err(wrong)?;
        if waiting >= WAITING_MAX {
            let (org, id) = (&alert.org, &alert.id);
            tracing::warn!(%org, id, alert = alert.alert, "too many alerts wait: this one is not kept");
            continue;
        }
        sqlx::query(
            "INSERT INTO polder_alerts (alert, id, org, body, asked_ms, next_ms, tries) \
             VALUES ($1, $2, $3, $4, $5, $5, 0) ON CONFLICT (alert, id) DO NOTHING",
        )
        .bind(&alert.alert)
        .bind(&alert.id)
        .bind(alert.org.as_str())
        .bind(&alert.body)
        .bind(now_ms)
        .execute(&mut **transaction)
        .await
        .map_err(wrong)?;
    }
    Ok(())
}

/// Alerts of all orgs that are to be sent now: new ones first, so that a receiver that is away keeps nobody else
/// waiting.
pub async fn due(store: &Store, limit: usize) -> Result<Vec<Waiting>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM polder_alerts WHERE next_ms <= $1 \
         ORDER BY CASE WHEN tries = 0 THEN 0 ELSE 1 END, next_ms, id LIMIT $2"
    );
    let rows = sqlx::query(&sql).bind(store.now_ms()).bind(limit as i64);
    let rows = rows.fetch_all(store.pool()).await.map_err(wrong)?;
    rows.iter().map(read).collect()
}

/// The org's alerts of one id, due or not.
pub async fn waiting(store: &Store, org: &Authorized<OrgId>, id: &str) -> Result<Vec<Waiting>> {
    let sql = format!("SELECT {COLUMNS} FROM polder_alerts WHERE org = $1 AND id = $2");
    let rows = sqlx::query(&sql).bind(org.get().as_str()).bind(id);
    let rows = rows.fetch_all(store.pool()).await.map_err(wrong)?;
    rows.iter().map(read).collect()
}

/// Takes one to send it; false if it is another's, or was sent meanwhile.
pub async fn hold(store: &Store, waiting: &mut Waiting) -> Result<bool> {
    let until = store.now_ms() + HELD_MS;
    let held = moved(store, waiting, until, waiting.tries).await?;
    if held {
        waiting.next_ms = until;
    }
    Ok(held)
}

/// Forgets one: it was taken, or never will be.
pub async fn forget(store: &Store, waiting: &Waiting) -> Result<()> {
    let sql = "DELETE FROM polder_alerts WHERE alert = $1 AND id = $2";
    let gone = sqlx::query(sql).bind(&waiting.alert.alert).bind(&waiting.alert.id);
    gone.execute(store.pool()).await.map(drop).map_err(wrong)
}

/// Keeps one that was sent in vain for later; false if it is too old by now, and forgotten.
pub async fn later(store: &Store, waiting: &Waiting) -> Result<bool> {
    let now = store.now_ms();
    if now - waiting.asked_ms > KEPT_MS {
        return forget(store, waiting).await.map(|()| false);
    }
    let (first, longest) = PAUSE_MS;
    let pause = (first << waiting.tries.clamp(0, 6)).min(longest);
    moved(store, waiting, now + pause, waiting.tries + 1).await?;
    Ok(true)
}

/// Moves one on that is as it was seen.
async fn moved(store: &Store, waiting: &Waiting, next_ms: i64, tries: i64) -> Result<bool> {
    let sql = "UPDATE polder_alerts SET next_ms = $1, tries = $2 \
               WHERE alert = $3 AND id = $4 AND next_ms = $5";
    let moved = sqlx::query(sql).bind(next_ms).bind(tries);
    let moved = moved.bind(&waiting.alert.alert).bind(&waiting.alert.id).bind(waiting.next_ms);
    Ok(moved.execute(store.pool()).await.map_err(wrong)?.rows_affected() == 1)
}

fn read(row: &AnyRow) -> Result<Waiting> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(wrong);
    let number = |column: &str| row.try_get::<i64, _>(column).map_err(wrong);
    let alert = Alert {
        org: text("org")?.parse()?,
        alert: text("alert")?,
        id: text("id")?,
        body: text("body")?,
    };
    Ok(Waiting {
        alert,
        tries: number("tries")?,
        asked_ms: number("asked_ms")?,
        next_ms: number("next_ms")?,
    })
}

fn wrong(error: sqlx::Error) -> polder_core::Error {
    failed("alerts cannot be kept", error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use polder_core::Principal;
    use uuid::Uuid;

    use super::*;
    use crate::clock::Clock;
    use crate::runs::{self, RunState};
    use crate::{Notice, churn};

    fn org(id: &str) -> Authorized<OrgId> {
        Principal::Operator.authorize(&id.parse().expect("id")).expect("org")
    }

    async fn store() -> (Store, Arc<AtomicI64>) {
        let now = Arc::new(AtomicI64::new(1_800_000_000_000));
        let read = Arc::clone(&now);
        let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
        (Store::in_memory().await.with_clock(clock), now)
    }

    /// A validation of which one receiver is to hear.
    async fn told(store: &Store, id: &str, what: &str) {
        let org = org(id);
        let (alert, body) = ("ops".to_owned(), format!("{{\"{what}\": 1}}"));
        let alerts = [Alert { org: org.get().clone(), alert, id: what.to_owned(), body }];
        let said = (RunState::Succeeded, "{\"verdict\": \"failed\"}");
        runs::keep_validation(store, &org, ("t", 0), said, &alerts).await.expect("kept");
    }

    async fn ids(store: &Store) -> Vec<String> {
        let due = due(store, 100).await.expect("due");
        due.into_iter().map(|waiting| waiting.alert.id).collect()
    }

    #[tokio::test]
    async fn one_that_is_not_taken_is_sent_later_and_later_and_at_last_no_more() {
        let (store, now) = store().await;
        told(&store, "1", "a").await;
        let mut waiting = due(&store, 9).await.expect("due").remove(0);
        let mut another = waiting.clone();
        assert!(hold(&store, &mut waiting).await.expect("held"));
        assert!(!hold(&store, &mut another).await.expect("asked"), "one sends it");
        assert!(ids(&store).await.is_empty());
        let mut pauses = Vec::new();
        while later(&store, &waiting).await.expect("kept") {
            let before = now.load(Ordering::SeqCst);
            waiting = self::waiting(&store, &org("1"), "a").await.expect("read").remove(0);
            pauses.push((waiting.next_ms - before) / 60_000);
            now.store(waiting.next_ms - 1, Ordering::SeqCst);
            assert!(ids(&store).await.is_empty(), "not before its time");
            now.store(waiting.next_ms, Ordering::SeqCst);
            assert_eq!(ids(&store).await, ["a"]);
            assert!(hold(&store, &mut waiting).await.expect("held"));
        }
        assert_eq!(pauses[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!((70..80).contains(&pauses.len()), "three days: {}", pauses.len());
        assert!(self::waiting(&store, &org("1"), "a").await.expect("read").is_empty());
    }

    #[tokio::test]
    async fn new_ones_go_first_and_a_sender_that_died_holds_none_for_long() {
        let (store, now) = store().await;
        told(&store, "1", "old").await;
        let mut old = due(&store, 9).await.expect("due").remove(0);
        assert!(hold(&store, &mut old).await.expect("held"));
        assert!(later(&store, &old).await.expect("kept"));
        now.fetch_add(HELD_MS, Ordering::SeqCst);
        told(&store, "2", "new").await;
        assert_eq!(ids(&store).await, ["new", "old"]);
        let mut new = due(&store, 1).await.expect("due").remove(0);
        assert!(hold(&store, &mut new).await.expect("held"));
        assert_eq!(ids(&store).await, ["old"]);
        now.fetch_add(HELD_MS, Ordering::SeqCst);
        assert_eq!(ids(&store).await, ["new", "old"]);
        forget(&store, &new).await.expect("taken");
        assert_eq!(ids(&store).await, ["old"]);
        assert!(waiting(&store, &org("2"), "old").await.expect("read").is_empty(), "another org's");
    }

    #[tokio::test]
    async fn an_org_that_leaves_takes_them_along() {
        let (store, _) = store().await;
        told(&store, "1", "a").await;
        told(&store, "2", "b").await;
        let notice = Notice {
            event_id: "e".into(),
            asked_by: "x".into(),
            via: "cli",
            reason: None,
            grace_ms: 0,
        };
        churn::ask(&store, &org("1"), &notice).await.expect("asked");
        churn::forget(&store, &org("1")).await.expect("forgotten");
        assert_eq!(ids(&store).await, ["b"]);
        let alert = Alert {
            org: org("1").get().clone(),
            alert: "ops".into(),
            id: "late".into(),
            body: "{}".into(),
        };
        let said = (RunState::Succeeded, "{}");
        let late = runs::keep_validation(&store, &org("1"), ("t", 0), said, &[alert]).await;
        late.expect_err("fenced");
        assert_eq!(ids(&store).await, ["b"], "nothing comes back");
    }
}
