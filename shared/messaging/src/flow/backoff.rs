//! Backoff: the pauses between the attempts of what is retried. The delay doubles with each failure, from a shortest
//! to a longest one. A pause is a random part of the delay, at least half, so that instances that failed together do
//! not retry together.
//!
//! The number of attempts is not limited. Work that waits for a database, a broker or a row is retried until it
//! succeeds. A client's command has its own deadline.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// After this number of failures every delay is the longest one.
const DOUBLINGS_MAX: usize = 64;

pub(crate) struct RetryBackoff {
    pub delay_min: Duration,
    pub delay_max: Duration,
}

impl RetryBackoff {
    pub(crate) const fn constant(delay: Duration) -> RetryBackoff {
        RetryBackoff { delay_min: delay, delay_max: delay }
    }

    /// The pause after this number of failures in a row.
    pub(crate) fn pause_after(&self, failures: u32) -> Duration {
        // The crate's jitter lengthens a delay, to twice its length at most.
        let delays = ExponentialBuilder::new()
            .with_min_delay(self.delay_min / 2)
            .with_max_delay(self.delay_max / 2)
            .with_jitter()
            .without_max_times();
        let doublings = (failures as usize).saturating_sub(1).min(DOUBLINGS_MAX);
        delays.build().nth(doublings).unwrap_or(self.delay_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_a_pause_is_at_least_half_of_its_delay() {
        let backoff =
            RetryBackoff { delay_min: Duration::from_secs(1), delay_max: Duration::from_secs(5) };
        for (failures, delay) in [(1, 1), (2, 2), (3, 4), (4, 5), (5, 5), (u32::MAX, 5)] {
            let (pause, delay) = (backoff.pause_after(failures), Duration::from_secs(delay));
            assert!((delay / 2..=delay).contains(&pause), "{pause:?} of {delay:?}");
        }
        let pause = backoff.pause_after(1);
        assert!((0..100).any(|_| backoff.pause_after(1) != pause), "all are {pause:?}");
    }
}
