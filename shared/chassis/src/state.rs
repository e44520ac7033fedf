//! A topic of state, read from its first record to its end by a client of its own: for a read model
//! that is to be made anew.
//!
//! Promise: what is answered ends no sooner than the topic did when that was asked for. It is broken
//! by taking a high watermark, or a client's word, from before the question. Memory is bounded by
//! one page.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tracing::warn;

use crate::avro::unframe;
use crate::config::Kafka;
use crate::event::{Event, Retention};
use crate::kafka;
use crate::registry::{Known, Registry};
use crate::route::schema_id;

/// Records read at a time.
const PAGE: usize = 500;

/// Bytes of their bodies, about: with the last one it may be more.
const PAGE_BYTES: usize = 1024 * 1024;

/// Whoever waits for us may hold locks; so long for one record, or for an answer.
const SILENT_MAX: Duration = Duration::from_secs(4);

/// Where a topic of state can be read.
#[derive(Clone)]
pub struct StateTopic<E> {
    service: &'static str,
    config: Kafka,
    registry: Arc<Registry>,
    of: PhantomData<fn() -> E>,
}

/// Such a topic while it is read.
pub struct Reading<E> {
    client: Client,
    registry: Arc<Registry>,
    /// Where to go on, by partition.
    next: HashMap<i32, Offset>,
    /// Partitions whose ends were not reached yet.
    open: HashSet<i32>,
    of: PhantomData<fn() -> E>,
}

/// A record of a topic of state.
pub struct Record<E> {
    /// Where it lies: of two with one key, the later one is known only in the same partition.
    pub partition: i32,
    /// Whose it is; empty where it does not say.
    pub key: String,
    /// What is said under this key.
    pub says: Says<E>,
}

/// What a record says.
pub enum Says<E> {
    /// This.
    Event(E),
    /// What can't be read here.
    Unreadable,
    /// That there is nothing, which no publisher of events says.
    Nothing,
}

/// Hears why something failed; whoever reads is answered only what did. Each end of a partition comes as an
/// error too.
struct Told;

impl ClientContext for Told {
    fn error(&self, error: KafkaError, because: &str) {
        if error != KafkaError::Global(RDKafkaErrorCode::PartitionEOF) {
            warn!("Kafka's client: {error}: {because}");
        }
    }
}

impl ConsumerContext for Told {}

/// `None` once it is dropped.
struct Client(Option<Arc<StreamConsumer<Told>>>);

impl Deref for Client {
    type Target = Arc<StreamConsumer<Told>>;

    fn deref(&self) -> &Arc<StreamConsumer<Told>> {
        self.0.as_ref().expect("it is not dropped yet")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(kafka::closed(client));
        }
    }
}

impl<E: Event> StateTopic<E> {
    /// A handle; nothing is connected yet.
    ///
    /// # Panics
    /// If the topic forgets records by time: then its end says nothing of the whole.
    pub(crate) fn new(
        service: &'static str,
        config: &Kafka,
        registry: Arc<Registry>,
    ) -> StateTopic<E> {
        assert!(E::topic().retention == Retention::Compact, "{:?} is no state", E::topic());
        StateTopic { service, config: config.clone(), registry, of: PhantomData }
    }

    /// Begins with the first record.
    ///
    /// # Errors
    /// If no client can be made, if Kafka does not answer within 4 s, or if there is no such topic.
    pub async fn read(&self) -> anyhow::Result<Reading<E>> {
        let mut client = kafka::client(self.service, &self.config);
        kafka::fetching_little(&mut client);
        let client = Client(Some(Arc::new(
            client
                // A name that librdkafka asks for; the group is never joined, and nothing committed.
                .set("group.id", format!("{}-rebuild", self.service))
                .set("enable.auto.commit", "false")
                .set("enable.partition.eof", "true")
                .set("auto.offset.reset", "earliest")
                .set("isolation.level", kafka::level(E::topic().isolation))
                .set("check.crcs", "true")
                .set("allow.auto.create.topics", "false")
                // The end is told when a fetch comes back empty.
                .set("fetch.wait.max.ms", "20")
                .set_log_level(RDKafkaLogLevel::Error)
                .create_with_context(Told)?,
        )));
        let (asked, topic) = (Arc::clone(&client), E::topic().name);
        let metadata =
            tokio::task::spawn_blocking(move || asked.fetch_metadata(Some(topic), SILENT_MAX))
                .await?
                .context("Kafka does not answer")?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let next: HashMap<i32, Offset> = partitions.map(|p| (p.id(), Offset::Beginning)).collect();
        ensure!(!next.is_empty(), "there is no topic {topic}");
        let (registry, open) = (self.registry.clone(), HashSet::new());
        let mut reading = Reading { client, registry, next, open, of: PhantomData };
        reading.go_on()?;
        // Whoever asks for this may have mended the registry a moment ago.
        reading.registry.forget_unknown();
        Ok(reading)
    }
}

impl<E: Event> Reading<E> {
    /// The next records, in the order in which each partition has them; `None` at the end.
    ///
    /// # Errors
    /// If Kafka says nothing for 4 s or answers with an error, or if the registry does not answer.
    /// The reading is then of no more use: what it had read of this page is lost.
    pub async fn page(&mut self) -> anyhow::Result<Option<Vec<Record<E>>>> {
        let (mut messages, mut bytes) = (Vec::<OwnedMessage>::new(), 0);
        while messages.len() < PAGE && bytes < PAGE_BYTES && !self.open.is_empty() {
            let received = tokio::time::timeout(SILENT_MAX, self.client.recv()).await;
            match received.context("Kafka is silent")? {
                Ok(message) => {
                    let next = Offset::Offset(message.offset() + 1);
                    self.next.insert(message.partition(), next);
                    bytes += message.payload().map_or(0, <[u8]>::len);
                    messages.push(message.detach());
                }
                Err(KafkaError::PartitionEOF(partition)) => drop(self.open.remove(&partition)),
                Err(error) => return Err(error.into()),
            }
        }
        if messages.is_empty() {
            return Ok(None);
        }
        let schemas = self.registry.schemas_of(messages.iter().filter_map(schema_id)).await;
        for known in schemas.values() {
            if let Known::Unsettled(because) = known {
                bail!("{because}");
            }
        }
        let read = |payload: &[u8]| {
            let (id, body) = unframe(payload).ok()?;
            match &schemas[&id] {
                Known::Schema(written) => E::topic().codec().decode(written, body).ok(),
                Known::Unreadable(_) | Known::Unregistered(_) | Known::Unsettled(_) => None,
            }
        };
        let page = messages.iter().map(|message| Record {
            partition: message.partition(),
            key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
            says: match message.payload().map(read) {
                Some(Some(event)) => Says::Event(event),
                Some(None) => Says::Unreadable,
                None => Says::Nothing,
            },
        });
        Ok(Some(page.collect()))
    }

    /// Goes on where it is, up to the end that the topic has from now on.
    pub fn go_on(&mut self) -> anyhow::Result<()> {
        let mut places = TopicPartitionList::new();
        for (partition, next) in &self.next {
            places.add_partition_offset(E::topic().name, *partition, *next)?;
        }
        // Assigned anew, also where nothing moved: an end that was told before is forgotten.
        self.client.assign(&places)?;
        self.open = self.next.keys().copied().collect();
        Ok(())
    }
}
