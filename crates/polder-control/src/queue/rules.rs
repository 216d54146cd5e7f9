//! What follows from a failure: when to try again, and when to leave a source alone. Pure rules.

use uuid::Uuid;

/// A run is tried so many times before it is left to a person.
pub const ATTEMPTS_MAX: i64 = 5;
/// A run whose server died so many times is not taken up again.
pub const DEATHS_MAX: i64 = 5;
/// A source that could not be reached so many times in a row is left alone for a while.
pub const BREAKER_FAILURES: i64 = 5;
/// How long the one run may take that tries a source again.
pub(super) const PROBE_MS: i64 = 60_000;
/// Maintenance that waited so long is as urgent as a run.
pub(super) const IDLE_WAIT_MS: i64 = 3_600_000;
/// One turn of an org of weight 1; one of weight 2 costs half.
const TURN: i64 = 1_000_000;

const BACKOFF_MS: i64 = 30_000;
const BACKOFF_MS_MAX: i64 = 3_600_000;
const BREAK_MS: i64 = 30_000;
const BREAK_MS_MAX: i64 = 600_000;

/// How long to wait after so many failures: half a minute, doubled each time, an hour at most; less a
/// part of up to a quarter that is the run's own, so that runs which failed together do not come back
/// together.
pub(super) fn backoff_ms(failures: i64, run_id: Uuid) -> i64 {
    let doubled = BACKOFF_MS.saturating_mul(1 << (failures - 1).clamp(0, 20));
    let whole = doubled.min(BACKOFF_MS_MAX);
    // The last bytes of an id are random.
    let part = i64::from(u16::from_be_bytes([run_id.as_bytes()[14], run_id.as_bytes()[15]]));
    whole - whole / 4 * part / i64::from(u16::MAX)
}

/// How long a source is left alone after so many failures in a row; zero while it is not.
pub(super) fn break_ms(failures: i64) -> i64 {
    if failures < BREAKER_FAILURES {
        return 0;
    }
    let doubled = BREAK_MS.saturating_mul(1 << (failures - BREAKER_FAILURES).clamp(0, 20));
    doubled.min(BREAK_MS_MAX)
}

/// Start-time fair queueing: where an org's turn stands that takes one now, and where its next one
/// will. The org with the earliest start goes first; one that was away does not save turns up.
///
/// P. Goyal, H. M. Vin, H. Cheng: Start-time Fair Queueing, SIGCOMM 1996.
pub(super) fn turn(head: i64, org: i64, weight: i64) -> (i64, i64) {
    let start = head.max(org);
    (start, start.saturating_add(TURN / weight.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_doubles_up_to_an_hour_and_differs_by_run() {
        let (low, high) = (Uuid::nil(), Uuid::max());
        let waits: Vec<_> = (1..=9).map(|failures| backoff_ms(failures, low) / 1000).collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        for failures in 1..100 {
            let (long, short) = (backoff_ms(failures, low), backoff_ms(failures, high));
            assert!(short >= long * 3 / 4 && short < long, "{failures}: {short} {long}");
        }
    }

    #[test]
    fn a_source_is_left_alone_from_the_fifth_failure_on() {
        let breaks: Vec<_> = (0..12).map(|failures| break_ms(failures) / 1000).collect();
        assert_eq!(breaks, [0, 0, 0, 0, 0, 30, 60, 120, 240, 480, 600, 600]);
    }

    #[test]
    fn turns_go_by_weight_and_are_not_saved_up() {
        let (mut head, mut turns) = (0, [("a", 0, 1), ("b", 0, 3)]);
        let mut served = Vec::new();
        for _ in 0..8 {
            turns.sort_by_key(|(name, at, _)| (head.max(*at), *at, *name));
            let (name, at, weight) = &mut turns[0];
            (head, *at) = turn(head, *at, *weight);
            served.push(*name);
        }
        assert_eq!(served.iter().filter(|name| **name == "b").count(), 6, "{served:?}");
        assert_eq!(turn(5_000_000, 0, 1), (5_000_000, 6_000_000), "it was away");
    }
}
