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
    let record = EncodedRecord { writer, body, key };
    record.check_canonical()?;
    match topic.publisher {
        "order" => record.decode_order_event(topic.name),
        "payment" => record.decode_payment_event(topic.name),
        "stock" => record.decode_stock_event(topic.name),
        _ => record.decode_other(),
    }
}

/// A record that is not decoded yet.
struct EncodedRecord<'a> {
    writer: &'a WriterSchema,
    body: &'a [u8],
    key: &'a str,
}

impl EncodedRecord<'_> {
    fn value(&self) -> Result<Value, String> {
        self.writer.reader.read_value(&mut &self.body[..]).map_err(|error| error.to_string())
    }

    fn check_canonical(&self) -> Result<(), String> {
        let again =
            self.value().ok().and_then(|value| self.writer.writer.write_value_to_vec(value).ok());
        match again.is_some_and(|again| again == self.body) {
            true => Ok(()),
            false => Err("its body is not exactly one record of its schema".to_string()),
        }
    }

    fn decode<E: Event>(&self) -> Result<E, String> {
        E::topic().codec().decode(&self.writer.codec, self.body).map_err(|error| error.0)
    }

    fn decode_order_event(&self, topic: &str) -> Result<DecodedRecord, String> {
        let (order_id, content, occurred_at) = match topic {
            "orders.created" => {
                let created: OrderCreated = self.decode()?;
                let line = |l: orders::OrderLine| OrderLineRow {
                    sku: l.sku,
                    quantity: l.quantity,
                    unit_price_cents: l.unit_price_cents,
                };
                let lines: Vec<OrderLineRow> = created.lines.into_iter().map(line).collect();
                let (customer_id, total_cents) = (created.customer_id, created.total_cents);
                let content =
                    ContentHash::order(customer_id, total_cents, &created.currency, &lines);
                (created.order_id, content, created.occurred_at)
            }
            "orders.confirmed" => {
                let confirmed: OrderConfirmed = self.decode()?;
                let line = |l: ConfirmedLine| OrderLineRow {
                    sku: l.sku,
                    quantity: l.quantity,
                    unit_price_cents: l.unit_price_cents,
                };
                let lines: Vec<OrderLineRow> = confirmed.lines.into_iter().map(line).collect();
                let (customer_id, total_cents) = (confirmed.customer_id, confirmed.total_cents);
                let content =
                    ContentHash::order(customer_id, total_cents, &confirmed.currency, &lines);
                (confirmed.order_id, content, confirmed.occurred_at)
            }
            "orders.cancelled" => {
                let OrderCancelled { order_id, reason, occurred_at } = self.decode()?;
                (order_id, ContentHash::reason(&enum_text(&reason)?), occurred_at)
            }
            _ => return self.decode_other(),
        };
        Ok(DecodedRecord::for_order(order_id, content, occurred_at))
    }

    fn decode_payment_event(&self, topic: &str) -> Result<DecodedRecord, String> {
        let (order_id, content, occurred_at) = match topic {
            "payments.verified" => {
                let PaymentVerified { order_id, amount_cents, currency, occurred_at } =
                    self.decode()?;
                (order_id, ContentHash::payment(amount_cents, &currency), occurred_at)
            }
            "payments.declined" => {
                let PaymentDeclined { order_id, reason, occurred_at } = self.decode()?;
                (order_id, ContentHash::reason(&enum_text(&reason)?), occurred_at)
            }
            "payments.refunded" => {
                let PaymentRefunded { order_id, amount_cents, currency, occurred_at } =
                    self.decode()?;
                (order_id, ContentHash::refund(amount_cents, currency.as_deref()), occurred_at)
            }
            _ => return self.decode_other(),
        };
        Ok(DecodedRecord::for_order(order_id, content, occurred_at))
    }

    fn decode_stock_event(&self, topic: &str) -> Result<DecodedRecord, String> {
        let (order_id, content, occurred_at) = match topic {
            "stock.reserved" => {
                let StockReserved { order_id, lines, occurred_at } = self.decode()?;
                let lines = lines.iter().map(|line| (line.sku.as_str(), line.quantity));
                (order_id, ContentHash::quantities(lines), occurred_at)
            }
            "stock.rejected" => {
                let StockRejected { order_id, reason, sku, requested, available, occurred_at } =
                    self.decode()?;
                let reason = enum_text(&reason)?;
                let shortfall = Shortfall { reason, sku, requested, available };
                (order_id, content_hash::hash(&shortfall), occurred_at)
            }
            "stock.released" => {
                let StockReleased { order_id, lines, occurred_at } = self.decode()?;
                let lines = lines.iter().map(|line| (line.sku.as_str(), line.quantity));
                (order_id, ContentHash::quantities(lines), occurred_at)
            }
            "stock.items" => {
                let StockItem { sku, name, price_cents, currency, version, occurred_at } =
                    self.decode()?;
                let item = ItemDescription { sku, name, price_cents, currency, version };
                return Ok(DecodedRecord { content: RecordContent::Item(item), occurred_at });
            }
            _ => return self.decode_other(),
        };
        Ok(DecodedRecord::for_order(order_id, content, occurred_at))
    }

    /// An event of a fork's own topic: only the time of its decision is known here.
    fn decode_other(&self) -> Result<DecodedRecord, String> {
        let Value::Record(fields) = self.value()? else { return Err("it is not a record".into()) };
        let time = fields.into_iter().find(|(name, _)| name == "occurred_at");
        let Some((_, Value::TimestampMicros(micros))) = time else {
            return Err("it has no field occurred_at".into());
        };
        let occurred_at = DateTime::from_timestamp_micros(micros).ok_or("a time out of range")?;
        Ok(DecodedRecord { content: RecordContent::Other(self.key.to_string()), occurred_at })
    }
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
