//! Reads every record of a topic, from the first to the high watermark, without the chassis's
//! consumer.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Result, bail};
use chassis::event::Topic;
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::{create_consumer, watermarks};
use crate::record::RecordPosition;

/// A gap of this length before the high watermark is an error.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Calls `visit` for every record of a topic, in order within each partition. Returns the low and the
/// high watermark of each partition, as they were before. Blocks until the last record is read.
///
/// # Errors
/// If Kafka does not respond, the topic is missing, or `visit` fails.
pub fn read_topic(
    kafka: &ClientConfig,
    topic: &'static Topic,
    mut visit: impl FnMut(RecordPosition, &BorrowedMessage) -> Result<()>,
) -> Result<Vec<(i64, i64)>> {
    read_records(kafka, topic.name, |message| {
        let (partition, offset) = (message.partition(), message.offset());
        visit(RecordPosition { topic, partition, offset }, message)
    })
}

/// The same for a topic that is known by its name alone.
pub fn read_records(
    kafka: &ClientConfig,
    topic: &str,
    mut visit: impl FnMut(&BorrowedMessage) -> Result<()>,
) -> Result<Vec<(i64, i64)>> {
    let consumer = create_consumer(kafka, "verify")?;
    let watermarks = watermarks(&consumer, topic)?;
    let mut assigned = TopicPartitionList::new();
    let mut open = HashSet::new();
    for (partition, (low, high)) in (0..).zip(&watermarks) {
        if low < high {
            assigned.add_partition_offset(topic, partition, Offset::Offset(*low))?;
            open.insert(partition);
        }
    }
    consumer.assign(&assigned)?;
    while !open.is_empty() {
        let message = match consumer.poll(IDLE_TIMEOUT) {
            Some(Ok(message)) => message,
            // Also after a compacted last record.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
                continue;
            }
            Some(Err(error)) => return Err(error.into()),
            None => bail!("Kafka does not answer"),
        };
        let partition = message.partition();
        let (_, high) = watermarks[usize::try_from(partition)?];
        if message.offset() + 1 >= high {
            open.remove(&partition);
        }
        // A record after the high watermark may belong to work in progress.
        if message.offset() < high {
            visit(&message)?;
        }
    }
    Ok(watermarks)
}
