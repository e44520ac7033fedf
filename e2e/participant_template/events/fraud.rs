//! The events of the fraud service.

use chassis::Event;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Yes: an order may go on.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "fraud.cleared", publisher = "fraud", key = "order_id")]
pub struct FraudCleared {
    /// The order.
    pub order_id: Uuid,
    /// The total for which it holds.
    pub total_cents: i64,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// No: the order may not go on.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "fraud.flagged", publisher = "fraud", key = "order_id")]
pub struct FraudFlagged {
    /// The order.
    pub order_id: Uuid,
    /// The reason.
    pub reason: RefusalReason,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// Why an order got a no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// The total is above the limit.
    TotalTooLarge,
    /// A reason newer than this reader.
    Unknown,
}

/// The order was cancelled, and fraud could not undo its part. An operator has to settle it.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "fraud.kept", publisher = "fraud", key = "order_id")]
pub struct FraudKept {
    /// The order.
    pub order_id: Uuid,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// Fraud has undone its part of a cancelled order.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "fraud.withdrawn", publisher = "fraud", key = "order_id")]
pub struct FraudWithdrawn {
    /// The order.
    pub order_id: Uuid,
    /// The total of the yes; `None` if there had been none.
    pub total_cents: Option<i64>,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}
