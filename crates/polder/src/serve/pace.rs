//! How many requests one caller may send: a bucket that fills with time and that each request takes from
//! (the generic cell rate algorithm, ITU-T I.371).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use polder_core::spec::RateLimit;

/// Callers that are remembered; beyond, those are forgotten whose bucket is full.
const CALLERS_MAX: usize = 10_000;
/// Callers that there is no room for share a bucket.
const REST: &str = "";

/// The buckets of all callers.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Between two requests in the long run.
    every: Duration,
    /// How far a caller may be ahead of that.
    ahead: Duration,
    /// When each caller's bucket is full again.
    full: Mutex<BTreeMap<String, Instant>>,
}

impl Pace {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self::every(Duration::from_secs(1) / limit.per_second.max(1), limit.burst)
    }

    /// One request in such a time, and so many at once.
    pub(super) fn every(every: Duration, at_once: u32) -> Self {
        Self { every, ahead: every * at_once.max(1), full: Mutex::default() }
    }

    /// Lets a request through, or says how long to wait.
    pub(crate) fn take(&self, caller: &str, now: Instant) -> Result<(), Duration> {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        if full.len() >= CALLERS_MAX {
            full.retain(|_, at| *at > now);
        }
        let is_known = full.len() < CALLERS_MAX || full.contains_key(caller);
        let caller = if is_known { caller } else { REST };
        let at = full.get(caller).copied().unwrap_or(now).max(now) + self.every;
        let over = at.duration_since(now).saturating_sub(self.ahead);
        if over.is_zero() {
            full.insert(caller.to_owned(), at);
            return Ok(());
        }
        Err(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_a_burst_then_a_pace_and_nobody_elses() {
        let pace = Pace::new(RateLimit { per_second: 10, burst: 3 });
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(pace.take("a", now), Ok(()));
        }
        assert_eq!(pace.take("a", now), Err(Duration::from_millis(100)));
        assert_eq!(pace.take("a", now), Err(Duration::from_millis(100)), "asking costs nothing");
        assert_eq!(pace.take("b", now), Ok(()));
        let later = now + Duration::from_millis(100);
        assert_eq!(pace.take("a", later), Ok(()));
        assert!(pace.take("a", later).is_err());
        let much_later = now + Duration::from_mins(1);
        let free = (0..9).take_while(|_| pace.take("a", much_later).is_ok()).count();
        assert_eq!(free, 3, "nothing is saved up beyond a burst");
    }

    #[test]
    fn however_many_callers_there_are_few_are_remembered() {
        let pace = Pace::new(RateLimit { per_second: 1, burst: 2 });
        let now = Instant::now();
        let let_in = (0..CALLERS_MAX + 50).filter(|n| pace.take(&n.to_string(), now).is_ok());
        assert_eq!(let_in.count(), CALLERS_MAX + 2, "the rest are one");
        assert_eq!(pace.take("0", now), Ok(()), "who was there before has a bucket still");
    }
}
