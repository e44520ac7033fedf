//! What a handler left and published, read back into the compact state.

use chassis::{OutgoingEvents, Unprocessable};
use order::{Order, Orders, Status};
use payment::Ledger;
use stock::Warehouse;

use crate::rows::*;
use crate::saga::{SagaModel, StepState};
use crate::world::EventKind::*;
use crate::world::{EventKind, OrderState, World, deliveries};

impl<const N: usize> SagaModel<N> {
    pub fn read_order_result(
        &self,
        shown: OrderState,
        answer: Result<OutgoingEvents, Unprocessable>,
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

    pub fn read_order(
        &self,
        shown: OrderState,
        rows: &Orders,
        events: OutgoingEvents,
    ) -> OrderState {
        let row = rows.order(ORDER).unwrap();
        let (status, payment_leg, stock_leg) = (row.status, row.payment, row.stock);
        let after = OrderState { status, payment_leg, stock_leg, ..shown };
        assert_eq!(row.reason.is_some(), status == Status::Cancelled);
        let built = orders_from(&after);
        let built = built.order(ORDER).unwrap();
        // No handler reads why an order was cancelled, or how long its history is.
        let Order { reason, last_position, .. } = *built;
        self.assert_lossless(&Order { reason, last_position, ..row.clone() }, built);
        self.record_published(after, "order", events)
    }

    pub fn read_payment_result(
        &self,
        shown: OrderState,
        answer: Result<OutgoingEvents, Unprocessable>,
        rows: &Ledger,
    ) -> OrderState {
        let Ok(events) = answer else { return OrderState { unprocessable: true, ..shown } };
        let account = rows.account(CUSTOMER).unwrap();
        assert_eq!(account.deposited_cents, account.balance_cents + account.taken_cents);
        assert!(account.balance_cents >= 0, "no more is taken than there is");
        let moved = account.taken_cents / TOTAL_CENTS - totals_charged(&shown);
        let mut after = OrderState { payment: rows.payment(ORDER).map(|row| row.state), ..shown };
        match moved {
            0 => {}
            1 => after.charges += 1,
            -1 => after.refunds += 1,
            _ => panic!("{moved} totals were taken at once"),
        }
        if let Some(row) = rows.payment(ORDER) {
            self.assert_lossless(row, ledger_from(&after, true).payment(ORDER).unwrap());
        }
        self.record_published(after, "payment", events)
    }

    pub fn read_stock_result(
        &self,
        (shown, available): StepState,
        answer: Result<OutgoingEvents, Unprocessable>,
        rows: &Warehouse,
    ) -> StepState {
        let Ok(events) = answer else {
            return (OrderState { unprocessable: true, ..shown }, available);
        };
        let item = rows.item(SKU).unwrap();
        assert_eq!(item.delivered, item.available + item.reserved);
        let left = item.available as i8;
        let reservation = rows.reservation(ORDER).map(|row| row.state);
        let after = OrderState { reservation, held: shown.held + available - left, ..shown };
        if let Some(row) = rows.reservation(ORDER) {
            let again = warehouse_from(&after, left, self.units);
            self.assert_lossless(row, again.reservation(ORDER).unwrap());
        }
        (self.record_published(after, "stock", events), left)
    }

    /// The row that a handler left equals the row that is built from the compact state: that state
    /// lacks nothing that a handler could read.
    pub fn assert_lossless<T: PartialEq + std::fmt::Debug>(&self, left: &T, built: &T) {
        if self.mutant.is_none() {
            assert_eq!(left, built);
        }
    }

    /// What is published equals, byte for byte, what the model delivers to subscribers.
    pub fn record_published(
        &self,
        after: OrderState,
        by: &str,
        events: OutgoingEvents,
    ) -> OrderState {
        let events = events.with_ids(context()).map(|(_, event)| event);
        events.fold(after, |after, event| {
            let key = ORDER.to_string();
            assert_eq!((event.topic.publisher, event.key.as_str()), (by, key.as_str()));
            let kind = EventKind::from_outgoing(&event);
            if self.mutant.is_none() && kind != Cancelled {
                assert_eq!(event.body, sample(kind), "{kind:?}");
            }
            let repeated = after.published_twice || after.published & kind.bit() != 0;
            let published = after.published | kind.bit();
            OrderState { published, published_twice: repeated, ..after }
        })
    }

    /// Whether every published event was delivered to every subscriber, at least once.
    pub fn is_quiescent(&self, world: &World<N>) -> bool {
        world.orders.iter().all(|placed| {
            deliveries(placed).all(|(service, kind)| placed.delivered & service.bit(kind) != 0)
        })
    }
}
