//! Payment takes the total of an order.

use chassis::DiscardImpact;
use events::participants::LegState::{self, *};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};

use super::{Asked, Payment, answer};
use crate::order::{Leg, Order, Reason};

impl Asked for Payment {
    const REFUSAL: Reason = Reason::PaymentDeclined;

    fn leg(order: &mut Order) -> Option<&mut Leg<Payment>> {
        Some(&mut order.payment)
    }

    fn write_off(order: &Order, impact: DiscardImpact) -> DiscardImpact {
        let what = format!("the refund of order {}", order.order_id);
        impact.with_write_off(what, order.total_cents, format!("{} cents", order.currency))
    }
}

answer!(Payment, PaymentVerified, |event, order| {
    is_total(event.amount_cents, Some(&event.currency), order).then_some(Accepted)
});

answer!(Payment, PaymentDeclined, |_, _| Some(Refused));

answer!(Payment, PaymentRefunded, |event, order| match event.amount_cents {
    None => Some(Void),
    Some(cents) => is_total(cents, event.currency.as_ref(), order).then_some(Undone),
});

fn is_total(cents: i64, currency: Option<&String>, order: &Order) -> bool {
    (cents, currency) == (order.total_cents, Some(&order.currency))
}
