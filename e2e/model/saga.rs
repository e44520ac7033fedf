//! A step: rows are built, the handler is called, and [`read_back`](crate::read_back) reads the rows back.

use std::collections::HashMap;
use std::sync::RwLock;

use chassis::{
    Accepted, Command, HandlerContext, HandlerResult, Outcome, OutgoingEvents, Unprocessable,
};
use order::{CancelOrder, PaymentLeg, Reason, Status, StockLeg};

use crate::mutants::Mutant;
use crate::rows::*;
use crate::world::EventKind::*;
use crate::world::{EventKind, OrderState, Service, Step};

/// One order and the item: all that a step can see and change.
pub type StepState = (OrderState, i8);

/// The model: so many orders, so many units, and the rule that is broken, if one is.
pub struct SagaModel<const N: usize> {
    pub units: i8,
    pub mutant: Option<Mutant>,
    /// The result of each step: handlers are pure, so each is called once for a step.
    pub cache: Option<RwLock<HashMap<(StepState, Step), StepState>>>,
}

impl<const N: usize> SagaModel<N> {
    pub fn new(units: i8, mutant: Option<Mutant>) -> Self {
        SagaModel { units, mutant, cache: Some(RwLock::default()) }
    }

    /// Calls the handlers at each step, even if the same step was taken before.
    pub fn without_cache(units: i8) -> Self {
        SagaModel { units, mutant: None, cache: None }
    }

    pub fn step(&self, part: StepState, step: Step) -> StepState {
        let Some(cache) = &self.cache else { return self.compute_step(part, step) };
        if let Some(next) = cache.read().unwrap().get(&(part, step)) {
            return *next;
        }
        let next = self.compute_step(part, step);
        cache.write().unwrap().insert((part, step), next);
        next
    }

    /// Takes a step with the rule in force, or with its mutant.
    #[allow(clippy::too_many_lines)]
    pub fn compute_step(&self, (before, available): StepState, step: Step) -> StepState {
        use Mutant::*;
        let mut shown = before;
        let mut shown_available = available;
        let (to, kind, funded) = match step {
            Step::Lose(service, kind) => {
                return (
                    OrderState { delivered: before.delivered | service.bit(kind), ..before },
                    available,
                );
            }
            Step::Cancel(reason) => {
                if self.mutant == Some(CancelAfterConfirm) && before.status == Status::Confirmed {
                    shown.status = Status::Pending;
                }
                return (self.cancel(shown, reason), available);
            }
            Step::Deliver { to, kind, funded } => (to, kind, funded),
        };
        let mut ignored = false;
        match (self.mutant, to, kind) {
            (Some(NonAtomicDedupeInPayment), Service::Payment, Created)
                if before.payment == Some(payment::State::Verified)
                    && before.charges < 2
                    && funded =>
            {
                shown.payment = None;
            }
            (Some(NonAtomicDedupeInStock), Service::Stock, Created)
                if before.reservation == Some(stock::State::Reserved) && before.held < 2 =>
            {
                shown.reservation = None;
            }
            (Some(LateAcceptanceWins), Service::Order, Verified | Reserved)
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
            (Some(FirstAcceptanceDropped), Service::Order, Verified) => {
                ignored = before.stock_leg != StockLeg::Reserved;
            }
            (Some(FirstAcceptanceDropped), Service::Order, Reserved) => {
                ignored = before.payment_leg != PaymentLeg::Verified;
            }
            (Some(ConfirmedOnOneAcceptance), Service::Order, Verified) => {
                shown.stock_leg = StockLeg::Reserved
            }
            (Some(ConfirmedOnOneAcceptance), Service::Order, Reserved) => {
                shown.payment_leg = PaymentLeg::Verified
            }
            (Some(LegsOnlyWhilePending), Service::Order, _) => {
                ignored = before.status != Status::Pending
            }
            (Some(LegsMayGoBack), Service::Order, _) if kind.topic().publisher == "payment" => {
                shown.payment_leg = PaymentLeg::Waiting;
            }
            (Some(LegsMayGoBack), Service::Order, _) => shown.stock_leg = StockLeg::Waiting,
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
            false => self.deliver((shown, shown_available), to, kind, funded),
        };
        after.delivered |= to.bit(kind);
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
            (Some(LateAcceptanceWins), Service::Order, Verified | Reserved)
                if after.status == Status::Pending =>
            {
                after.status = before.status;
            }
            (Some(ConfirmedOnOneAcceptance), Service::Order, Verified) => {
                after.stock_leg = before.stock_leg
            }
            (Some(ConfirmedOnOneAcceptance), Service::Order, Reserved) => {
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

    pub fn cancel(&self, shown: OrderState, reason: Reason) -> OrderState {
        let mut rows = orders_from(&shown);
        let cancel =
            CancelOrder { order_id: ORDER, reason, caller: chassis::Caller::unrestricted() };
        let context = HandlerContext { causation_id: None, ..context() };
        match cancel.decide(&mut rows, context) {
            Ok(Accepted { event, .. }) => self.read_order(shown, &rows, OutgoingEvents::of(event)),
            Err(refusal) => {
                assert_eq!(refusal, order::saga::Refusal::AlreadyConfirmed);
                assert_eq!(
                    rows.order(ORDER),
                    orders_from(&shown).order(ORDER),
                    "a refusal changes nothing"
                );
                shown
            }
        }
    }

    /// Builds the rows, calls the handler, reads the rows.
    pub fn deliver(
        &self,
        (shown, available): StepState,
        to: Service,
        kind: EventKind,
        funded: bool,
    ) -> StepState {
        let none_subscribed = || unreachable!("{to:?} does not subscribe to {kind:?}");
        match to {
            Service::Order => {
                let (mut rows, of) = (orders_from(&shown), context());
                let orders = &mut rows;
                let answer = match kind {
                    Verified => published(order::saga::payment_verified(&verified(), orders, of)),
                    Declined => published(order::saga::payment_declined(&declined(), orders, of)),
                    Refunded | PaymentVoid => {
                        let event = refunded(kind == Refunded);
                        published(order::saga::payment_refunded(&event, orders, of))
                    }
                    Reserved => published(order::saga::stock_reserved(&reserved(), orders, of)),
                    Rejected => published(order::saga::stock_rejected(&rejected(), orders, of)),
                    Released | StockVoid => {
                        let event = released(kind == Released);
                        published(order::saga::stock_released(&event, orders, of))
                    }
                    Created | Cancelled | Confirmed => none_subscribed(),
                };
                (self.read_order_result(shown, answer, &rows), available)
            }
            Service::Payment => {
                let (mut rows, of) = (ledger_from(&shown, funded), context());
                let ledger = &mut rows;
                let answer = match kind {
                    Created => published(payment::saga::verify_payment(&created(), ledger, of)),
                    Cancelled => published(payment::saga::refund_payment(&cancelled(), ledger, of)),
                    _ => none_subscribed(),
                };
                (self.read_payment_result(shown, answer, &rows), available)
            }
            Service::Stock => {
                let (mut rows, of) = (warehouse_from(&shown, available, self.units), context());
                let warehouse = &mut rows;
                let answer = match kind {
                    Created => published(stock::saga::reserve_stock(&created(), warehouse, of)),
                    Cancelled => published(stock::saga::release_stock(&cancelled(), warehouse, of)),
                    _ => none_subscribed(),
                };
                self.read_stock_result((shown, available), answer, &rows)
            }
        }
    }
}

/// What a handler publishes, as it leaves the service.
fn published(answer: HandlerResult<impl Outcome>) -> Result<OutgoingEvents, Unprocessable> {
    answer.map(OutgoingEvents::of)
}
