//! Where the relay starts to look in the outbox: above what it is done with, if it can be sure.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How far the floor lags, and how often to look below it all the same. A row that becomes visible
/// below the floor could be overtaken by a later one of its key, so the lag is longer than any
/// transaction of ours may take.
const LAG: Duration = Duration::from_secs(30);
const FULL_LOOK_EVERY: Duration = Duration::from_secs(10);

/// A position below which there was nothing left some seconds ago.
///
/// Dead rows stay in the table for as long as any transaction on the server is old enough to see
/// them; to step over them at every look made polls 700 times slower when it was measured. The
/// floor is a hint only: a transaction may still commit a row below it, so it lags, and a regular
/// look starts from zero.
pub(crate) struct Floor {
    pub(crate) lag: Duration,
    floor: i64,
    next: i64,
    deleted_max: i64,
    moved_at: Instant,
    full_look_at: Instant,
}

impl Floor {
    pub(crate) fn new() -> Floor {
        let now = Instant::now();
        Floor { lag: LAG, floor: 0, next: 0, deleted_max: 0, moved_at: now, full_look_at: now }
    }

    /// Rows that are gone.
    pub(crate) fn deleted(&mut self, positions: &[i64]) {
        self.deleted_max = positions.iter().copied().max().unwrap_or(0).max(self.deleted_max);
    }

    /// Where to start looking. It moves only while nothing is held, since what is held is not known
    /// by position.
    pub(crate) fn now(&mut self, in_flight: &HashSet<i64>, nothing_held: bool) -> i64 {
        if nothing_held && self.moved_at.elapsed() > self.lag {
            self.floor = self.next;
            let oldest = in_flight.iter().copied().min().unwrap_or(i64::MAX);
            self.next = self.deleted_max.min(oldest.saturating_sub(1));
            self.moved_at = Instant::now();
        }
        if self.full_look_at.elapsed() > FULL_LOOK_EVERY {
            self.full_look_at = Instant::now();
            return 0;
        }
        self.floor
    }
}
