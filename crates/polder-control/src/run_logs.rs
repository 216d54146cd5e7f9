//! The logs of runs: what each said of itself, line by line, beside its record.
//!
//! A run has the newest [`LINES_MAX`] lines, for as long as it has a record and for [`DAYS_KEPT`] days at
//! most. They are copies for people; what is in them, and in which form, is the business of whoever writes
//! them.

use polder_core::{Authorized, OrgId, Result};
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::store::{Store, commit, failed};
use crate::usage::DAY_MS;

/// Lines of one run that are kept, over all its attempts.
pub const LINES_MAX: usize = 1000;
/// How long they are kept, counted from when the run was asked for.
pub const DAYS_KEPT: i64 = 30;

/// One line of a run's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its place among the run's lines.
    pub seq: i64,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// `error`, `warn` or `info`.
    pub level: String,
    pub message: String,
    /// What else is known, as a JSON object.
    pub fields: String,
}

/// Adds lines to a run. One that the run has already, by its place, is not added again; nor is any where
/// the org has no such run, or has none any more.
pub async fn append(
    store: &Store,
    org: &Authorized<OrgId>,
    run_id: Uuid,
    lines: &[Line],
) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let wrong = |error| failed("the run's log cannot be written", error);
    let (org, run_id) = (org.get().as_str(), run_id.to_string());
    let mut transaction = store.begin().await?;
    // Holds the record: who removes it removes these lines after it, and finds them.
    let known = sqlx::query("UPDATE polder_runs SET org = org WHERE run_id = $1 AND org = $2")
        .bind(&run_id)
        .bind(org)
        .execute(&mut *transaction)
        .await
        .map_err(wrong)?;
    if known.rows_affected() == 0 {
        return Ok(());
    }
    for line in lines {
        sqlx::query(
            "INSERT INTO polder_run_logs (org, run_id, seq, at_ms, level, message, fields) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (org, run_id, seq) DO NOTHING",
        )
        .bind(org)
        .bind(&run_id)
        .bind(line.seq)
        .bind(line.at_ms)
        .bind(&line.level)
        .bind(&line.message)
        .bind(&line.fields)
        .execute(&mut *transaction)
        .await
        .map_err(wrong)?;
    }
    sqlx::query(
        "DELETE FROM polder_run_logs WHERE org = $1 AND run_id = $2 AND seq <= ( \
         SELECT seq FROM polder_run_logs WHERE org = $1 AND run_id = $2 \
         ORDER BY seq DESC LIMIT 1 OFFSET $3)",
    )
    .bind(org)
    .bind(&run_id)
    .bind(LINES_MAX as i64)
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    commit(transaction).await
}

/// Removes the org's lines that are older than [`DAYS_KEPT`].
pub async fn forget_old(store: &Store, org: &Authorized<OrgId>) -> Result<()> {
    let since = (store.now_ms() - DAYS_KEPT * DAY_MS).max(0).unsigned_abs();
    // Ids of runs begin with the time at which they were made (RFC 9562, version 7).
    let first = Uuid::from_u128(u128::from(since) << 80).to_string();
    let sql = "DELETE FROM polder_run_logs WHERE org = $1 AND run_id < $2";
    let done = sqlx::query(sql).bind(org.get().as_str()).bind(first).execute(store.pool()).await;
    done.map(drop).map_err(|error| failed("old logs of runs cannot be removed", error))
}

/// A run's lines after a place, the oldest first; from the beginning where none is given.
pub async fn page(
    store: &Store,
    org: &Authorized<OrgId>,
    run_id: Uuid,
    after: Option<i64>,
    limit: u16,
) -> Result<Vec<Line>> {
    let rows = sqlx::query(
        "SELECT seq, at_ms, level, message, fields FROM polder_run_logs \
         WHERE org = $1 AND run_id = $2 AND seq > $3 ORDER BY seq LIMIT $4",
    )
    .bind(org.get().as_str())
    .bind(run_id.to_string())
    .bind(after.unwrap_or(-1))
    .bind(i64::from(limit))
    .fetch_all(store.pool())
    .await
    .map_err(unreadable)?;
    rows.iter().map(line).collect()
}

fn line(row: &AnyRow) -> Result<Line> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(unreadable);
    Ok(Line {
        seq: row.try_get("seq").map_err(unreadable)?,
        at_ms: row.try_get("at_ms").map_err(unreadable)?,
        level: text("level")?,
        message: text("message")?,
        fields: text("fields")?,
    })
}

