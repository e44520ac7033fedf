//! The lag of the outbox: how old its oldest row is, and the low watermark below which it is empty.

use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use metrics::gauge;
use sqlx::PgConnection;
use tracing::warn;

use crate::db;
use crate::db::lease::with_query_timeout;
use crate::outbox::low_watermark::{LowWatermark, OPEN_WRITERS_QUERY};
use crate::outbox::query::OUTBOX_SCAN_TIMEOUT;

/// How often the lag is measured: while the outbox was empty, and while rows wait or the low watermark is behind. The
/// gauge `outbox_oldest_seconds` tells people within seconds that Kafka is away.
const LAG_INTERVAL: Duration = Duration::from_secs(2);
const LAG_INTERVAL_BEHIND: Duration = Duration::from_secs(1);

/// The database's time; position and time of the oldest row; the sequence that positions are drawn from,
/// and the last one that was.
type LagRow = (DateTime<Utc>, Option<i64>, Option<DateTime<Utc>>, Option<String>, i64);

pub struct OutboxLag {
    measured_at: Option<Instant>,
    /// By how much the database's clock is ahead of this process's clock: rows have the database's time.
    clock_offset: TimeDelta,
    /// The position of the oldest row, and since when it is known to be the oldest.
    oldest_row: Option<(i64, Instant)>,
    pub low_watermark: LowWatermark,
}

impl OutboxLag {
    pub(super) fn new() -> OutboxLag {
        OutboxLag {
            measured_at: None,
            clock_offset: TimeDelta::zero(),
            oldest_row: None,
            low_watermark: LowWatermark::default(),
        }
    }

    /// The time since `occurred_at`, by the database's clock.
    pub(super) fn age(&self, occurred_at: DateTime<Utc>) -> Duration {
        let now = Utc::now() + self.clock_offset;
        (now - occurred_at).to_std().unwrap_or_default()
    }

    pub(super) fn has_rows(&self) -> bool {
        self.oldest_row.is_some()
    }

    /// Periodically measures the age of the oldest row, which is the only sign of records that are never
    /// acknowledged, and advances the low watermark.
    pub async fn measure(&mut self, db: &mut PgConnection) -> anyhow::Result<()> {
        let behind = self.low_watermark.is_behind() || self.has_rows();
        let every = if behind { LAG_INTERVAL_BEHIND } else { LAG_INTERVAL };
        if self.measured_at.is_some_and(|measured_at| measured_at.elapsed() < every) {
            return Ok(());
        }
        self.measured_at = Some(Instant::now());
        let writers =
            with_query_timeout(sqlx::query_scalar(OPEN_WRITERS_QUERY).fetch_all(&mut *db)).await?;
        let measured = sqlx::query_as(
            "select clock_timestamp(), oldest.position, oldest.occurred_at,
                    sequence::text, coalesce(pg_sequence_last_value(sequence), 0)
             from cast(pg_get_serial_sequence('chassis.outbox', 'position') as regclass) as sequence
             left join (select position, occurred_at from chassis.outbox where position > $1
                        order by position limit 1) as oldest on true",
        );
        let measured = measured.bind(self.low_watermark.get()).fetch_one(&mut *db);
        let measured = db::with_timeout(OUTBOX_SCAN_TIMEOUT, measured).await;
        let (now, position, occurred_at, sequence, drawn): LagRow =
            measured.context("the outbox could not be read")?;
        self.clock_offset = now - Utc::now();
        self.low_watermark.advance(writers, position);
        let low_watermark = self.low_watermark.get();
        if let Some(sequence) = sequence.filter(|_| drawn < low_watermark) {
            warn!("{sequence} was reset to {drawn}: it continues after {low_watermark}");
            let ahead = sqlx::query("select setval($1::text::regclass, $2)");
            let ahead = ahead.bind(sequence).bind(low_watermark).execute(db);
            if let Err(error) = with_query_timeout(ahead).await {
                warn!("the sequence of the outbox could not be set: {error}");
            }
            self.low_watermark.start_again();
        }
        self.oldest_row = position.map(|position| match self.oldest_row {
            Some((known, since)) if known == position => (position, since),
            _ => (position, Instant::now()),
        });
        // By the database's clock alone, a row that waits may seem new, or lie in the future.
        let age = occurred_at.map(|at| (now - at).to_std().unwrap_or_default());
        let known_for = self.oldest_row.map(|(_, since)| since.elapsed());
        let waits = age.max(known_for).unwrap_or_default();
        gauge!("outbox_oldest_seconds").set(waits.as_secs_f64());
        Ok(())
    }
}
