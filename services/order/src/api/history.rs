//! The entries of an order's history, as clients read and follow them.

use chassis::{Event, FeedEntry};
use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderConfirmed};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

/// An event of an order.
#[derive(Serialize, sqlx::FromRow, ToSchema)]
pub struct HistoryEntry {
    #[serde(skip)]
    order_id: Uuid,
    #[serde(skip)]
    position: i64,
    /// The topic of the event.
    #[schema(examples("orders.created"))]
    event: String,
    event_id: Uuid,
    /// The event itself, without its envelope.
    #[schema(value_type = Object)]
    detail: Value,
    /// When its publisher decided it, by the clock of the publisher's database.
    occurred_at: DateTime<Utc>,
    /// When this service committed it.
    recorded_at: DateTime<Utc>,
}

/// Positions are counted while the order's row is locked, so within an order they grow in the order of commits.
impl FeedEntry for HistoryEntry {
    const QUERY: &str =
        "select entry.* from unnest($1::uuid[], $2::bigint[]) as seen (order_id, position)
         cross join lateral (
             select order_id, position, event, event_id, detail, occurred_at, recorded_at
             from history
             where history.order_id = seen.order_id and history.position > seen.position
             order by position offset 0) as entry";

    fn subject(&self) -> Uuid {
        self.order_id
    }
    fn position(&self) -> i64 {
        self.position
    }
    fn id(&self) -> Uuid {
        self.event_id
    }
    fn event(&self) -> &str {
        &self.event
    }
    fn is_final(&self) -> bool {
        [OrderConfirmed::topic().name, OrderCancelled::topic().name].contains(&&*self.event)
    }
}
