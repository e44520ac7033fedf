//! The participants as the order service asks them: a file has what is peculiar to each.

mod payment;
mod stock;

pub use events::participants::{Payment, Stock};

use chassis::{DiscardImpact, Event};
use chrono::{DateTime, Utc};
use events::participants::{LegState, Participant};
use uuid::Uuid;

use super::{BrokenHistory, HistoryEntry, Leg, Order, Reason};

/// A participant, as an order asks it.
pub trait Asked: Participant<Accepted: Answer, Refused: Answer, Undone: Answer> + Sized {
    /// Why its no cancels an order.
    const REFUSAL: Reason;
    /// Its leg; `None` if the order does not ask it. A participant that joins a running system is not asked by the orders
    /// that are there already: its column is null in them.
    fn leg(order: &mut Order) -> Option<&mut Leg<Self>>;
    /// Adds what is written off if the order never learns that this was undone.
    fn write_off(order: &Order, impact: DiscardImpact) -> DiscardImpact;
}

/// An answer of a participant to an order.
pub trait Answer: Event {
    type Of: Asked;
    fn order_id(&self) -> Uuid;
    fn occurred_at(&self) -> DateTime<Utc>;
    /// The state of the leg to which it alone leads; `None` if it is about something else than the order needs.
    fn state(&self, order: &Order) -> Option<LegState>;
}

/// Implements [`Answer`] for an answer of a participant.
macro_rules! answer {
    ($participant:ty, $event:ty, $state:expr) => {
        impl $crate::order::participants::Answer for $event {
            type Of = $participant;
            fn order_id(&self) -> uuid::Uuid {
                self.order_id
            }
            fn occurred_at(&self) -> chrono::DateTime<chrono::Utc> {
                self.occurred_at
            }
            fn state(&self, order: &Order) -> Option<LegState> {
                let state: fn(&$event, &Order) -> Option<LegState> = $state;
                state(self, order)
            }
        }
    };
}
use answer;

/// Applies an answer of the history to the leg of its participant.
pub(super) fn apply(entry: &HistoryEntry, order: &mut Order) -> Result<(), BrokenHistory> {
    let is_answer =
        apply_answer_of::<Payment>(entry, order)? || apply_answer_of::<Stock>(entry, order)?;
    if is_answer { Ok(()) } else { Err(entry.is_misplaced()) }
}

/// False if the entry is no answer of this participant.
fn apply_answer_of<P: Asked>(
    entry: &HistoryEntry,
    order: &mut Order,
) -> Result<bool, BrokenHistory> {
    Ok(apply_answer::<P::Accepted>(entry, order)?
        || apply_answer::<P::Refused>(entry, order)?
        || apply_answer::<P::Undone>(entry, order)?)
}

fn apply_answer<A: Answer>(entry: &HistoryEntry, order: &mut Order) -> Result<bool, BrokenHistory> {
    if entry.event != A::topic().name {
        return Ok(false);
    }
    let state = entry.decode::<A>()?.state(order).ok_or_else(|| entry.is_misplaced())?;
    let is_possible = A::Of::leg(order).is_none_or(|leg| leg.climb(state));
    if is_possible { Ok(true) } else { Err(entry.is_misplaced()) }
}
