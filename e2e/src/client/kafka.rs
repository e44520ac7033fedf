//! Plain clients of Kafka, which share no code with the services: consumers, producers, admin clients, and
//! what they ask of a topic or of a group.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message};
use rdkafka::producer::FutureProducer;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::client::http_client::Client;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How well the clocks of machines that run brokers are set, at least.
const CLOCK_SKEW_MAX: Duration = Duration::from_millis(500);

/// A client of Kafka that belongs to no group of ours.
pub fn create_consumer(kafka: &str, group: &str) -> Result<BaseConsumer> {
    let consumer = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        .set("isolation.level", "read_uncommitted")
        .set("allow.auto.create.topics", "false")
        .set_log_level(RDKafkaLogLevel::Critical)
        .create()?;
    Ok(consumer)
}

/// How many partitions a topic has.
pub fn partition_count(client: &BaseConsumer, topic: &str) -> Result<i32> {
    let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    ensure!(partitions > 0, "there is no topic {topic}");
    Ok(i32::try_from(partitions)?)
}

/// The high watermarks of a topic's partitions, by their number.
pub fn watermarks(client: &BaseConsumer, topic: &str) -> Result<Vec<(i64, i64)>> {
    let partitions = partition_count(client, topic)?;
    let of = |partition| Ok(client.fetch_watermarks(topic, partition, REQUEST_TIMEOUT)?);
    (0..partitions).map(of).collect()
}

/// How many records of a topic a group has not handled yet.
pub fn lag(group: &BaseConsumer, topic: &str) -> Result<i64> {
    Ok(group_positions(group, topic)?.iter().map(|(next, high)| high - next).sum())
}

/// Of each partition, the offset of the first record that a group has not handled yet, and the high
/// watermark.
pub fn group_positions(group: &BaseConsumer, topic: &str) -> Result<Vec<(i64, i64)>> {
    let watermarks = watermarks(group, topic)?;
    let mut places = TopicPartitionList::new();
    for partition in 0..watermarks.len() {
        places.add_partition(topic, i32::try_from(partition)?);
    }
    let committed = group.committed_offsets(places, REQUEST_TIMEOUT)?;
    let committed = committed.elements();
    let positions = committed.iter().map(|place| {
        let (low, high) = watermarks[usize::try_from(place.partition()).unwrap_or(0)];
        match place.offset() {
            Offset::Offset(next) => (next.max(low), high),
            _ => (low, high),
        }
    });
    Ok(positions.collect())
}

pub fn cluster_id(client: &BaseConsumer) -> Result<String> {
    client
        .client()
        .fetch_cluster_id(REQUEST_TIMEOUT)
        .context("Kafka does not tell its cluster's id")
}

/// How far the times of arrival of two brokers may be apart: not at all where they share a machine.
pub fn clock_skew(client: &BaseConsumer) -> Result<Duration> {
    let metadata = client.fetch_metadata(None, REQUEST_TIMEOUT)?;
    let machines: HashSet<&str> = metadata.brokers().iter().map(|broker| broker.host()).collect();
    Ok(if machines.len() > 1 { CLOCK_SKEW_MAX } else { Duration::ZERO })
}

/// A record's headers; `None` where the name of one is no text. Kafka takes any bytes for a name,
/// and the client's library panics over those that are not UTF-8. The panic is caught here, so every
/// reader of headers uses this function.
pub fn headers(message: &impl Message) -> Option<Vec<Header<'_, &[u8]>>> {
    let headers = message.headers();
    let read = || headers.into_iter().flat_map(Headers::iter).collect();
    catch_unwind(AssertUnwindSafe(read)).ok()
}

pub fn create_producer(client: &Client) -> Result<FutureProducer> {
    let producer = ClientConfig::new()
        .set("bootstrap.servers", &client.addresses.kafka)
        .set("enable.idempotence", "true")
        // A key's records lie where its publisher writes them.
        .set("partitioner", "murmur2_random")
        .create()?;
    Ok(producer)
}

pub fn admin_client(client: &Client) -> Result<AdminClient<DefaultClientContext>> {
    let admin = ClientConfig::new().set("bootstrap.servers", &client.addresses.kafka).create()?;
    Ok(admin)
}
