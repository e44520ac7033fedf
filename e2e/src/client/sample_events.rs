//! One valid event of each topic, for scenarios that write to a topic in place of its publisher.

use anyhow::{Context, Result, bail};
use chassis::event::{Event, Topic};
use chrono::Utc;
use events::orders::{
    CancelReason, ConfirmedLine, OrderCancelled, OrderConfirmed, OrderCreated, OrderLine,
};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockItem, StockRejected, StockReleased,
    StockReserved,
};
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::Value;
use uuid::Uuid;

use crate::client::http_client::Client;

/// The key of records that no service published. No order has it.
pub const POISON_KEY: &str = "stranger";

/// The body of a valid event of a topic, for an order that does not exist.
pub fn valid_body(topic: &Topic) -> Result<Vec<u8>> {
    let (order_id, customer_id, occurred_at) = (Uuid::now_v7(), Uuid::now_v7(), Utc::now());
    let (sku, quantity, unit_price_cents) = (|| "pen".to_string(), 1, 150);
    let (total_cents, amount_cents, currency) = (150, 150, || "EUR".to_string());
    match topic.name {
        "orders.created" => {
            let lines = vec![OrderLine { sku: sku(), quantity, unit_price_cents }];
            let currency = currency();
            encode(OrderCreated {
                order_id,
                customer_id,
                lines,
                total_cents,
                currency,
                occurred_at,
            })
        }
        "orders.confirmed" => {
            let lines = vec![ConfirmedLine { sku: sku(), quantity, unit_price_cents }];
            let currency = currency();
            encode(OrderConfirmed {
                order_id,
                customer_id,
                lines,
                total_cents,
                currency,
                occurred_at,
            })
        }
        "orders.cancelled" => {
            encode(OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at })
        }
        "payments.verified" => {
            encode(PaymentVerified { order_id, amount_cents, currency: currency(), occurred_at })
        }
        "payments.declined" => {
            encode(PaymentDeclined { order_id, reason: DeclineReason::NoAccount, occurred_at })
        }
        "payments.refunded" => {
            let (amount_cents, currency) = (Some(amount_cents), Some(currency()));
            encode(PaymentRefunded { order_id, amount_cents, currency, occurred_at })
        }
        "stock.reserved" => {
            let lines = vec![ReservedLine { sku: sku(), quantity }];
            encode(StockReserved { order_id, lines, occurred_at })
        }
        "stock.rejected" => {
            let (requested, available) = (1, 0);
            let reason = RejectReason::OutOfStock;
            encode(StockRejected {
                order_id,
                reason,
                sku: sku(),
                requested,
                available,
                occurred_at,
            })
        }
        "stock.released" => {
            let lines = vec![ReleasedLine { sku: sku(), quantity }];
            encode(StockReleased { order_id, lines, occurred_at })
        }
        "stock.items" => {
            let (name, price_cents, version) = ("Pen".to_string(), 150, 1);
            encode(StockItem {
                sku: sku(),
                name,
                price_cents,
                currency: currency(),
                version,
                occurred_at,
            })
        }
        name => bail!("add a sample record of {name} here"),
    }
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
