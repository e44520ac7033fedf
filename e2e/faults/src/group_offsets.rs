//! What other programs do to a consumer group and to its topics: join the group, commit its offsets, delete records.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

/// The end of each partition of a topic.
fn end_offsets(client: &BaseConsumer, topic: &str) -> Result<TopicPartitionList> {
    let metadata = client.fetch_metadata(Some(topic), KAFKA_TIMEOUT)?;
    let mut ends = TopicPartitionList::new();
    for partition in metadata.topics().first().context("the topic exists")?.partitions() {
        let (_, end) = client.fetch_watermarks(topic, partition.id(), KAFKA_TIMEOUT)?;
        ends.add_partition_offset(topic, partition.id(), Offset::Offset(end))?;
    }
    Ok(ends)
}

/// A program that reads a topic in the group of a service, and commits what it has read. It leaves when it is dropped.
pub struct Stranger(BaseConsumer);

impl Stranger {
    /// Joins the group.
    pub fn join(kafka: &ClientConfig, group: &str, topic: &str) -> Result<Stranger> {
        let client: BaseConsumer = kafka
            .clone()
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "200")
            .create()?;
        client.subscribe(&[topic])?;
        Ok(Stranger(client))
    }

    /// Reads until it has had this number of records.
    pub async fn read(self, records: usize, within: Duration) -> Result<Stranger> {
        spawn_blocking(move || {
            let deadline = std::time::Instant::now() + within;
            let mut read = 0;
            while read < records {
                ensure!(
                    std::time::Instant::now() < deadline,
                    "only {read} of {records} records arrived in time"
                );
                read += usize::from(matches!(self.0.poll(Duration::from_millis(200)), Some(Ok(_))));
            }
            Ok(self)
        })
        .await?
    }
}

/// Commits the ends of a topic for a group without members, as `--reset-offsets --to-latest` does.
///
/// # Errors
/// If Kafka refuses it, for instance because the group has a member.
pub async fn reset_to_end(kafka: &ClientConfig, group: &str, topic: &'static str) -> Result<()> {
    let mut kafka = kafka.clone();
    kafka.set("group.id", group);
    spawn_blocking(move || {
        let client: BaseConsumer = kafka.create()?;
        Ok(client.commit(&end_offsets(&client, topic)?, CommitMode::Sync)?)
    })
    .await?
}

/// Deletes every record of a topic, as its retention or a full disk may.
pub async fn delete_records(kafka: &ClientConfig, topic: &'static str) -> Result<()> {
    let mut reader = kafka.clone();
    reader.set("group.id", "ends");
    let ends = spawn_blocking(move || end_offsets(&reader.create()?, topic)).await??;
    let admin: AdminClient<DefaultClientContext> = kafka.create()?;
    for place in admin.delete_records(&ends, &AdminOptions::new()).await?.elements() {
        place.error()?;
    }
    Ok(())
}
