//! Ticks: how much time has passed, for decisions that must not depend on a clock which may be set.
//!
//! A database's clock may be a day off for a minute, as after a virtual machine resumed or a time server was
//! wrong. So each process measures time by a monotonic clock, which runs at one speed and stands still while the
//! machine sleeps, and records in the table `clock_ticks` that another minute has passed.
//!
//! Promise: a row that was stored less than a span of time ago never counts as older. A tick that counts more than
//! the time since the tick before it breaks that promise; so only a process that saw the newest tick and has
//! measured since then may add the next one. Time in which no process runs does not count: rows are kept longer
//! then.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::db::{self, sequences};

/// From one tick to the next, at least.
const TICK_INTERVAL: Duration = Duration::from_secs(60);

/// The time between two reads of the newest tick.
const TICK_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// How long one statement may take.
const TICK_QUERY_TIMEOUT: Duration = Duration::from_secs(8);

/// How long ticks are kept: longer than any row that stores the number of one.
pub(crate) const TICK_RETENTION: Duration = Duration::from_secs(31 * 24 * 3600);

/// The number of the newest tick, as a part of the statement that stores it.
macro_rules! newest_tick {
    () => {
        "(select coalesce(max(tick), 0) from chassis.clock_ticks)"
    };
}
pub(crate) use newest_tick;

/// The newest tick, and when this process saw it first.
pub struct NewestTick {
    tick: (i32, i64, DateTime<Utc>),
    observed_at: Instant,
}

/// Adds ticks for as long as the process runs.
pub async fn run(db: PgPool, stop: CancellationToken) -> anyhow::Result<()> {
    let mut newest = None;
    while !stop.is_cancelled() {
        match db::with_timeout(TICK_QUERY_TIMEOUT, advance(&db, &mut newest, TICK_INTERVAL)).await {
            // Once a minute for the whole service.
            Ok(true) => sequences::advance_all(&db).await,
            Ok(false) => {}
            Err(error) => warn!("the elapsed time could not be recorded: {error}"),
        }
        stop.run_until_cancelled(sleep(TICK_POLL_INTERVAL)).await;
    }
    Ok(())
}

/// One step of [`run`]: reads the newest tick, and adds the next one if this process has known it for `after`.
/// Returns whether it did.
pub async fn advance(
    db: &PgPool,
    newest: &mut Option<NewestTick>,
    after: Duration,
) -> sqlx::Result<bool> {
    let query =
        "select tick, elapsed_ms, recorded_at from chassis.clock_ticks order by tick desc limit 1";
    let tick = sqlx::query_as(query).fetch_optional(db).await?;
    let tick = tick.unwrap_or((0, 0, DateTime::UNIX_EPOCH));
    let Some(known) = newest.as_ref().filter(|newest| newest.tick == tick) else {
        *newest = Some(NewestTick { tick, observed_at: Instant::now() });
        return Ok(false);
    };
    let elapsed = known.observed_at.elapsed();
    if elapsed < after {
        return Ok(false);
    }
    // Another process may have added it meanwhile. Then its measurement counts, and this process starts again.
    let added = sqlx::query(
        "with added as (
             insert into chassis.clock_ticks (tick, elapsed_ms) values ($1, $2)
             on conflict do nothing returning elapsed_ms)
         delete from chassis.clock_ticks as old using added where old.elapsed_ms < added.elapsed_ms - $3",
    );
    let added = added.bind(tick.0 + 1).bind(tick.1 + millis(elapsed)).bind(millis(TICK_RETENTION));
    added.execute(db).await?;
    *newest = None;
    Ok(true)
}

/// The tick below which rows are older than `span`; `None` if no row is known to be.
pub async fn older_than(db: &PgPool, span: Duration) -> sqlx::Result<Option<i32>> {
    let tick = sqlx::query_scalar(
        "select max(tick) from chassis.clock_ticks
         where elapsed_ms <= (select max(elapsed_ms) from chassis.clock_ticks) - $1",
    );
    tick.bind(millis(span)).fetch_one(db).await
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX / 2)
}
