//! What it costs to discard an event that can't be handled, and what can be done about it: what an operator
//! reads before a dead letter is discarded for good.

use chassis::DiscardImpact;
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{StockItem, StockRejected, StockReleased, StockReserved};
use uuid::Uuid;

use crate::order::{Orders, Status};

/// What it costs to discard a `payments.verified` that the order can't handle.
pub fn verification_impact(event: &PaymentVerified, orders: &Orders) -> DiscardImpact {
    response_impact(event.order_id, "payment's yes", orders)
}

/// What it costs to discard a `payments.declined` that the order can't handle.
pub fn decline_impact(event: &PaymentDeclined, orders: &Orders) -> DiscardImpact {
    response_impact(event.order_id, "payment's no", orders)
}

/// What it costs to discard a `stock.reserved` that the order can't handle.
pub fn reservation_impact(event: &StockReserved, orders: &Orders) -> DiscardImpact {
    response_impact(event.order_id, "stock's yes", orders)
}

/// What it costs to discard a `stock.rejected` that the order can't handle.
pub fn rejection_impact(event: &StockRejected, orders: &Orders) -> DiscardImpact {
    response_impact(event.order_id, "stock's no", orders)
}

fn response_impact(order_id: Uuid, answer: &str, orders: &Orders) -> DiscardImpact {
    match orders.order(order_id).map(|order| order.status) {
        None => unknown_order_impact(order_id),
        Some(Status::Pending) => {
            DiscardImpact::new(format!("Order {order_id} never hears {answer} and may never end."))
                .with_remedy("cancels the order", "order", format!("/orders/{order_id}/cancel"))
        }
        Some(_) => DiscardImpact::new(format!(
            "Order {order_id} is decided; that it never hears {answer} leaves that leg open."
        )),
    }
}

/// What it costs to discard a `payments.refunded` that the order can't handle. What is due is the
/// order's word: the event may be one that cannot be.
pub fn refund_impact(event: &PaymentRefunded, orders: &Orders) -> DiscardImpact {
    let order_id = event.order_id;
    let Some(order) = orders.order(order_id) else { return unknown_order_impact(order_id) };
    if order.status != Status::Cancelled {
        return no_compensation_due(order_id);
    }
    let loss = DiscardImpact::new(format!(
        "Order {order_id} never learns what payment gave back: its payment never reads as undone."
    ));
    if event.amount_cents.is_none() {
        return loss;
    }
    let what = format!("the refund of order {order_id}");
    loss.with_write_off(what, order.total_cents, format!("{} cents", order.currency))
}

/// What it costs to discard a `stock.released` that the order can't handle, by the order's own lines.
pub fn release_impact(event: &StockReleased, orders: &Orders) -> DiscardImpact {
    let order_id = event.order_id;
    let Some(order) = orders.order(order_id) else { return unknown_order_impact(order_id) };
    if order.status != Status::Cancelled {
        return no_compensation_due(order_id);
    }
    let loss = DiscardImpact::new(format!(
        "Order {order_id} never learns what stock put back: its stock never reads as undone."
    ));
    if event.lines.is_empty() {
        return loss;
    }
    let what = format!("the release of order {order_id}");
    order.lines.iter().fold(loss, |loss, l| loss.with_write_off(&what, l.quantity, &l.sku))
}

/// What it costs to discard a `stock.items` that the order service can't handle.
pub fn item_impact(item: &StockItem, orders: &Orders) -> DiscardImpact {
    let StockItem { sku, version, .. } = item;
    DiscardImpact::new(match orders.item(sku) {
        Some(known) if known.version >= *version => {
            format!("Nothing is lost: version {} of {sku:?} is known.", known.version)
        }
        Some(known) => format!(
            "Orders of {sku:?} go on with version {}, until stock publishes it again.",
            known.version
        ),
        None => format!("Nobody can order {sku:?} until stock publishes it again."),
    })
}

fn unknown_order_impact(order_id: Uuid) -> DiscardImpact {
    DiscardImpact::new(format!(
        "Nothing is lost here: there is no order {order_id} that waits for it."
    ))
}

fn no_compensation_due(order_id: Uuid) -> DiscardImpact {
    DiscardImpact::new(format!(
        "Nothing is lost: order {order_id} was not cancelled, so nothing is undone."
    ))
}
