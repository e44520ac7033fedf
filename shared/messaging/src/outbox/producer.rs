//! The relay's producer: each record that is sent yields one delivery report, which shows whether it is in a log.
//!
//! Promise: a record counts as written only if its delivery report has an offset. Without one it is possibly
//! persisted and is sent again. librdkafka's report alone is no proof: of two requests for a partition at the same
//! time, the first may be refused, because the log does not exist yet or the leader moves, and the second be
//! accepted. A broker up to Kafka 4.4 accepts any first sequence number of a producer that is new to a partition
//! (KIP-360, KAFKA-15591; a later one still does if the partition had records before). librdkafka assumes that a
//! broker accepts nothing out of order, and so reports the first record as delivered too, although it is in no log
//! (confluent-kafka-go's issue 921, and `rd_kafka_dr_implicit_ack`). It has no offset then.
//!
//! The `rdkafka` crate's `ThreadedProducer` wakes ten times a second and spins through the last millisecond of each
//! wait. Here one thread for each client waits for a second at a time, and a delivery report wakes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use opentelemetry::Context;
use opentelemetry::trace::{Status, TraceContextExt};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::{ClientConfig, ClientContext, Statistics};
use tokio::sync::mpsc;

use crate::kafka;
use crate::kafka::client_health::ClientHealth;
use crate::outbox::query::OutboxRow;

/// How long the polling thread waits at a time; it ends within this time after the producer is dropped.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);

/// A record in flight, with the row from which it was made.
#[derive(Debug)]
pub struct InFlight {
    pub position: i64,
    pub topic: String,
    pub key: String,
    pub occurred_at: DateTime<Utc>,
    pub sent_at: Instant,
    /// The number of the poll that selected it.
    pub poll: u64,
    /// Ends when it is dropped, after its delivery report.
    pub span: Option<Context>,
}

impl InFlight {
    /// Its record is sent again, and that is another span.
    pub fn mark_span_as_failed(&self) {
        if let Some(span) = &self.span {
            span.span().set_status(Status::error(""));
        }
    }
}

pub enum DeliveryStatus {
    /// It is in a log: the broker returned its offset, or reported a duplicate.
    Persisted,
    /// The client assumes that it was written, because a later record of its partition was: it may be in no log.
    PossiblyPersisted,
    NotPersisted(KafkaError),
}

/// A record that is not in flight any more.
pub(crate) type DeliveryReport = (InFlight, DeliveryStatus);

/// The client of the producer that sends a record.
#[derive(Clone, Copy, PartialEq)]
pub enum Client {
    /// Collects the records of a batch for a moment, so that they share requests.
    Batching,
    /// Sends a record at once. A record that comes alone shares no request, so it would wait for nothing.
    Prompt,
}

impl Client {
    pub(crate) fn for_rows(is_alone: bool) -> Client {
        if is_alone { Client::Prompt } else { Client::Batching }
    }
}

/// The clients and the channel of their delivery reports. There is one report for each record in flight, which bounds
/// the channel.
pub struct Producer {
    batching: Arc<KafkaClient>,
    prompt: Arc<KafkaClient>,
    reports: mpsc::UnboundedReceiver<DeliveryReport>,
}

type KafkaClient = BaseProducer<DeliveryContext>;

struct DeliveryContext {
    reports: mpsc::UnboundedSender<DeliveryReport>,
    health: ClientHealth,
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        self.health.on_log(level, kind, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.health.on_error(&error, text);
    }

    fn stats(&self, statistics: Statistics) {
        self.health.on_statistics(&statistics);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, flight: Box<InFlight>) {
        let status = match result {
            Ok(record) if record.offset() < 0 => DeliveryStatus::PossiblyPersisted,
            Ok(_) => DeliveryStatus::Persisted,
            Err((error, _)) => DeliveryStatus::NotPersisted(error.clone()),
        };
        // The receiver is gone once the producer is dropped.
        let _ = self.reports.send((*flight, status));
    }
}

impl Producer {
    pub fn new(service: &str, connection: &ClientConfig) -> anyhow::Result<Producer> {
        Producer::with_settings(&kafka::producer_config(service, connection))
    }

    /// A producer whose batches wait as these settings say.
    pub fn with_settings(batching: &ClientConfig) -> anyhow::Result<Producer> {
        let (sender, reports) = mpsc::unbounded_channel();
        let mut prompt = batching.clone();
        prompt.set("linger.ms", "0");
        let (batching, prompt) = (open(batching, &sender)?, open(&prompt, &sender)?);
        Ok(Producer { batching, prompt, reports })
    }

    /// Hands a record to a client, or returns the error at once.
    pub(crate) fn send(
        &self,
        client: Client,
        row: &OutboxRow,
        record: &[u8],
        headers: OwnedHeaders,
        flight: InFlight,
    ) -> Result<(), (KafkaError, Box<InFlight>)> {
        let record = BaseRecord::with_opaque_to(&row.topic, Box::new(flight))
            .key(&row.key)
            .payload(record)
            .headers(headers);
        let client = match client {
            Client::Batching => &self.batching,
            Client::Prompt => &self.prompt,
        };
        client.send(record).map_err(|(error, record)| (error, record.delivery_opaque))
    }

    pub async fn next_report(&mut self) -> Option<DeliveryReport> {
        self.reports.recv().await
    }

    pub(crate) fn try_next_report(&mut self) -> Option<DeliveryReport> {
        self.reports.try_recv().ok()
    }

    /// Whether another cluster answers than the one to which this producer connected first.
    pub(crate) fn cluster_changed(&self) -> bool {
        self.clients().any(|client| client.context().health.cluster_changed())
    }

    pub(crate) fn fatal_reason(&self) -> Option<String> {
        self.clients().find_map(|client| {
            let fatal_error = || {
                let (code, reason) = client.client().fatal_error()?;
                Some(format!("{reason} ({code})"))
            };
            client.context().health.fatal_reason().map(str::to_owned).or_else(fatal_error)
        })
    }

    fn clients(&self) -> impl Iterator<Item = &Arc<KafkaClient>> {
        [&self.batching, &self.prompt].into_iter()
    }
}

/// A client, and the thread that polls it.
fn open(
    settings: &ClientConfig,
    reports: &mpsc::UnboundedSender<DeliveryReport>,
) -> anyhow::Result<Arc<KafkaClient>> {
    let context = DeliveryContext { reports: reports.clone(), health: ClientHealth::default() };
    let client: Arc<KafkaClient> = Arc::new(settings.create_with_context(context)?);
    let polled = Arc::downgrade(&client);
    std::thread::Builder::new().name("producer".into()).spawn(move || {
        while let Some(client) = polled.upgrade() {
            client.poll(POLL_TIMEOUT);
        }
    })?;
    Ok(client)
}

impl Drop for Producer {
    /// Drops the records in flight that were not sent yet.
    fn drop(&mut self) {
        for client in self.clients() {
            client.purge(PurgeConfig::default().queue().inflight());
        }
    }
}
