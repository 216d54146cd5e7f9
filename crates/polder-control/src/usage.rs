//! What orgs use, by day (UTC): runs that succeeded, rows that they read, bytes that they wrote; and which
//! orgs have had their share of today.
//!
//! It is counted in the transaction that records the run's end. An org that has reached a limit of the
//! day begins no ingestion before the next one: what waits goes on waiting, as in a pause (ADR 0022).

use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::store::{Store, Transaction, failed};

/// Milliseconds of a day. Days are UTC's and have no leap seconds.
pub const DAY_MS: i64 = 86_400_000;
/// Days that are kept; an org's older ones go with its first run of a day.
pub const DAYS_KEPT: i64 = 400;
/// More than any run has, and so little that a day's sum is a number of the store.
const SPENT_MAX: u64 = 1 << 50;

/// What one run used. Runs that look after a table or validate it count as runs alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Read from the source.
    pub rows: u64,
    /// Written into the lake.
    pub bytes: u64,
}

/// What an org used in a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Days since the epoch.
    pub day: i64,
    pub runs: u64,
    pub rows: u64,
    pub bytes: u64,
}

/// The day of a moment, in days since the epoch.
pub const fn day(ms: i64) -> i64 {
    ms.div_euclid(DAY_MS)
}

/// SQL that says whether an org has reached a limit today: `turns` is the alias of its row of
/// `polder_turns`, `now` an expression for the time. A look at one primary key.
pub(crate) fn reached(turns: &str, now: &str) -> String {
    format!(
        "EXISTS (SELECT 1 FROM polder_usage u WHERE u.org = {turns}.org \
         AND u.day = {now} / {DAY_MS} \
         AND (u.rows >= {turns}.rows_max OR u.bytes >= {turns}.bytes_max))"
    )
}

/// Counts a run that succeeded.
pub(crate) async fn add(
    transaction: &mut Transaction,
    org: &OrgId,
    now_ms: i64,
    spent: Spent,
) -> Result<()> {
    let wrong = |error| failed("what the run used cannot be recorded", error);
    let number = |spent: u64| spent.min(SPENT_MAX) as i64;
    let today = day(now_ms);
    let row = sqlx::query(
        "INSERT INTO polder_usage (org, day, runs, rows, bytes) VALUES ($1, $2, 1, $3, $4) \
         ON CONFLICT (org, day) DO UPDATE SET runs = polder_usage.runs + 1, \
         rows = polder_usage.rows + excluded.rows, bytes = polder_usage.bytes + excluded.bytes \
         RETURNING runs",
    )
    .bind(org.as_str())
    .bind(today)
    .bind(number(spent.rows))
    .bind(number(spent.bytes))
    .fetch_one(&mut **transaction)
    .await
    .map_err(wrong)?;
    let runs: i64 = row.try_get("runs").map_err(wrong)?;
    if runs > 1 {
        return Ok(());
    }
    let sql = "DELETE FROM polder_usage WHERE org = $1 AND day <= $2";
    let gone = sqlx::query(sql).bind(org.as_str()).bind(today - DAYS_KEPT);
    gone.execute(&mut **transaction).await.map(drop).map_err(wrong)
}

/// What an org used in the last so many days, today among them: the newest first, and those without a run
/// left out.
pub async fn of_org(store: &Store, org: &Authorized<OrgId>, days: u16) -> Result<Vec<Used>> {
    let sql = "SELECT day, runs, rows, bytes FROM polder_usage WHERE org = $1 AND day > $2 \
               ORDER BY day DESC";
    let after = day(store.now_ms()) - i64::from(days);
    let rows = sqlx::query(sql).bind(org.get().as_str()).bind(after).fetch_all(store.pool()).await;
    let one = |row: &AnyRow| -> Result<Used> {
        let number = |column: &str| row.try_get::<i64, _>(column).map_err(unreadable);
        Ok(Used {
            day: number("day")?,
            runs: number("runs")?.unsigned_abs(),
            rows: number("rows")?.unsigned_abs(),
            bytes: number("bytes")?.unsigned_abs(),
        })
    };
    rows.map_err(unreadable)?.iter().map(one).collect()
}

