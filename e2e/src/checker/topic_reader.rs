//! What is kept of the records of all topics. `decoder.rs` decodes them.

use std::collections::{HashMap, HashSet};

use checker::envelope::Envelope;
use checker::record::RecordPosition;
use checker::{KeepRecords, Topics, WriterSchema};
use uuid::Uuid;

use crate::checker::balances::ItemDescription;
use crate::checker::content_hash;
use crate::checker::decoder::{RecordContent, decode_record};
use crate::checker::record::RecordSummary;

/// All records of all topics.
pub type TopicsSnapshot = Topics<KeptRecords>;

/// The records that can be read.
#[derive(Debug, Default)]
pub struct KeptRecords {
    /// How many of them an operator had republished.
    pub republished: u64,
    pub of_orders: Vec<RecordSummary>,
    /// Events of topics that belong to no saga of an order: those of a fork.
    pub others: Vec<RecordSummary>,
    /// The newest record of each item, and the events of all.
    pub items: HashMap<String, (Uuid, ItemDescription)>,
    pub item_events: HashSet<Uuid>,
    /// Records of items that first arrived after a newer version.
    pub out_of_order: Vec<(RecordPosition, String)>,
    /// Envelope errors of records that otherwise decode.
    pub envelope_faults: Vec<(RecordPosition, String)>,
}

impl KeepRecords for KeptRecords {
    fn keep(
        &mut self,
        position: RecordPosition,
        envelope: &Envelope<'_>,
        schema: &WriterSchema,
    ) -> Result<(), String> {
        let (body, key) = (envelope.body, envelope.key.unwrap_or_default());
        let decoded = decode_record(position.topic, schema, body, key)?;
        let faults =
            envelope.faults(position.topic, &decoded.key, decoded.occurred_at, schema.codec());
        self.envelope_faults.extend(faults.into_iter().map(|fault| (position, fault)));
        let republished = envelope.is_republished(&decoded.key);
        self.republished += u64::from(republished);
        let record = RecordSummary {
            order_id: Uuid::nil(),
            event_id: envelope.event_id,
            position,
            content_hash: content_hash::hash(body),
            personal_hashes: None,
            trace_hash: content_hash::hash(&envelope.trace_id()),
            appended_ms: envelope.appended_ms(),
            republished,
        };
        match decoded.content {
            RecordContent::Order(order_id, content_hash, personal_hashes) => {
                let record = RecordSummary { order_id, content_hash, personal_hashes, ..record };
                self.of_orders.push(record);
            }
            RecordContent::Other => self.others.push(record),
            RecordContent::Item(item) => self.add_item(position, envelope.event_id, item),
        }
        Ok(())
    }
}

impl KeptRecords {
    /// An item's versions first arrive in ascending order. A duplicate may come later.
    fn add_item(&mut self, position: RecordPosition, event_id: Uuid, item: ItemDescription) {
        let is_first = self.item_events.insert(event_id);
        let newest = self.items.get(&item.sku);
        if let Some((_, newest)) = newest.filter(|(_, newest)| newest.version > item.version)
            && is_first
        {
            let what = format!("version {} came before {}", newest.version, item.version);
            self.out_of_order.push((position, what));
        }
        self.items.insert(item.sku.clone(), (event_id, item));
    }
}

#[cfg(test)]
#[path = "topic_reader_tests.rs"]
mod tests;
