//! How far a cursor may move: the source's transactions that could still commit rows with earlier
//! cursor values.
//!
//! The argument for times: a row stamped `t` inside a transaction that began at `s ≤ t`, and not
//! visible in our snapshot, belongs to a transaction that was either open when we looked, so that its
//! start bounds the ceiling, or began after we looked, so that our clock reading does. Therefore the
//! look comes *before* the snapshot; a second look after it only makes up for starts the server had
//! not yet published at the first. Rows stamped by other clocks than the server's are not covered.
//!
//! The argument for numbers that the server hands out in order: those up to the highest one that can
//! be seen *before* the look were handed out before it, so that without an open transaction at the
//! look all of them are in the snapshot. With one, or where transactions cannot be seen, the cursor
//! stays where it was, and the next run reads the same rows again. Sequences with a cache, and texts
//! and uuids that are not made in order, are not covered.

use std::time::{SystemTime, UNIX_EPOCH};

use polder_core::{CursorValue, Doubt, Result};

use super::catalog::Relation;
use super::connect::Session;
use super::cursor::{Comparison, Cursor};

const DOING: &str = "looking for open transactions";
const SECOND: i64 = 1_000_000;
/// A transaction's start is published a moment after it is taken; a second is far more.
const PUBLISHED_LATE: i64 = SECOND;
/// How far back to stay where open transactions cannot be seen.
const BLIND: i64 = 600 * SECOND;
/// `now()` stored without a time zone is the session's local time, at most this far behind UTC.
const BEHIND_UTC: i64 = 12 * 3600 * SECOND;
const DAY: i64 = 86_400 * SECOND;

/// What was seen of the transactions in the source's database. Times in microseconds since the
/// epoch, by the server's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Horizon {
    /// When we looked first.
    now: i64,
    /// For cursors that do not follow the clock: the highest value before we looked.
    highest: Option<CursorValue>,
    /// Other transactions that are open, prepared ones aside.
    open: i64,
    /// The start of the oldest of them.
    oldest: Option<i64>,
    /// How many of them the role may not see the start of.
    hidden: i64,
    /// When the oldest prepared transaction was prepared; when it began is not recorded.
    prepared: Option<i64>,
    /// Whether the server is a standby.
    standby: bool,
    /// On a standby, when the last transaction that was replayed had committed.
    replayed: Option<i64>,
}

/// The number of the oldest transaction of this database that is open now and has one, or the next one
/// that will be given: of all with a smaller number, snapshots taken from now on show what they have
/// written. On a standby, where the primary's are not to be seen, the snapshot's own oldest.
///
/// Numbers of subtransactions are not in a snapshot, and are above those of their transactions. A
/// transaction's number has 32 bits, and may be above the snapshot's end.
pub(super) async fn oldest_writer(session: &Session) -> Result<Option<String>> {
    let sql = "
        SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN n.oldest ELSE least(n.next, (
            SELECT min(n.next + ((x.xid::text::int8 - n.next + 2147483648) & 4294967295) - 2147483648)
            FROM (
                SELECT backend_xid AS xid FROM pg_catalog.pg_stat_activity
                WHERE datname = current_database() AND backend_xid IS NOT NULL
                UNION ALL
                SELECT transaction FROM pg_catalog.pg_prepared_xacts
                WHERE database = current_database()) x)) END
        FROM (SELECT pg_catalog.pg_snapshot_xmax(s)::text::int8 AS next,
                     pg_catalog.pg_snapshot_xmin(s)::text::int8 AS oldest
              FROM pg_catalog.pg_current_snapshot() s) n";
    session.text(sql, DOING).await
}

impl Horizon {
    /// The look before the snapshot.
    pub(super) async fn before(
        session: &Session,
        relation: &Relation,
        cursor: &Cursor,
        lower: Option<&CursorValue>,
    ) -> Result<Self> {
        let highest = cursor.highest(session, relation, lower).await?;
        Ok(Self { highest, ..Self::observe(session).await? })
    }

