//! Fraud answers whether an order may go on.

use chassis::DiscardImpact;
use events::fraud::{FraudCleared, FraudFlagged, FraudKept, FraudWithdrawn};
use events::participants::LegState::{self, *};

use super::{Asked, Fraud, answer};
use crate::order::{Leg, Order, Reason};

impl Asked for Fraud {
    const REFUSAL: Reason = Reason::FraudFlagged;

    fn leg(order: &mut Order) -> Option<&mut Leg<Fraud>> {
        order.fraud.as_mut()
    }

    fn write_off(_: &Order, impact: DiscardImpact) -> DiscardImpact {
        impact
    }
}

answer!(Fraud, FraudCleared, |event, order| {
    (event.total_cents == order.total_cents).then_some(Accepted)
});

answer!(Fraud, FraudFlagged, |_, _| Some(Refused));

answer!(Fraud, FraudKept, |_, _| Some(UndoRefused));

answer!(Fraud, FraudWithdrawn, |event, order| match event.total_cents {
    None => Some(Void),
    Some(cents) => (cents == order.total_cents).then_some(Undone),
});
