//! Reads every record of every topic, without the chassis's consumer. `decoder.rs` decodes them.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use chassis::event::Topic;
use checker::envelope::Envelope;
use checker::record::{RecordPosition, UnknownRecord};
use checker::{WriterSchemas, read_topic};
use events::TOPICS;
use rdkafka::ClientConfig;
use rdkafka::message::Message;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::checker::balances::ItemDescription;
use crate::checker::content_hash;
use crate::checker::decoder::{RecordContent, decode_record};
use crate::checker::record::RecordSummary;
use crate::client::http_client::Client;

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
    let kafka = client.addresses.kafka.clone();
    let mut reading = TopicReader {
        snapshot: TopicsSnapshot { missing: positions, ..TopicsSnapshot::default() },
        schemas: client.addresses.writer_schemas()?,
    };
    tokio::task::spawn_blocking(move || {
        for topic in TOPICS {
            let read = reading.read_topic(&kafka, topic);
            read.with_context(|| format!("reading {}", topic.name))?;
        }
        Ok(reading.snapshot)
    })
    .await?
}

struct TopicReader {
    snapshot: TopicsSnapshot,
    schemas: WriterSchemas,
}

impl TopicReader {
    fn read_topic(&mut self, kafka: &ClientConfig, topic: &'static Topic) -> Result<()> {
        let watermarks =
            read_topic(kafka, topic, |position, message| self.add_record(position, message))?;
        let below = |position: &RecordPosition| {
            let (low, _) = watermarks[usize::try_from(position.partition).unwrap_or(0)];
            position.topic.name == topic.name && position.offset < low
        };
        self.snapshot.missing.retain(|position| !below(position));
        Ok(())
    }

    fn add_record(&mut self, position: RecordPosition, message: &impl Message) -> Result<()> {
        self.snapshot.records += 1;
        self.snapshot.missing.remove(&position);
        match self.decode(position, message)? {
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

    /// Decodes a record. The inner error is the reason why it is unknown.
    fn decode(
        &mut self,
        position: RecordPosition,
        message: &impl Message,
    ) -> Result<Result<(RecordSummary, RecordContent), String>> {
        let envelope = match Envelope::read(message) {
            Ok(envelope) => envelope,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(writer) = self.schemas.of_record(position.topic, &envelope)? else {
            return Ok(Err(format!("the registry has no schema {}", envelope.schema_id)));
        };
        let (body, key) = (envelope.body, envelope.key.unwrap_or_default());
        let decoded = match decode_record(position.topic, writer, body, key) {
            Ok(decoded) => decoded,
            Err(reason) => return Ok(Err(reason)),
        };
        let faults =
            envelope.faults(position.topic, &decoded.key, decoded.occurred_at, writer.codec());
        self.snapshot.envelope_faults.extend(faults.into_iter().map(|fault| (position, fault)));
        let republished = envelope.is_republished(&decoded.key);
        self.snapshot.republished += u64::from(republished);
        let (order_id, content_hash, personal_hashes) = match decoded.content {
            RecordContent::Order(order_id, content_hash, personal) => {
                (order_id, content_hash, personal)
            }
            _ => (Uuid::nil(), content_hash::hash(body), None),
        };
        let record = RecordSummary {
            order_id,
            event_id: envelope.event_id,
            position,
            content_hash,
            personal_hashes,
            trace_hash: content_hash::hash(&envelope.trace_id()),
            appended_ms: envelope.appended_ms(),
            republished,
        };
        Ok(Ok((record, decoded.content)))
    }
}

#[cfg(test)]
#[path = "topic_reader_tests.rs"]
mod tests;
