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

/// A leg of an order: the part of one other service.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    pub service: &'static str,
    /// Its state in a confirmed order.
    pub approved: &'static str,
    /// Its states in a cancelled order that has ended.
    pub undone: [&'static str; 3],
}

pub const LEGS: [Leg; 2] = [
    Leg { service: "payment", approved: "verified", undone: ["declined", "refunded", "void"] },
    Leg { service: "stock", approved: "reserved", undone: ["rejected", "released", "void"] },
];

impl Leg {
    /// Whether the leg of an order with this status has ended in this state.
    pub fn has_ended(&self, status: &str, state: &str) -> bool {
        match status {
            "confirmed" => state == self.approved,
            "cancelled" => self.undone.contains(&state),
            _ => false,
        }
    }
}

impl Order {
    /// Whether it has ended in all services: it is decided, and all legs have ended.
    pub fn has_ended(&self) -> bool {
        let states = [&self.payment, &self.stock];
        LEGS.iter().zip(states).all(|(leg, state)| leg.has_ended(&self.status, state))
    }
}
