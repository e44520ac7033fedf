//! How much time has passed, where a clock that somebody sets must not decide alone.
//!
//! A database's clock may be a day off for a minute, as after a virtual machine resumed or a time server
//! was wrong. So each process measures by a monotonic clock, which runs at one speed and stands still while
//! the machine sleeps, and notes in the table `clock_ticks` that another minute has passed.
//!
//! Promise: what was stored less than a span of time ago is never taken for older. It is broken by a tick
//! that counts more than the time since the tick before it, so only a process that saw the newest tick and
//! measured since then may add the next one. Time in which no process runs is not counted: what is kept, is
//! kept longer for that.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{db, inbox, sequences};

/// From one tick to the next, at least.
const TICK: Duration = Duration::from_secs(60);

/// Between two looks at the newest tick.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long one statement may take.
const ASKED_WITHIN: Duration = Duration::from_secs(8);

/// Ticks are kept longer than all that is numbered by them.
const KEPT: Duration = inbox::KEPT.saturating_add(Duration::from_secs(24 * 3600));

/// Parts of the span that a [`Horizon`] tells, at most: what it remembers is bounded by that.
const PARTS: u32 = 64;

/// The number of the newest tick, as a part of the statement that stores it.
macro_rules! newest_tick {
    () => {
        "(select coalesce(max(tick), 0) from clock_ticks)"
    };
}
pub(crate) use newest_tick;

/// The newest tick, and when this process saw it first.
pub(crate) struct Newest {
    tick: (i32, i64, DateTime<Utc>),
    seen_at: Instant,
}

/// Adds ticks for as long as the process runs.
pub(crate) async fn run(db: PgPool, stop: CancellationToken) -> anyhow::Result<()> {
    let mut newest = None;
    while !stop.is_cancelled() {
        match db::in_time(ASKED_WITHIN, advance(&db, &mut newest, TICK)).await {
            // Once a minute for the whole service.
            Ok(true) => sequences::put_ahead(&db).await,
            Ok(false) => {}
            Err(error) => warn!("the time that has passed could not be noted: {error}"),
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    Ok(())
}

/// One step of [`run`]: looks at the newest tick, and adds the next one if this process has known it for
/// `after`. Answers whether it did.
pub(crate) async fn advance(
    db: &PgPool,
    newest: &mut Option<Newest>,
    after: Duration,
) -> sqlx::Result<bool> {
    let asked = "select tick, elapsed_ms, noted_at from clock_ticks order by tick desc limit 1";
    let tick = sqlx::query_as(asked).fetch_optional(db).await?;
    let tick = tick.unwrap_or((0, 0, DateTime::UNIX_EPOCH));
    let Some(seen) = newest.as_ref().filter(|newest| newest.tick == tick) else {
        *newest = Some(Newest { tick, seen_at: Instant::now() });
        return Ok(false);
    };
    let passed = seen.seen_at.elapsed();
    if passed < after {
        return Ok(false);
    }
    // Another process may have added it meanwhile. Then its measure counts, and this one's begins again.
    let added = sqlx::query(
        "with added as (
             insert into clock_ticks (tick, elapsed_ms) values ($1, $2)
             on conflict do nothing returning elapsed_ms)
         delete from clock_ticks as old using added where old.elapsed_ms < added.elapsed_ms - $3",
    );
    added.bind(tick.0 + 1).bind(tick.1 + millis(passed)).bind(millis(KEPT)).execute(db).await?;
    *newest = None;
    Ok(true)
}

/// Rows that are numbered below the answer are older than `span`. `None` where no row is known to be.
pub(crate) async fn older_than(db: &PgPool, span: Duration) -> sqlx::Result<Option<i32>> {
    let tick = sqlx::query_scalar(
        "select max(tick) from clock_ticks
         where elapsed_ms <= (select max(elapsed_ms) from clock_ticks) - $1",
    );
    tick.bind(millis(span)).fetch_one(db).await
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX / 2)
}

/// Tells which of the times that the database gave are older than a span, though its clock may have been
/// wrong at any moment.
///
/// It samples the database's clock. The lowest sample of all that were taken since a moment that is more
/// than a span ago is its answer: a time below that was given before them. It errs by the pause between two
/// samples, and takes things for younger than they are.
pub struct Horizon {
    span: Duration,
    /// When each part of the span began, and the lowest sample in it.
    parts: VecDeque<(Instant, DateTime<Utc>)>,
}

impl Horizon {
    /// Of a span of time; of one that is longer than ticks are kept, as far as those reach.
    pub fn new(span: Duration) -> Horizon {
        Horizon { span: span.min(inbox::KEPT), parts: VecDeque::new() }
    }