    /// Looks at the transactions that are open now.
    pub(super) async fn observe(session: &Session) -> Result<Self> {
        // `now()` is the statement's or transaction's beginning: before any of the rows is looked at.
        // Every transaction holds a lock on its own virtual id from its beginning to its end, which
        // every role may see. Autovacuum writes no rows.
        let activity = "
            SELECT now(), min(a.xact_start), count(l.pid),
                   count(l.pid) FILTER (
                       WHERE a.query = '<insufficient privilege>' OR a.state = 'disabled'),
                   pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_xact_replay_timestamp()
            FROM pg_catalog.pg_stat_activity a
            LEFT JOIN (SELECT DISTINCT pid FROM pg_catalog.pg_locks
                       WHERE locktype = 'virtualxid' AND mode = 'ExclusiveLock' AND granted) l
                   ON l.pid = a.pid
            WHERE a.datname = current_database() AND a.pid <> pg_catalog.pg_backend_pid()
              AND a.backend_type IS DISTINCT FROM 'autovacuum worker'";
        let activity = session.row(activity, DOING).await?;
        // After the activity: a transaction that is prepared in between is in both, not in neither.
        let prepared = "SELECT min(prepared) FROM pg_catalog.pg_prepared_xacts
                        WHERE database = current_database()";
        let prepared = session.row(prepared, DOING).await?;
        Ok(Self {
            now: micros(activity.get(0)),
            highest: None,
            oldest: activity.get::<_, Option<SystemTime>>(1).map(micros),
            open: activity.get(2),
            hidden: activity.get(3),
            standby: activity.get(4),
            replayed: activity.get::<_, Option<SystemTime>>(5).map(micros),
            prepared: prepared.get::<_, Option<SystemTime>>(0).map(micros),
        })
    }

    /// What both looks saw, of which this was the first.
    pub(super) fn and(self, later: &Self) -> Self {
        Self {
            now: self.now.min(later.now),
            oldest: self.oldest.into_iter().chain(later.oldest).min(),
            hidden: self.hidden.max(later.hidden),
            prepared: self.prepared.into_iter().chain(later.prepared).min(),
            standby: self.standby || later.standby,
            ..self
        }
    }

    /// Why a row may be missed although the cursor does not pass [`Self::ceiling`]. That of a number stays
    /// where it was instead.
    pub(super) fn doubts(&self, cursor: &Cursor) -> Vec<Doubt> {
        let found = [
            (self.standby, Doubt::Standby),
            (self.hidden > 0 && !self.standby, Doubt::HiddenTransactions),
            (self.prepared.is_some(), Doubt::PreparedTransaction),
        ];
        let found = found.into_iter().filter(|_| cursor.follows_clock());
        found.filter_map(|(holds, doubt)| holds.then_some(doubt)).collect()
    }

    /// What the next checkpoint's cursor must not pass, after a read from `lower` on. Warns of what
    /// the reader of the run's report should know about it. `written_elsewhere`: this database's
    /// transactions do not bound when the table's rows appear.
    pub(super) fn ceiling(
        &self,
        cursor: &Cursor,
        lower: Option<&CursorValue>,
        written_elsewhere: bool,
        warnings: &mut Vec<String>,
    ) -> CursorValue {
        let moved = if cursor.follows_clock() {
            self.time(cursor, written_elsewhere, warnings)
        } else {
            self.number(written_elsewhere, warnings)
        };
        moved.unwrap_or_else(|| lower.cloned().unwrap_or_else(|| cursor.least()))
    }

    fn time(
        &self,
        cursor: &Cursor,
        written_elsewhere: bool,
        warnings: &mut Vec<String>,
    ) -> Option<CursorValue> {
        let limit = self.limit(written_elsewhere, warnings)? - cursor.rounding;
        let local = limit - BEHIND_UTC;
        if cursor.comparison == Comparison::Timestamp {
            warnings.push(
                "the cursor has no time zone: rows of the last 12 hours are read again each time, \
                 as sessions may write local times; a timestamptz column needs no such margin"
                    .to_owned(),
            );
        }
        Some(match cursor.comparison {
            Comparison::Timestamptz => CursorValue::Timestamptz(limit),
            Comparison::Timestamp => CursorValue::Timestamp(local),
            _ => CursorValue::Date(local.div_euclid(DAY) as i32),
        })
    }

