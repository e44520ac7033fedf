//! What the events of other services and the command of an operator cause. Each is a pure function from an event or a
//! command and the rows in memory to what is published.

use chassis::{Command, Decision, HandlerContext, HandlerResult, Outcome, unprocessable};
use events::fraud::{FraudCleared, FraudFlagged, FraudKept, FraudWithdrawn};
use events::orders::{OrderCancelled, OrderCreated};
use events::participants::{Fraud, Participant};

use crate::response::{Response, Responses, Settle, State};
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
        kept_event_id: None,
        kept_at: None,
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

/// The answer to a cancellation.
#[derive(Debug, PartialEq, Outcome)]
pub enum Undoing {
    Withdrawn(FraudWithdrawn),
    Kept(FraudKept),
}

/// `orders.cancelled` → `fraud.withdrawn` | `fraud.kept`, unless the answer was a no
pub fn undo(
    order: &OrderCancelled,
    responses: &mut Responses,
    context: HandlerContext,
) -> HandlerResult<Undoing> {
    let undone = match responses.response(order.order_id).cloned() {
        // The order stays cancelled with something owed, until an operator settles it.
        Some(response) if response.state == State::Cleared && rule::refuses_undo(&response) => {
            Response {
                state: State::Kept,
                kept_event_id: Some(context.event_id),
                kept_at: Some(context.now),
                updated_at: context.now,
                ..response
            }
        }
        // Undo here what the yes did.
        Some(response) if response.state == State::Cleared => response.undone(context),
        Some(_) => return Ok(None), // nothing to undo, or answered before
        // The cancellation overtook its order. The row is a tombstone: the order gets no answer later.
        None => Response {
            order_id: order.order_id,
            state: State::Void,
            total_cents: 0,
            reason: None,
            response_event_id: None,
            kept_event_id: None,
            kept_at: None,
            compensation_event_id: Some(context.event_id),
            created_at: context.now,
            updated_at: context.now,
        },
    };
    let undoing = match undone.state {
        State::Kept => Undoing::Kept(undone.kept(context.now)),
        _ => Undoing::Withdrawn(undone.withdrawn()),
    };
    responses.put_response(undone);
    Ok(Some(undoing))
}

/// There is nothing to settle: the service could undo its yes, or there is none.
#[derive(Debug, PartialEq)]
pub struct NothingOwed;

/// An operator has undone by hand what the service could not → `fraud.withdrawn`, unless it was settled already
impl Command for Settle {
    type Aggregate = Responses;
    type Output = Response;
    type Event = FraudWithdrawn;
    type Refusal = NothingOwed;

    fn decide(&self, responses: &mut Responses, context: HandlerContext) -> Decision<Self> {
        let response = responses.response(self.order_id).cloned();
        let response = response.filter(|it| it.kept_event_id.is_some()).ok_or(NothingOwed)?;
        if response.state == State::Withdrawn {
            return Ok(Self::ok(response));
        }
        let settled = response.undone(context);
        let withdrawn = settled.withdrawn();
        responses.put_response(settled.clone());
        Ok(Self::ok(settled).publishing(Some(withdrawn)))
    }
}
