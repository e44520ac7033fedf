//! Reads every record of every topic, without the consumer of the chassis.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chassis::Topic;
use chrono::{DateTime, Utc};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A gap of this length before the high watermark is an error.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is kept of a record.
pub(crate) struct Record {
    pub topic: &'static str,
    pub partition: i32,
    pub offset: i64,
    /// `None` if it has no header `ce_id` with a UUID.
    pub event_id: Option<Uuid>,
    pub key_hash: u64,
    /// Of its body.
    pub hash: u64,
    /// The time of the decision, from its header.
    pub time: Option<DateTime<Utc>>,
}

impl Record {
    pub(crate) fn position(&self) -> (String, i32, i64) {
        (self.topic.to_owned(), self.partition, self.offset)
    }
}

impl Display for Record {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

/// A consumer that joins no group: the group of a service is only asked for its offsets.
fn consumer(kafka: &str, group: &str) -> Result<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_uncommitted")
        .set("allow.auto.create.topics", "false")
        .set_log_level(RDKafkaLogLevel::Critical)
        .create()?)
}

/// The lowest and the next offset of each partition.
fn watermarks(consumer: &BaseConsumer, topic: &str) -> Result<Vec<(i64, i64)>> {
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let of = |partition| Ok(consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT)?);
    (0..i32::try_from(partitions)?).map(of).collect()
}

/// The records that subscribers have not read, in words.
pub(crate) async fn find_lag(
    kafka: &str,
    topics: &'static [&'static Topic],
    services: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let (kafka, services) = (kafka.to_owned(), Vec::from_iter(services.keys().cloned()));
    tokio::task::spawn_blocking(move || {
        let mut unread = Vec::new();
        for service in &services {
            let group = consumer(&kafka, service)?;
            for topic in topics.iter().filter(|topic| topic.subscribers.contains(&service.as_str()))
            {
                let lag = lag(&group, topic.name)?;
                if lag > 0 {
                    unread.push(format!("{service} has {lag} records of {} to read", topic.name));
                }
            }
        }
        Ok(unread)
    })
    .await?
}

fn lag(group: &BaseConsumer, topic: &str) -> Result<i64> {
    let watermarks = watermarks(group, topic)?;
    let mut partitions = TopicPartitionList::new();
    (0..).zip(&watermarks).for_each(|(partition, _)| {
        partitions.add_partition(topic, partition);
    });
    let committed = group.committed_offsets(partitions, REQUEST_TIMEOUT)?;
    let mut lag = 0;
    for position in committed.elements() {
        let (low, high) = watermarks[usize::try_from(position.partition())?];
        lag += match position.offset() {
            Offset::Offset(next) => high - next.max(low),
            _ => high - low,
        };
    }
    Ok(lag)
}

/// Every record up to the high watermarks, partition by partition in the order of their offsets.
pub(crate) async fn read(kafka: &str, topics: &'static [&'static Topic]) -> Result<Vec<Record>> {
    let kafka = kafka.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut records = Vec::new();
        for topic in topics {
            let of_topic = read_topic(&kafka, topic.name);
            records.extend(of_topic.with_context(|| format!("{} cannot be read", topic.name))?);
        }
        records.sort_by_key(|record: &Record| (record.topic, record.partition, record.offset));
        Ok(records)
    })
    .await?
}

fn read_topic(kafka: &str, topic: &'static str) -> Result<Vec<Record>> {
    let consumer = consumer(kafka, "checker")?;
    let watermarks = watermarks(&consumer, topic)?;
    let (mut assigned, mut open) = (TopicPartitionList::new(), HashSet::new());
    for (partition, (low, high)) in (0..).zip(&watermarks) {
        if low < high {
            assigned.add_partition_offset(topic, partition, Offset::Offset(*low))?;
            open.insert(partition);
        }
    }
    consumer.assign(&assigned)?;
    let mut records = Vec::new();
    while !open.is_empty() {
        let message = match consumer.poll(IDLE_TIMEOUT) {
            Some(Ok(message)) => message,
            // Also after a last record that compaction removed.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
                continue;
            }
            Some(Err(error)) => return Err(error.into()),
            None => bail!("Kafka does not answer"),
        };
        let (_, high) = watermarks[usize::try_from(message.partition())?];
        if message.offset() + 1 >= high {
            open.remove(&message.partition());
        }
        // A record behind the high watermark may belong to work in progress.
        if message.offset() < high {
            records.push(summary(topic, &message));
        }
    }
    Ok(records)
}

fn summary(topic: &'static str, message: &impl Message) -> Record {
    let header = |name: &str| {
        let headers = message.headers()?;
        let value = headers.iter().find(|header| header.key == name)?.value?;
        std::str::from_utf8(value).ok()
    };
    Record {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        event_id: header("ce_id").and_then(|id| id.parse().ok()),
        key_hash: hash(message.key()),
        hash: hash(message.payload()),
        time: header("ce_time").and_then(|time| time.parse().ok()),
    }
}

fn hash(bytes: Option<&[u8]>) -> u64 {
    let hash = Sha256::digest(bytes.unwrap_or_default());
    u64::from_be_bytes(std::array::from_fn(|nth| hash[nth]))
}
