//! Fraud has nothing but its responses.

use events::fraud::{FraudCleared, FraudFlagged, FraudWithdrawn, RefusalReason};
use events::orders::OrderCreated;
use events::participants::{Fraud, LegState, Participant, participants};
use fraud::State::{Cleared, Flagged, Void, Withdrawn};
use fraud::{Response, Responses};

use super::{Handled, Modelled, published};
use crate::rows::*;
use crate::world::{ANSWERS, EventKind, OrderState, Rules, StepState};

/// In the order of [`ANSWERS`].
const STATES: [fraud::State; 4] = [Cleared, Flagged, Withdrawn, Void];

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

    fn handle(
        rules: &Rules,
        (shown, available): StepState,
        kind: EventKind,
        willing: bool,
    ) -> Handled {
        let nth = participants().iter().position(|it| it.service == Fraud::SERVICE).unwrap();
        let own = |shown: &OrderState| responses_from(shown.own[nth]);
        let mut rows = own(&shown);
        let events = match kind {
            EventKind::Created => {
                // The example rule objects to a large total. Another rule has another way here.
                let total_cents = if willing { TOTAL_CENTS } else { fraud::TOTAL_MAX_CENTS + 1 };
                let order = OrderCreated { total_cents, ..created() };
                published(fraud::saga::answer(&order, &mut rows, context()))
            }
            EventKind::Cancelled => {
                published(fraud::saga::undo(&cancelled(), &mut rows, context()))
            }
            _ => unreachable!("fraud does not subscribe to {kind:?}"),
        }?;
        let mut after = shown;
        after.own[nth] = rows.response(ORDER).map(|row| state_of(row.state));
        if let Some(row) = rows.response(ORDER) {
            // No handler reads the total of a no.
            let built = Response { total_cents: row.total_cents, ..own(&after).response(ORDER).unwrap().clone() };
            rules.assert_lossless(row, &built);
        }
        Ok((after, available, events))
    }
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
            compensation_event_id: matches!(state, Withdrawn | Void).then_some(PUBLISHED_EVENT_ID),
            created_at: context().now,
            updated_at: context().now,
        });
    }
    rows
}
