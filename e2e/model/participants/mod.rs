//! The participants in the model: a file for each.

mod payment;
mod stock;

use chassis::event::{Event, Outgoing};
use chassis::{Effects, HandlerResult, Outcome, Unprocessable};
use events::participants::{LegState, LegState::*, PARTICIPANTS};
use order::participants::{Answer, Asked, Payment, Stock};
use order::saga::answered;
use order::{Leg, Order, Orders, Reason, Status};

use crate::rows::{ORDER, PUBLISHED_EVENT_ID, context, place_order};
use crate::world::{EventKind, OrderState, Rules, StepState};

/// In the order of the legs.
pub const PARTS: [Part; PARTICIPANTS] = [Part::of::<Payment>(), Part::of::<Stock>()];

/// What a step of a participant's service leaves and publishes.
pub type Handled = Result<(OrderState, i8, Effects), Unprocessable>;

/// The samples of a participant's answers, and its service.
pub trait Modelled: Asked {
    fn accepted() -> Self::Accepted;
    fn refused() -> Self::Refused;
    fn undone(is_void: bool) -> Self::Undone;

    /// Its answer that it could not undo, as the order service handles it, and its body.
    fn undo_refused(_: &mut Orders) -> (Result<Effects, Unprocessable>, Vec<u8>) {
        unreachable!("the undo of {} never fails", Self::SERVICE)
    }

    /// An operator settles what it could not undo.
    fn settle(_: &Rules, _: StepState) -> Handled {
        unreachable!("the undo of {} never fails", Self::SERVICE)
    }

    /// Builds the rows of its service, calls the handler, and reads the rows back. `willing`: whether it has no
    /// reason for a no, and can undo.
    fn handle(rules: &Rules, part: StepState, kind: EventKind, willing: bool) -> Handled;
}

/// A participant.
pub struct Part {
    pub service: &'static str,
    /// Sets its leg, in an order that asks it.
    pub set_leg: fn(&mut Order, LegState),
    /// The answer that leads to a state, as the order service handles it, and its body.
    pub answer: fn(LegState, &mut Orders) -> Result<Effects, Unprocessable>,
    pub sample: fn(LegState) -> Vec<u8>,
    /// The state to which a published answer leads.
    pub state: fn(&Outgoing) -> LegState,
    pub handle: fn(&Rules, StepState, EventKind, bool) -> Handled,
    pub settle: fn(&Rules, StepState) -> Handled,
}

impl Part {
    const fn of<P: Modelled>() -> Part {
        Part {
            service: P::SERVICE,
            set_leg: |order, state| *P::leg(order).unwrap() = Leg::new(state),
            answer: |state, orders| match state {
                Accepted => published(answered(&P::accepted(), orders, context())),
                Refused => published(answered(&P::refused(), orders, context())),
                UndoRefused => <P as Modelled>::undo_refused(orders).0,
                _ => published(answered(&P::undone(state == Void), orders, context())),
            },
            sample: |state| match state {
                Accepted => Outgoing::from_event(&P::accepted()).body,
                Refused => Outgoing::from_event(&P::refused()).body,
                UndoRefused => <P as Modelled>::undo_refused(&mut place_order().0).1,
                _ => Outgoing::from_event(&P::undone(state == Void)).body,
            },
            state: |event| match event.topic.name {
                name if name == P::Accepted::topic().name => Accepted,
                name if name == P::Refused::topic().name => Refused,
                name if name == P::Undone::topic().name => state_of::<P::Undone>(event),
                _ => UndoRefused,
            },
            handle: P::handle,
            settle: P::settle,
        }
    }
}

fn state_of<A: Answer>(event: &Outgoing) -> LegState {
    let own = event.topic.codec();
    let answer: A = own.decode(own, &event.body).unwrap();
    answer.state(place_order().0.order(ORDER).unwrap()).unwrap()
}

/// The rows of order, built from the compact state of an order.
pub fn orders_from(placed: &OrderState) -> Orders {
    let mut rows = place_order().0;
    let ended = placed.status != Status::Pending;
    let order = rows.order_mut(ORDER).unwrap();
    order.status = placed.status;
    order.reason = (placed.status == Status::Cancelled).then_some(Reason::Customer);
    order.ended_at = ended.then_some(context().now);
    order.ended_event_id = ended.then_some(PUBLISHED_EVENT_ID);
    for (part, state) in PARTS.iter().zip(placed.legs) {
        (part.set_leg)(order, state);
    }
    rows
}

/// What a handler publishes, as it leaves the service.
fn published(answer: HandlerResult<impl Outcome>) -> Result<Effects, Unprocessable> {
    answer.map(Effects::of)
}
