//! Reads every record of every topic, from the first to the high watermark, without the chassis's
//! consumer. `decoder.rs` decodes them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chassis::admin::republish;
use chassis::event::Topic;
use chassis::event::avro::unframe;
use chrono::{DateTime, Utc};
use events::TOPICS;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::checker::balances::ItemDescription;
use crate::checker::content_hash;
use crate::checker::decoder::{DecodedRecord, RecordContent, WriterSchema, decode_record};
use crate::checker::record::{self, RecordPosition, RecordSummary, UnknownRecord};
use crate::client::http_client::Client;
use crate::client::kafka::{create_consumer, headers, watermarks};

/// A gap of this length before the high watermark is an error.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// All records of all topics.
#[derive(Default)]
pub struct TopicsSnapshot {
    pub records: u64,
    /// How many of them an operator had republished.
    pub republished: u64,
    pub order_records: Vec<RecordSummary>,
    /// Events of topics that belong to no saga of an order: those of a fork.
    pub other_records: Vec<RecordSummary>,
    /// The newest record of each item, and the events of all.
    pub items: HashMap<String, (Uuid, ItemDescription)>,
    pub item_events: HashSet<Uuid>,
    /// Records of items that first arrived after a newer version.
    pub out_of_order: Vec<(RecordPosition, String)>,
    pub unknown: Vec<UnknownRecord>,
    /// Envelope errors of records that otherwise decode.
    pub envelope_faults: Vec<(RecordPosition, String)>,
    /// The requested positions without a record.
    pub missing: HashSet<RecordPosition>,
}

/// Reads every topic. Positions without a record are reported as missing.
pub async fn read_all(
    client: &Client,
    positions: HashSet<RecordPosition>,
) -> Result<TopicsSnapshot> {
    let (client, handle) = (client.clone(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let mut reading = TopicReader {
            snapshot: TopicsSnapshot { missing: positions, ..TopicsSnapshot::default() },
            schemas: HashMap::new(),
            client,
            handle,
        };
        for topic in TOPICS {
            reading.read_topic(topic).with_context(|| format!("reading {}", topic.name))?;
        }
        Ok(reading.snapshot)
    })
    .await?
}

struct TopicReader {
    snapshot: TopicsSnapshot,
    /// By schema id, as the registry has them; `None` where it has none.
    schemas: HashMap<u32, Option<WriterSchema>>,
    client: Client,
    handle: Handle,
}

impl TopicReader {
    fn read_topic(&mut self, topic: &'static Topic) -> Result<()> {
        let consumer = create_consumer(&self.client.addresses.kafka, "verify")?;
        let watermarks = watermarks(&consumer, topic.name)?;
        let number = record::topic_index(topic);
        let mut assigned = TopicPartitionList::new();
        let mut open = HashSet::new();
        for (partition, (low, high)) in (0..).zip(&watermarks) {
            if low < high {
                assigned.add_partition_offset(topic.name, partition, Offset::Offset(*low))?;
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
                let position =
                    RecordPosition { topic: number, partition, offset: message.offset() };
                self.add_record(topic, position, &message)?;
            }
        }
        let below = |position: &RecordPosition| {
            let (low, _) = watermarks[usize::try_from(position.partition).unwrap_or(0)];
            position.topic == number && position.offset < low
        };
        self.snapshot.missing.retain(|position| !below(position));
        Ok(())
    }

    fn add_record(
        &mut self,
        topic: &'static Topic,
        position: RecordPosition,
        message: &impl Message,
    ) -> Result<()> {
        self.snapshot.records += 1;
        self.snapshot.missing.remove(&position);
        if let Some(Ok((id, _))) = message.payload().map(unframe) {
            self.fetch_schema(id)?;
        }
        match self.decode(topic, position, message) {
            Ok((record, RecordContent::Order(..))) => self.snapshot.order_records.push(record),
            Ok((record, RecordContent::Other)) => self.snapshot.other_records.push(record),
            Ok((record, RecordContent::Item(item))) => {
                self.add_item(position, record.event_id, item)
            }
            Err(reason) => {
                let hash = Sha256::digest(message.payload().unwrap_or_default()).into();
                self.snapshot.unknown.push(UnknownRecord { position, hash, reason });
            }
        }
        Ok(())
    }

    /// An item's versions first arrive in ascending order. A duplicate may come later.
    fn add_item(&mut self, position: RecordPosition, event_id: Uuid, item: ItemDescription) {
        let is_first = self.snapshot.item_events.insert(event_id);
        let newest = self.snapshot.items.get(&item.sku);
        if let Some((_, newest)) = newest.filter(|(_, newest)| newest.version > item.version)
            && is_first
        {
            let what = format!("version {} came before {}", newest.version, item.version);
            self.snapshot.out_of_order.push((position, what));
        }
        self.snapshot.items.insert(item.sku.clone(), (event_id, item));
    }