    /// Takes a sample. Answers the time below which all are older than the span; `None` as long as that
    /// can't be told. A process that has not run for so long asks the ticks of those before it.
    pub async fn look(&mut self, db: &PgPool) -> sqlx::Result<Option<DateTime<Utc>>> {
        let asked = async {
            if self.knows_at(Instant::now()) {
                return sqlx::query_as("select clock_timestamp(), null::timestamptz")
                    .fetch_one(db)
                    .await;
            }
            sqlx::query_as(
                "select clock_timestamp(), min(noted_at) from clock_ticks
                 where tick >= (select max(tick) from clock_ticks
                                where elapsed_ms <= (select max(elapsed_ms) from clock_ticks) - $1)",
            )
            .bind(millis(self.span))
            .fetch_one(db)
            .await
        };
        let (now, before): (DateTime<Utc>, Option<DateTime<Utc>>) =
            db::in_time(ASKED_WITHIN, asked).await?;
        Ok(self.sample(Instant::now(), now, before))
    }

    /// Whether there is a sample from more than a span ago.
    fn knows_at(&self, at: Instant) -> bool {
        self.parts.front().is_some_and(|(began, _)| at - *began >= self.span)
    }

    /// `before` is what processes before this one knew.
    fn sample(
        &mut self,
        at: Instant,
        now: DateTime<Utc>,
        before: Option<DateTime<Utc>>,
    ) -> Option<DateTime<Utc>> {
        match self.parts.back_mut() {
            Some((began, lowest)) if at - *began < self.span / PARTS => *lowest = now.min(*lowest),
            _ => self.parts.push_back((at, now)),
        }
        while self.parts.get(1).is_some_and(|(began, _)| at - *began >= self.span) {
            self.parts.pop_front();
        }
        let lowest = self.parts.iter().map(|(_, lowest)| *lowest).min()?;
        if self.knows_at(at) { Some(lowest) } else { Some(before?.min(lowest)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(3_600);

    /// Samples every five seconds, of a clock that is off by so many seconds at each second.
    fn horizon_at(seconds: i64, off: impl Fn(i64) -> i64) -> Option<i64> {
        let began = Instant::now();
        let mut horizon = Horizon::new(SPAN);
        let mut told = None;
        for second in (0..=seconds).step_by(5) {
            let at = began + Duration::from_secs(second.unsigned_abs());
            let now = DateTime::from_timestamp(second + off(second), 0).unwrap();
            told = horizon.sample(at, now, None);
            assert!(horizon.parts.len() <= PARTS as usize + 2);
        }
        told.map(|told| told.timestamp())
    }

    #[test]
    fn it_tells_nothing_before_a_whole_span_and_then_lags_by_a_part_at_most() {
        assert_eq!(horizon_at(3_595, |_| 0), None);
        let part = i64::from(3_600 / PARTS) + 5;
        for second in [3_600, 5_000, 20_000] {
            let told = horizon_at(second, |_| 0).unwrap();
            assert!((second - 3_600 - part..=second - 3_600).contains(&told), "{told} at {second}");
        }
    }

    #[test]
    fn a_clock_that_jumps_ahead_or_back_makes_nothing_older_than_it_is() {
        let ahead = horizon_at(10_000, |second| if second > 9_000 { 7_200 } else { 0 }).unwrap();
        assert!(ahead <= 6_400, "{ahead}");
        let was_ahead = |second| if (2_000..9_900).contains(&second) { 7_200 } else { 0 };
        assert!(horizon_at(10_000, was_ahead).unwrap() <= 9_900);
        // What it gave while it was behind may be as young as that.
        let was_behind = |second| if (7_000..7_010).contains(&second) { -7_200 } else { 0 };
        assert_eq!(horizon_at(10_000, was_behind), Some(-200));
        assert!(horizon_at(11_000, was_behind).unwrap() > 7_010);
    }

    #[test]
    fn what_processes_before_it_knew_counts_until_it_knows_by_itself() {
        let time = |second| DateTime::from_timestamp(second, 0).unwrap();
        let (began, mut horizon) = (Instant::now(), Horizon::new(SPAN));
        assert_eq!(horizon.sample(began, time(9_000), Some(time(5_000))), Some(time(5_000)));
        assert_eq!(horizon.sample(began, time(4_000), Some(time(5_000))), Some(time(4_000)));
        assert_eq!(horizon.sample(began + SPAN, time(9_000), None), Some(time(4_000)));
    }
}
