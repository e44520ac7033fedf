//! What the events of other services cause. Each handler is a pure function from an event and the rows in memory to
//! what is published.

use chassis::{HandlerContext, HandlerResult, Outcome, unprocessable};
use events::fraud::{FraudCleared, FraudFlagged, FraudWithdrawn};
use events::orders::{OrderCancelled, OrderCreated};
use events::participants::{Fraud, Participant};

use crate::response::{Response, Responses, State};
use crate::rule;

/// The answer to an order.
#[derive(Debug, PartialEq, Outcome)]
pub enum Answer {
    Cleared(FraudCleared),
    Flagged(FraudFlagged),
}

/// `orders.created` → `fraud.cleared` | `fraud.flagged`, if the order asks this service
pub fn answer(
    order: &OrderCreated,
    responses: &mut Responses,
    context: HandlerContext,
) -> HandlerResult<Answer> {
    if !order.also_asks(Fraud::SERVICE) || responses.response(order.order_id).is_some() {
        return Ok(None); // not asked; answered before, or cancelled before it arrived
    }
    if order.total_cents < 0 {
        unprocessable!("order {} has a total of {} cents", order.order_id, order.total_cents);
    }
    let reason = rule::objection(order);
    let response = Response {
        order_id: order.order_id,
        state: if reason.is_none() { State::Cleared } else { State::Flagged },
        total_cents: order.total_cents,
        reason,
        response_event_id: Some(context.event_id),
        compensation_event_id: None,
        created_at: context.now,
        updated_at: context.now,
    };
    let answer = match reason {
        None => Answer::Cleared(response.cleared()),
        Some(_) => Answer::Flagged(response.flagged()),
    };
    responses.put_response(response);
    Ok(Some(answer))
}

/// `orders.cancelled` → `fraud.withdrawn`, unless the answer was a no
pub fn undo(
    order: &OrderCancelled,
    responses: &mut Responses,
    context: HandlerContext,
) -> HandlerResult<FraudWithdrawn> {
    let undone = match responses.response(order.order_id).cloned() {
        Some(Response { state: State::Flagged | State::Withdrawn | State::Void, .. }) => {
            return Ok(None);
        }
        // Undo here what the yes did.
        Some(response) => Response {
            state: State::Withdrawn,
            compensation_event_id: Some(context.event_id),
            updated_at: context.now,
            ..response
        },
        // The cancellation overtook its order. The row is a tombstone: the order gets no answer later.
        None => Response {
            order_id: order.order_id,
            state: State::Void,
            total_cents: 0,
            reason: None,
            response_event_id: None,
            compensation_event_id: Some(context.event_id),
            created_at: context.now,
            updated_at: context.now,
        },
    };
    let withdrawn = undone.withdrawn();
    responses.put_response(undone);
    Ok(Some(withdrawn))
}
