//! A step: rows are built, the handler is called, and [`read_back`](crate::read_back) reads the rows back.

use std::collections::HashMap;
use std::sync::RwLock;

use chassis::{Command, Effects, HandlerContext};
use events::participants::LegState::*;
use events::participants::PARTICIPANTS;
use order::{CancelOrder, Deadline, Reason, Status};

use crate::mutants::Mutant;
use crate::participants::{Handled, PARTS, orders_from};
use crate::rows::*;
use crate::world::EventKind::*;
use crate::world::{EventKind, OrderState, PAYMENT, Rules, STOCK, Service, Step, StepState};

/// The model: so many orders, and their rules.
pub struct SagaModel<const N: usize> {
    pub rules: Rules,
    /// The result of each step: handlers are pure, so each is called once for a step.
    pub cache: Option<RwLock<HashMap<(StepState, Step), StepState>>>,
}

impl<const N: usize> SagaModel<N> {
    pub fn new(units: i8, mutant: Option<Mutant>) -> Self {
        SagaModel { rules: Rules { units, mutant }, cache: Some(RwLock::default()) }
    }

    /// Calls the handlers at each step, even if the same step was taken before.
    pub fn without_cache(units: i8) -> Self {
        SagaModel { rules: Rules { units, mutant: None }, cache: None }
    }

    pub fn step(&self, part: StepState, step: Step) -> StepState {
        let Some(cache) = &self.cache else { return self.rules.compute_step(part, step) };
        if let Some(next) = cache.read().unwrap().get(&(part, step)) {
            return *next;
        }
        let next = self.rules.compute_step(part, step);
        cache.write().unwrap().insert((part, step), next);
        next
    }
}

impl Rules {
    /// Takes a step with the rule in force, or with its mutant.
    #[allow(clippy::too_many_lines)]
    pub fn compute_step(&self, (before, available): StepState, step: Step) -> StepState {
        use Mutant::*;
        let mut shown = before;
        let mut shown_available = available;
        let (to, kind, willing) = match step {
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
            Step::Settle(nth) => {
                let settled = (PARTS[nth].settle)(self, (shown, available));
                return self.read_participant(nth, (shown, available), settled);
            }
            Step::Deliver { to, kind, willing } => (to, kind, willing),
        };
        let mut ignored = false;
        match (self.mutant, to, kind) {
            (Some(NonAtomicDedupeInPayment), Service::Participant(PAYMENT), Created)
                if before.own[PAYMENT] == Some(Accepted) && before.charges < 2 && willing =>
            {
                shown.own[PAYMENT] = None;
            }
            (Some(NonAtomicDedupeInStock), Service::Participant(STOCK), Created)
                if before.own[STOCK] == Some(Accepted) && before.held < 2 =>
            {
                shown.own[STOCK] = None;
            }
            (Some(LateAcceptanceWins), Service::Order, Answer(_, Accepted))
                if before.status == Status::Cancelled =>
            {
                shown.status = Status::Pending;
            }
            (Some(NoRefund), Service::Participant(nth @ PAYMENT), Cancelled)
            | (Some(NoRelease), Service::Participant(nth @ STOCK), Cancelled) => {
                ignored = before.own[nth] == Some(Accepted);
            }
            (Some(FirstAcceptanceDropped), Service::Order, Answer(nth, Accepted)) => {
                shown.legs[nth] = Accepted;
                ignored = shown.legs.iter().any(|leg| *leg != Accepted);
                shown.legs = before.legs;
            }
            (Some(ConfirmedOnOneAcceptance), Service::Order, Answer(nth, Accepted)) => {
                shown.legs = [Accepted; PARTICIPANTS];
                shown.legs[nth] = before.legs[nth];
            }
            (Some(LegsOnlyWhilePending), Service::Order, _) => {
                ignored = before.status != Status::Pending
            }
            (Some(LegsMayGoBack), Service::Order, Answer(nth, _)) => shown.legs[nth] = Waiting,
            (Some(UnguardedDecrement), Service::Participant(STOCK), Created) => {
                shown_available += PLENTY
            }
            (Some(ReleasedTwice), Service::Participant(STOCK), Cancelled)
                if before.own[STOCK] == Some(Undone) && available <= self.units =>
            {
                shown.own[STOCK] = Some(Accepted);
            }
            (Some(RefundedTwice), Service::Participant(PAYMENT), Cancelled)
                if before.own[PAYMENT] == Some(Undone) && before.refunds < 2 =>
            {
                shown.own[PAYMENT] = Some(Accepted);
            }
            _ => {}
        }
        let (mut after, mut left) = match ignored {
            true => (shown, shown_available),
            false => self.deliver((shown, shown_available), to, kind, willing),
        };
        after.delivered |= to.bit(kind);
        match (self.mutant, to, kind) {
            (Some(NoTombstoneInStock), Service::Participant(nth @ STOCK), Cancelled)
            | (Some(NoTombstoneInPayment), Service::Participant(nth @ PAYMENT), Cancelled)
                if before.own[nth].is_none() =>
            {
                after.own[nth] = None;
            }
            (Some(LateAcceptanceWins), Service::Order, Answer(_, Accepted))
                if after.status == Status::Pending =>
            {
                after.status = before.status;
            }
            (Some(ConfirmedOnOneAcceptance), Service::Order, Answer(nth, Accepted)) => {
                let leg = after.legs[nth];
                after.legs = before.legs;
                after.legs[nth] = leg;
            }
            (Some(PaymentRefusalIgnored), Service::Order, Answer(PAYMENT, Refused))
            | (Some(StockRefusalIgnored), Service::Order, Answer(STOCK, Refused)) => {
                after.status = before.status;
                after.published = before.published;
            }
            (Some(OvertakingCancelUnanswered), Service::Participant(nth), Cancelled) => {
                after.published &= !Answer(nth, Void).bit() | before.published;
            }
            (Some(UnguardedDecrement), Service::Participant(STOCK), Created) => left -= PLENTY,
            _ => {}
        }
        (after, left)
    }

