//! The relay's producer: what is sent comes back once, and says whether it is in a log.
//!
//! That is so where the broker told its offset, and not yet where the client says that it was delivered: of
//! two requests for a partition that are under way at once, the first may be refused, for its log is not
//! there yet or its leader moves, and the second be taken. A broker up to Kafka 4.4 begins with whatever
//! sequence number a producer shows first that is new to a partition (KIP-360, KAFKA-15591; a later one still
//! does where the partition had records before). librdkafka knows that a broker takes nothing out of order,
//! and so takes the first for written too, which is in no log (confluent-kafka-go's issue 921, and
//! `rd_kafka_dr_implicit_ack`). It has no offset then.
//!
//! The `rdkafka` crate's own client of this kind wakes ten times a second, and spins through the last
//! millisecond of each wait: half a percent of a core for doing nothing. Here one thread waits for a
//! second at a time, and is woken by what comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::{ClientContext, Statistics};
use tokio::sync::mpsc;

use crate::config::Kafka;
use crate::kafka;
use crate::sayings::Sayings;

/// How long the serving thread waits at a time; it ends within this after the producer is dropped.
const POLL: Duration = Duration::from_secs(1);

/// A record on its way: the row it was made from.
#[derive(Debug)]
pub(crate) struct Flight {
    pub position: i64,
    pub topic: String,
    pub key: String,
    pub occurred_at: DateTime<Utc>,
    pub sent_at: Instant,
    /// The look that found it, by its number.
    pub look: u64,
}

/// What became of a record.
pub(crate) enum Fate {
    /// It is in a log: the broker told at which offset, or that it has it already.
    Acknowledged,
    /// The client takes it for written, since a later one of its partition was: it may be in no log.
    Supposed,
    /// It came back.
    Refused(KafkaError),
}

/// A record that is not under way any more.
pub(crate) type Landed = (Flight, Fate);

/// The client, and where its records come back. No more come back than were sent, which bounds the
/// channel.
pub(crate) struct Producer {
    client: Arc<BaseProducer<Reports>>,
    landed: mpsc::UnboundedReceiver<Landed>,
    ended: Arc<AtomicBool>,
}

struct Reports {
    landed: mpsc::UnboundedSender<Landed>,
    sayings: Sayings,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        self.sayings.say(level, kind, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.sayings.say(RDKafkaLogLevel::Error, &error.to_string(), text);
    }

    fn stats(&self, statistics: Statistics) {
        self.sayings.counted(&statistics);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Flight>;

    fn delivery(&self, result: &DeliveryResult<'_>, flight: Box<Flight>) {
        let fate = match result {
            Ok(record) if record.offset() < 0 => Fate::Supposed,
            Ok(_) => Fate::Acknowledged,
            Err((error, _)) => Fate::Refused(error.clone()),
        };
        // Nobody listens once the producer is dropped.
        let _ = self.landed.send((*flight, fate));
    }
}

impl Producer {
    pub(crate) fn new(service: &str, config: &Kafka) -> anyhow::Result<Producer> {
        let (sender, landed) = mpsc::unbounded_channel();
        let reports = Reports { landed: sender, sayings: Sayings::default() };
        let client: BaseProducer<Reports> =
            kafka::producer(service, config).create_with_context(reports)?;
        let (client, ended) = (Arc::new(client), Arc::new(AtomicBool::new(false)));
        let (served, over) = (client.clone(), ended.clone());
        std::thread::Builder::new().name("producer".into()).spawn(move || {
            while !over.load(Ordering::Relaxed) {
                served.poll(POLL);
            }
        })?;
        Ok(Producer { client, landed, ended })
    }

    /// Hands a record over, or says at once why not.
    pub(crate) fn send(
        &self,
        topic: &str,
        key: &str,
        record: &[u8],
        headers: OwnedHeaders,
        flight: Flight,
    ) -> Result<(), (KafkaError, Box<Flight>)> {
        let record = BaseRecord::with_opaque_to(topic, Box::new(flight))
            .key(key)
            .payload(record)
            .headers(headers);
        self.client.send(record).map_err(|(error, record)| (error, record.delivery_opaque))
    }

    /// The next record that came back; waits for it.
    pub(crate) async fn landed(&mut self) -> Option<Landed> {
        self.landed.recv().await
    }

    /// The next record that came back, if one has.
    pub(crate) fn landed_already(&mut self) -> Option<Landed> {
        self.landed.try_recv().ok()
    }

    /// Whether another cluster answers than the one this producer began with.
    pub(crate) fn cluster_replaced(&self) -> bool {
        self.client.context().sayings.cluster_replaced()
    }

    /// Why this producer is of no more use, if that is so.
    pub(crate) fn beyond_repair(&self) -> Option<String> {
        if let Some(because) = self.client.context().sayings.beyond_repair() {
            return Some(because.into());
        }
        let (code, because) = self.client.client().fatal_error()?;
        Some(format!("{because} ({code})"))
    }
}

impl Drop for Producer {
    /// What is in flight is not sent any more, where that can still be helped.
    fn drop(&mut self) {
        self.client.purge(PurgeConfig::default().queue().inflight());
        self.ended.store(true, Ordering::Relaxed);
    }
}
