//! The low watermark of the outbox: the position above which the relay reads.

use std::time::{Duration, Instant};

use tracing::warn;

/// How often a poll reads from position zero nevertheless. It finds rows whose position was not drawn by an
/// `insert`: rows that were restored by hand, or rows after a sequence was set back.
const FULL_SCAN_INTERVAL: Duration = Duration::from_secs(60);

/// The transactions that may be writing to the outbox. An `insert` locks the table before it draws a position,
/// and holds the lock until its rows are visible to all. A transaction that is prepared for a two-phase commit
/// gets another name then: `-1/` and a number.
pub const OPEN_WRITERS_QUERY: &str = "
    select virtualtransaction from pg_locks
    where locktype = 'relation' and relation = 'chassis.outbox'::regclass and mode = 'RowExclusiveLock' and granted
      and database = (select oid from pg_database where datname = current_database())";

/// A position at or below which the outbox has no row and will have none.
///
/// Dead rows stay in the table for as long as any transaction on the server is old enough to see them, and a poll
/// that steps over them is slow (`docs/decisions/0023`). But rows become visible in the order of commits, not of
/// positions. An example: writer A draws position 5 and stays open, writer B draws 6 and commits. The relay sends 6,
/// and must not skip 5, which appears later. A drew its position before the row of B was visible, so
/// [`OPEN_WRITERS_QUERY`] returns A. Once every transaction of that answer has ended, no row appears below 6 any
/// more, and 6 is the low watermark.
pub struct LowWatermark {
    position: i64,
    /// The position to which it moves once these transactions have ended.
    candidate: Option<(i64, Vec<String>)>,
    deleted_max: i64,
    /// When the last full scan was; `None` if the next poll is to be one.
    full_scan_at: Option<Instant>,
}

impl Default for LowWatermark {
    fn default() -> LowWatermark {
        LowWatermark {
            position: 0,
            candidate: None,
            deleted_max: 0,
            full_scan_at: Some(Instant::now()),
        }
    }
}

impl LowWatermark {
    pub fn record_deleted(&mut self, positions: &[i64]) {
        self.deleted_max = positions.iter().copied().max().unwrap_or(0).max(self.deleted_max);
    }

    /// Whether the low watermark may be able to advance.
    pub(crate) fn is_behind(&self) -> bool {
        self.position < self.deleted_max
    }

    /// Advances to the highest position below which the table was empty as of an earlier call and still is.
    /// Rows that back off stay above the low watermark. `lowest` is the lowest position above the low
    /// watermark. It must be read after `writers`: then it includes the rows of every transaction that is not
    /// among them any more.
    pub fn advance(&mut self, writers: Vec<String>, lowest: Option<i64>) {
        if let Some((position, earlier)) = &self.candidate {
            let is_open = |writer| earlier.contains(writer) || writer.starts_with("-1/");
            if writers.iter().any(is_open) {
                return;
            }
            let below = lowest.map_or(i64::MAX, |lowest| lowest - 1);
            self.position = (*position).min(below).max(self.position);
        }
        self.candidate = Some((self.deleted_max, writers));
    }

    pub fn get(&self) -> i64 {
        self.position
    }

    pub(crate) fn scan_from(&mut self) -> i64 {
        if self.full_scan_at.is_none_or(|at| at.elapsed() > FULL_SCAN_INTERVAL) {
            self.full_scan_at = Some(Instant::now());
            return 0;
        }
        self.position
    }

    /// Lowers the low watermark below the first row of a poll. The next poll would otherwise skip that row and
    /// send a later row of its key.
    pub(crate) fn lower_to(&mut self, position: i64) {
        if position <= self.position {
            warn!(
                "row {position} of the outbox appeared below the low watermark {}",
                self.position
            );
            self.position = position - 1;
            self.candidate = None;
        }
    }

    /// Lets the next poll be a full scan, for tests.
    pub fn force_full_scan(&mut self) {
        self.full_scan_at = None;
    }

