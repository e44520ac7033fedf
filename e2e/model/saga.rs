//! A step: rows are built, the handler is called, the rows are read back.

use std::collections::HashMap;
use std::sync::RwLock;

use chassis::event::{Answer, At, Outcome};

use crate::mutants::Mutant;
use crate::order::{CancelOrder, Order, Orders, PaymentLeg, Reason, Status, StockLeg};
use crate::payment::Ledger;
use crate::rows::*;
use crate::stock::Warehouse;
use crate::world::Kind::*;
use crate::world::{Kind, Placed, Service, Step, World, deliveries};
use crate::{order_saga, payment, payment_saga, stock, stock_saga};

/// One order and the item: all that a step can see and change.
pub type Part = (Placed, i8);

/// The model: so many orders, so many units, and the rule that is broken, if one is.
pub struct Saga<const N: usize> {
    pub units: i8,
    pub mutant: Option<Mutant>,
    /// What a step made of a part: handlers are pure, so each is asked once.
    pub known: Option<RwLock<HashMap<(Part, Step), Part>>>,
}

impl<const N: usize> Saga<N> {
    pub fn new(units: i8, mutant: Option<Mutant>) -> Self {
        Saga { units, mutant, known: Some(RwLock::default()) }
    }

    /// Asks the handlers anew at each step, though nothing but the answer is remembered.
    pub fn without_memory(units: i8) -> Self {
        Saga { units, mutant: None, known: None }
    }

    pub fn step(&self, part: Part, step: Step) -> Part {
        let Some(known) = &self.known else { return self.take(part, step) };
        if let Some(next) = known.read().unwrap().get(&(part, step)) {
            return *next;
        }
        let next = self.take(part, step);
        known.write().unwrap().insert((part, step), next);
        next
    }

    /// Takes a step with the rule in force, or with its mutant.
    pub fn take(&self, (before, available): Part, step: Step) -> Part {
        use Mutant::*;
        let mut shown = before;
        let mut shown_available = available;
        let (to, kind, rich) = match step {
            Step::Lose(service, kind) => {
                return (Placed { heard: before.heard | service.bit(kind), ..before }, available);
            }
            Step::Cancel(reason) => {
                if self.mutant == Some(CancelAfterConfirm) && before.status == Status::Confirmed {
                    shown.status = Status::Pending;
                }
                return (self.cancel(shown, reason), available);
            }
            Step::Deliver { to, kind, rich } => (to, kind, rich),
        };
        let mut ignored = false;
        match (self.mutant, to, kind) {
            (Some(NonAtomicDedupeInPayment), Service::Payment, Created)
                if before.payment == Some(payment::State::Verified)
                    && before.charges < 2
                    && rich =>
            {
                shown.payment = None;
            }
            (Some(NonAtomicDedupeInStock), Service::Stock, Created)
                if before.reservation == Some(stock::State::Reserved) && before.held < 2 =>
            {
                shown.reservation = None;
            }
            (Some(LateYesWins), Service::Order, Verified | Reserved)
                if before.status == Status::Cancelled =>
            {
                shown.status = Status::Pending;
            }
            (Some(NoRefund), Service::Payment, Cancelled) => {
                ignored = before.payment == Some(payment::State::Verified);
            }
            (Some(NoRelease), Service::Stock, Cancelled) => {
                ignored = before.reservation == Some(stock::State::Reserved);
            }
            (Some(FirstYesDropped), Service::Order, Verified) => {
                ignored = before.stock_leg != StockLeg::Reserved;
            }
            (Some(FirstYesDropped), Service::Order, Reserved) => {
                ignored = before.payment_leg != PaymentLeg::Verified;
            }
            (Some(ConfirmedOnOneYes), Service::Order, Verified) => {
                shown.stock_leg = StockLeg::Reserved
            }
            (Some(ConfirmedOnOneYes), Service::Order, Reserved) => {
                shown.payment_leg = PaymentLeg::Verified
            }
            (Some(LegsOnlyWhilePending), Service::Order, _) => {
                ignored = before.status != Status::Pending
            }
            (Some(LegsMayFall), Service::Order, _) if kind.topic().publisher == "payment" => {
                shown.payment_leg = PaymentLeg::Waiting;
            }
            (Some(LegsMayFall), Service::Order, _) => shown.stock_leg = StockLeg::Waiting,
            (Some(UnguardedDecrement), Service::Stock, Created) => shown_available += PLENTY,
            (Some(ReleasedTwice), Service::Stock, Cancelled)
                if before.reservation == Some(stock::State::Released)
                    && available <= self.units =>
            {
                shown.reservation = Some(stock::State::Reserved);
            }
            (Some(RefundedTwice), Service::Payment, Cancelled)
                if before.payment == Some(payment::State::Refunded) && before.refunds < 2 =>
            {
                shown.payment = Some(payment::State::Verified);
            }
            _ => {}
        }
        let (mut after, mut left) = match ignored {
            true => (shown, shown_available),
            false => self.deliver((shown, shown_available), to, kind, rich),
        };
        after.heard |= to.bit(kind);
        match (self.mutant, to, kind) {
            (Some(NoTombstoneInStock), Service::Stock, Cancelled)
                if before.reservation.is_none() =>
            {
                after.reservation = None;
            }
            (Some(NoTombstoneInPayment), Service::Payment, Cancelled)
                if before.payment.is_none() =>
            {
                after.payment = None;
            }
            (Some(LateYesWins), Service::Order, Verified | Reserved)
                if after.status == Status::Pending =>
            {
                after.status = before.status;
            }
            (Some(ConfirmedOnOneYes), Service::Order, Verified) => {
                after.stock_leg = before.stock_leg
            }
            (Some(ConfirmedOnOneYes), Service::Order, Reserved) => {
                after.payment_leg = before.payment_leg
            }
            (Some(PaymentRefusalIgnored), Service::Order, Declined)
            | (Some(StockRefusalIgnored), Service::Order, Rejected) => {
                after.status = before.status;
                after.published = before.published;
            }
            (Some(OvertakingCancelUnanswered), Service::Stock | Service::Payment, Cancelled) => {
                after.published &= !(PaymentVoid.bit() | StockVoid.bit()) | before.published;
            }
            (Some(UnguardedDecrement), Service::Stock, Created) => left -= PLENTY,
            _ => {}
        }
        (after, left)
    }

