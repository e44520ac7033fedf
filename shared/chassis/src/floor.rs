//! Where the relay starts to look in the outbox: above what it is done with, if it can be sure.

use std::time::{Duration, Instant};

/// How far the floor lags, and how often to look below it all the same. A row that becomes visible
/// below the floor could be overtaken by a later one of its key, so the lag is longer than a
/// transaction of ours may take up to its commit. How long that takes is the disk's affair: hence the
/// look below the floor.
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

    /// Where it is, if it is time to move it: then ask for the lowest position above, and tell it to
    /// [`Floor::move_below`]. To ask for the lowest of all would wade through every row that was
    /// deleted since an old snapshot that somebody holds.
    pub(crate) fn due(&self) -> Option<i64> {
        (self.moved_at.elapsed() > self.lag).then_some(self.floor)
    }

    /// Moves to where everything was done a lag ago, and is still: rows that wait, for their topic or
    /// for an earlier one of their key, stay above the floor for as long as they wait.
    pub(crate) fn move_below(&mut self, lowest: Option<i64>) {
        let below = lowest.map_or(i64::MAX, |position| position.saturating_sub(1));
        self.floor = self.next.min(below);
        self.next = self.deleted_max.min(below);
        self.moved_at = Instant::now();
    }

    /// Where it is.
    pub(crate) fn below(&self) -> i64 {
        self.floor
    }

    /// Where this look starts.
    pub(crate) fn start(&mut self) -> i64 {
        if self.full_look_at.elapsed() > FULL_LOOK_EVERY {
            self.full_look_at = Instant::now();
            return 0;
        }
        self.floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A floor whose lag is over at every look.
    fn hasty() -> Floor {
        Floor { lag: Duration::ZERO, ..Floor::new() }
    }

    fn moved(floor: &mut Floor, lowest: Option<i64>) -> i64 {
        std::thread::sleep(Duration::from_millis(1));
        assert!(floor.due().is_some());
        floor.move_below(lowest);
        floor.start()
    }

    #[test]
    fn it_follows_what_is_deleted_a_lag_behind() {
        let mut floor = hasty();
        floor.deleted(&[1, 2, 3]);
        assert_eq!([moved(&mut floor, None), moved(&mut floor, None)], [0, 3]);
        floor.lag = LAG;
        assert_eq!(floor.due(), None);
    }

    #[test]
    fn it_never_passes_a_row_that_waits_however_long_and_whatever_is_deleted_above_it() {
        let mut floor = hasty();
        for deleted in 11..100 {
            floor.deleted(&[deleted]);
            assert!(moved(&mut floor, Some(10)) < 10);
        }
        // It became visible late, when the floor was about to pass it.
        let mut floor = hasty();
        floor.deleted(&[20]);
        assert_eq!(moved(&mut floor, None), 0);
        assert_eq!(moved(&mut floor, Some(15)), 14);
    }
}
