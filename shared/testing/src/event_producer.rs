//! Events of other services, published by a test.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use chassis::event::Outgoing;
use chassis::event::avro::{dataschema, frame};
use chassis::{Event, Topic};
use chrono::Utc;
use messaging::outbox::query::{self, OutboxRow};
use rdkafka::message::{OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Timestamp};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_subject};
use schema_registry_converter::schema_registry_common::SubjectNameStrategy;
use tokio::sync::Mutex;
use uuid::Uuid;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Publishes events to a real Kafka in place of the service that publishes them, as its relay does: framed with the id
/// of their schema, and with the headers of CloudEvents.
pub struct EventProducer {
    producer: FutureProducer,
    registry: SrSettings,
    /// The id of each topic's schema.
    schema_ids: Mutex<HashMap<&'static str, u32>>,
}

impl EventProducer {
    /// A producer with these settings, `bootstrap.servers` among them, and this registry (a URL). It connects when it is first used.
    ///
    /// # Errors
    /// If a client cannot be made of these addresses.
    pub fn new(kafka: &ClientConfig, registry: &str) -> Result<EventProducer> {
        let producer = kafka
            .clone()
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", TIMEOUT.as_millis().to_string())
            .set("allow.auto.create.topics", "false")
            .create()?;
        let registry = SrSettings::new_builder(registry.to_owned()).no_proxy().build()?;
        Ok(EventProducer { producer, registry, schema_ids: Mutex::default() })
    }

    /// Publishes an event under a new id. Returns the id when Kafka has acknowledged the record, within 30 s.
    ///
    /// # Errors
    /// If the schema is not registered, or Kafka does not acknowledge the record in time. It may be in its topic
    /// nevertheless.
    pub async fn publish<E: Event>(&self, event: &E) -> Result<Uuid> {
        let event_id = Uuid::now_v7();
        self.publish_with_id(event_id, event).await?;
        Ok(event_id)
    }

    /// Publishes an event under this id: the same id twice is a duplicate.
    ///
    /// # Errors
    /// As for [`EventProducer::publish`].
    pub async fn publish_with_id<E: Event>(&self, event_id: Uuid, event: &E) -> Result<()> {
        let topic = E::topic();
        let payload = frame(self.schema_id(topic).await?, &topic.codec().encode(event)?);
        let (key, headers) = (event.key(), record_headers(topic, event_id));
        let record = FutureRecord::to(topic.name).key(&key).payload(&payload).headers(headers);
        let sent = self.producer.send(record, TIMEOUT).await.map_err(|(error, _)| error);
        sent.map(drop).with_context(|| format!("no record was written to {}", topic.name))
    }

    /// The id of a topic's newest schema, from the registry the first time.
    async fn schema_id(&self, topic: &'static Topic) -> Result<u32> {
        let mut known = self.schema_ids.lock().await;
        if let Some(id) = known.get(topic.name) {
            return Ok(*id);
        }
        let subject = SubjectNameStrategy::TopicNameStrategy(topic.name.to_owned(), false);
        let schema = get_schema_by_subject(&self.registry, &subject).await;
        let schema = schema.with_context(|| format!("{} is not registered", topic.subject()))?;
        known.insert(topic.name, schema.id);
        Ok(schema.id)
    }
}

/// The id of the schema in a record that was not in Kafka.
pub(crate) const SCHEMA_ID: u32 = 1;

/// The headers of an event that another service published now, as its relay makes them.
fn record_headers(topic: &Topic, event_id: Uuid) -> OwnedHeaders {
    // A trace of its own.
    let trace = Uuid::now_v7().simple().to_string();
    let row = OutboxRow {
        event_id,
        topic: topic.name.to_owned(),
        traceparent: Some(format!("00-{trace}-{}-01", &trace[16..])),
        occurred_at: Utc::now(),
        ..OutboxRow::default()
    };
    let dataschema = dataschema(topic.schema).expect("the schema is valid");
    query::record_headers(&format!("/{}", topic.publisher), &row, &dataschema)
}

/// An event as Kafka would deliver it.
pub(crate) fn kafka_record<E: Event>(id: Uuid, event: &E) -> OwnedMessage {
    let Outgoing { topic, key, body, .. } = Outgoing::from_event(event);
    let headers = record_headers(topic, id);
    let (payload, key) = (Some(frame(SCHEMA_ID, &body)), Some(key.into_bytes()));
    OwnedMessage::new(payload, key, topic.name.into(), Timestamp::NotAvailable, 0, 0, Some(headers))
}
