//! The database's clock, as far as a process trusts it: what is due by it is due.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// A jump ahead is believed after this time.
const BELIEVED_AFTER: Duration = Duration::from_secs(3_600);

/// By how much two samples of one clock may differ, as their queries take different times.
const JITTER: TimeDelta = TimeDelta::milliseconds(100);

/// Jumps that are remembered, at most. With more, the latest of them are not believed either.
const JUMPS_MAX: usize = 64;

/// The time by the database's clock, less the jumps ahead of the last hour.
///
/// A clock may be an hour ahead for a minute, as after a virtual machine resumed or a time server was wrong. So the
/// trusted time advances with the monotonic clock of the process, from the sample of the last hour that lay furthest
/// behind. A jump back is followed at once: what is due is then late, and never early.
#[derive(Default)]
pub struct TrustedClock {
    /// Samples of the last hour, each further ahead than the ones before it.
    samples: VecDeque<(Instant, DateTime<Utc>)>,
}

impl TrustedClock {
    /// Takes a sample: `now` is the time of the database's clock. Returns the time that is trusted.
    pub fn sample(&mut self, at: Instant, now: DateTime<Utc>) -> DateTime<Utc> {
        let since = |then: Instant| at.saturating_duration_since(then);
        while self.samples.len() > 1 && since(self.samples[0].0) > BELIEVED_AFTER {
            self.samples.pop_front();
        }
        while let Some((then, sampled)) = self.samples.back()
            && *sampled + since(*then) >= now
        {
            self.samples.pop_back();
        }
        let has_room = self.samples.len() < JUMPS_MAX;
        match self.samples.back_mut() {
            // The same clock: the earlier sample goes on, as if it had been taken now.
            Some((then, sampled)) if now - (*sampled + since(*then)) <= JITTER => {
                *sampled += since(*then);
                *then = at;
            }
            _ if has_room => self.samples.push_back((at, now)),
            _ => {}
        }
        let (then, sampled) = self.samples[0];
        sampled + since(then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples a clock every half second, which is off by so many seconds at each second; by how much the trusted time
    /// is off at the end, and the lowest and the highest that it ever was.
    fn trusted(seconds: u64, off: impl Fn(u64) -> f64) -> (f64, f64, f64) {
        let (began, mut clock) = (Instant::now(), TrustedClock::default());
        let (mut last, mut lowest, mut highest) = (0.0, f64::MAX, f64::MIN);
        for half in 0..=2 * seconds {
            let after = Duration::from_millis(500 * half);
            let at = began + after;
            let error = TimeDelta::milliseconds((1_000.0 * off(half / 2)) as i64);
            let now = DateTime::UNIX_EPOCH + after + error;
            let off = clock.sample(at, now) - (DateTime::UNIX_EPOCH + after);
            last = off.as_seconds_f64();
            (lowest, highest) = (last.min(lowest), last.max(highest));
            assert!(clock.samples.len() <= JUMPS_MAX);
        }
        (last, lowest, highest)
    }

    #[test]
    fn a_jump_ahead_is_believed_after_an_hour_and_one_back_at_once() {
        assert_eq!(trusted(10_000, |_| 0.0), (0.0, 0.0, 0.0));
        let ahead =
            |from, to| move |second| if (from..to).contains(&second) { 3_600.0 } else { 0.0 };
        assert_eq!(trusted(3_000, ahead(1_000, 2_000)), (0.0, 0.0, 0.0));
        assert_eq!(trusted(4_590, ahead(1_000, 9_999)), (0.0, 0.0, 0.0));
        assert_eq!(trusted(4_610, ahead(1_000, 9_999)).0, 3_600.0, "it stays ahead for an hour");
        // What is trusted first is what the clock says first.
        assert_eq!(trusted(100, ahead(0, 50)), (0.0, 0.0, 3_600.0));
        let back = |second| if second < 1_000 { 0.0 } else { -3_600.0 };
        assert_eq!(trusted(1_001, back), (-3_600.0, -3_600.0, 0.0));
    }

    #[test]
    fn jitter_and_drift_are_no_jumps() {
        let jitter = |second: u64| (second * 7_919 % 97) as f64 / 1_000.0;
        assert!(trusted(10_000, jitter).2 <= 0.0);
        // It is fast by half a second in a thousand, so an hour holds less than two seconds.
        let (last, ..) = trusted(20_000, |second| second as f64 / 2_000.0);
        assert!((8.0..=10.0).contains(&last), "{last}");
        let wild = |second: u64| if second.is_multiple_of(2) { 0.0 } else { second as f64 };
        assert_eq!(trusted(5_000, wild).2, 0.0);
    }
}
