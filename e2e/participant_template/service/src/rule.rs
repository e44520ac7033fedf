//! Which orders get a no, and which yes cannot be undone. Both are examples: replace them with the rules of your business.

use events::orders::OrderCreated;

use crate::response::{Reason, Response};

/// An order of more than 100,000.00 gets a no.
pub const TOTAL_MAX_CENTS: i64 = 10_000_000;

/// Why an order gets a no; `None` for a yes. It is pure: everything that it reads is in the event, or in rows that
/// `Responses::load` loads.
pub fn objection(order: &OrderCreated) -> Option<Reason> {
    (order.total_cents > TOTAL_MAX_CENTS).then_some(Reason::TotalTooLarge)
}

/// A yes to an order of more than 50,000.00 is undone by an operator, and not by the service.
pub const UNDONE_MAX_CENTS: i64 = 5_000_000;

/// Whether the service cannot undo its yes. It returns `false` where an undo never fails.
pub fn refuses_undo(response: &Response) -> bool {
    response.total_cents > UNDONE_MAX_CENTS
}