    /// Reads a schema from the registry, once.
    fn fetch_schema(&mut self, id: u32) -> Result<()> {
        if self.schemas.contains_key(&id) {
            return Ok(());
        }
        let url = format!("{}/schemas/ids/{id}", self.client.addresses.registry);
        let asked = self.handle.block_on(self.client.send(reqwest::Method::GET, &url, None, None));
        let answer = asked.context("the registry does not answer")?;
        let writer = match answer.status {
            200 => {
                let found: Json = answer.json()?;
                let text =
                    found["schema"].as_str().context("the registry's answer has no schema")?;
                Some(WriterSchema::new(text)?)
            }
            404 => None,
            // A registry may answer otherwise for an id that is out of range.
            _ if i32::try_from(id).is_err() => None,
            _ => bail!("the registry answers {answer} for schema {id}"),
        };
        self.schemas.insert(id, writer);
        Ok(())
    }

    /// Decodes a record. The error is the reason why it is unknown.
    fn decode(
        &mut self,
        topic: &'static Topic,
        position: RecordPosition,
        message: &impl Message,
    ) -> Result<(RecordSummary, RecordContent), String> {
        let payload = message.payload().ok_or("it is empty")?;
        let (id, body) = unframe(payload).map_err(|error| error.0)?;
        let writer =
            self.schemas[&id].as_ref().ok_or(format!("the registry has no schema {id}"))?;
        let key = message.key().map(String::from_utf8_lossy);
        let decoded = decode_record(topic, writer, body, key.as_deref().unwrap_or_default())?;
        let headers = headers(message).ok_or("the name of a header is not text")?;
        let header = |name| {
            let header = headers.iter().find(|header| header.key == name)?;
            std::str::from_utf8(header.value?).ok()
        };
        let event_id = header("ce_id").ok_or("it has no ce_id")?;
        let event_id = Uuid::parse_str(event_id).map_err(|_| "its ce_id is not a UUID")?;

        let faults = envelope_faults(topic, key.as_deref(), &decoded, message.timestamp(), header);
        self.snapshot.envelope_faults.extend(faults.into_iter().map(|fault| (position, fault)));
        // The trace of a republished event is made from its key, and no other event has that trace.
        let republished = header("traceparent") == Some(&*republish::traceparent(&decoded.key));
        self.snapshot.republished += u64::from(republished);
        let trace_hash = content_hash::hash(&header("traceparent").and_then(trace_id));
        let appended_ms = message.timestamp().to_millis().unwrap_or_default();
        let (order_id, content_hash) = match decoded.content {
            RecordContent::Order(order_id, content_hash) => (order_id, content_hash),
            _ => (Uuid::nil(), content_hash::hash(body)),
        };
        let record = RecordSummary {
            order_id,
            event_id,
            position,
            content_hash,
            trace_hash,
            appended_ms,
            republished,
        };
        Ok((record, decoded.content))
    }
}

/// What is wrong with the key, the headers and the append time of a record that decodes.
fn envelope_faults<'a>(
    topic: &Topic,
    key: Option<&str>,
    decoded: &DecodedRecord,
    appended: Timestamp,
    header: impl Fn(&'static str) -> Option<&'a str>,
) -> Vec<String> {
    let mut faults = Vec::new();
    let mut must = |holds: bool, fault: String| {
        if !holds {
            faults.push(fault);
        }
    };
    must(key == Some(&*decoded.key), format!("its key is {key:?}, not {}", decoded.key));
    let source = format!("/{}", topic.publisher);
    for (name, value) in [
        ("ce_specversion", "1.0"),
        ("ce_type", topic.name),
        ("ce_source", &source),
        ("content-type", "application/avro"),
    ] {
        let is = header(name);
        must(is == Some(value), format!("{name} is {is:?}, not {value}"));
    }
    let (time, decided) = (header("ce_time"), decoded.occurred_at);
    let time = time.and_then(|time| time.parse::<DateTime<Utc>>().ok());
    must(time == Some(decided), format!("ce_time is {time:?}, not {decided}"));
    let trace = header("traceparent");
    must(trace.and_then(trace_id).is_some(), format!("its traceparent is {trace:?}"));
    // The order of arrival is checked with the append time of the broker. The publisher's clock
    // would give the time of sending.
    let is_brokers = matches!(appended, Timestamp::LogAppendTime(_));
    must(is_brokers, format!("its append time is not set by the broker: {appended:?}"));
    faults
}

/// The trace id of a W3C `traceparent`, if it is valid.
fn trace_id(traceparent: &str) -> Option<&str> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return None;
    };
    let hex = |text: &str, length| {
        text.len() == length
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let fits = version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    let set = |text: &str| text.bytes().any(|b| b != b'0');
    (fits && set(trace) && set(span)).then_some(trace)
}

#[cfg(test)]
#[path = "topic_reader_tests.rs"]
mod tests;
