//! The consequences of discarding an event that the order service cannot handle, for the operator who decides
//! about its dead letter.

use chassis::{DiscardImpact, Event};
use events::payments::PaymentRefunded;
use events::stock::StockReleased;
use uuid::Uuid;

use crate::order::{Order, Orders, Status};

/// An answer of payment or stock: a pending order may wait for it for ever, unless it is cancelled.
pub fn response<E: Event>(event: &E, orders: &Orders) -> DiscardImpact {
    // The key of these events is the id of their order.
    let (order_id, topic) = (event.key(), E::topic().name);
    let order = order_id.parse().ok().and_then(|order_id| orders.order(order_id));
    match order.map(|order| order.status) {
        None => DiscardImpact::new(format!("Nothing is lost here: there is no order {order_id}.")),
        Some(Status::Pending) => DiscardImpact::new(format!(
            "Order {order_id} never gets this {topic}, and may never end."
        ))
        .with_remedy("cancels the order", "order", format!("/orders/{order_id}/cancel")),
        Some(_) => DiscardImpact::new(format!(
            "Order {order_id} has ended. It never shows what this {topic} states."
        )),
    }
}

/// The amount is that of the order's row: the event may be wrong about it.
pub fn refund(event: &PaymentRefunded, orders: &Orders) -> DiscardImpact {
    let order_id = event.order_id;
    let Some(order) = cancelled_order(order_id, orders) else { return nothing_due(order_id) };
    let impact =
        DiscardImpact::new(format!("The payment of order {order_id} is never shown as refunded."));
    if event.amount_cents.is_none() {
        return impact;
    }
    let what = format!("the refund of order {order_id}");
    impact.with_write_off(what, order.total_cents, format!("{} cents", order.currency))
}

/// The quantities are those of the order's row: the event may be wrong about them.
pub fn release(event: &StockReleased, orders: &Orders) -> DiscardImpact {
    let order_id = event.order_id;
    let Some(order) = cancelled_order(order_id, orders) else { return nothing_due(order_id) };
    let impact =
        DiscardImpact::new(format!("The stock of order {order_id} is never shown as released."));
    if event.lines.is_empty() {
        return impact;
    }
    let what = format!("the release of order {order_id}");
    order
        .lines
        .iter()
        .fold(impact, |impact, line| impact.with_write_off(&what, line.quantity, &line.sku))
}

fn cancelled_order(order_id: Uuid, orders: &Orders) -> Option<&Order> {
    orders.order(order_id).filter(|order| order.status == Status::Cancelled)
}

fn nothing_due(order_id: Uuid) -> DiscardImpact {
    DiscardImpact::new(format!("Nothing is lost: there is no cancelled order {order_id}."))
}