    /// The bound in microseconds since the epoch; `None` if nothing is known.
    fn limit(&self, written_elsewhere: bool, warnings: &mut Vec<String>) -> Option<i64> {
        let mut limit = self.oldest.into_iter().fold(self.now, i64::min) - PUBLISHED_LATE;
        if self.standby {
            warnings.push(
                "the source is a standby, where the primary's open transactions cannot be seen: \
                 rows committed more than 10 minutes after their cursor value may be missed"
                    .to_owned(),
            );
            limit = limit.min(self.replayed?.min(self.now) - BLIND);
        } else if self.hidden > 0 {
            limit = limit.min(self.now - BLIND);
            warnings.push(format!(
                "{} sessions' transactions cannot be seen: rows committed more than 10 minutes \
                 after their cursor value may be missed; GRANT pg_read_all_stats to the role that \
                 reads, and leave track_activities on",
                self.hidden
            ));
        }
        if written_elsewhere {
            limit = limit.min(self.now - BLIND);
            warnings.push(
                "the table is foreign, materialized or subscribed to: rows that appear in it more \
                 than 10 minutes after their cursor value may be missed"
                    .to_owned(),
            );
        }
        if let Some(prepared) = self.prepared {
            limit = limit.min(prepared - BLIND);
            warnings.push(
                "a prepared transaction is open: its rows may be missed if it began more than 10 \
                 minutes before it was prepared"
                    .to_owned(),
            );
        }
        Some(limit)
    }

    /// The bound of a cursor that does not follow the clock; `None` while one cannot be told.
    fn number(&self, written_elsewhere: bool, warnings: &mut Vec<String>) -> Option<CursorValue> {
        let reason = match () {
            () if self.standby => "the source is a standby, where transactions cannot be seen",
            () if written_elsewhere => "the table is foreign, materialized or subscribed to",
            () if self.open > 0 || self.prepared.is_some() => "other transactions were open",
            () => return self.highest.clone(),
        };
        warnings.push(format!(
            "{reason}, which may yet commit rows with lower cursor values: the next run reads the \
             same rows again and recognises them; a timestamptz cursor moves on all the same"
        ));
        None
    }
}

