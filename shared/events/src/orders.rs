//! The events of the order service.

use chassis::Event;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A customer placed an order. Each participant that the order asks responds to it.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(
    topic = "orders.created",
    publisher = "order",
    key = "order_id",
    personal("payment", "stock")
)]
pub struct OrderCreated {
    /// The order.
    pub order_id: Uuid,
    /// The customer.
    pub customer_id: Uuid,
    /// The ordered items: no SKU is on two lines.
    pub lines: Vec<OrderLine>,
    /// Sum over all lines.
    pub total_cents: i64,
    /// ISO 4217.
    pub currency: String,
    /// The participants that the order asks beside payment and stock. Histories have entries of a time without it.
    #[serde(default)]
    pub also_asks: Vec<String>,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

impl OrderCreated {
    /// Whether the order asks a participant that joined later.
    pub fn also_asks(&self, service: &str) -> bool {
        self.also_asks.iter().any(|asked| asked == service)
    }
}

/// One item of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLine {
    /// The item.
    pub sku: String,
    /// The quantity.
    pub quantity: i32,
    /// The unit price when the order was placed.
    pub unit_price_cents: i64,
}

/// Payment and stock both accepted the order, which is final.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "orders.confirmed", publisher = "order", key = "order_id", personal("shipping"))]
pub struct OrderConfirmed {
    /// The order.
    pub order_id: Uuid,
    /// The customer.
    pub customer_id: Uuid,
    /// The ordered items.
    pub lines: Vec<ConfirmedLine>,
    /// The amount paid.
    pub total_cents: i64,
    /// ISO 4217.
    pub currency: String,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// One item of a confirmed order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmedLine {
    /// The item.
    pub sku: String,
    /// The quantity.
    pub quantity: i32,
    /// The unit price.
    pub unit_price_cents: i64,
}

/// The order is over: payment and stock undo their parts of it.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "orders.cancelled", publisher = "order", key = "order_id")]
pub struct OrderCancelled {
    /// The order.
    pub order_id: Uuid,
    /// The reason.
    pub reason: CancelReason,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// The reason why an order was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// Payment declined.
    PaymentDeclined,
    /// Stock rejected.
    StockRejected,
    /// The customer cancelled.
    Customer,
    /// The order was still pending at its deadline.
    Deadline,
    /// A reason newer than this reader.
    Unknown,
}
