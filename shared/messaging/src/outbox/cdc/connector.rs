//! The connector that may carry the outbox in place of the relay. It reads the log of the database through a replication
//! slot; a trigger on the outbox makes the rows that it sees (`migrations/1_chassis.sql`).
//!
//! Promise: an event is carried by the relay or by the connector, and of one key the earlier event first. The loop that
//! holds the relay's lock switches the trigger, under a lock of the table. It does so only when its own records are
//! acknowledged, and it relays again only when the slot has confirmed all that was captured.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics::gauge;
use sqlx::PgConnection;
use tracing::{info, warn};

use crate::db::lease::with_query_timeout;

/// How often the slot is polled, and a heartbeat is written. A slot confirms a transaction when the next one arrives.
pub(super) const SLOT_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A slot that was absent or lost for so long does not come back by itself. After a failover the new primary may need a
/// moment until it has the slot.
const SLOT_GONE_AFTER: Duration = Duration::from_secs(15);

/// While the connector is so far behind, no more is handed to it in bulk: a slot that keeps too much of the log is lost.
pub const UNCONFIRMED_BYTES_MAX: i64 = 64 << 20;

/// Heartbeats whose confirmation is waited for, at most.
const HEARTBEATS_MAX: usize = 2_000;

/// The connector of one service, by its slot.
pub(super) struct Connector {
    slot: String,
    /// When the slot could last be read from, or when this began.
    slot_seen_at: Instant,
    polled_at: Option<Instant>,
    /// Whether it read the log when it was polled last, and how much it had not confirmed.
    is_active: bool,
    unconfirmed_bytes: i64,
    /// The heartbeats that the slot has not confirmed, by their position in the log. Beyond the bound the oldest stays
    /// and the newest are forgotten.
    heartbeats: VecDeque<(i64, Instant)>,
}

/// What the database knows of a slot that can be read. Positions count bytes of the log.
#[derive(sqlx::FromRow)]
struct SlotStatus {
    active: bool,
    confirmed: i64,
    lag_bytes: i64,
    /// How much may be written until the slot is lost, if that is bounded.
    free_bytes: Option<i64>,
}

impl Connector {
    pub fn new(service: &str) -> Connector {
        Connector {
            slot: format!("{service}_outbox"),
            slot_seen_at: Instant::now(),
            polled_at: None,
            is_active: false,
            unconfirmed_bytes: 0,
            heartbeats: VecDeque::new(),
        }
    }

    /// Whether the slot is read, at most once in its interval: the connector can take over then.
    pub async fn is_ready(&mut self, db: &mut PgConnection) -> sqlx::Result<bool> {
        if self.polled_at.is_some_and(|at| at.elapsed() < SLOT_POLL_INTERVAL) {
            return Ok(false);
        }
        self.polled_at = Some(Instant::now());
        let slot = self.status(db).await?;
        // The relay sends the events, so none waits for the connector.
        self.report(slot.as_ref(), Duration::ZERO);
        Ok(slot.is_some_and(|slot| slot.active))
    }

    /// Whether the connector reads the log and is not far behind, as of the last poll.
    pub fn keeps_up(&self) -> bool {
        self.is_active && self.unconfirmed_bytes <= UNCONFIRMED_BYTES_MAX
    }

    /// Hands everything to the connector that is in the outbox, and that is written from now on. Returns false if rows
    /// are left: then it has to be repeated.
    pub async fn hand_over(&self, db: &mut PgConnection) -> anyhow::Result<bool> {
        let hand_over = sqlx::query_scalar("select chassis.deliver_by_connector()").fetch_one(db);
        let done = with_query_timeout(hand_over).await;
        let done = done.context("the relay could not hand the outbox over to the connector")?;
        if done {
            info!("the connector carries the outbox");
        }
        Ok(done)
    }

    /// Takes back what is written from now on.
    pub async fn take_back(&self, db: &mut PgConnection) -> anyhow::Result<()> {
        let take_back = sqlx::query("select chassis.deliver_by_relay()").execute(db);
        let taken_back = with_query_timeout(take_back).await.map(drop);
        taken_back.context("the relay could not take over the outbox from the connector")
    }

    /// Whether all that was captured lies in Kafka, so that the relay may send. Without a slot nothing can be waited
    /// for.
    pub async fn is_drained(&mut self, db: &mut PgConnection) -> sqlx::Result<bool> {
        let drain_to = "select (drain_to - '0/0'::pg_lsn)::bigint from chassis.delivery";
        let drain_to = sqlx::query_scalar::<_, Option<i64>>(drain_to).fetch_one(&mut *db);
        let Some(drain_to) = with_query_timeout(drain_to).await? else { return Ok(true) };
        match self.status(db).await? {
            None => warn!(
                "the replication slot {} does not exist: republish the events that it may have lost",
                self.slot
            ),
            Some(slot) if slot.confirmed <= drain_to => {
                write_heartbeat(db).await?;
                return Ok(false);
            }
            Some(_) => {}
        }
        let forget = sqlx::query("update chassis.delivery set drain_to = null").execute(db);
        with_query_timeout(forget).await?;
        Ok(true)
    }

