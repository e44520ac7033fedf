//! The events of the payment service.

use chassis::event::{Event, Topic};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::retention::{FACT_RETENTION, PARTITIONS};

/// See [`PaymentVerified`].
pub static VERIFIED: Topic = Topic::new(
    "payments.verified",
    "payment",
    &["order"],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../../../schemas/payments.verified.avsc"),
);

/// See [`PaymentDeclined`].
pub static DECLINED: Topic = Topic::new(
    "payments.declined",
    "payment",
    &["order"],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../../../schemas/payments.declined.avsc"),
);

/// See [`PaymentRefunded`].
pub static REFUNDED: Topic = Topic::new(
    "payments.refunded",
    "payment",
    &["order"],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../../../schemas/payments.refunded.avsc"),
);

/// The money for an order was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl Event for PaymentVerified {
    fn topic() -> &'static Topic {
        &VERIFIED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

impl Event for PaymentDeclined {
    fn topic() -> &'static Topic {
        &DECLINED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

impl Event for PaymentRefunded {
    fn topic() -> &'static Topic {
        &REFUNDED
    }
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}
