//! What it costs to discard an event that can't be handled: what an operator reads before a dead letter is
//! discarded for good.

use chassis::DiscardImpact;
use events::orders::OrderConfirmed;

use crate::shipping::Orders;

/// What it costs to discard an `orders.confirmed` that can't be handled here.
pub fn confirmation_impact(order: &OrderConfirmed, orders: &Orders) -> DiscardImpact {
    let order_id = order.order_id;
    DiscardImpact::new(match orders.order(order_id) {
        Some(_) => format!("Nothing is lost: order {order_id} is known here."),
        None => format!("It is never known here that order {order_id} was confirmed."),
    })
}