    /// Whether rows are in the outbox whose schemas have ids.
    pub async fn has_known_rows(&self, db: &mut PgConnection) -> sqlx::Result<bool> {
        let rows = "
            select exists (select from chassis.outbox join chassis.outbox_schema_ids known
                           on known.topic = outbox.topic and known.fingerprint = schema_fingerprint)";
        with_query_timeout(sqlx::query_scalar(rows).fetch_one(db)).await
    }

    /// Writes a heartbeat, and reports the lag of the slot.
    pub async fn measure(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        let slot = self.status(&mut *db).await?;
        if let Some(slot) = &slot {
            while self.heartbeats.front().is_some_and(|(position, _)| *position < slot.confirmed) {
                self.heartbeats.pop_front();
            }
        }
        let lag = self.heartbeats.front().map_or(Duration::ZERO, |(_, at)| at.elapsed());
        self.report(slot.as_ref(), lag);
        if slot.is_none() {
            return Ok(());
        }
        let written = write_heartbeat(db).await?;
        if self.heartbeats.len() < HEARTBEATS_MAX {
            self.heartbeats.push_back((written, Instant::now()));
        }
        Ok(())
    }

    /// Whether the slot is gone for good, as of the last measurement: what was captured since then is not kept.
    pub fn is_gone(&self) -> bool {
        self.slot_seen_at.elapsed() > SLOT_GONE_AFTER
    }

    /// `None` if there is no slot, or if it has lost its log.
    async fn status(&mut self, db: &mut PgConnection) -> sqlx::Result<Option<SlotStatus>> {
        let status = sqlx::query_as(
            "select active, (confirmed_flush_lsn - '0/0'::pg_lsn)::bigint as confirmed,
                    (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint as lag_bytes,
                    safe_wal_size as free_bytes
             from pg_replication_slots
             where slot_name = $1 and database = current_database()
               and confirmed_flush_lsn is not null and wal_status <> 'lost'",
        );
        let status: Option<SlotStatus> =
            with_query_timeout(status.bind(&self.slot).fetch_optional(db)).await?;
        self.is_active = status.as_ref().is_some_and(|slot| slot.active);
        if let Some(slot) = &status {
            (self.slot_seen_at, self.unconfirmed_bytes) = (Instant::now(), slot.lag_bytes);
        }
        Ok(status)
    }

    fn report(&self, slot: Option<&SlotStatus>, lag: Duration) {
        let missing = slot.map_or(self.slot_seen_at.elapsed(), |_| Duration::ZERO);
        gauge!("outbox_slot_active").set(u8::from(slot.is_some_and(|slot| slot.active)));
        gauge!("outbox_slot_missing_seconds").set(missing.as_secs_f64());
        gauge!("outbox_slot_lag_seconds").set(lag.as_secs_f64());
        let Some(slot) = slot else { return };
        gauge!("outbox_slot_lag_bytes").set(slot.lag_bytes as f64);
        if let Some(free) = slot.free_bytes {
            gauge!("outbox_slot_free_bytes").set(free as f64);
        }
    }
}

/// Another instance reports the slot from now on, or none does.
pub(super) fn report_nothing() {
    for zero in ["active", "missing_seconds", "lag_seconds", "lag_bytes"] {
        gauge!(format!("outbox_slot_{zero}")).set(0);
    }
    gauge!("outbox_slot_free_bytes").set(f64::INFINITY);
}

/// Writes a record whose confirmation tells how far the connector has come. Returns a position before it.
async fn write_heartbeat(db: &mut PgConnection) -> sqlx::Result<i64> {
    let written = "select (chassis.write_heartbeat() - '0/0'::pg_lsn)::bigint";
    with_query_timeout(sqlx::query_scalar(written).fetch_one(db)).await
}

pub async fn is_carrying(db: &mut PgConnection) -> sqlx::Result<bool> {
    let enabled = "select tgenabled <> 'D' from pg_trigger
                   where tgrelid = 'chassis.outbox'::regclass and tgname = 'capture_event'";
    with_query_timeout(sqlx::query_scalar(enabled).fetch_one(db)).await
}

/// How many bytes of the log the connector has not confirmed; 0 while the relay carries the outbox, and without a slot.
pub async fn unconfirmed_bytes(db: &mut PgConnection) -> sqlx::Result<i64> {
    let unconfirmed = "
        select coalesce(max(pg_current_wal_lsn() - confirmed_flush_lsn), 0)::bigint
        from pg_replication_slots, pg_trigger
        where database = current_database() and slot_name like '%\\_outbox' and wal_status <> 'lost'
          and tgrelid = 'chassis.outbox'::regclass and tgname = 'capture_event' and tgenabled <> 'D'";
    with_query_timeout(sqlx::query_scalar(unconfirmed).fetch_one(db)).await
}
