//! Which orders get a no. This is an example: replace it with the rule of your business.

use events::orders::OrderCreated;

use crate::response::Reason;

/// An order of more than 100,000.00 gets a no.
pub const TOTAL_MAX_CENTS: i64 = 10_000_000;

/// Why an order gets a no; `None` for a yes. It is pure: everything that it reads is in the event, or in rows that
/// `Responses::load` loads.
pub fn objection(order: &OrderCreated) -> Option<Reason> {
    (order.total_cents > TOTAL_MAX_CENTS).then_some(Reason::TotalTooLarge)
}