    pub fn cancel(&self, shown: OrderState, reason: Reason) -> OrderState {
        let mut rows = orders_from(&shown);
        let context = HandlerContext { causation_id: None, ..context() };
        if reason == Reason::Deadline {
            let ended = order::saga::overdue(&Deadline { order_id: ORDER }, &mut rows, context);
            return self.read_order(shown, &rows, Effects::of(ended.expect("it is processable")));
        }
        let cancel = CancelOrder { order_id: ORDER, caller: chassis::Caller::unrestricted() };
        match cancel.decide(&mut rows, context) {
            Ok(chassis::Accepted { event, .. }) => {
                self.read_order(shown, &rows, Effects::of(event))
            }
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
        willing: bool,
    ) -> StepState {
        let (nth, state) = match (to, kind) {
            (Service::Participant(nth), _) => {
                let handled = (PARTS[nth].handle)(self, (shown, available), kind, willing);
                return self.read_participant(nth, (shown, available), handled);
            }
            (Service::Order, Answer(nth, state)) => (nth, state),
            _ => unreachable!("{to:?} does not subscribe to {kind:?}"),
        };
        let mut rows = orders_from(&shown);
        let answer = (PARTS[nth].answer)(state, &mut rows);
        (self.read_order_result(shown, answer, &rows), available)
    }

    /// What a step of a participant's service left and published.
    fn read_participant(
        &self,
        nth: usize,
        (shown, available): StepState,
        handled: Handled,
    ) -> StepState {
        match handled {
            Ok((after, left, events)) => {
                (self.record_published(after, PARTS[nth].service, events), left)
            }
            Err(_) => (OrderState { unprocessable: true, ..shown }, available),
        }
    }
}
