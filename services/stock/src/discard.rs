//! The consequences of discarding an event that stock cannot handle, for the operator who decides about its dead
//! letter.

use chassis::DiscardImpact;
use events::orders::{OrderCancelled, OrderCreated};

use crate::stock::{Reservation, State, Warehouse};

/// The order may wait for stock's answer for ever, unless it is cancelled.
pub fn order(order: &OrderCreated, warehouse: &Warehouse) -> DiscardImpact {
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

/// What is reserved for the order is never released.
pub fn cancellation(order: &OrderCancelled, warehouse: &Warehouse) -> DiscardImpact {
    let order_id = order.order_id;
    match warehouse.reservation(order_id) {
        Some(Reservation { state: State::Reserved, lines, .. }) => {
            let impact = DiscardImpact::new(format!(
                "What is reserved for order {order_id} is never released, and the order never shows it as \
                 released."
            ));
            let what = format!("the release of order {order_id}");
            lines.iter().fold(impact, |impact, line| {
                impact.with_write_off(&what, line.quantity, &line.sku)
            })
        }
        Some(_) => DiscardImpact::new(format!(
            "Nothing is lost: nothing is reserved for order {order_id}."
        )),
        // Its items are unknown here, so the amount is 0; the operator still has to confirm it.
        None => DiscardImpact::new(format!(
            "Stock has not received order {order_id}. If it still does, it reserves items for a cancelled \
             order and never releases them."
        ))
        .with_write_off(format!("the release of order {order_id}, if it is reserved"), 0, "items"),
    }
}
