//! What a record says, decoded with the schema that the registry has for it, topic by topic.

use anyhow::Result;
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use chassis::avro::Codec;
use chassis::event::{Event, Topic};
use chrono::{DateTime, Utc};
use events::orders::{self, ConfirmedLine, OrderCancelled, OrderConfirmed, OrderCreated};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{StockItem, StockRejected, StockReleased, StockReserved};
use serde::Serialize;
use uuid::Uuid;

use crate::balances::Described;
use crate::facts::{self, OrderLine, Says, Shortfall};

/// A schema that records were written with, as the registry has it.
pub(crate) struct Writer {
    codec: Codec,
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

impl Writer {
    pub(crate) fn new(schema: &str) -> Result<Writer> {
        let codec = Codec::new(schema)?;
        // Never freed; there are as many as versions of schemas.
        let schema: &'static Schema = Box::leak(Box::new(Schema::parse_str(schema)?));
        let reader = GenericDatumReader::builder(schema).build()?;
        let writer = GenericDatumWriter::builder(schema).build()?;
        Ok(Writer { codec, reader, writer })
    }
}

/// What the body of a record says.
pub(crate) struct Said {
    pub(crate) what: What,
    pub(crate) occurred_at: DateTime<Utc>,
}

pub(crate) enum What {
    Order(Uuid, u64, String),
    Item(Described),
    /// By its key, which only its publisher can tell from what it says.
    Other(String),
}

impl Said {
    fn of_order(order_id: Uuid, content: u64, occurred_at: DateTime<Utc>) -> Said {
        Said { what: What::Order(order_id, content, order_id.to_string()), occurred_at }
    }

    pub(crate) fn key(&self) -> &str {
        match &self.what {
            What::Order(_, _, key) => key,
            What::Item(item) => &item.sku,
            What::Other(key) => key,
        }
    }
}

/// Reads a body twice: into its struct, and, without the chassis's codec, into a value which written
/// again has to be the same bytes. That refuses what ends early, runs on, or is not canonical.
pub(crate) fn said(
    topic: &'static Topic,
    writer: &Writer,
    body: &[u8],
    key: &str,
) -> Result<Said, String> {
    let value = writer.reader.read_value(&mut &body[..]);
    let again = value.and_then(|value| writer.writer.write_value_to_vec(value));
    if !again.is_ok_and(|again| again == body) {
        return Err("its body is not exactly one record of its schema".to_string());
    }
    let said = match topic.name {
        "orders.created" => {
            let OrderCreated { order_id, customer_id, lines, total_cents, currency, occurred_at } =
                decode(writer, body)?;
            let line = |l: orders::OrderLine| OrderLine {
                sku: l.sku,
                quantity: l.quantity,
                unit_price_cents: l.unit_price_cents,
            };
            let lines: Vec<OrderLine> = lines.into_iter().map(line).collect();
            let content = Says::ordered(customer_id, total_cents, &currency, &lines);
            Said::of_order(order_id, content, occurred_at)
        }
        "orders.confirmed" => {
            let OrderConfirmed { order_id, customer_id, lines, total_cents, currency, occurred_at } =
                decode(writer, body)?;
            let line = |l: ConfirmedLine| OrderLine {
                sku: l.sku,
                quantity: l.quantity,
                unit_price_cents: l.unit_price_cents,
            };
            let lines: Vec<OrderLine> = lines.into_iter().map(line).collect();
            let content = Says::ordered(customer_id, total_cents, &currency, &lines);
            Said::of_order(order_id, content, occurred_at)
        }
        "orders.cancelled" => {
            let OrderCancelled { order_id, reason, occurred_at } = decode(writer, body)?;
            Said::of_order(order_id, Says::cancelled(&word(&reason)?), occurred_at)
        }
        "payments.verified" => {
            let PaymentVerified { order_id, amount_cents, currency, occurred_at } =
                decode(writer, body)?;
            Said::of_order(order_id, Says::paid(amount_cents, &currency), occurred_at)
        }
        "payments.declined" => {
            let PaymentDeclined { order_id, reason, occurred_at } = decode(writer, body)?;
            Said::of_order(order_id, Says::cancelled(&word(&reason)?), occurred_at)
        }
        "payments.refunded" => {
            let PaymentRefunded { order_id, amount_cents, currency, occurred_at } =
                decode(writer, body)?;
            Said::of_order(order_id, Says::refunded(amount_cents, currency.as_deref()), occurred_at)
        }
        "stock.reserved" => {
            let StockReserved { order_id, lines, occurred_at } = decode(writer, body)?;
            let content = Says::set_aside(lines.iter().map(|l| (l.sku.as_str(), l.quantity)));
            Said::of_order(order_id, content, occurred_at)
        }
        "stock.rejected" => {
            let StockRejected { order_id, reason, sku, requested, available, occurred_at } =
                decode(writer, body)?;
            let shortfall = Shortfall { reason: word(&reason)?, sku, requested, available };
            Said::of_order(order_id, facts::hash(&shortfall), occurred_at)
        }
        "stock.released" => {
            let StockReleased { order_id, lines, occurred_at } = decode(writer, body)?;
            let content = Says::set_aside(lines.iter().map(|l| (l.sku.as_str(), l.quantity)));
            Said::of_order(order_id, content, occurred_at)
        }
        "stock.items" => {
            let StockItem { sku, name, price_cents, currency, version, occurred_at } =
                decode(writer, body)?;
            let item = Described { sku, name, price_cents, currency, version };
            Said { what: What::Item(item), occurred_at }
        }
        _ => {
            // A fork's own: that it is an event, and when it was decided, is all that is known here.
            let again = writer.reader.read_value(&mut &body[..]).map_err(|e| e.to_string())?;
            let Value::Record(fields) = again else { return Err("it is no record".into()) };
            let time = fields.into_iter().find(|(name, _)| name == "occurred_at");
            let Some((_, Value::TimestampMicros(micros))) = time else {
                return Err("it has no occurred_at".into());
            };
            let occurred_at =
                DateTime::from_timestamp_micros(micros).ok_or("a time out of range")?;
            Said { what: What::Other(key.to_string()), occurred_at }
        }
    };
    Ok(said)
}

fn decode<E: Event>(writer: &Writer, body: &[u8]) -> Result<E, String> {
    E::topic().codec().decode(&writer.codec, body).map_err(|error| error.0)
}

/// The word that an enum's value is written with.
fn word(reason: &impl Serialize) -> Result<String, String> {
    let word = serde_json::to_value(reason).map_err(|error| error.to_string())?;
    Ok(word.as_str().unwrap_or_default().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_not_exactly_one_record_is_refused() {
        let topic = &events::orders::CREATED;
        let writer = Writer::new(topic.schema).unwrap();
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
        let said_of = said(topic, &writer, &body, "").unwrap();
        assert_eq!(said_of.key(), order.order_id.to_string());
        assert_eq!(said_of.occurred_at, order.occurred_at);
        for end in 0..body.len() {
            assert!(said(topic, &writer, &body[..end], "").is_err(), "cut at {end}");
        }
        assert!(said(topic, &writer, &[&body[..], &[0]].concat(), "").is_err());
    }
}
