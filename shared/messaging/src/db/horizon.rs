//! A horizon in the database's time: the time before which everything is older than a span, although the
//! database's clock may have been wrong at any moment.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::db;
use crate::db::clock::{TICK_QUERY_TIMEOUT, TICK_RETENTION, millis};

/// Buckets into which a [`Horizon`] divides its span, at most; they bound its memory.
const BUCKETS_MAX: u32 = 64;

/// The longest span of a horizon: ticks reach that far back, less a day.
const SPAN_MAX: Duration = TICK_RETENTION.saturating_sub(Duration::from_secs(24 * 3600));

/// Samples the database's clock. The result is the lowest of all samples since a moment more than a span ago: a
/// lower timestamp is older than all of them, and so older than the span. It errs by the pause between two samples
/// at most, and then rows seem younger than they are.
pub struct Horizon {
    span: Duration,
    /// When each part of the span began, and the lowest sample in it.
    buckets: VecDeque<(Instant, DateTime<Utc>)>,
}

impl Horizon {
    /// A horizon for a span of time, which is capped at the time for which ticks are kept.
    pub fn new(span: Duration) -> Horizon {
        Horizon { span: span.min(SPAN_MAX), buckets: VecDeque::new() }
    }

    /// Takes a sample. Returns the time below which everything is older than the span; `None` as long as that is
    /// unknown. A process that has not run for the whole span uses the ticks of earlier processes.
    pub async fn sample(&mut self, db: &PgPool) -> sqlx::Result<Option<DateTime<Utc>>> {
        let sampled = async {
            if self.covers_span_at(Instant::now()) {
                return sqlx::query_as("select clock_timestamp(), null::timestamptz")
                    .fetch_one(db)
                    .await;
            }
            sqlx::query_as(
                "select clock_timestamp(), min(recorded_at) from chassis.clock_ticks
                 where tick >= (select max(tick) from chassis.clock_ticks
                                where elapsed_ms <= (select max(elapsed_ms) from chassis.clock_ticks) - $1)",
            )
            .bind(millis(self.span))
            .fetch_one(db)
            .await
        };
        let (now, before): (DateTime<Utc>, Option<DateTime<Utc>>) =
            db::with_timeout(TICK_QUERY_TIMEOUT, sampled).await?;
        Ok(self.add_sample(Instant::now(), now, before))
    }

    /// Whether there is a sample from more than a span ago.
    fn covers_span_at(&self, at: Instant) -> bool {
        self.buckets.front().is_some_and(|(began, _)| at - *began >= self.span)
    }

    /// `before` is the result from the ticks of earlier processes.
    fn add_sample(
        &mut self,
        at: Instant,
        now: DateTime<Utc>,
        before: Option<DateTime<Utc>>,
    ) -> Option<DateTime<Utc>> {
        match self.buckets.back_mut() {
            Some((began, lowest)) if at - *began < self.span / BUCKETS_MAX => {
                *lowest = now.min(*lowest)
            }
            _ => self.buckets.push_back((at, now)),
        }
        while self.buckets.get(1).is_some_and(|(began, _)| at - *began >= self.span) {
            self.buckets.pop_front();
        }
        let lowest = self.buckets.iter().map(|(_, lowest)| *lowest).min()?;
        if self.covers_span_at(at) { Some(lowest) } else { Some(before?.min(lowest)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(3_600);

    /// Samples a clock every five seconds; `off` is its error at each second.
    fn horizon_at(seconds: i64, off: impl Fn(i64) -> i64) -> Option<i64> {
        let began = Instant::now();
        let mut horizon = Horizon::new(SPAN);
        let mut cutoff = None;
        for second in (0..=seconds).step_by(5) {
            let at = began + Duration::from_secs(second.unsigned_abs());
            let now = DateTime::from_timestamp(second + off(second), 0).unwrap();
            cutoff = horizon.add_sample(at, now, None);
            assert!(horizon.buckets.len() <= BUCKETS_MAX as usize + 2);
        }
        cutoff.map(|cutoff| cutoff.timestamp())
    }

    #[test]
    fn it_has_no_answer_before_a_whole_span_and_then_lags_by_one_bucket_at_most() {
        assert_eq!(horizon_at(3_595, |_| 0), None);
        let part = i64::from(3_600 / BUCKETS_MAX) + 5;
        for second in [3_600, 5_000, 20_000] {
            let cutoff = horizon_at(second, |_| 0).unwrap();
            assert!(
                (second - 3_600 - part..=second - 3_600).contains(&cutoff),
                "{cutoff} at {second}"
            );
        }
    }

    #[test]
    fn a_clock_that_jumps_ahead_or_back_makes_nothing_older_than_it_is() {
        let ahead = horizon_at(10_000, |second| if second > 9_000 { 7_200 } else { 0 }).unwrap();
        assert!(ahead <= 6_400, "{ahead}");
        let was_ahead = |second| if (2_000..9_900).contains(&second) { 7_200 } else { 0 };
        assert!(horizon_at(10_000, was_ahead).unwrap() <= 9_900);
        // A timestamp of the time when the clock was behind may be as young as that.
        let was_behind = |second| if (7_000..7_010).contains(&second) { -7_200 } else { 0 };
        assert_eq!(horizon_at(10_000, was_behind), Some(-200));
        assert!(horizon_at(11_000, was_behind).unwrap() > 7_010);
    }

    #[test]
    fn samples_of_earlier_processes_count_until_its_own_cover_the_span() {
        let time = |second| DateTime::from_timestamp(second, 0).unwrap();
        let (began, mut horizon) = (Instant::now(), Horizon::new(SPAN));
        assert_eq!(horizon.add_sample(began, time(9_000), Some(time(5_000))), Some(time(5_000)));
        assert_eq!(horizon.add_sample(began, time(4_000), Some(time(5_000))), Some(time(4_000)));
        assert_eq!(horizon.add_sample(began + SPAN, time(9_000), None), Some(time(4_000)));
    }
}
