//! Where the relay starts to look in the outbox: above what it is done with, if it can be sure.

use std::time::{Duration, Instant};

/// How often to see whether the floor can move, while there is something to leave below it.
const SEEN_EVERY: Duration = Duration::from_secs(1);

/// It moves after this time at the latest, though somebody's transaction is still under way: a session
/// that somebody forgot writes no outbox, and ours end sooner, up to their commit. How long that takes is
/// the disk's affair: hence the regular look from zero.
const LAG_MAX: Duration = Duration::from_secs(30);
const FULL_LOOK_EVERY: Duration = Duration::from_secs(10);

/// What there is above the floor, and who was writing when that was looked at; $1 is the floor. To ask
/// for the lowest row of all would wade through every one that was deleted since an old snapshot that
/// somebody holds.
pub(crate) const SIGHT: &str = "
    select (select min(position) from outbox where position > $1) as lowest,
           pg_snapshot_xmin(seen)::text::bigint as all_ended_below,
           pg_snapshot_xmax(seen)::text::bigint as none_begun_from
    from pg_current_snapshot() as seen";

/// The answer to [`SIGHT`].
#[derive(Clone, Copy, sqlx::FromRow)]
pub(crate) struct Sight {
    /// The lowest position above the floor.
    lowest: Option<i64>,
    /// Transactions with a lower number have ended, and what they committed is seen.
    all_ended_below: i64,
    /// Transactions with this number or a higher one had not begun to write.
    none_begun_from: i64,
}

/// A position below which there is nothing left, and nothing to come.
///
/// Dead rows stay in the table for as long as any transaction on the server is old enough to see them;
/// to step over them at every look made polls 700 times slower when it was measured. But rows come in
/// order of commit, and not of position: one may still come below another that was long sent. Whoever
/// writes it drew its position before the other was seen, and so its transaction was under way then. When
/// all of those have ended, whatever is not there by then never comes.
///
/// A transaction draws its number with its first write, which may be this very row's: a moment after its
/// position, and without waiting for anything in between. A second is the margin for that moment.
pub(crate) struct Floor {
    floor: i64,
    next: Option<Next>,
    deleted_max: i64,
    seen_at: Instant,
    full_look_at: Instant,
}

/// Where the floor moves when all have ended who were writing at a moment.
struct Next {
    position: i64,
    none_begun_from: i64,
    since: Instant,
}

impl Floor {
    pub(crate) fn new() -> Floor {
        let now = Instant::now();
        Floor { floor: 0, next: None, deleted_max: 0, seen_at: now, full_look_at: now }
    }

    /// Rows that are gone.
    pub(crate) fn deleted(&mut self, positions: &[i64]) {
        self.deleted_max = positions.iter().copied().max().unwrap_or(0).max(self.deleted_max);
    }

    /// Where it is, if it is time for a [`Sight`], to be told to [`Floor::seen`].
    pub(crate) fn due(&self) -> Option<i64> {
        let behind = self.floor < self.deleted_max;
        (behind && self.seen_at.elapsed() >= SEEN_EVERY).then_some(self.floor)
    }

    /// Moves to where everything was done some sights ago, and is still: rows that wait, for their topic
    /// or for an earlier one of their key, stay above the floor for as long as they wait.
    pub(crate) fn seen(&mut self, sight: Sight) {
        self.seen_at = Instant::now();
        if let Some(Next { position, none_begun_from, since }) = self.next {
            let all_ended = sight.all_ended_below >= none_begun_from;
            if !all_ended && since.elapsed() < LAG_MAX {
                return;
            }
            let below = sight.lowest.map_or(i64::MAX, |lowest| lowest - 1);
            self.floor = position.min(below);
        }
        self.next = Some(Next {
            position: self.deleted_max,
            none_begun_from: sight.none_begun_from,
            since: self.seen_at,
        });
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

    /// Seen while transactions from `oldest` on were under way, and `newest` was the next to begin.
    fn sight(lowest: Option<i64>, oldest: i64, newest: i64) -> Sight {
        Sight { lowest, all_ended_below: oldest, none_begun_from: newest }
    }

    #[test]
    fn it_follows_what_is_deleted_once_all_have_ended_who_were_writing_then() {
        let mut floor = Floor::new();
        floor.deleted(&[1, 3, 2]);
        floor.seen(sight(None, 7, 9));
        floor.deleted(&[4]);
        floor.seen(sight(None, 8, 10));
        assert_eq!(floor.below(), 0, "8 may bring a row below");
        floor.seen(sight(None, 9, 11));
        assert_eq!(floor.below(), 3);
        floor.seen(sight(None, 10, 11));
        assert_eq!(floor.below(), 3, "10 may bring one below the fourth");
        floor.seen(sight(None, 11, 11));
        assert_eq!((floor.below(), floor.start()), (4, 4));
    }

    #[test]
    fn it_never_passes_a_row_that_waits_however_long_and_whatever_is_deleted_above_it() {
        let mut floor = Floor::new();
        for deleted in 11..100 {
            floor.deleted(&[deleted]);
            floor.seen(sight(Some(10), deleted, deleted));
            assert!(floor.below() < 10);
        }
        // It became visible late, when the floor was about to pass it.
        let mut floor = Floor::new();
        floor.deleted(&[20]);
        floor.seen(sight(None, 5, 6));
        floor.seen(sight(Some(15), 6, 6));
        assert_eq!(floor.below(), 14);
    }

    #[test]
    fn it_waits_for_a_forgotten_transaction_and_not_for_ever() {
        let mut floor = Floor::new();
        floor.deleted(&[20]);
        floor.seen(sight(None, 5, 6));
        floor.seen(sight(None, 5, 60));
        assert_eq!(floor.below(), 0);
        let next = floor.next.as_mut().unwrap();
        next.since = next.since.checked_sub(LAG_MAX).unwrap();
        floor.seen(sight(None, 5, 600));
        assert_eq!(floor.below(), 20);
    }

    #[test]
    fn where_nothing_was_deleted_nothing_is_asked() {
        let mut floor = Floor::new();
        let long_ago = Instant::now().checked_sub(SEEN_EVERY).unwrap();
        floor.seen_at = long_ago;
        assert_eq!(floor.due(), None);
        floor.deleted(&[20]);
        assert_eq!(floor.due(), Some(0));
        floor.seen(sight(None, 6, 6));
        assert_eq!(floor.due(), None, "a second later");
        floor.seen(sight(None, 6, 6));
        floor.seen_at = long_ago;
        assert_eq!(floor.due(), None, "it is where it can be");
    }
}
