//! Decodes records topic by topic, with the schema that the registry has for them.

use anyhow::Result;
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use chassis::event::avro::Codec;
use chassis::event::{Event, Topic};
use chrono::{DateTime, Utc};
use events::orders::{self, ConfirmedLine, OrderCancelled, OrderConfirmed, OrderCreated};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{StockItem, StockRejected, StockReleased, StockReserved};
use serde::Serialize;
use uuid::Uuid;

use crate::checker::balances::ItemDescription;
use crate::checker::content_hash::{self, ContentHash};
use crate::checker::rows::{OrderLineRow, Shortfall};

/// The schema of a record's writer, as stored in the registry.
pub(crate) struct WriterSchema {
    codec: Codec,
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

impl WriterSchema {
    pub(crate) fn new(schema: &str) -> Result<WriterSchema> {
        let codec = Codec::new(schema)?;
        // Leaked on purpose: there is one for each version of a schema.
        let schema: &'static Schema = Box::leak(Box::new(Schema::parse_str(schema)?));
        let reader = GenericDatumReader::builder(schema).build()?;
        let writer = GenericDatumWriter::builder(schema).build()?;
        Ok(WriterSchema { codec, reader, writer })
    }
}

/// The decoded body of a record.
pub(crate) struct DecodedRecord {
    pub(crate) content: RecordContent,
    pub(crate) occurred_at: DateTime<Utc>,
}

pub(crate) enum RecordContent {
    Order(Uuid, u64, String),
    Item(ItemDescription),
    /// An event of a fork's own topic, with its key. Only its publisher knows how the key follows
    /// from the content.
    Other(String),
}

impl DecodedRecord {
    fn for_order(order_id: Uuid, content: u64, occurred_at: DateTime<Utc>) -> DecodedRecord {
        DecodedRecord {
            content: RecordContent::Order(order_id, content, order_id.to_string()),
            occurred_at,
        }
    }

