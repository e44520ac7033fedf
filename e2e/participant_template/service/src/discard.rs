//! The consequences of discarding an event that fraud cannot handle, for the operator who decides about its dead
//! letter.

use chassis::DiscardImpact;
use events::orders::{OrderCancelled, OrderCreated};

use crate::response::{Response, Responses, State};

/// The order may wait for fraud's answer for ever, unless it is cancelled.
pub fn order(order: &OrderCreated, responses: &Responses) -> DiscardImpact {
    let order_id = order.order_id;
    if responses.response(order_id).is_some() {
        return DiscardImpact::new(format!(
            "Nothing is lost: fraud has answered order {order_id}."
        ));
    }
    DiscardImpact::new(format!("Fraud never answers order {order_id}, which may never end."))
        .with_remedy(
            "cancels the order, so that it ends",
            "order",
            format!("/orders/{order_id}/cancel"),
        )
}

/// What the yes did is never undone.
pub fn cancellation(order: &OrderCancelled, responses: &Responses) -> DiscardImpact {
    let order_id = order.order_id;
    match responses.response(order_id) {
        Some(Response { state, .. }) if *state != State::Cleared => DiscardImpact::new(format!(
            "Nothing is lost: fraud has nothing to undo for order {order_id}, or answered that."
        )),
        _ => DiscardImpact::new(format!(
            "What fraud did for order {order_id} is never undone, and the order never shows it as withdrawn."
        )),
    }
}
