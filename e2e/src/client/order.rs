//! An order as the order service's API shows it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A line of an order to be placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineRequest {
    pub sku: String,
    pub quantity: i64,
}

/// An order in the representation of the API.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub status: String,
    pub reason: Option<String>,
    pub payment: String,
    pub stock: String,
    pub total_cents: i64,
    pub currency: String,
    pub lines: Vec<OrderLine>,
    pub created_at: chrono::DateTime<chrono::Utc>,
    pub ended_at: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderLine {
    pub sku: String,
    pub quantity: i64,
    pub unit_price_cents: i64,
}

impl Order {
    /// Whether it has ended in all services: it is decided, and both legs have ended.
    pub fn has_ended(&self) -> bool {
        match self.status.as_str() {
            "confirmed" => self.payment == "verified" && self.stock == "reserved",
            "cancelled" => {
                ["declined", "refunded", "void"].contains(&self.payment.as_str())
                    && ["rejected", "released", "void"].contains(&self.stock.as_str())
            }
            _ => false,
        }
    }
}
