//! What it costs to discard an event that can't be handled, and what can be done about it: what an operator
//! reads before a dead letter is discarded for good.

use chassis::DiscardImpact;
use events::orders::{OrderCancelled, OrderCreated};

use crate::payment::{Ledger, Payment, State};

/// What it costs to discard an `orders.created` that payment can't handle.
pub fn order_impact(order: &OrderCreated, ledger: &Ledger) -> DiscardImpact {
    let order_id = order.order_id;
    if ledger.payment(order_id).is_some() {
        return DiscardImpact::new(format!(
            "Nothing is lost: payment has answered order {order_id}."
        ));
    }
    DiscardImpact::new(format!("Payment never answers order {order_id}, which may never end."))
        .with_remedy(
            "cancels the order, so that it ends",
            "order",
            format!("/orders/{order_id}/cancel"),
        )
}

/// What it costs to discard an `orders.cancelled` that payment can't handle.
pub fn cancellation_impact(order: &OrderCancelled, ledger: &Ledger) -> DiscardImpact {
    let order_id = order.order_id;
    match ledger.payment(order_id) {
        Some(Payment { state: State::Verified, amount_cents, currency, .. }) => {
            let unit = format!("{} cents", currency.as_deref().unwrap_or("unknown"));
            DiscardImpact::new(format!(
                "What was taken for order {order_id} is never given back to its customer, and the \
                 order's payment never reads as undone."
            ))
            .with_write_off(
                format!("the refund of order {order_id}"),
                *amount_cents,
                unit,
            )
        }
        Some(_) => DiscardImpact::new(format!(
            "Nothing is lost: nothing is taken for order {order_id}, or it was given back."
        )),
        // The amount is not known here: nothing yet.
        None => DiscardImpact::new(format!(
            "Payment has not heard of order {order_id}. Should it still, it takes the money for a \
             cancelled order and never gives it back."
        ))
        .with_write_off(
            format!("the refund of order {order_id}, if it is paid for"),
            0,
            "cents",
        ),
    }
}