    /// Begins at zero, after the sequence of the positions was set back: a writer that is open may have drawn a low one.
    pub fn start_again(&mut self) {
        self.position = 0;
        self.candidate = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn it_advances_past_deleted_rows_once_all_writers_of_that_time_have_ended() {
        let mut low_watermark = LowWatermark::default();
        low_watermark.record_deleted(&[1, 3, 2]);
        low_watermark.advance(writers(&["a", "b"]), None);
        low_watermark.record_deleted(&[4]);
        low_watermark.advance(writers(&["b", "c"]), None);
        assert_eq!(low_watermark.get(), 0, "b may bring a row below");
        low_watermark.advance(writers(&["c", "d"]), None);
        assert_eq!(low_watermark.get(), 3);
        for one in ["d", "-1/700"] {
            low_watermark.advance(writers(&[one]), None);
            assert_eq!(low_watermark.get(), 3, "{one} may bring one below the fourth");
        }
        low_watermark.advance(writers(&["e"]), None);
        assert_eq!((low_watermark.get(), low_watermark.scan_from()), (4, 4));
    }

    #[test]
    fn it_never_passes_a_row_that_waits_whatever_is_deleted_above_it() {
        let mut low_watermark = LowWatermark::default();
        for deleted in 11..100 {
            low_watermark.record_deleted(&[deleted]);
            low_watermark.advance(writers(&[]), Some(10));
            assert!(low_watermark.get() < 10);
        }
        // It becomes visible late, when the low watermark is about to pass it.
        let mut low_watermark = LowWatermark::default();
        low_watermark.record_deleted(&[20]);
        low_watermark.advance(writers(&["a"]), None);
        low_watermark.advance(writers(&[]), Some(15));
        assert_eq!(low_watermark.get(), 14);
    }

    #[test]
    fn it_is_lowered_below_a_row_that_appears_late_and_passes_it_once_deleted() {
        let mut low_watermark = LowWatermark::default();
        low_watermark.record_deleted(&[20]);
        low_watermark.advance(writers(&[]), None);
        low_watermark.advance(writers(&[]), None);
        low_watermark.lower_to(21);
        assert_eq!(low_watermark.get(), 20);
        low_watermark.lower_to(15);
        assert_eq!(low_watermark.get(), 14);
        for _ in 0..3 {
            low_watermark.advance(writers(&[]), Some(15));
            assert_eq!(low_watermark.get(), 14);
        }
        low_watermark.advance(writers(&[]), None);
        assert_eq!(low_watermark.get(), 20);
    }

    #[test]
    fn after_the_sequence_was_set_back_it_waits_for_the_writers_of_that_time() {
        let mut low_watermark = LowWatermark::default();
        low_watermark.record_deleted(&[20]);
        low_watermark.advance(writers(&[]), None);
        low_watermark.advance(writers(&["a"]), None);
        assert_eq!(low_watermark.get(), 20);
        low_watermark.start_again();
        for _ in 0..3 {
            low_watermark.advance(writers(&["a"]), None);
            assert_eq!(
                (low_watermark.get(), low_watermark.scan_from()),
                (0, 0),
                "a drew a low one"
            );
        }
        low_watermark.advance(writers(&["b"]), Some(4));
        assert_eq!(low_watermark.get(), 3);
        low_watermark.advance(writers(&[]), None);
        assert_eq!(low_watermark.get(), 20);
    }

    #[test]
    fn it_is_not_behind_while_nothing_was_deleted() {
        let mut low_watermark = LowWatermark::default();
        assert!(!low_watermark.is_behind());
        low_watermark.record_deleted(&[20]);
        assert!(low_watermark.is_behind());
        low_watermark.advance(writers(&[]), None);
        low_watermark.advance(writers(&[]), None);
        assert!(!low_watermark.is_behind(), "it is where it can be");
    }
}
