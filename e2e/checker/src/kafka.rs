//! Plain clients of Kafka, without code of the services: consumers, and queries of topics and groups.
//! Each call blocks for at most ten seconds, and fails if Kafka does not respond in that time.

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The assumed accuracy of the clocks of different machines that run brokers.
const CLOCK_SKEW_MAX: Duration = Duration::from_millis(500);

static SILENT_HOOK: Once = Once::new();

thread_local! {
    static READS_HEADERS: Cell<bool> = const { Cell::new(false) };
}

/// A consumer that reads every record, those of open transactions too. It never joins the group, whose
/// offsets it can query.
pub fn create_consumer(kafka: &ClientConfig, group: &str) -> Result<BaseConsumer> {
    let consumer = kafka
        .clone()
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

/// The low and the high watermark of each of a topic's partitions, by partition.
pub fn watermarks(client: &BaseConsumer, topic: &str) -> Result<Vec<(i64, i64)>> {
    let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    ensure!(partitions > 0, "there is no topic {topic}");
    let of = |partition| Ok(client.fetch_watermarks(topic, partition, REQUEST_TIMEOUT)?);
    (0..i32::try_from(partitions)?).map(of).collect()
}

/// The number of records of a topic that a group has not handled.
pub(crate) fn lag(group: &BaseConsumer, topic: &str) -> Result<i64> {
    Ok(group_positions(group, topic)?.iter().map(|(next, high)| high - next).sum())
}

/// For each partition: the offset of the first record that a group has not handled, and the high
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

/// The id of the Kafka cluster.
pub fn cluster_id(client: &BaseConsumer) -> Result<String> {
    client
        .client()
        .fetch_cluster_id(REQUEST_TIMEOUT)
        .context("Kafka does not report its cluster id")
}

/// The largest difference between the append times of two brokers: zero if they share a machine.
pub(crate) fn clock_skew(client: &BaseConsumer) -> Result<Duration> {
    let metadata = client.fetch_metadata(None, REQUEST_TIMEOUT)?;
    let machines: HashSet<&str> = metadata.brokers().iter().map(|broker| broker.host()).collect();
    Ok(if machines.len() > 1 { CLOCK_SKEW_MAX } else { Duration::ZERO })
}

/// The headers of a record; `None` if a name is not UTF-8. Kafka accepts any bytes as a name, and
/// librdkafka's wrapper panics for those. This function catches the panic without a report of it, so
/// every reader of headers uses it.
pub fn headers(message: &impl Message) -> Option<Vec<Header<'_, &[u8]>>> {
    SILENT_HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !READS_HEADERS.get() {
                report(panic);
            }
        }));
    });
    READS_HEADERS.set(true);
    let headers = message.headers();
    let read = || headers.into_iter().flat_map(Headers::iter).collect();
    let headers = catch_unwind(AssertUnwindSafe(read));
    READS_HEADERS.set(false);
    headers.ok()
}
