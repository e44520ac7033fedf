//! One order that a client intends to place.

use std::time::Duration;

use uuid::Uuid;

use crate::client::order::LineRequest;

/// One order that a client intends to place.
#[derive(Clone, Debug)]
pub struct OrderPlan {
    /// When it is due, from the beginning of the load.
    pub due_at: Duration,
    pub key: String,
    pub customer_id: Uuid,
    pub lines: Vec<LineRequest>,
    pub cancel_after: Option<Duration>,
    /// The client posts it twice.
    pub duplicated: bool,
    /// The client posts another order with the same key as well.
    pub key_reused: bool,
    /// The client disconnects before the first response.
    pub disconnect_after: Option<Duration>,
}

impl OrderPlan {
    /// The lines of the other order. Only the first line has room below the largest quantity.
    pub fn conflicting_lines(&self) -> Vec<LineRequest> {
        let mut lines = self.lines.clone();
        lines.iter_mut().take(1).for_each(|line| line.quantity += 1);
        lines
    }
}
