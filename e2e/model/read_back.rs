//! What a handler left and published, read back into the compact state.

use chassis::event::Outgoing;
use chassis::{Effects, Unprocessable};
use order::{Order, Orders, Status};

use crate::participants::{PARTS, orders_from};
use crate::rows::*;
use crate::saga::SagaModel;
use crate::world::EventKind::{self, *};
use crate::world::{OrderState, Rules, World, deliveries};

impl Rules {
    pub fn read_order_result(
        &self,
        shown: OrderState,
        answer: Result<Effects, Unprocessable>,
        rows: &Orders,
    ) -> OrderState {
        match answer {
            Ok(events) => self.read_order(shown, rows, events),
            Err(_) => {
                let before = orders_from(&shown);
                assert_eq!(rows.order(ORDER), before.order(ORDER), "it changes nothing");
                OrderState { unprocessable: true, ..shown }
            }
        }
    }

    pub fn read_order(&self, shown: OrderState, rows: &Orders, events: Effects) -> OrderState {
        let row = rows.order(ORDER).unwrap();
        let after =
            OrderState { status: row.status, legs: row.legs().map(Option::unwrap), ..shown };
        assert_eq!(row.reason.is_some(), row.status == Status::Cancelled);
        let built = orders_from(&after);
        let built = built.order(ORDER).unwrap();
        // No handler reads why an order was cancelled, or how long its history is.
        let Order { reason, last_position, .. } = *built;
        self.assert_lossless(&Order { reason, last_position, ..row.clone() }, built);
        self.record_published(after, "order", events)
    }

    /// What is published equals, byte for byte, what the model delivers to subscribers.
    pub fn record_published(&self, after: OrderState, by: &str, events: Effects) -> OrderState {
        let events = events.with_ids(context()).map(|(_, event)| event);
        events.fold(after, |after, event| {
            let key = ORDER.to_string();
            assert_eq!((event.topic.publisher, event.key.as_str()), (by, key.as_str()));
            let kind = kind_of(&event);
            if self.mutant.is_none() && kind != Cancelled {
                assert_eq!(event.body, sample(kind), "{kind:?}");
            }
            let repeated = after.published_twice || after.published & kind.bit() != 0;
            let published = after.published | kind.bit();
            OrderState { published, published_twice: repeated, ..after }
        })
    }
}

impl<const N: usize> SagaModel<N> {
    /// Whether every published event was delivered to every subscriber, at least once.
    pub fn is_quiescent(&self, world: &World<N>) -> bool {
        world.orders.iter().all(|placed| {
            deliveries(placed).all(|(service, kind)| placed.delivered & service.bit(kind) != 0)
        })
    }
}

/// What was just published.
fn kind_of(event: &Outgoing) -> EventKind {
    match PARTS.iter().position(|part| part.service == event.topic.publisher) {
        Some(nth) => Answer(nth, (PARTS[nth].state)(event)),
        None => EventKind::all().find(|kind| kind.topic().name == event.topic.name).unwrap(),
    }
}

fn sample(kind: EventKind) -> Vec<u8> {
    match kind {
        Created => Outgoing::from_event(&created()).body,
        Cancelled => Outgoing::from_event(&cancelled()).body,
        Confirmed => Outgoing::from_event(&confirmed()).body,
        Answer(nth, state) => (PARTS[nth].sample)(state),
    }
}
