//! The consequences of discarding an event that payment cannot handle, for the operator who decides about its
//! dead letter.

use chassis::DiscardImpact;
use events::orders::{OrderCancelled, OrderCreated};

use crate::payment::{Ledger, Payment, State};

/// The order may wait for payment's answer for ever, unless it is cancelled.
pub fn order(order: &OrderCreated, ledger: &Ledger) -> DiscardImpact {
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

/// What was taken for the order is never refunded.
pub fn cancellation(order: &OrderCancelled, ledger: &Ledger) -> DiscardImpact {
    let order_id = order.order_id;
    match ledger.payment(order_id) {
        Some(Payment { state: State::Verified, amount_cents, currency, .. }) => {
            let unit = format!("{} cents", currency.as_deref().unwrap_or("unknown"));
            DiscardImpact::new(format!(
                "The customer never gets back what was taken for order {order_id}, and the order never shows \
                 it as refunded."
            ))
            .with_write_off(format!("the refund of order {order_id}"), *amount_cents, unit)
        }
        Some(_) => DiscardImpact::new(format!(
            "Nothing is lost: no money of order {order_id} is due to its customer."
        )),
        // Its amount is unknown here, so it is 0; the operator still has to confirm it.
        None => DiscardImpact::new(format!(
            "Payment has not received order {order_id}. If it still does, it takes money for a cancelled \
             order and never refunds it."
        ))
        .with_write_off(format!("the refund of order {order_id}, if it is paid for"), 0, "cents"),
    }
}
