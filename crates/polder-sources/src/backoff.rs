//! How long to wait before a server that takes no further connection is asked again.

use std::time::Duration;

use rand::Rng;

/// How often it is asked again.
const AGAIN_MAX: u32 = 5;
const FIRST: Duration = Duration::from_millis(500);

/// The pauses of one who asks, each about twice as long as the one before and by chance a part of it
/// shorter, so that those who were refused together do not come back together.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    again: u32,
}

impl Backoff {
    /// The next pause; `None` once it was asked often enough.
    pub(crate) fn pause(&mut self) -> Option<Duration> {
        if self.again == AGAIN_MAX {
            return None;
        }
        let longest = FIRST * 2_u32.pow(self.again);
        self.again += 1;
        Some(longest.mul_f64(rand::rng().random_range(0.5..1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_differ_and_end() {
        let pauses = || {
            let mut backoff = Backoff::default();
            std::iter::from_fn(move || backoff.pause()).collect::<Vec<_>>()
        };
        let (one, other) = (pauses(), pauses());
        assert_ne!(one, other);
        for (pause, longest_ms) in one.iter().zip([500, 1_000, 2_000, 4_000, 8_000]) {
            let longest = Duration::from_millis(longest_ms);
            assert!((longest / 2..=longest).contains(pause), "{pause:?} of {longest:?}");
        }
        assert_eq!(one.len(), 5);
    }
}
