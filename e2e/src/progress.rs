//! Whether every service makes progress, looked at from outside: as long as there is work for its
//! consumer or its relay, its offsets have to move and rows go out of its outbox.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use events::TOPICS;
use futures::future::try_join_all;
use rdkafka::consumer::BaseConsumer;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::client::Client;
use crate::topics;
use crate::topology::SERVICES;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Looks at all services for as long as it is polled.
pub struct Watch(Vec<Watched>);

/// The longest time for which a loop of a service had work and did not get on with it.
#[derive(Clone, Copy, Debug)]
pub struct Standstill {
    pub service: &'static str,
    pub consumer: Duration,
    pub relay: Duration,
    /// Of any one partition that it reads: as long as that had no owner, or longer.
    pub partition: Duration,
}

struct Watched {
    service: &'static str,
    db: PgConnection,
    group: Arc<BaseConsumer>,
    /// By the sum of its offsets.
    consumer: Clock<i64>,
    relay: Clock<i64>,
    /// By topic and number, each with the next offset to handle.
    partitions: HashMap<(&'static str, usize), Clock<i64>>,
}

/// Runs while there is work and its mark does not move.
struct Clock<M> {
    mark: Option<M>,
    since: Instant,
    longest: Duration,
}

impl<M: PartialEq> Clock<M> {
    fn new(mark: Option<M>) -> Clock<M> {
        Clock { mark, since: Instant::now(), longest: Duration::ZERO }
    }

    fn look(&mut self, has_work: bool, mark: Option<M>, now: Instant) {
        if !has_work || mark != self.mark {
            self.since = now;
        }
        self.mark = mark;
        self.longest = self.longest.max(now - self.since);
    }
}

impl Watch {
    pub async fn open(client: &Client) -> Result<Watch> {
        let watched = SERVICES.map(async |service| -> Result<Watched> {
            let db = PgConnection::connect(&client.addresses.databases[service]).await?;
            let group = Arc::new(topics::reader(&client.addresses.kafka, service)?);
            let (consumer, relay) = (Clock::new(None), Clock::new(None));
            Ok(Watched { service, db, group, consumer, relay, partitions: HashMap::new() })
        });
        Ok(Watch(try_join_all(watched).await?))
    }

    /// Ends only where something cannot be looked at.
    pub async fn run(&mut self) -> Result<()> {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            try_join_all(self.0.iter_mut().map(Watched::look)).await?;
        }
    }

    pub fn standstills(&self) -> Vec<Standstill> {
        let each = self.0.iter().map(|watched| Standstill {
            service: watched.service,
            consumer: watched.consumer.longest,
            relay: watched.relay.longest,
            partition: watched.longest_of_a_partition(),
        });
        each.collect()
    }
}

impl Watched {
    async fn look(&mut self) -> Result<()> {
        let (service, group) = (self.service, self.group.clone());
        let places = tokio::task::spawn_blocking(move || places(&group, service)).await??;
        // The oldest row that waits to go out.
        let waits: Option<i64> = sqlx::query_scalar("select min(position) from outbox")
            .fetch_one(&mut self.db)
            .await
            .with_context(|| format!("looking at {service}"))?;
        let now = Instant::now();
        let is_behind = places.iter().any(|place| place.next < place.high);
        self.consumer.look(is_behind, Some(places.iter().map(|place| place.next).sum()), now);
        self.relay.look(waits.is_some(), waits, now);
        for Place { topic, partition, next, high } in places {
            let clock = self.partitions.entry((topic, partition));
            clock.or_insert_with(|| Clock::new(None)).look(next < high, Some(next), now);
        }
        Ok(())
    }

    fn longest_of_a_partition(&self) -> Duration {
        self.partitions.values().map(|clock| clock.longest).max().unwrap_or_default()
    }
}

/// How far a service has come in one partition.
struct Place {
    topic: &'static str,
    partition: usize,
    next: i64,
    high: i64,
}

/// How far it has come in all that it hears.
fn places(group: &BaseConsumer, service: &str) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for topic in TOPICS.iter().filter(|topic| topic.subscribers.contains(&service)) {
        let behind = topics::behind(group, topic.name)?.into_iter().enumerate();
        let topic = topic.name;
        places.extend(behind.map(|(partition, (next, high))| Place {
            topic,
            partition,
            next,
            high,
        }));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_work_without_progress_and_idling_is_none() {
        let mut clock = Clock::new(Some(1));
        let began = clock.since;
        let at = |seconds| began + Duration::from_secs(seconds);
        clock.look(false, Some(1), at(10));
        assert_eq!(clock.longest, Duration::ZERO, "there was nothing to do");
        clock.look(true, Some(1), at(13));
        clock.look(true, Some(2), at(14));
        clock.look(true, Some(2), at(15));
        assert_eq!(clock.longest, Duration::from_secs(3));
        clock.look(true, Some(2), at(19));
        assert_eq!(clock.longest, Duration::from_secs(5));
    }
}