    pub(crate) fn key(&self) -> &str {
        match &self.content {
            RecordContent::Order(_, _, key) => key,
            RecordContent::Item(item) => &item.sku,
            RecordContent::Other(key) => key,
        }
    }
}

/// Decodes a body twice: into its struct, and, without the chassis's codec, into a value that must
/// encode to the same bytes. So a body that is truncated, too long or not canonical is an error.
pub(crate) fn decode_record(
    topic: &'static Topic,
    writer: &WriterSchema,
    body: &[u8],
    key: &str,
) -> Result<DecodedRecord, String> {
    let value = writer.reader.read_value(&mut &body[..]);
    let again = value.and_then(|value| writer.writer.write_value_to_vec(value));
    if !again.is_ok_and(|again| again == body) {
        return Err("its body is not exactly one record of its schema".to_string());
    }
    let decoded = match topic.name {
        "orders.created" => {
            let OrderCreated { order_id, customer_id, lines, total_cents, currency, occurred_at } =
                decode_event(writer, body)?;
            let line = |l: orders::OrderLine| OrderLineRow {
                sku: l.sku,
                quantity: l.quantity,
                unit_price_cents: l.unit_price_cents,
            };
            let lines: Vec<OrderLineRow> = lines.into_iter().map(line).collect();
            let content = ContentHash::order(customer_id, total_cents, &currency, &lines);
            DecodedRecord::for_order(order_id, content, occurred_at)
        }
        "orders.confirmed" => {
            let OrderConfirmed { order_id, customer_id, lines, total_cents, currency, occurred_at } =
                decode_event(writer, body)?;
            let line = |l: ConfirmedLine| OrderLineRow {
                sku: l.sku,
                quantity: l.quantity,
                unit_price_cents: l.unit_price_cents,
            };
            let lines: Vec<OrderLineRow> = lines.into_iter().map(line).collect();
            let content = ContentHash::order(customer_id, total_cents, &currency, &lines);
            DecodedRecord::for_order(order_id, content, occurred_at)
        }
        "orders.cancelled" => {
            let OrderCancelled { order_id, reason, occurred_at } = decode_event(writer, body)?;
            DecodedRecord::for_order(
                order_id,
                ContentHash::reason(&enum_text(&reason)?),
                occurred_at,
            )
        }
        "payments.verified" => {
            let PaymentVerified { order_id, amount_cents, currency, occurred_at } =
                decode_event(writer, body)?;
            DecodedRecord::for_order(
                order_id,
                ContentHash::payment(amount_cents, &currency),
                occurred_at,
            )
        }
        "payments.declined" => {
            let PaymentDeclined { order_id, reason, occurred_at } = decode_event(writer, body)?;
            DecodedRecord::for_order(
                order_id,
                ContentHash::reason(&enum_text(&reason)?),
                occurred_at,
            )
        }
        "payments.refunded" => {
            let PaymentRefunded { order_id, amount_cents, currency, occurred_at } =
                decode_event(writer, body)?;
            DecodedRecord::for_order(
                order_id,
                ContentHash::refund(amount_cents, currency.as_deref()),
                occurred_at,
            )
        }
        "stock.reserved" => {
            let StockReserved { order_id, lines, occurred_at } = decode_event(writer, body)?;
            let content =
                ContentHash::quantities(lines.iter().map(|l| (l.sku.as_str(), l.quantity)));
            DecodedRecord::for_order(order_id, content, occurred_at)
        }
        "stock.rejected" => {
            let StockRejected { order_id, reason, sku, requested, available, occurred_at } =
                decode_event(writer, body)?;
            let shortfall = Shortfall { reason: enum_text(&reason)?, sku, requested, available };
            DecodedRecord::for_order(order_id, content_hash::hash(&shortfall), occurred_at)
        }
        "stock.released" => {
            let StockReleased { order_id, lines, occurred_at } = decode_event(writer, body)?;
            let content =
                ContentHash::quantities(lines.iter().map(|l| (l.sku.as_str(), l.quantity)));
            DecodedRecord::for_order(order_id, content, occurred_at)
        }
        "stock.items" => {
            let StockItem { sku, name, price_cents, currency, version, occurred_at } =
                decode_event(writer, body)?;
            let item = ItemDescription { sku, name, price_cents, currency, version };
            DecodedRecord { content: RecordContent::Item(item), occurred_at }
        }
        _ => {
            // A topic of a fork: only the time of the decision is known here.
            let again = writer.reader.read_value(&mut &body[..]).map_err(|e| e.to_string())?;
            let Value::Record(fields) = again else { return Err("it is not a record".into()) };
            let time = fields.into_iter().find(|(name, _)| name == "occurred_at");
            let Some((_, Value::TimestampMicros(micros))) = time else {
                return Err("it has no field occurred_at".into());
            };
            let occurred_at =
                DateTime::from_timestamp_micros(micros).ok_or("a time out of range")?;
            DecodedRecord { content: RecordContent::Other(key.to_string()), occurred_at }
        }
    };
    Ok(decoded)
}

fn decode_event<E: Event>(writer: &WriterSchema, body: &[u8]) -> Result<E, String> {
    E::topic().codec().decode(&writer.codec, body).map_err(|error| error.0)
}

/// The text of an enum's value.
fn enum_text(reason: &impl Serialize) -> Result<String, String> {
    let word = serde_json::to_value(reason).map_err(|error| error.to_string())?;
    Ok(word.as_str().unwrap_or_default().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_not_exactly_one_record_is_refused() {
        let topic = &events::orders::CREATED;
        let writer = WriterSchema::new(topic.schema).unwrap();
        let line =
            |sku: &str| orders::OrderLine { sku: sku.into(), quantity: 2, unit_price_cents: 150 };
        let order = OrderCreated {
            order_id: Uuid::now_v7(),
            customer_id: Uuid::now_v7(),
            lines: vec![line("pen"), line("ink")],
            total_cents: 600,
            currency: "EUR".into(),
            occurred_at: DateTime::from_timestamp_micros(1_795_132_800_123_456).unwrap(),
        };
        let body = topic.codec().encode(&order).unwrap();
        let decoded = decode_record(topic, &writer, &body, "").unwrap();
        assert_eq!(decoded.key(), order.order_id.to_string());
        assert_eq!(decoded.occurred_at, order.occurred_at);
        for end in 0..body.len() {
            assert!(decode_record(topic, &writer, &body[..end], "").is_err(), "cut at {end}");
        }
        assert!(decode_record(topic, &writer, &[&body[..], &[0]].concat(), "").is_err());
    }
}
