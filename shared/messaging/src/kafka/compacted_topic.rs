//! A compacted topic, read from its first record to its end by a client of its own, to rebuild a read model.
//!
//! Promise: a snapshot reaches at least the end that the topic had when the snapshot was requested. Using a high
//! watermark, or the client's cached end, of an earlier time breaks that promise. Memory is bounded by one page.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::watch;
use tracing::warn;

use crate::event::avro::unframe;
use crate::event::{Event, Retention};
use crate::kafka;
use crate::kafka::record::{dataschema, has_event_id, schema_id};
use crate::kafka::schema_registry::{CachedSchema, SchemaRegistryClient};
use crate::telemetry::refusals;

/// Records read at a time.
const PAGE_RECORDS_MAX: usize = 500;

/// Bytes of their bodies, which the last record may exceed.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// How long to wait for one record, or for an answer: the caller may hold locks meanwhile.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(4);

/// A handle of a compacted topic.
#[derive(Clone)]
pub struct CompactedTopic<E> {
    service: &'static str,
    config: watch::Receiver<ClientConfig>,
    registry: Arc<SchemaRegistryClient>,
    marker: PhantomData<fn() -> E>,
}

/// A compacted topic while it is read.
pub struct SnapshotReader<E> {
    client: ClientGuard,
    registry: Arc<SchemaRegistryClient>,
    /// The next offset to read, by partition.
    next_offsets: HashMap<i32, Offset>,
    /// Partitions that were not read to their end yet.
    unfinished: HashSet<i32>,
    marker: PhantomData<fn() -> E>,
}

/// A record of a compacted topic.
pub struct SnapshotRecord<E> {
    /// Its partition. Which of two records with the same key is later is known only within a partition.
    pub partition: i32,
    /// Its key; empty if it has none.
    pub key: String,
    /// Its event, unless it has none or cannot be decoded here.
    pub event: Option<E>,
    /// Whether it is a tombstone, which no publisher of events writes.
    pub is_tombstone: bool,
}

/// Logs why the client failed: a read returns only that it failed. The end of a partition is reported as an error
/// too, and not logged.
struct LoggingContext;

impl ClientContext for LoggingContext {
    fn error(&self, error: KafkaError, because: &str) {
        if error != KafkaError::Global(RDKafkaErrorCode::PartitionEOF)
            && !refusals::report_kafka(&error, because)
        {
            warn!("Kafka's client: {error}: {because}");
        }
    }
}

impl ConsumerContext for LoggingContext {}

/// Closes the client in the background when it is dropped.
struct ClientGuard(Arc<StreamConsumer<LoggingContext>>);

impl Drop for ClientGuard {
    fn drop(&mut self) {
        drop(kafka::close_in_background(self.0.clone()));
    }
}

impl<E: Event> CompactedTopic<E> {
    /// A handle; nothing is connected yet.
    ///
    /// # Panics
    /// If the topic is not compacted: it may have lost the newest record of a key then.
    pub fn new(
        service: &'static str,
        config: watch::Receiver<ClientConfig>,
        registry: Arc<SchemaRegistryClient>,
    ) -> CompactedTopic<E> {
        assert!(E::topic().retention == Retention::Compact, "{:?} is not compacted", E::topic());
        CompactedTopic { service, config, registry, marker: PhantomData }
    }

