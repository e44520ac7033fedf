//! Where the relay starts to look in the outbox: above what it is done with.

use std::time::{Duration, Instant};

use tracing::warn;

/// How often to look from zero all the same, for a row that came in another way than by an `insert` that
/// draws its position: restored by hand, or where a sequence was set back.
const FULL_LOOK_EVERY: Duration = Duration::from_secs(60);

/// Who may be writing to the outbox. An `insert` locks its table before it draws a position, and until
/// what it wrote is seen by all. Who prepares its commit in two phases goes by another name from then on:
/// `-1/` and a number.
pub(crate) const WRITERS: &str = "
    select virtualtransaction from pg_locks
    where locktype = 'relation' and relation = 'outbox'::regclass and mode = 'RowExclusiveLock' and granted
      and database = (select oid from pg_database where datname = current_database())";

/// A position below which there is nothing left, and nothing to come.
///
/// Dead rows stay in the table for as long as any transaction on the server is old enough to see them;
/// to step over them at every look made polls 700 times slower when it was measured. But rows come in
/// order of commit, and not of position: one may still come below another that was long sent. Whoever
/// writes it drew its position before the other was seen, and is among the [`WRITERS`] that are asked for
/// after that. When all of those have ended, whatever is not there by then never comes.
pub(crate) struct Floor {
    floor: i64,
    next: Option<Next>,
    deleted_max: i64,
    /// When the last look from zero was; `None` where the next one is to be.
    full_look_at: Option<Instant>,
}

/// Where the floor moves when these have ended.
struct Next {
    position: i64,
    writers: Vec<String>,
}

impl Floor {
    pub(crate) fn new() -> Floor {
        Floor { floor: 0, next: None, deleted_max: 0, full_look_at: Some(Instant::now()) }
    }

    /// Rows that are gone.
    pub(crate) fn deleted(&mut self, positions: &[i64]) {
        self.deleted_max = positions.iter().copied().max().unwrap_or(0).max(self.deleted_max);
    }

    /// Whether it may be able to move.
    pub(crate) fn is_behind(&self) -> bool {
        self.floor < self.deleted_max
    }

    /// Moves to where everything was done some sights ago, and is still: rows that wait, for their topic
    /// or for an earlier one of their key, stay above the floor for as long as they wait. `lowest` is the
    /// lowest position above the floor, asked for after `writers`: what those committed who are not among
    /// them any more is seen then.
    pub(crate) fn seen(&mut self, writers: Vec<String>, lowest: Option<i64>) {
        if let Some(next) = &self.next {
            let writes = |writer| next.writers.contains(writer) || writer.starts_with("-1/");
            if writers.iter().any(writes) {
                return;
            }
            let below = lowest.map_or(i64::MAX, |lowest| lowest - 1);
            self.floor = next.position.min(below).max(self.floor);
        }
        self.next = Some(Next { position: self.deleted_max, writers });
    }

    /// Where it is.
    pub(crate) fn below(&self) -> i64 {
        self.floor
    }

    /// Where this look starts.
    pub(crate) fn start(&mut self) -> i64 {
        if self.full_look_at.is_none_or(|at| at.elapsed() > FULL_LOOK_EVERY) {
            self.full_look_at = Some(Instant::now());
            return 0;
        }
        self.floor
    }

    /// The first row of a look. If it lies below, the floor goes below it: the next look would pass it over,
    /// and find a later row of its key.
    pub(crate) fn found(&mut self, position: i64) {
        if position <= self.floor {
            warn!("row {position} of the outbox appeared below {}", self.floor);
            self.floor = position - 1;
            self.next = None;
        }
    }

    /// Has the next look start from zero.
    pub(crate) fn expect_full_look(&mut self) {
        self.full_look_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn it_follows_what_is_deleted_once_all_have_ended_who_were_writing_then() {
        let mut floor = Floor::new();
        floor.deleted(&[1, 3, 2]);
        floor.seen(writers(&["a", "b"]), None);
        floor.deleted(&[4]);
        floor.seen(writers(&["b", "c"]), None);
        assert_eq!(floor.below(), 0, "b may bring a row below");
        floor.seen(writers(&["c", "d"]), None);
        assert_eq!(floor.below(), 3);
        for one in ["d", "-1/700"] {
            floor.seen(writers(&[one]), None);
            assert_eq!(floor.below(), 3, "{one} may bring one below the fourth");
        }
        floor.seen(writers(&["e"]), None);
        assert_eq!((floor.below(), floor.start()), (4, 4));
    }

    #[test]
    fn it_never_passes_a_row_that_waits_however_long_and_whatever_is_deleted_above_it() {
        let mut floor = Floor::new();
        for deleted in 11..100 {
            floor.deleted(&[deleted]);
            floor.seen(writers(&[]), Some(10));
            assert!(floor.below() < 10);
        }
        // It became visible late, when the floor was about to pass it.
        let mut floor = Floor::new();
        floor.deleted(&[20]);
        floor.seen(writers(&["a"]), None);
        floor.seen(writers(&[]), Some(15));
        assert_eq!(floor.below(), 14);
    }

    #[test]
    fn it_goes_below_a_row_that_appears_below_it_and_passes_it_when_it_is_gone() {
        let mut floor = Floor::new();
        floor.deleted(&[20]);
        floor.seen(writers(&[]), None);
        floor.seen(writers(&[]), None);
        floor.found(21);
        assert_eq!(floor.below(), 20);
        floor.found(15);
        assert_eq!(floor.below(), 14);
        for _ in 0..3 {
            floor.seen(writers(&[]), Some(15));
            assert_eq!(floor.below(), 14);
        }
        floor.seen(writers(&[]), None);
        assert_eq!(floor.below(), 20);
    }

    #[test]
    fn where_nothing_was_deleted_there_is_nothing_to_see() {
        let mut floor = Floor::new();
        assert!(!floor.is_behind());
        floor.deleted(&[20]);
        assert!(floor.is_behind());
        floor.seen(writers(&[]), None);
        floor.seen(writers(&[]), None);
        assert!(!floor.is_behind(), "it is where it can be");
    }
}