fn micros(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_micros() as i64,
        Err(before) => -(before.duration().as_micros() as i64),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cursor::tests::cursor;
    use super::*;

    const NOW: i64 = 1_700_000_000 * SECOND;

    fn seen() -> Horizon {
        Horizon { now: NOW, ..Horizon::default() }
    }

    fn ceiling(horizon: &Horizon, cursor: &Cursor, elsewhere: bool) -> (CursorValue, usize) {
        let mut warnings = Vec::new();
        let ceiling = horizon.ceiling(cursor, None, elsewhere, &mut warnings);
        (ceiling, warnings.len())
    }

    #[test]
    fn the_ceiling_is_below_everything_that_can_still_commit() {
        let minute = 60 * SECOND;
        let open = Horizon { oldest: Some(NOW - minute), open: 1, ..seen() };
        let standby = Horizon { standby: true, replayed: Some(NOW - minute), ..seen() };
        let cases = [
            (seen(), NOW - SECOND, 0),
            (open, NOW - minute - SECOND, 0),
            (Horizon { hidden: 2, ..seen() }, NOW - 10 * minute, 1),
            (Horizon { hidden: 1, oldest: Some(SECOND), ..seen() }, 0, 1),
            (Horizon { prepared: Some(NOW - minute), ..seen() }, NOW - 11 * minute, 1),
            (standby, NOW - 11 * minute, 1),
        ];
        for (horizon, expected, warned) in cases {
            let found = ceiling(&horizon, &cursor(Comparison::Timestamptz, 0), false);
            assert_eq!(found, (CursorValue::Timestamptz(expected), warned), "{horizon:?}");
        }
        let foreign = ceiling(&seen(), &cursor(Comparison::Timestamptz, 0), true);
        assert_eq!(foreign, (CursorValue::Timestamptz(NOW - 10 * minute), 1));
    }

    #[test]
    fn rounded_stamps_may_lie_before_their_transaction() {
        let tenths = cursor(Comparison::Timestamptz, 100_000);
        let open = Horizon { oldest: Some(NOW - 5 * SECOND), open: 1, ..seen() };
        let expected = NOW - 6 * SECOND - 100_000;
        assert_eq!(ceiling(&open, &tenths, false).0, CursorValue::Timestamptz(expected));
    }

    #[test]
    fn local_times_may_be_half_a_day_behind() {
        let timestamp = cursor(Comparison::Timestamp, 0);
        let expected = CursorValue::Timestamp(NOW - SECOND - BEHIND_UTC);
        assert_eq!(ceiling(&seen(), &timestamp, false).0, expected);
        // 2023-11-14T22:13:20Z: on 2023-11-14 also twelve hours behind.
        let date = cursor(Comparison::Date, 0);
        assert_eq!(ceiling(&seen(), &date, false).0, CursorValue::Date(19_675));
        let morning = Horizon { now: NOW - 12 * 3600 * SECOND, ..Horizon::default() };
        assert_eq!(ceiling(&morning, &date, false).0, CursorValue::Date(19_674));
    }

    #[test]
    fn a_standby_that_has_replayed_nothing_bounds_nothing() {
        let standby = Horizon { standby: true, ..seen() };
        let cursor = cursor(Comparison::Timestamptz, 0);
        assert_eq!(ceiling(&standby, &cursor, false), (cursor.least(), 1));
        let lower = CursorValue::Timestamptz(7);
        assert_eq!(standby.ceiling(&cursor, Some(&lower), false, &mut Vec::new()), lower);
    }

    #[test]
    fn numbers_stay_where_they_were_while_others_may_write() {
        let highest = Some(CursorValue::Int(9));
        let quiet = Horizon { highest, ..seen() };
        let int = cursor(Comparison::Int, 0);
        assert_eq!(ceiling(&quiet, &int, false), (CursorValue::Int(9), 0));
        let cases = [
            (Horizon { open: 1, ..quiet.clone() }, false, 1),
            (Horizon { prepared: Some(NOW), ..quiet.clone() }, false, 1),
            (Horizon { standby: true, ..quiet.clone() }, false, 1),
            (quiet, true, 1),
            (seen(), false, 0),
        ];
        for (horizon, elsewhere, warned) in cases {
            let expected = (CursorValue::Int(i64::MIN), warned);
            assert_eq!(ceiling(&horizon, &int, elsewhere), expected, "{horizon:?}");
            let lower = CursorValue::Int(3);
            let held = horizon.ceiling(&int, Some(&lower), elsewhere, &mut Vec::new());
            assert_eq!(held, lower, "{horizon:?}");
        }
    }

    #[test]
    fn what_is_not_seen_of_others_is_in_doubt_for_times_alone() {
        let hidden = Horizon { hidden: 2, open: 2, ..seen() };
        let prepared = Horizon { prepared: Some(NOW), ..seen() };
        let cases = [
            (seen(), vec![]),
            (Horizon { open: 1, oldest: Some(NOW), ..seen() }, vec![]),
            (hidden.clone(), vec![Doubt::HiddenTransactions]),
            (prepared, vec![Doubt::PreparedTransaction]),
            (Horizon { standby: true, ..hidden }, vec![Doubt::Standby]),
        ];
        for (horizon, expected) in cases {
            let of = |comparison| horizon.doubts(&cursor(comparison, 0));
            assert_eq!(of(Comparison::Timestamptz), expected, "{horizon:?}");
            assert!(of(Comparison::Int).is_empty(), "{horizon:?}");
        }
    }

    #[test]
    fn two_looks_see_what_either_saw() {
        let first = Horizon { oldest: Some(5), hidden: 1, ..seen() };
        let second = Horizon { oldest: Some(3), prepared: Some(9), now: NOW + 1, ..seen() };
        let both = first.and(&second);
        assert_eq!((both.now, both.oldest, both.hidden, both.prepared), (NOW, Some(3), 1, Some(9)));
    }
}
