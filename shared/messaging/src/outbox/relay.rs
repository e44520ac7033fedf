//! The relay carries the outbox to Kafka.
//!
//! Promises: every row of the outbox reaches its topic at least once, and the records of one key are first
//! acknowledged in the order in which they were made. The promises rest on four rules. One relay per database is
//! active: it holds an advisory lock on the session with which it reads. At most one record of a key is
//! unacknowledged. A poll selects all rows that exist, not those after the last row that it read: rows become
//! visible in the order of commits, not of positions. The relay deletes exactly the rows that the broker
//! acknowledged, a little later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::gauge;
use rdkafka::ClientConfig;
use sqlx::{PgConnection, PgPool};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::db::lease::STATEMENT_TIMEOUT;
use crate::db::sequences;
use crate::event::Topic;
use crate::flow::backoff::RetryBackoff;
use crate::flow::heartbeat::Heartbeat;
use crate::flow::linger::AdaptiveLinger;
use crate::flow::wakeups::Wakeups;
use crate::kafka;
use crate::kafka::schema_registry::SchemaRegistryClient;
use crate::outbox::Carrier;
use crate::outbox::producer::Producer;
use crate::outbox::sender::{BATCH_ROWS_MAX, OutboxSender};
use crate::outbox::session;

/// A batch of at least this many rows counts as concurrent; see [`crate::flow::linger`].
const SIBLINGS_MIN: usize = 3;

/// The pause after a concurrent batch, unless the outbox has more rows than a batch. Delivery reports that arrive
/// meanwhile are handled afterwards, so the metric of a row's wait includes the pause.
const LINGER_PAUSE: Duration = Duration::from_millis(4);

/// How often to poll for rows of other replicas, which cannot wake this relay, while there is work.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The same while there is no work.
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// For how long after a poll that sent rows there is work.
const BUSY_PERIOD: Duration = Duration::from_secs(2);

/// The pause after a poll while topics back off, at least: such polls take longer.
const BACKOFF_POLL_INTERVAL_MIN: Duration = Duration::from_millis(250);

/// That pause, as a multiple of the time that the poll took.
const BACKOFF_POLL_FACTOR: u32 = 3;

/// That pause, at most: well within the time for which the session may be idle.
const BACKOFF_POLL_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// The pause before the relay starts again after a failure, or tries to get the lock again.
const LEADER_BACKOFF: RetryBackoff = RetryBackoff::constant(Duration::from_millis(1_500));

/// How long records in flight may take when the process ends: with the pause before it, less than
/// that time.
const FINAL_ACKS_TIMEOUT: Duration = Duration::from_secs(4);

const PRODUCER_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

fn backoff_poll_interval(took: Duration) -> Duration {
    (took * BACKOFF_POLL_FACTOR).clamp(BACKOFF_POLL_INTERVAL_MIN, BACKOFF_POLL_INTERVAL_MAX)
}

/// What may take the place of the relay.
pub(super) trait Successor: Send {
    /// Whether it is ready. It then carries what the broker has not acknowledged by the end of the relay.
    fn can_take_over(
        &mut self,
        db: &mut PgConnection,
    ) -> impl Future<Output = sqlx::Result<bool>> + Send;
}

/// Nothing does.
impl Successor for () {
    async fn can_take_over(&mut self, _: &mut PgConnection) -> sqlx::Result<bool> {
        Ok(false)
    }
}

/// One of the three loops of a service.
pub struct Relay {
    pub(super) service: &'static str,
    /// Its present value; it changes with the credentials.
    config: watch::Receiver<ClientConfig>,
    db: PgPool,
    pub(super) registry: Arc<SchemaRegistryClient>,
    wakeups: Arc<Wakeups>,
    pub(super) heartbeat: Heartbeat,
    pub(super) carrier: Carrier,
    /// The topics that the service publishes.
    pub(super) topics: Vec<&'static Topic>,
}

