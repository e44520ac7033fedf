//! Finds the records of one order in every topic that keeps events.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context, Result};
use chassis::admin::republish;
use chassis::event::{Retention, Topic};
use checker::kafka;
use chrono::{DateTime, Utc};
use events::TOPICS;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use crate::stack_description::SERVICES;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A record of the order.
#[derive(Clone, Debug)]
pub struct TimelineRecord {
    pub partition: i32,
    pub offset: i64,
    pub appended_at: DateTime<Utc>,
    pub republished: bool,
    /// The subscribers whose committed offset is beyond it.
    pub committed_by: Vec<&'static str>,
}

/// The records of a key by event, from a time on.
pub fn find_records(
    kafka: &ClientConfig,
    key: &str,
    since: DateTime<Utc>,
) -> Result<HashMap<(&'static str, Uuid), Vec<TimelineRecord>>> {
    let mut found: HashMap<_, Vec<TimelineRecord>> = HashMap::new();
    let republished_trace = republish::traceparent(key);
    let client = kafka::create_consumer(kafka, "trail")?;
    for topic in TOPICS.into_iter().filter(|topic| topic.retention != Retention::Compact) {
        read_since(&client, topic, since, |message| {
            if message.key() != Some(key.as_bytes()) {
                return;
            }
            let Some(headers) = kafka::headers(message) else { return };
            let header = |name| {
                let header = headers.iter().find(|header| header.key == name)?;
                std::str::from_utf8(header.value?).ok()
            };
            let Some(event_id) = header("ce_id").and_then(|id| id.parse().ok()) else { return };
            let millis = message.timestamp().to_millis().unwrap_or_default();
            found.entry((topic.name, event_id)).or_default().push(TimelineRecord {
                partition: message.partition(),
                offset: message.offset(),
                appended_at: DateTime::from_timestamp_millis(millis).unwrap_or_default(),
                republished: header("traceparent") == Some(&*republished_trace),
                committed_by: Vec::new(),
            });
        })
        .with_context(|| format!("reading {}", topic.name))?;
    }
    // Offsets are read before the inboxes, so that the inbox contains each event below them.
    for service in SERVICES {
        let group = kafka::create_consumer(kafka, service)?;
        for topic in TOPICS.into_iter().filter(|topic| topic.subscribers.contains(&service)) {
            if !found.keys().any(|(name, _)| *name == topic.name) {
                continue;
            }
            let positions = kafka::group_positions(&group, topic.name)?;
            let of_topic = found.iter_mut().filter(|((name, _), _)| *name == topic.name);
            for record in of_topic.flat_map(|(_, records)| records) {
                let next =
                    usize::try_from(record.partition).ok().and_then(|nth| positions.get(nth));
                if next.is_some_and(|(next, _)| record.offset < *next) {
                    record.committed_by.push(service);
                }
            }
        }
    }
    // Partitions arrive in any order.
    found.values_mut().for_each(|records| records.sort_by_key(|it| (it.appended_at, it.offset)));
    Ok(found)
}

/// Reads a topic from a time to the end offsets at the start of this call.
fn read_since(
    client: &BaseConsumer,
    topic: &Topic,
    since: DateTime<Utc>,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<()> {
    let ends: BTreeMap<i32, i64> = (0..)
        .zip(kafka::watermarks(client, topic.name)?)
        .map(|(nth, (_, end))| (nth, end))
        .collect();
    let (mut times, mut start) = (TopicPartitionList::new(), TopicPartitionList::new());
    for partition in ends.keys() {
        let millis = Offset::Offset(since.timestamp_millis());
        times.add_partition_offset(topic.name, *partition, millis)?;
    }
    let mut unread = BTreeSet::new();
    for first in client.offsets_for_times(times, REQUEST_TIMEOUT)?.elements() {
        // There is no offset if no record was written since then.
        if let Offset::Offset(offset) = first.offset()
            && offset < ends[&first.partition()]
        {
            start.add_partition_offset(topic.name, first.partition(), first.offset())?;
            unread.insert(first.partition());
        }
    }
    client.assign(&start)?;
    while !unread.is_empty() {
        match client.poll(IDLE_TIMEOUT) {
            Some(Ok(message)) => {
                let end = ends[&message.partition()];
                if message.offset() < end {
                    each(&message);
                }
                if message.offset() + 1 >= end {
                    unread.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unread.remove(&partition);
            }
            Some(Err(error)) => return Err(error.into()),
            None => anyhow::bail!("Kafka does not answer"),
        }
    }
    // A consumer with an open fetch answers no other request meanwhile.
    Ok(client.unassign()?)
}