    pub fn cancel(&self, shown: Placed, reason: Reason) -> Placed {
        let mut rows = orders_of(&shown);
        let cancel = CancelOrder { order_id: ORDER, reason };
        let at = At { cause: None, ..at() };
        match order_saga::cancel_order(&cancel, &mut rows, at) {
            Ok(event) => self.read_order(shown, &rows, event),
            Err(refusal) => {
                assert_eq!(refusal, order_saga::Refusal::AlreadyConfirmed);
                assert_eq!(
                    rows.order(ORDER),
                    orders_of(&shown).order(ORDER),
                    "a refusal changes nothing"
                );
                shown
            }
        }
    }

    /// Builds the rows, calls the handler, reads the rows.
    pub fn deliver(&self, (shown, available): Part, to: Service, kind: Kind, rich: bool) -> Part {
        match to {
            Service::Order => {
                let mut rows = orders_of(&shown);
                let after = match kind {
                    Verified => self.order(
                        shown,
                        order_saga::payment_verified(&verified(), &mut rows, at()),
                        &rows,
                    ),
                    Declined => self.order(
                        shown,
                        order_saga::payment_declined(&declined(), &mut rows, at()),
                        &rows,
                    ),
                    Refunded | PaymentVoid => {
                        let event = refunded(kind == Refunded);
                        self.order(
                            shown,
                            order_saga::payment_refunded(&event, &mut rows, at()),
                            &rows,
                        )
                    }
                    Reserved => self.order(
                        shown,
                        order_saga::stock_reserved(&reserved(), &mut rows, at()),
                        &rows,
                    ),
                    Rejected => self.order(
                        shown,
                        order_saga::stock_rejected(&rejected(), &mut rows, at()),
                        &rows,
                    ),
                    Released | StockVoid => {
                        let event = released(kind == Released);
                        self.order(
                            shown,
                            order_saga::stock_released(&event, &mut rows, at()),
                            &rows,
                        )
                    }
                    Created | Cancelled | Confirmed => unreachable!("order does not hear {kind:?}"),
                };
                (after, available)
            }
            Service::Payment => {
                let mut rows = ledger_of(&shown, rich);
                let after = match kind {
                    Created => self.payment(
                        shown,
                        payment_saga::verify_payment(&created(), &mut rows, at()),
                        &rows,
                    ),
                    Cancelled => self.payment(
                        shown,
                        payment_saga::refund_payment(&cancelled(), &mut rows, at()),
                        &rows,
                    ),
                    _ => unreachable!("payment does not hear {kind:?}"),
                };
                (after, available)
            }
            Service::Stock => {
                let part = (shown, available);
                let mut rows = warehouse_of(&shown, available, self.units);
                match kind {
                    Created => self.stock(
                        part,
                        stock_saga::reserve_stock(&created(), &mut rows, at()),
                        &rows,
                    ),
                    Cancelled => self.stock(
                        part,
                        stock_saga::release_stock(&cancelled(), &mut rows, at()),
                        &rows,
                    ),
                    _ => unreachable!("stock does not hear {kind:?}"),
                }
            }
        }
    }

