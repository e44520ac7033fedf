//! One valid event of each topic, for scenarios that write to a topic in place of its publisher.

use anyhow::{Context, Result};
use chassis::event::{Event, Topic};
use chrono::Utc;
use contracts::samples;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::http_client::Client;

/// The key of records that no service published. No order has it.
pub const POISON_KEY: &str = "stranger";

/// The body of a valid event of a topic, for an order that does not exist.
pub fn valid_body(topic: &Topic) -> Result<Vec<u8>> {
    samples::encode(topic.schema, valid_event(topic)?)
}

/// The same with another value of one field. A text that is no UUID may stand where the schema has one: Avro's wire
/// format knows texts alone.
pub fn body_with(topic: &Topic, field: &str, value: Value) -> Result<Vec<u8>> {
    let mut event = valid_event(topic)?;
    event[field] = value;
    let texts = topic.schema.replace(r#""logicalType": "uuid""#, r#""logicalType": "text""#);
    samples::encode(&texts, event)
}

/// An event that its schema yields, of this moment.
fn valid_event(topic: &Topic) -> Result<Value> {
    let mut event = samples::event(topic)?;
    event["occurred_at"] = json!(Utc::now().timestamp_micros());
    if let Some(currency) = event.get_mut("currency") {
        *currency = json!("EUR");
    }
    Ok(event)
}

/// The body of an event.
pub fn encode<E: Event>(event: E) -> Result<Vec<u8>> {
    Ok(E::topic().codec().encode(&event)?)
}

/// The envelope of a valid event.
pub fn valid_headers(topic: &Topic, event_id: Uuid) -> OwnedHeaders {
    let (id, source) = (event_id.to_string(), format!("/{}", topic.publisher));
    let time = Utc::now().to_rfc3339();
    [
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_type", topic.name),
        ("ce_source", &source),
        ("ce_time", &time),
        ("content-type", "application/avro"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ]
    .into_iter()
    .fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}

/// The id of a topic's schema in the registry.
pub async fn schema_id(client: &Client, topic: &Topic) -> Result<u32> {
    let url = format!("{}/subjects/{}/versions/latest", client.addresses.registry, topic.subject());
    let found: Value = client.get_url(&url).await?;
    u32::try_from(found["id"].as_u64().context("a version has an id")?).context("an id")
}