    /// Begins a snapshot at the first record.
    ///
    /// # Errors
    /// If the client cannot be created, if Kafka does not answer within 4 s, or if the topic does not exist.
    pub async fn read(&self) -> anyhow::Result<SnapshotReader<E>> {
        let mut settings = kafka::client_config(self.service, &self.config.borrow());
        kafka::limit_fetch_memory(&mut settings);
        settings
            // librdkafka requires a group id; the client never joins the group and commits nothing.
            .set("group.id", format!("{}-rebuild", self.service))
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", kafka::isolation_level(E::topic().isolation))
            .set("check.crcs", "true")
            .set("allow.auto.create.topics", "false")
            // The client reports the end of a partition when a fetch returns no record.
            .set("fetch.wait.max.ms", "20")
            .set_log_level(RDKafkaLogLevel::Error);
        let client = ClientGuard(Arc::new(settings.create_with_context(LoggingContext)?));
        let topic = E::topic().name;
        let asked = client.0.clone();
        let metadata = move || asked.fetch_metadata(Some(topic), RESPONSE_TIMEOUT);
        let metadata = tokio::task::spawn_blocking(metadata).await?;
        let metadata = metadata.context("Kafka does not answer")?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let next_offsets: HashMap<i32, Offset> =
            partitions.map(|p| (p.id(), Offset::Beginning)).collect();
        ensure!(!next_offsets.is_empty(), "there is no topic {topic}");
        let (registry, unfinished) = (self.registry.clone(), HashSet::new());
        let mut reader =
            SnapshotReader { client, registry, next_offsets, unfinished, marker: PhantomData };
        reader.extend_to_end()?;
        // An operator may have repaired the registry a moment ago.
        reader.registry.evict_unresolved();
        Ok(reader)
    }
}

impl<E: Event> SnapshotReader<E> {
    /// The next records, in the order in which each partition has them; `None` at the end.
    ///
    /// # Errors
    /// If Kafka does not answer for 4 s or answers with an error, or if the registry does not answer. The reader
    /// must then be dropped: the records of this page are lost.
    pub async fn next_page(&mut self) -> anyhow::Result<Option<Vec<SnapshotRecord<E>>>> {
        let (mut messages, mut bytes) = (Vec::<OwnedMessage>::new(), 0);
        while messages.len() < PAGE_RECORDS_MAX
            && bytes < PAGE_BYTES_MAX
            && !self.unfinished.is_empty()
        {
            let received = tokio::time::timeout(RESPONSE_TIMEOUT, self.client.0.recv()).await;
            match received.context("Kafka sent no record in time")? {
                Ok(message) => {
                    let next = Offset::Offset(message.offset() + 1);
                    self.next_offsets.insert(message.partition(), next);
                    bytes += message.payload().map_or(0, <[u8]>::len);
                    messages.push(message.detach());
                }
                Err(KafkaError::PartitionEOF(partition)) => {
                    self.unfinished.remove(&partition);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if messages.is_empty() {
            return Ok(None);
        }
        let schemas = self.registry.get_schemas(messages.iter().filter_map(schema_id)).await;
        let mut page = Vec::with_capacity(messages.len());
        for message in &messages {
            let payload = match message.payload().map(unframe) {
                Some(Ok((id, body))) => match schemas.find(id, dataschema(message)) {
                    CachedSchema::Resolved(written) => {
                        E::topic().codec().decode(&written, body).ok()
                    }
                    CachedSchema::Unreadable(_) | CachedSchema::Unregistered(_) => None,
                    CachedSchema::Pending(because) | CachedSchema::Reassigned(_, because) => {
                        bail!("{because}")
                    }
                },
                Some(Err(_)) | None => None,
            };
            page.push(SnapshotRecord {
                partition: message.partition(),
                key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
                // Without an event id it is a dead letter of the consumer, and so it is no event here.
                event: payload.filter(|_| has_event_id(message)),
                is_tombstone: message.payload().is_none(),
            });
        }
        Ok(Some(page))
    }

    /// Continues from the current position to the end that the topic has now.
    pub fn extend_to_end(&mut self) -> anyhow::Result<()> {
        let mut places = TopicPartitionList::new();
        for (partition, next) in &self.next_offsets {
            places.add_partition_offset(E::topic().name, *partition, *next)?;
        }
        // A new assignment makes the client report the end of each partition again.
        self.client.0.assign(&places)?;
        self.unfinished = self.next_offsets.keys().copied().collect();
        Ok(())
    }
}
