//! What the stock service says.

use chassis::event::{Event, Topic};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{FACTS, PARTITIONS, STATE};

/// See [`StockReserved`].
pub static RESERVED: Topic = Topic::new(
    "stock.reserved",
    "stock",
    &["order"],
    PARTITIONS,
    FACTS,
    include_str!("../../../schemas/stock.reserved.avsc"),
);

/// See [`StockRejected`].
pub static REJECTED: Topic = Topic::new(
    "stock.rejected",
    "stock",
    &["order"],
    PARTITIONS,
    FACTS,
    include_str!("../../../schemas/stock.rejected.avsc"),
);

/// See [`StockReleased`].
pub static RELEASED: Topic = Topic::new(
    "stock.released",
    "stock",
    &["order"],
    PARTITIONS,
    FACTS,
    include_str!("../../../schemas/stock.released.avsc"),
);

/// See [`StockItem`].
pub static ITEMS: Topic = Topic::new(
    "stock.items",
    "stock",
    &["order"],
    PARTITIONS,
    STATE,
    include_str!("../../../schemas/stock.items.avsc"),
);

/// Every line of an order was reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockReserved {
    /// The order.
    pub order_id: Uuid,
    /// What was set aside, ordered by SKU.
    pub lines: Vec<ReservedLine>,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// One reserved item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedLine {
    /// The item.
    pub sku: String,
    /// How many.
    pub quantity: i32,
}

/// At least one line can't be supplied, so nothing was reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockRejected {
    /// The order.
    pub order_id: Uuid,
    /// Why.
    pub reason: RejectReason,
    /// The first item, in order of SKU, that fell short.
    pub sku: String,
    /// How many of it were ordered.
    pub requested: i32,
    /// How many of it were there.
    pub available: i64,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// Why nothing was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// Fewer are there than were ordered.
    OutOfStock,
    /// Stock has never heard of the item.
    NoSuchItem,
    /// A reason newer than this reader.
    Unknown,
}

/// A cancelled order is undone on stock's side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockReleased {
    /// The order.
    pub order_id: Uuid,
    /// What was put back; empty where nothing had been reserved.
    pub lines: Vec<ReleasedLine>,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// One item put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedLine {
    /// The item.
    pub sku: String,
    /// How many.
    pub quantity: i32,
}

/// Characters of a SKU, at most.
pub const SKU_CHARS_MAX: usize = 64;

/// Characters of an item's name, at most.
pub const NAME_CHARS_MAX: usize = 200;

/// Whether a text may be a SKU or a name: not empty, not too long, and without control characters, of
/// which Postgres can't store one and no address can hold the others.
pub fn is_text(text: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// An item as it is now: the newest record of a SKU replaces all before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockItem {
    /// The item.
    pub sku: String,
    /// What it is called.
    pub name: String,
    /// Price of one.
    pub price_cents: i64,
    /// ISO 4217.
    pub currency: String,
    /// Counts the changes of this item, from 1.
    pub version: i64,
    /// Database time of the change.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

impl Event for StockReserved {
    fn topic() -> &'static Topic {
        &RESERVED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

impl Event for StockRejected {
    fn topic() -> &'static Topic {
        &REJECTED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

impl Event for StockReleased {
    fn topic() -> &'static Topic {
        &RELEASED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

impl Event for StockItem {
    fn topic() -> &'static Topic {
        &ITEMS
    }
    fn key(&self) -> String {
        self.sku.clone()
    }
}