impl Relay {
    /// A relay of the outbox in `db`; `wakeups` wakes it after each commit of this process.
    pub fn new(
        service: &'static str,
        config: watch::Receiver<ClientConfig>,
        db: PgPool,
        registry: Arc<SchemaRegistryClient>,
        wakeups: Arc<Wakeups>,
        heartbeat: Heartbeat,
    ) -> Relay {
        let (carrier, topics) = (Carrier::Service, Vec::new());
        Relay { service, config, db, registry, wakeups, heartbeat, carrier, topics }
    }

    /// The same loop of a service that publishes these topics, by this carrier.
    pub fn carried_by(mut self, carrier: Carrier, topics: &[&'static Topic]) -> Relay {
        self.carrier = carrier;
        self.topics = topics.to_vec();
        self
    }

    /// Runs until stopped. After any failure it starts again, for ever.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            if let Err(error) = self.run_as_leader(&stop).await {
                warn!("the relay failed and is retried: {error:#}");
                self.wait_before_retry(&stop).await;
            }
        }
        Ok(())
    }

    /// Waits until it is the active relay, then relays until it is stopped or fails, or until its password for the
    /// database or its credentials for Kafka have changed.
    async fn run_as_leader(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut lease = session::open(&self.db).await?;
        let mut config = self.config.clone();
        let settings = config.borrow_and_update().clone();
        let opened_with = lease.opened_with.clone();
        let is_outdated = || {
            // Without a sender the credentials never change again.
            let has_new_credentials = config.has_changed().unwrap_or(false);
            has_new_credentials || !Arc::ptr_eq(&opened_with, &self.db.connect_options())
        };
        let waiting_since = Instant::now();
        while !lease.try_acquire().await? {
            gauge!("relay_active").set(0);
            // Another relay reports this gauge now, so its value of the time when this one was active must not
            // stay. Before that, this relay's own earlier session may still have the lock.
            if waiting_since.elapsed() > STATEMENT_TIMEOUT {
                self.report_nothing();
            }
            self.wait_before_retry(stop).await;
            if stop.is_cancelled() || is_outdated() {
                return Ok(());
            }
        }
        // This relay may have become active because the database failed over.
        sequences::advance_all(&self.db).await;
        let ended = self.lead(&mut lease.session, &settings, stop, &is_outdated).await;
        lease.close().await;
        ended
    }

    /// Relays until it is stopped or fails, or until the successor can take over. Returns whether it can: it is ready,
    /// and the broker has acknowledged every record.
    pub(super) async fn relay(
        &self,
        db: &mut PgConnection,
        settings: &ClientConfig,
        stop: &CancellationToken,
        is_outdated: &impl Fn() -> bool,
        successor: &mut impl Successor,
    ) -> anyhow::Result<bool> {
        let producer = Producer::new(self.service, settings)?;
        gauge!("relay_active").set(1);
        info!("the relay is active");
        let mut sender = OutboxSender::new(self.service, producer, &self.registry);
        let ended = self.relay_until_stopped(db, &mut sender, stop, is_outdated, successor).await;
        // The next active relay sends the records in flight again. This one may send nothing once it has lost the
        // lock, so it closes the producer before the session. Closing waits for librdkafka's threads and runs on
        // a separate thread: one of them may be resolving a name, which takes ten seconds and more without a
        // name server. That thread has no connection, so it can send none of its records, and drops them.
        let OutboxSender { producer, .. } = sender;
        let closed = kafka::close_in_background(Arc::new(producer));
        let closed = tokio::time::timeout(PRODUCER_CLOSE_TIMEOUT, closed).await;
        if closed.is_err() {
            warn!("the producer did not close in time");
        }
        self.wakeups.relay_backpressure.report_busy(false);
        gauge!("relay_active").set(0);
        // After a stop the next active relay reports the gauge. After a failure the value stays: if a relay fails
        // repeatedly, no other value would show that events wait.
        if ended.is_ok() {
            gauge!("outbox_oldest_seconds").set(0);
        }
        // A producer that is still closing may send, so the successor would not be the only one.
        Ok(ended? && closed.is_ok())
    }

    async fn relay_until_stopped(
        &self,
        db: &mut PgConnection,
        sender: &mut OutboxSender<'_>,
        stop: &CancellationToken,
        is_outdated: &impl Fn() -> bool,
        successor: &mut impl Successor,
    ) -> anyhow::Result<bool> {
        let mut successor_is_ready = false;
        let mut worked_at = Instant::now();
        let mut linger = AdaptiveLinger::new(SIBLINGS_MIN);
        while !stop.is_cancelled() && !is_outdated() && !successor_is_ready {
            sender.check_producer()?;
            self.heartbeat.beat();
            sender.lag.measure(db).await?;
            self.heartbeat.beat();
            let limit = if sender.in_flight.is_full() { 0 } else { BATCH_ROWS_MAX };
            let began = Instant::now();
            let sent = sender.send_batch(db, limit).await?;
            let took = began.elapsed();
            linger.record_batch(sent);
            self.wakeups.relay_backpressure.report_busy(sender.has_more());
            if sent > 0 {
                worked_at = Instant::now();
            }
            if sender.has_more() {
                continue;
            }
            if !sender.has_backoff() {
                successor_is_ready = successor.can_take_over(db).await?;
            }
            // A poll that found nothing was late by itself: the next commit must not wait for a pause as well.
            if sent > 0 {
                linger.pause(LINGER_PAUSE).await;
            }
            let poll = match worked_at.elapsed() < BUSY_PERIOD {
                _ if sender.has_backoff() => backoff_poll_interval(took),
                true => BUSY_POLL_INTERVAL,
                false => IDLE_POLL_INTERVAL,
            };
            let poll = tokio::time::Instant::now() + poll;
            loop {
                tokio::select! {
                    Some(report) = sender.producer.next_report() => {
                        sender.on_delivery(report)?;
                        if sender.should_poll() {
                            break;
                        }
                    }
                    () = self.wakeups.relay.notified(), if !sender.has_backoff() => break,
                    () = tokio::time::sleep_until(poll) => break,
                    () = stop.cancelled() => break,
                }
            }
        }
        let last = tokio::time::Instant::now() + FINAL_ACKS_TIMEOUT;
        while !sender.in_flight.is_empty() {
            match tokio::time::timeout_at(last, sender.producer.next_report()).await {
                Ok(Some(report)) => sender.on_delivery(report)?,
                Ok(None) | Err(_) => break,
            }
        }
        let all_acknowledged = sender.in_flight.is_empty();
        sender.send_batch(db, 0).await?;
        Ok(successor_is_ready && all_acknowledged)
    }

    async fn wait_before_retry(&self, stop: &CancellationToken) {
        self.heartbeat.beat();
        stop.run_until_cancelled(tokio::time::sleep(LEADER_BACKOFF.pause_after(1))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::lease::SESSION_IDLE_TIMEOUT;
    use crate::kafka::schema_registry;

    #[test]
    fn no_poll_interval_outlasts_the_session_or_the_heartbeat() {
        let idle_max =
            Duration::from_secs(SESSION_IDLE_TIMEOUT.trim_end_matches('s').parse().unwrap());
        for took in [0, 1, 4, 30].map(Duration::from_secs) {
            let rest = backoff_poll_interval(took);
            assert!(rest >= BACKOFF_POLL_INTERVAL_MIN);
            // The wait for a registry that does not answer lies between the poll and the pause.
            assert!(schema_registry::REQUEST_TIMEOUT + rest < idle_max, "{rest:?} after {took:?}");
            // When the process ends, the session is idle until the last records are acknowledged.
            assert!(rest + FINAL_ACKS_TIMEOUT < idle_max, "{rest:?} after {took:?}");
        }
    }
}
