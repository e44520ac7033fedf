//! The consequences of discarding an event that the order service cannot handle, for the operator who decides
//! about its dead letter.

use chassis::DiscardImpact;
use events::participants::{LegState, Participant};

use crate::order::participants::{Answer, Asked};
use crate::order::{Orders, Status};

/// A yes or a no: a pending order may wait for it for ever, unless it is cancelled.
pub fn response<A: Answer>(answer: &A, orders: &Orders) -> DiscardImpact {
    let (order_id, topic) = (answer.order_id(), A::topic().name);
    match orders.order(order_id).map(|order| order.status) {
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

/// What is written off stands in the order's row: the event may be wrong about it.
pub fn undone<A: Answer>(answer: &A, orders: &Orders) -> DiscardImpact {
    let order_id = answer.order_id();
    let order = orders.order(order_id).filter(|order| order.status == Status::Cancelled);
    let Some(order) = order else {
        let nothing = format!("Nothing is lost: there is no cancelled order {order_id}.");
        return DiscardImpact::new(nothing);
    };
    let state = answer.state(order).unwrap_or(LegState::Undone);
    let (leg, word) = (A::Of::SERVICE, state.word::<A::Of>());
    let impact =
        DiscardImpact::new(format!("The {leg} of order {order_id} is never shown as {word}."));
    if state == LegState::Undone { A::Of::write_off(order, impact) } else { impact }
}
