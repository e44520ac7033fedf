//! What the order service says.

use chassis::event::{Event, Topic};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::retention::{FACT_RETENTION, PARTITIONS};

/// See [`OrderCreated`].
pub static CREATED: Topic = Topic::new(
    "orders.created",
    "order",
    &["payment", "stock"],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../../../schemas/orders.created.avsc"),
);

/// See [`OrderConfirmed`].
pub static CONFIRMED: Topic = Topic::new(
    "orders.confirmed",
    "order",
    &[],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../../../schemas/orders.confirmed.avsc"),
);

/// See [`OrderCancelled`].
pub static CANCELLED: Topic = Topic::new(
    "orders.cancelled",
    "order",
    &["payment", "stock"],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../../../schemas/orders.cancelled.avsc"),
);

/// A customer placed an order. Payment and stock each answer it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderCreated {
    /// The order.
    pub order_id: Uuid,
    /// Who placed it.
    pub customer_id: Uuid,
    /// What was ordered: no SKU stands on two lines.
    pub lines: Vec<OrderLine>,
    /// Sum over all lines.
    pub total_cents: i64,
    /// ISO 4217.
    pub currency: String,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// One item of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLine {
    /// The item.
    pub sku: String,
    /// How many.
    pub quantity: i32,
    /// Price of one, when the order was placed.
    pub unit_price_cents: i64,
}

/// Payment and stock both said yes; the order is final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderConfirmed {
    /// The order.
    pub order_id: Uuid,
    /// Who placed it.
    pub customer_id: Uuid,
    /// What was ordered.
    pub lines: Vec<ConfirmedLine>,
    /// What was paid.
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
    /// How many.
    pub quantity: i32,
    /// Price of one.
    pub unit_price_cents: i64,
}

/// The order is over: payment and stock undo whatever they did for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderCancelled {
    /// The order.
    pub order_id: Uuid,
    /// What ended it.
    pub reason: CancelReason,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// What ended an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// Payment said no.
    PaymentDeclined,
    /// Stock said no.
    StockRejected,
    /// The customer cancelled.
    Customer,
    /// The saga's deadline passed.
    Deadline,
    /// A reason newer than this reader.
    Unknown,
}

impl Event for OrderCreated {
    fn topic() -> &'static Topic {
        &CREATED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

impl Event for OrderConfirmed {
    fn topic() -> &'static Topic {
        &CONFIRMED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

impl Event for OrderCancelled {
    fn topic() -> &'static Topic {
        &CANCELLED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}