fn unreadable(error: sqlx::Error) -> polder_core::Error {
    failed("the run's log cannot be read", error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use polder_core::Principal;

    use super::*;
    use crate::clock::Clock;
    use crate::runs::{self, RunState};
    use crate::usage::Spent;
    use crate::{Notice, churn};

    fn org(id: &str) -> Authorized<OrgId> {
        Principal::Operator.authorize(&id.parse().expect("id")).expect("org")
    }

    fn lines(places: std::ops::Range<i64>) -> Vec<Line> {
        let line = |seq| Line {
            seq,
            at_ms: 7,
            level: "info".into(),
            message: format!("line {seq}"),
            fields: "{}".into(),
        };
        places.map(line).collect()
    }

    async fn seen(store: &Store, id: &str, run: Uuid) -> Vec<i64> {
        let found = page(store, &org(id), run, None, 2000).await.expect("page");
        found.iter().map(|line| line.seq).collect()
    }

    #[tokio::test]
    async fn a_runs_newest_lines_are_kept_once_each_and_for_its_org_alone() {
        let store = Store::in_memory().await;
        let run = runs::enqueue(&store, &org("1"), "t").await.expect("run");
        append(&store, &org("1"), run, &lines(0..3)).await.expect("written");
        append(&store, &org("1"), run, &lines(2..4)).await.expect("again, as after a lost answer");
        append(&store, &org("2"), run, &lines(4..5)).await.expect("not theirs");
        append(&store, &org("1"), Uuid::now_v7(), &lines(0..1)).await.expect("no such run");
        assert_eq!(seen(&store, "1", run).await, [0, 1, 2, 3]);
        assert!(seen(&store, "2", run).await.is_empty());
        let second = page(&store, &org("1"), run, Some(1), 1).await.expect("page");
        assert_eq!(second, lines(2..3));
        let last = LINES_MAX as i64 + 9;
        append(&store, &org("1"), run, &lines(4..last + 1)).await.expect("many");
        let kept = seen(&store, "1", run).await;
        assert_eq!((kept.len(), kept[0], kept.last()), (LINES_MAX, 10, Some(&last)));
    }

    #[tokio::test]
    async fn lines_go_with_their_run_with_their_org_and_with_time() {
        let now = Arc::new(AtomicI64::new(chrono::Utc::now().timestamp_millis()));
        let read = Arc::clone(&now);
        let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
        let store = Store::in_memory().await.with_clock(clock);
        let first = runs::enqueue(&store, &org("1"), "t").await.expect("run");
        append(&store, &org("1"), first, &lines(0..1)).await.expect("written");
        for _ in 0..runs::KEPT_MAX {
            let run = runs::enqueue(&store, &org("1"), "t").await.expect("run");
            append(&store, &org("1"), run, &lines(0..1)).await.expect("written");
            let ended = (RunState::Succeeded, "{}");
            runs::finish(&store, &org("1"), run, Spent::default(), ended).await.expect("ended");
        }
        assert!(seen(&store, "1", first).await.is_empty(), "gone with its record");
        let last = runs::latest(&store, &org("1"), 1).await.expect("runs")[0].run_id;
        let other = runs::enqueue(&store, &org("2"), "t").await.expect("run");
        append(&store, &org("2"), other, &lines(0..1)).await.expect("written");
        now.fetch_add((DAYS_KEPT - 1) * DAY_MS, Ordering::SeqCst);
        forget_old(&store, &org("1")).await.expect("nothing is old");
        assert_eq!(seen(&store, "1", last).await, [0]);
        now.fetch_add(2 * DAY_MS, Ordering::SeqCst);
        forget_old(&store, &org("1")).await.expect("forgotten");
        assert!(seen(&store, "1", last).await.is_empty());
        assert_eq!(seen(&store, "2", other).await, [0], "an org's own");
        let notice = Notice {
            event_id: "a".into(),
            asked_by: "eve".into(),
            via: "cli",
            reason: None,
            grace_ms: 0,
        };
        churn::ask(&store, &org("2"), &notice).await.expect("asked");
        churn::forget(&store, &org("2")).await.expect("forgotten");
        append(&store, &org("2"), other, &lines(1..2)).await.expect("late");
        assert!(seen(&store, "2", other).await.is_empty());
    }
}
