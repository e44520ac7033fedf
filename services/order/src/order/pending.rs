//! The table of pending orders: a row is added with each order, and deleted when the order ends.

use chassis::WriteBatch;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Orders, PendingOrder};

impl Orders {
    /// Lists a new order as pending.
    pub fn add_pending(&mut self, order_id: Uuid, created_at: DateTime<Utc>) {
        self.new_pending.insert(PendingOrder { created_at, order_id });
    }

    /// Removes an order that has ended from the list.
    pub fn remove_pending(&mut self, order_id: Uuid) {
        let Some(created_at) = self.order(order_id).map(|order| order.created_at) else { return };
        let order = PendingOrder { created_at, order_id };
        // One statement writes the batch, and it cannot delete a row that it inserts.
        if !self.new_pending.remove(&order) {
            self.no_longer_pending.insert(order);
        }
    }
}

/// Writes what was added and removed.
pub(super) fn save(writes: &mut WriteBatch<'_>, rows: &Orders) {
    writes.insert_all(&rows.new_pending);
    let removed = Vec::from_iter(&rows.no_longer_pending);
    if removed.is_empty() {
        return;
    }
    writes
        .statement(
            "delete from pending_orders
             using (select unnest($1::timestamptz[]) as created_at, unnest($2::uuid[]) as order_id) as ended
             where pending_orders.created_at = ended.created_at and pending_orders.order_id = ended.order_id",
        )
        .bind_rows(&removed);
}
