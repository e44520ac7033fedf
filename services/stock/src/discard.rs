//! What it costs to discard an event that can't be handled, and what can be done about it: what an operator
//! reads before a dead letter is discarded for good.

use chassis::DiscardImpact;
use events::orders::{OrderCancelled, OrderCreated};

use crate::stock::{Reservation, State, Warehouse};

/// What it costs to discard an `orders.created` that stock can't handle.
pub fn order_impact(order: &OrderCreated, warehouse: &Warehouse) -> DiscardImpact {
    let order_id = order.order_id;
    if warehouse.reservation(order_id).is_some() {
        return DiscardImpact::new(format!(
            "Nothing is lost: stock has answered order {order_id}."
        ));
    }
    DiscardImpact::new(format!("Stock never answers order {order_id}, which may never end."))
        .with_remedy(
            "cancels the order, so that it ends",
            "order",
            format!("/orders/{order_id}/cancel"),
        )
}

/// What it costs to discard an `orders.cancelled` that stock can't handle.
pub fn cancellation_impact(order: &OrderCancelled, warehouse: &Warehouse) -> DiscardImpact {
    let order_id = order.order_id;
    match warehouse.reservation(order_id) {
        Some(Reservation { state: State::Reserved, lines, .. }) => {
            let loss = DiscardImpact::new(format!(
                "What is set aside for order {order_id} is never put back, and the order's stock \
                 never reads as undone."
            ));
            let what = format!("the release of order {order_id}");
            lines.iter().fold(loss, |loss, l| loss.with_write_off(&what, l.quantity, &l.sku))
        }
        Some(_) => DiscardImpact::new(format!(
            "Nothing is lost: nothing is set aside for order {order_id}, or it was put back."
        )),
        // The items are not known here: none yet.
        None => DiscardImpact::new(format!(
            "Stock has not heard of order {order_id}. Should it still, it sets its items aside \
             for a cancelled order and never puts them back."
        ))
        .with_write_off(
            format!("the release of order {order_id}, if it is served"),
            0,
            "items",
        ),
    }
}
