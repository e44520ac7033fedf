//! An order as its history tells it: the events, folded one after the other.
//!
//! Promise: the fold of all events of an order is its row. The checker compares them with a fold of its own.

use chassis::Event;
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use serde::Deserialize;

use super::{BrokenHistory, HistoryEntry, Order, Reason, Status, participants};

impl Order {
    /// The order after these events, the oldest first; `None` if there are none.
    pub fn fold<'a>(
        history: impl IntoIterator<Item = &'a HistoryEntry>,
    ) -> Result<Option<Order>, BrokenHistory> {
        let mut history = history.into_iter();
        let Some(first) = history.next() else { return Ok(None) };
        if first.event != OrderCreated::topic().name {
            return Err(first.is_misplaced());
        }
        let mut order = Order::placed(&first.decode()?, first.event_id);
        order.last_position = first.position;
        for entry in history {
            order.apply(entry)?;
            order.last_position = entry.position;
        }
        Ok(Some(order))
    }

    fn apply(&mut self, entry: &HistoryEntry) -> Result<(), BrokenHistory> {
        let (status, reason) = if entry.event == OrderConfirmed::topic().name {
            (Status::Confirmed, None)
        } else if entry.event == OrderCancelled::topic().name {
            let reason = Reason::deserialize(&entry.detail["reason"]);
            (Status::Cancelled, Some(reason.map_err(|_| entry.is_misplaced())?))
        } else {
            return participants::apply(entry, self);
        };
        if self.status != Status::Pending {
            return Err(entry.is_misplaced());
        }
        (self.status, self.reason) = (status, reason);
        (self.ended_at, self.ended_event_id) = (Some(entry.occurred_at), Some(entry.event_id));
        Ok(())
    }
}