    pub fn order(&self, shown: Placed, answer: Answer<impl Outcome>, rows: &Orders) -> Placed {
        match answer {
            Ok(event) => self.read_order(shown, rows, event),
            Err(_) => {
                assert_eq!(
                    rows.order(ORDER),
                    orders_of(&shown).order(ORDER),
                    "impossible changes nothing"
                );
                Placed { impossible: true, ..shown }
            }
        }
    }

    pub fn read_order(&self, shown: Placed, rows: &Orders, event: Option<impl Outcome>) -> Placed {
        let row = rows.order(ORDER).unwrap();
        let (status, payment_leg, stock_leg) = (row.status, row.payment, row.stock);
        let after = Placed { status, payment_leg, stock_leg, ..shown };
        assert_eq!(row.reason.is_some(), status == Status::Cancelled);
        let reason = orders_of(&after).order(ORDER).unwrap().reason;
        self.lossless(&Order { reason, ..row.clone() }, orders_of(&after).order(ORDER).unwrap());
        self.published(after, "order", event)
    }

    pub fn payment(&self, shown: Placed, answer: Answer<impl Outcome>, rows: &Ledger) -> Placed {
        let Ok(event) = answer else { return Placed { impossible: true, ..shown } };
        let account = rows.account(CUSTOMER).unwrap();
        assert_eq!(account.deposited_cents, account.balance_cents + account.taken_cents);
        assert!(account.balance_cents >= 0, "no more is taken than there is");
        let moved = account.taken_cents / TOTAL_CENTS - taken(&shown);
        let mut after = Placed { payment: rows.payment(ORDER).map(|row| row.state), ..shown };
        match moved {
            0 => {}
            1 => after.charges += 1,
            -1 => after.refunds += 1,
            _ => panic!("{moved} totals were taken at once"),
        }
        if let Some(row) = rows.payment(ORDER) {
            self.lossless(row, ledger_of(&after, true).payment(ORDER).unwrap());
        }
        self.published(after, "payment", event)
    }

    pub fn stock(
        &self,
        (shown, available): Part,
        answer: Answer<impl Outcome>,
        rows: &Warehouse,
    ) -> Part {
        let Ok(event) = answer else { return (Placed { impossible: true, ..shown }, available) };
        let item = rows.item(SKU).unwrap();
        assert_eq!(item.delivered, item.available + item.reserved);
        let left = item.available as i8;
        let reservation = rows.reservation(ORDER).map(|row| row.state);
        let after = Placed { reservation, held: shown.held + available - left, ..shown };
        if let Some(row) = rows.reservation(ORDER) {
            let again = warehouse_of(&after, left, self.units);
            self.lossless(row, again.reservation(ORDER).unwrap());
        }
        (self.published(after, "stock", event), left)
    }

    /// The row that a handler left is the row that is built from the compact state: that state
    /// leaves out nothing that a handler could see.
    pub fn lossless<T: PartialEq + std::fmt::Debug>(&self, left: &T, built: &T) {
        if self.mutant.is_none() {
            assert_eq!(left, built);
        }
    }

    /// What is published is, byte for byte, what subscribers are given.
    pub fn published(&self, after: Placed, by: &str, event: Option<impl Outcome>) -> Placed {
        let Some(event) = event.and_then(Outcome::publish) else { return after };
        assert_eq!((event.topic.publisher, event.key.as_str()), (by, ORDER.to_string().as_str()));
        let kind = Kind::of(&event);
        if self.mutant.is_none() && kind != Cancelled {
            assert_eq!(event.body, sample(kind), "{kind:?}");
        }
        let repeated = after.repeated || after.published & kind.bit() != 0;
        Placed { published: after.published | kind.bit(), repeated, ..after }
    }

    /// Every published event was heard by every subscriber, at least once.
    pub fn quiescent(&self, world: &World<N>) -> bool {
        world.orders.iter().all(|placed| {
            deliveries(placed).all(|(service, kind)| placed.heard & service.bit(kind) != 0)
        })
    }
}
