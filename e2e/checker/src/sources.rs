//! Connections to everything that the checker reads: a database of each service and a Kafka client of
//! each consumer group. It only reads, and no client joins its group.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use chassis::event::{Subscriptions, Topic};
use futures::stream::StreamExt;
use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use crate::dead_letters::DeadLetter;
use crate::format::group_digits;
use crate::kafka;
use crate::record::RecordPosition;

/// The services and topics of a stack, and where they are.
#[derive(Clone, Debug)]
pub struct System {
    /// Every topic, as the services declare it.
    pub topics: &'static [&'static Topic],
    /// Which of them each service consumes, as its handlers say.
    pub subscriptions: Subscriptions,
    /// The URL of each service's database, by the service's name, as a role that may read it. A
    /// publisher or subscriber that is not among them, as that of another repository, is not checked.
    pub databases: BTreeMap<&'static str, String>,
    /// The settings of a client of Kafka that may read everything.
    pub kafka: ClientConfig,
    /// The URL of the schema registry, in the format of Confluent's.
    pub registry: String,
    /// The certificate that the registry is checked against; without it, those of the system.
    pub registry_ca: Option<PathBuf>,
}

/// The open connections.
pub struct Sources {
    topics: &'static [&'static Topic],
    subscriptions: Subscriptions,
    databases: BTreeMap<&'static str, PgPool>,
    /// A client for each consumer group. It never joins the group.
    groups: HashMap<&'static str, BaseConsumer>,
}

impl Sources {
    /// Connects to the databases and Kafka.
    pub async fn connect(system: &System) -> Result<Sources> {
        let (mut databases, mut groups) = (BTreeMap::new(), HashMap::new());
        for (service, url) in &system.databases {
            let pool = PgPoolOptions::new()
                .max_connections(4)
                .acquire_timeout(Duration::from_secs(10))
                .connect(url)
                .await
                .with_context(|| format!("the database of {service} cannot be read"))?;
            databases.insert(*service, pool);
            groups.insert(*service, kafka::create_consumer(&system.kafka, service)?);
        }
        let subscriptions = system.subscriptions.clone();
        Ok(Sources { topics: system.topics, subscriptions, databases, groups })
    }

    /// The databases, by service.
    pub fn databases(&self) -> &BTreeMap<&'static str, PgPool> {
        &self.databases
    }

    /// The names of the services.
    pub fn services(&self) -> Vec<&'static str> {
        self.databases.keys().copied().collect()
    }

    /// The database of a service.
    ///
    /// # Panics
    /// If the system has no such service.
    pub fn db(&self, service: &str) -> &PgPool {
        &self.databases[service]
    }

    /// The high watermarks of all partitions of all topics. They change if anything is written.
    pub async fn end_offsets(&self) -> Result<Vec<i64>> {
        tokio::task::block_in_place(|| {
            let mut marks = Vec::new();
            for topic in self.topics {
                let all = kafka::watermarks(self.any_group()?, topic.name)?;
                marks.extend(all.into_iter().map(|(_, high)| high));
            }
            Ok(marks)
        })
    }

    /// The dead letters of this cluster, of all services.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        let cluster = tokio::task::block_in_place(|| kafka::cluster_id(self.any_group()?))?;
        let mut dead_letters = Vec::new();
        for (service, db) in &self.databases {
            let mut rows = sqlx::query_as::<_, (String, i32, i64, Vec<u8>, String, String)>(
                "select topic, partition, \"offset\", hash, state, reason
                 from chassis.dead_letters where cluster = $1",
            )
            .bind(&cluster)
            .fetch(db);
            while let Some(row) = rows.next().await {
                let (topic, partition, offset, hash, state, reason) = row?;
                let Some(topic) = self.topics.iter().find(|declared| declared.name == topic) else {
                    continue;
                };
                let position = RecordPosition { topic, partition, offset };
                let hash = hash.try_into().unwrap_or_default();
                dead_letters.push(DeadLetter { position, service, hash, state, reason });
            }
        }
        Ok(dead_letters)
    }

    /// The events that an operator discarded, of this cluster and of earlier ones.
    pub async fn discarded_events(&self) -> Result<HashSet<(&'static str, Uuid)>> {
        let mut discarded = HashSet::new();
        for (service, db) in &self.databases {
            let events = "select event_id from chassis.dead_letters
                          where state = 'discarded' and event_id is not null";
            let events: Vec<Uuid> = sqlx::query_scalar(events).fetch_all(db).await?;
            discarded.extend(events.into_iter().map(|event_id| (*service, event_id)));
        }
        Ok(discarded)
    }

    /// The largest difference between the append times of two brokers, in milliseconds.
    pub fn clock_skew_ms(&self) -> Result<i64> {
        let apart = tokio::task::block_in_place(|| kafka::clock_skew(self.any_group()?))?;
        Ok(i64::try_from(apart.as_millis())?)
    }

    /// The work that is still pending: events in outboxes, paused consumers and unread records, each
    /// as a text for users. It is empty in a quiescent stack.
    pub async fn pending_messages(&self) -> Result<Vec<String>> {
        let mut pending = Vec::new();
        for (service, db) in &self.databases {
            let waiting: i64 =
                sqlx::query_scalar("select count(*) from chassis.outbox").fetch_one(db).await?;
            if waiting > 0 {
                let waiting = group_digits(waiting);
                pending.push(format!("{waiting} events wait in the outbox of {service}"));
            }
            let paused = "select reason from chassis.consumer where paused_at is not null";
            let paused: Option<Option<String>> =
                sqlx::query_scalar(paused).fetch_optional(db).await?;
            if let Some(Some(reason)) = paused {
                pending.push(format!("the consumer of {service} is paused: {reason}"));
            }
        }
        pending.extend(tokio::task::block_in_place(|| self.unread_records())?);
        Ok(pending)
    }

    fn unread_records(&self) -> Result<Vec<String>> {
        let mut lags = Vec::new();
        for topic in self.topics {
            let subscribers = self.subscriptions.subscribers(topic);
            for (service, group) in self.groups.iter().filter(|(it, _)| subscribers.contains(it)) {
                let lag = kafka::lag(group, topic.name)?;
                if lag > 0 {
                    let (lag, topic) = (group_digits(lag), topic.name);
                    lags.push(format!("{service} has {lag} records of {topic} to handle"));
                }
            }
        }
        Ok(lags)
    }

    fn any_group(&self) -> Result<&BaseConsumer> {
        self.groups.values().next().context("the system has no service")
    }
}
