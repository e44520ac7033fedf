//! The events of the purchase service, in another repository. This repository declares its topic too, so that it runs by
//! itself.

use chassis::Event;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A purchase is final.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(
    topic = "purchases.confirmed",
    publisher = "purchase",
    key = "purchase_id",
    personal("shop")
)]
pub struct PurchaseConfirmed {
    /// The purchase.
    pub purchase_id: Uuid,
    /// The customer.
    pub customer_id: Uuid,
    /// The purchased items.
    pub lines: Vec<ConfirmedLine>,
    /// The amount paid.
    pub total_cents: i64,
    /// ISO 4217.
    pub currency: String,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// One item of a confirmed purchase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmedLine {
    /// The item.
    pub sku: String,
    /// The quantity.
    pub quantity: i32,
    /// The unit price.
    pub unit_price_cents: i64,
}