/// Until when no ingestion of the org begins, in milliseconds since the epoch: the next day, where it has
/// reached a limit of this one.
pub async fn waits_until_ms(store: &Store, org: &Authorized<OrgId>) -> Result<Option<i64>> {
    let now = store.now_ms();
    let reached = reached("t", "$2");
    let sql = format!("SELECT 1 AS one FROM polder_turns t WHERE t.org = $1 AND {reached}");
    let row = sqlx::query(&sql).bind(org.get().as_str()).bind(now);
    let row = row.fetch_optional(store.pool()).await.map_err(unreadable)?;
    Ok(row.map(|_| next_day_ms(now)))
}

/// When the day after a moment begins.
pub const fn next_day_ms(ms: i64) -> i64 {
    (day(ms) + 1) * DAY_MS
}

/// The orgs that have reached a limit today, in order.
///
/// # Errors
/// `control.denied` for anybody but the operator: it spans orgs.
pub async fn limited(store: &Store, principal: &Principal) -> Result<Vec<OrgId>> {
    if *principal != Principal::Operator {
        let message = "only the operator may see which orgs have reached their limits";
        return Err(Error::new(ErrorCode::ControlDenied, message));
    }
    let sql = "SELECT l.org AS org FROM polder_turns l JOIN polder_usage u ON u.org = l.org \
               WHERE u.day = $1 AND (u.rows >= l.rows_max OR u.bytes >= l.bytes_max) \
               ORDER BY l.org";
    let rows = sqlx::query(sql).bind(day(store.now_ms())).fetch_all(store.pool()).await;
    let id = |row: &AnyRow| -> Result<OrgId> {
        row.try_get::<String, _>("org").map_err(unreadable)?.parse()
    };
    rows.map_err(unreadable)?.iter().map(id).collect()
}

fn unreadable(error: sqlx::Error) -> Error {
    failed("what the org used cannot be read", error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use uuid::Uuid;

    use super::*;
    use crate::clock::Clock;
    use crate::runs::{self, RunState};

    #[tokio::test]
    async fn days_add_up_are_an_orgs_own_and_go_after_a_while() {
        let now = Arc::new(AtomicI64::new(20_000 * DAY_MS - 1));
        let read = Arc::clone(&now);
        let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
        let store = Store::in_memory().await.with_clock(clock);
        let org = |id: &str| Principal::Operator.authorize(&id.parse().expect("id")).expect("org");
        let ran = async |id: &str, state, rows, bytes| {
            let run = runs::enqueue(&store, &org(id), "t").await.expect("run");
            let spent = Spent { rows, bytes };
            runs::finish(&store, &org(id), run, spent, (state, "{}")).await.expect("ended");
        };
        ran("1", RunState::Succeeded, 2, 30).await;
        ran("1", RunState::Succeeded, 3, 40).await;
        ran("1", RunState::Failed, 9, 90).await;
        ran("2", RunState::Succeeded, u64::MAX, u64::MAX).await;
        let first = Used { day: 19_999, runs: 2, rows: 5, bytes: 70 };
        assert_eq!(of_org(&store, &org("1"), 1).await.expect("days"), [first]);
        now.fetch_add(1, Ordering::SeqCst);
        assert!(of_org(&store, &org("1"), 1).await.expect("days").is_empty(), "another day");
        ran("1", RunState::Succeeded, 1, 1).await;
        let second = Used { day: 20_000, runs: 1, rows: 1, bytes: 1 };
        assert_eq!(of_org(&store, &org("1"), 2).await.expect("days"), [second, first]);
        now.fetch_add((DAYS_KEPT - 1) * DAY_MS, Ordering::SeqCst);
        ran("1", RunState::Succeeded, 0, 0).await;
        let kept = of_org(&store, &org("1"), u16::MAX).await.expect("days");
        let days: Vec<i64> = kept.iter().map(|used| used.day).collect();
        assert_eq!(days, [20_000 + DAYS_KEPT - 1, 20_000]);
        let theirs = of_org(&store, &org("2"), u16::MAX).await.expect("days");
        assert_eq!((theirs[0].runs, theirs[0].rows), (1, SPENT_MAX));
    }
}
