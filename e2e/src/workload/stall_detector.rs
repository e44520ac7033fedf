//! Detects a service without progress: while its consumer or its relay has work, its offsets must
//! move and rows must leave its outbox.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use checker::kafka;
use declaration::SUBSCRIPTIONS;
use futures::future::try_join_all;
use rdkafka::consumer::BaseConsumer;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::client::http_client::Client;
use crate::stack_description::SERVICES;

const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Polls all services for as long as it is polled itself.
pub struct StallDetector(Vec<ServiceProgress>);

/// The longest time in which a loop of a service had work and made no progress.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    pub service: &'static str,
    pub consumer: Duration,
    pub relay: Duration,
    /// The longest stall of any partition that it reads, which includes the time without an owner.
    pub partition: Duration,
}

struct ServiceProgress {
    service: &'static str,
    db: PgConnection,
    group: Arc<BaseConsumer>,
    /// The sum of its offsets.
    consumer: StallClock<i64>,
    relay: StallClock<i64>,
    /// The next offset to handle, by topic and partition.
    partitions: HashMap<Partition, StallClock<i64>>,
}

/// Measures how long there has been work without progress.
struct StallClock<M> {
    position: Option<M>,
    since: Instant,
    longest: Duration,
}

impl<M: PartialEq> StallClock<M> {
    fn new(mark: Option<M>) -> StallClock<M> {
        StallClock { position: mark, since: Instant::now(), longest: Duration::ZERO }
    }

    fn observe(&mut self, has_work: bool, mark: Option<M>, now: Instant) {
        if !has_work || mark != self.position {
            self.since = now;
        }
        self.position = mark;
        self.longest = self.longest.max(now - self.since);
    }
}

impl StallDetector {
    pub async fn connect(client: &Client) -> Result<StallDetector> {
        let services = SERVICES.map(async |service| -> Result<ServiceProgress> {
            let db = PgConnection::connect(&client.addresses.databases[service]).await?;
            let group = Arc::new(kafka::create_consumer(&client.addresses.kafka, service)?);
            let (consumer, relay) = (StallClock::new(None), StallClock::new(None));
            Ok(ServiceProgress { service, db, group, consumer, relay, partitions: HashMap::new() })
        });
        Ok(StallDetector(try_join_all(services).await?))
    }

    /// Ends only with an error, if a service cannot be polled.
    pub async fn run(&mut self) -> Result<()> {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            try_join_all(self.0.iter_mut().map(ServiceProgress::poll)).await?;
        }
    }

    pub fn stalls(&self) -> Vec<Stall> {
        let each = self.0.iter().map(|watched| Stall {
            service: watched.service,
            consumer: watched.consumer.longest,
            relay: watched.relay.longest,
            partition: watched.longest_partition_stall(),
        });
        each.collect()
    }
}

impl ServiceProgress {
    async fn poll(&mut self) -> Result<()> {
        let (service, group) = (self.service, self.group.clone());
        let positions = tokio::task::spawn_blocking(move || positions(&group, service)).await??;
        // The oldest waiting row.
        let oldest_position: Option<i64> =
            sqlx::query_scalar("select min(position) from chassis.outbox")
                .fetch_one(&mut self.db)
                .await
                .with_context(|| format!("polling {service}"))?;
        let now = Instant::now();
        let is_behind = positions.iter().any(|(_, (next, high))| next < high);
        let sum = positions.iter().map(|(_, (next, _))| next).sum();
        self.consumer.observe(is_behind, Some(sum), now);
        self.relay.observe(oldest_position.is_some(), oldest_position, now);
        for (partition, (next, high)) in positions {
            let clock = self.partitions.entry(partition).or_insert_with(|| StallClock::new(None));
            clock.observe(next < high, Some(next), now);
        }
        Ok(())
    }

    fn longest_partition_stall(&self) -> Duration {
        self.partitions.values().map(|clock| clock.longest).max().unwrap_or_default()
    }
}

type Partition = (&'static str, usize);

/// For each partition of each topic that a service subscribes to: the next offset to handle, and the
/// high watermark.
fn positions(group: &BaseConsumer, service: &str) -> Result<Vec<(Partition, (i64, i64))>> {
    let mut positions = Vec::new();
    for topic in SUBSCRIPTIONS.topics(service) {
        let of_topic = kafka::group_positions(group, topic.name)?.into_iter().enumerate();
        positions.extend(of_topic.map(|(nth, position)| ((topic.name, nth), position)));
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_work_without_progress_and_idling_is_none() {
        let mut clock = StallClock::new(Some(1));
        let began = clock.since;
        let at = |seconds| began + Duration::from_secs(seconds);
        clock.observe(false, Some(1), at(10));
        assert_eq!(clock.longest, Duration::ZERO, "there was no work");
        clock.observe(true, Some(1), at(13));
        clock.observe(true, Some(2), at(14));
        clock.observe(true, Some(2), at(15));
        assert_eq!(clock.longest, Duration::from_secs(3));
        clock.observe(true, Some(2), at(19));
        assert_eq!(clock.longest, Duration::from_secs(5));
    }
}
