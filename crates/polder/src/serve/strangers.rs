//! Callers who show a key that is no good: how often one address may try, and how much of it the audit log
//! takes, so that nobody fills it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::ConnectInfo;
use axum::http::Extensions;
use polder_control::audit::Event;
use polder_core::ErrorCode;

use super::pace::Pace;

/// Tries of one address at once, and how often one more in the long run.
const TRIES: (u32, Duration) = (20, Duration::from_secs(1));
/// Entries of the audit log, of all addresses together.
const ENTRIES: (u32, Duration) = (10, Duration::from_secs(6));

/// All who tried in vain.
#[derive(Debug)]
pub(crate) struct Strangers {
    tries: Pace,
    entries: Pace,
    /// Those that have no entry of their own.
    left_out: AtomicU64,
}

impl Default for Strangers {
    fn default() -> Self {
        let pace = |(at_once, every)| Pace::every(every, at_once);
        Self { tries: pace(TRIES), entries: pace(ENTRIES), left_out: AtomicU64::new(0) }
    }
}

impl Strangers {
    /// Counts a try; says how long to wait where the address has tried too often. A good key is taken all
    /// the same: others may share the address.
    pub(super) fn failed(&self, from: &Extensions, now: Instant) -> Result<(), Duration> {
        // None in a request that did not come over the network.
        let Some(ConnectInfo(peer)) = from.get::<ConnectInfo<SocketAddr>>() else { return Ok(()) };
        self.tries.take(&place(peer.ip()), now)
    }

    /// Whether the audit log takes an entry of a try. One that has none is counted.
    pub(super) fn take_entry(&self, now: Instant) -> bool {
        let takes = self.entries.take("", now).is_ok();
        if !takes {
            self.leave_out();
        }
        takes
    }

    /// Counts a try that has no entry of its own.
    pub(super) fn leave_out(&self) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// One entry for all tries that had none since this was asked last.
    pub(crate) fn summed_up(&self) -> Option<Event> {
        let more = self.left_out.swap(0, Ordering::Relaxed);
        (more > 0).then(|| Event {
            who: "-".to_owned(),
            action: "requests without a good key".to_owned(),
            org: None,
            subject: None,
            outcome: ErrorCode::ControlUnauthenticated.as_str().to_owned(),
            detail: Some(format!("and {more} more")),
        })
    }
}

/// What counts as one address: of IPv6 the network that one household has.
fn place(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Extensions {
        let mut extensions = Extensions::new();
        let peer = SocketAddr::new(address.parse().expect("address"), 1);
        extensions.insert(ConnectInfo(peer));
        extensions
    }

    #[test]
    fn an_address_is_slowed_down_alone() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        for _ in 0..TRIES.0 {
            assert_eq!(strangers.failed(&from("192.0.2.1"), now), Ok(()));
        }
        assert_eq!(strangers.failed(&from("::ffff:192.0.2.1"), now), Err(TRIES.1));
        assert_eq!(strangers.failed(&from("192.0.2.2"), now), Ok(()));
        for number in 0..TRIES.0 {
            let address = format!("2001:db8:0:1::{number:x}");
            assert_eq!(strangers.failed(&from(&address), now), Ok(()));
        }
        assert!(strangers.failed(&from("2001:db8:0:1:f::"), now).is_err(), "the same network");
        assert_eq!(strangers.failed(&from("2001:db8:0:2::"), now), Ok(()));
        assert_eq!(strangers.failed(&Extensions::new(), now), Ok(()));
    }

    #[test]
    fn the_log_takes_a_few_and_the_number_of_the_rest() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        assert!(strangers.summed_up().is_none());
        let taken = (0..133).filter(|_| strangers.take_entry(now)).count();
        assert_eq!(taken, 10);
        let event = strangers.summed_up().expect("an entry");
        assert_eq!(event.detail.as_deref(), Some("and 123 more"));
        assert!(strangers.summed_up().is_none(), "each is told once");
        assert!(strangers.take_entry(now + Duration::from_secs(6)));
    }
}
