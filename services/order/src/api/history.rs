//! How clients read and follow the history of an order.

use chassis::{Event, FeedEntry};
use events::orders::{OrderCancelled, OrderConfirmed};
use uuid::Uuid;

use crate::order::HistoryEntry;

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
