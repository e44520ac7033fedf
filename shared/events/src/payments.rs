//! The events of the payment service.

use chassis::Event;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The money for an order was taken.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "payments.verified", publisher = "payment", key = "order_id")]
pub struct PaymentVerified {
    /// The order.
    pub order_id: Uuid,
    /// The amount.
    pub amount_cents: i64,
    /// ISO 4217.
    pub currency: String,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// The order cannot be paid for; no money was taken.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "payments.declined", publisher = "payment", key = "order_id")]
pub struct PaymentDeclined {
    /// The order.
    pub order_id: Uuid,
    /// The reason.
    pub reason: DeclineReason,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// Why a payment was declined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclineReason {
    /// The balance is smaller than the total.
    InsufficientFunds,
    /// The customer has no account.
    NoAccount,
    /// The account is in another currency.
    CurrencyMismatch,
    /// A reason newer than this reader.
    Unknown,
}

/// Payment has undone its part of a cancelled order.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "payments.refunded", publisher = "payment", key = "order_id")]
pub struct PaymentRefunded {
    /// The order.
    pub order_id: Uuid,
    /// The refunded amount; `None` if no money had been taken.
    pub amount_cents: Option<i64>,
    /// ISO 4217; `None` if there is no amount.
    pub currency: Option<String>,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}
