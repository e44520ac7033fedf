//! Fraud has nothing but its responses.

use chassis::event::Outgoing;
use chassis::{Command, Effects, Unprocessable};
use events::fraud::{FraudCleared, FraudFlagged, FraudKept, FraudWithdrawn, RefusalReason};
use events::orders::OrderCreated;
use events::participants::{Fraud, LegState, Participant, participants};
use fraud::State::{Cleared, Flagged, Kept, Void, Withdrawn};
use fraud::{Response, Responses, Settle};
use order::saga::answered;
use order::Orders;

use super::{Handled, Modelled, published};
use crate::rows::*;
use crate::world::{ANSWERS, EventKind, OrderState, Rules, StepState};

/// In the order of [`ANSWERS`].
const STATES: [fraud::State; 5] = [Cleared, Flagged, Withdrawn, Void, Kept];

impl Modelled for Fraud {
    fn accepted() -> FraudCleared {
        let (order_id, total_cents, occurred_at) = (ORDER, TOTAL_CENTS, context().now);
        FraudCleared { order_id, total_cents, occurred_at }
    }

    fn refused() -> FraudFlagged {
        let (order_id, reason) = (ORDER, RefusalReason::TotalTooLarge);
        FraudFlagged { order_id, reason, occurred_at: context().now }
    }

    fn undone(is_void: bool) -> FraudWithdrawn {
        let total_cents = (!is_void).then_some(TOTAL_CENTS);
        FraudWithdrawn { order_id: ORDER, total_cents, occurred_at: context().now }
    }

    fn undo_refused(orders: &mut Orders) -> (Result<Effects, Unprocessable>, Vec<u8>) {
        let kept = FraudKept { order_id: ORDER, occurred_at: context().now };
        (published(answered(&kept, orders, context())), Outgoing::from_event(&kept).body)
    }

    fn settle(rules: &Rules, (shown, available): StepState) -> Handled {
        let mut rows = responses_from(shown.own[nth()]);
        let settled = Settle { order_id: ORDER }.decide(&mut rows, context());
        let events = Effects::of(settled.expect("something is owed").event);
        Ok((read_back(rules, shown, &rows), available, events))
    }

    fn handle(
        rules: &Rules,
        (shown, available): StepState,
        kind: EventKind,
        willing: bool,
    ) -> Handled {
        let mut rows = responses_from(shown.own[nth()]);
        let events = match kind {
            EventKind::Created => {
                // The example rule objects to a large total. Another rule has another way here.
                let total_cents = if willing { TOTAL_CENTS } else { fraud::TOTAL_MAX_CENTS + 1 };
                let order = OrderCreated { total_cents, ..created() };
                published(fraud::saga::answer(&order, &mut rows, context()))
            }
            EventKind::Cancelled => {
                // The example rule cannot undo the yes to a large total.
                if let Some(response) = rows.response(ORDER).cloned().filter(|_| !willing) {
                    let total_cents = fraud::UNDONE_MAX_CENTS + 1;
                    rows.put_response(Response { total_cents, ..response });
                }
                published(fraud::saga::undo(&cancelled(), &mut rows, context()))
            }
            _ => unreachable!("fraud does not subscribe to {kind:?}"),
        }?;
        Ok((read_back(rules, shown, &rows), available, events))
    }
}

/// Its place in the list of participants.
fn nth() -> usize {
    participants().iter().position(|it| it.service == Fraud::SERVICE).unwrap()
}

fn read_back(rules: &Rules, shown: OrderState, rows: &Responses) -> OrderState {
    let mut after = shown;
    after.own[nth()] = rows.response(ORDER).map(|row| state_of(row.state));
    if let Some(row) = rows.response(ORDER) {
        let built = responses_from(after.own[nth()]);
        // No handler reads the total of a no, nor how an undone yes was undone.
        let Response { total_cents, kept_event_id, kept_at, .. } = *row;
        let built = built.response(ORDER).unwrap().clone();
        rules.assert_lossless(row, &Response { total_cents, kept_event_id, kept_at, ..built });
    }
    after
}

fn state_of(state: fraud::State) -> LegState {
    ANSWERS[STATES.iter().position(|it| *it == state).unwrap()]
}

fn responses_from(own: Option<LegState>) -> Responses {
    let mut rows = Responses::default();
    for state in STATES.into_iter().filter(|state| own == Some(state_of(*state))) {
        rows.put_response(Response {
            order_id: ORDER,
            state,
            total_cents: if state == Void { 0 } else { TOTAL_CENTS },
            reason: (state == Flagged).then_some(fraud::Reason::TotalTooLarge),
            response_event_id: (state != Void).then_some(PUBLISHED_EVENT_ID),
            kept_event_id: (state == Kept).then_some(PUBLISHED_EVENT_ID),
            kept_at: (state == Kept).then_some(context().now),
            compensation_event_id: matches!(state, Withdrawn | Void).then_some(PUBLISHED_EVENT_ID),
            created_at: context().now,
            updated_at: context().now,
        });
    }
    rows
}
