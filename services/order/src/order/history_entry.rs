//! An entry of the history of an order, as it is read.

use chassis::{Event, Problem};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

/// An event of an order.
#[derive(Serialize, sqlx::FromRow, ToSchema)]
pub struct HistoryEntry {
    #[serde(skip)]
    pub order_id: Uuid,
    #[serde(skip)]
    pub position: i64,
    /// The topic of the event.
    #[schema(examples("orders.created"))]
    pub event: String,
    pub event_id: Uuid,
    /// The event itself, without its envelope.
    #[schema(value_type = Object)]
    pub detail: Value,
    /// When its publisher decided it, by the clock of the publisher's database.
    pub occurred_at: DateTime<Utc>,
    /// When this service committed it.
    pub recorded_at: DateTime<Utc>,
}

/// Why a history gives no order: the event that cannot be at its place.
#[derive(Debug, PartialEq)]
pub struct BrokenHistory(pub String);

impl HistoryEntry {
    /// The event itself.
    pub fn decode<E: Event>(&self) -> Result<E, BrokenHistory> {
        E::deserialize(&self.detail).map_err(|_| self.is_misplaced())
    }

    /// The error that names this event.
    pub fn is_misplaced(&self) -> BrokenHistory {
        let HistoryEntry { event, event_id, position, .. } = self;
        BrokenHistory(format!("{event} {event_id} cannot be at position {position} of its history"))
    }
}

impl From<BrokenHistory> for Problem {
    fn from(BrokenHistory(why): BrokenHistory) -> Problem {
        Problem::conflict("broken-history", why)
    }
}
