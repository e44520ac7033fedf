//! The saga, in every interleaving: a model checker that calls the handlers of the three services.
//!
//! What Kafka and crashes can do to an order is this, and all of it is tried: any published event is
//! delivered to any of its subscribers at any time, in any order, any number of times. The customer
//! cancels at any moment, the deadline passes at any moment, and payment finds money or does not.
//! Assumed here, and proved with the chassis: a transaction is atomic and an outbox loses nothing.
//!
//! The inbox is left out on purpose: what is checked is that the rules alone survive repetition.
//! A state holds what the handlers can tell apart and nothing else; for each step rows are built
//! from it, the real function is called, and the rows are read back. A rule that is broken on
//! purpose (see [`Mutant`]) has to be caught, else the checker would be blind to it.

// Clippy knows tests by their attribute, and all of this is one.
#![allow(clippy::unwrap_used)]

// The services are programs, not libraries, so their files are compiled in here. They look for
// their aggregate at `crate::order` and so on, which is why `main.rs` imports these three.
#[allow(dead_code)]
#[path = "../../services/order/src/order.rs"]
pub mod order;
#[allow(dead_code)]
#[path = "../../services/order/src/saga.rs"]
pub mod order_saga;
#[allow(dead_code)]
#[path = "../../services/payment/src/payment.rs"]
pub mod payment;
#[allow(dead_code)]
#[path = "../../services/payment/src/saga.rs"]
pub mod payment_saga;
#[allow(dead_code)]
#[path = "../../services/stock/src/stock.rs"]
pub mod stock;
#[allow(dead_code)]
#[path = "../../services/stock/src/saga.rs"]
pub mod stock_saga;

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::RwLock;
use std::time::Instant;

use chassis::event::{Answer, At, Event, Outcome, Outgoing, Topic};
use chrono::DateTime;
use events::orders::{self, CancelReason, OrderCancelled, OrderConfirmed, OrderCreated};
use events::payments::{self, DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock as stock_events;
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockRejected, StockReleased, StockReserved,
};
use sqlx::types::Json;
use stateright::{Checker, HasDiscoveries, Model, Property};
use uuid::Uuid;

use order::{CancelOrder, Order, Orders, PaymentLeg, PlaceOrder, Reason, Status, StockLeg, Wanted};
use payment::{Deposit, Ledger, Payment};
use stock::{Item, Reservation, Shortfall, Warehouse};

/// All orders are alike, so one set of ids and values serves them all.
const ORDER: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_0001);
const CUSTOMER: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_0002);
const PUBLISHED: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_0003);
const HEARD: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_0004);
const SKU: &str = "pen";
const TOTAL_CENTS: i64 = 150;

/// Far more than there is, for the mutant that does not look.
const PLENTY: i8 = 100;

/// One event type, the two that can undo nothing told apart from those that undo something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Created,
    Verified,
    Declined,
    Refunded,
    PaymentVoid,
    Reserved,
    Rejected,
    Released,
    StockVoid,
    Cancelled,
    Confirmed,
}

use Kind::*;

const KINDS: [Kind; 11] = [
    Created,
    Verified,
    Declined,
    Refunded,
    PaymentVoid,
    Reserved,
    Rejected,
    Released,
    StockVoid,
    Cancelled,
    Confirmed,
];

impl Kind {
    fn bit(self) -> u16 {
        1 << self as u16
    }

    fn topic(self) -> &'static Topic {
        match self {
            Created => &orders::CREATED,
            Confirmed => &orders::CONFIRMED,
            Cancelled => &orders::CANCELLED,
            Verified => &payments::VERIFIED,
            Declined => &payments::DECLINED,
            Refunded | PaymentVoid => &payments::REFUNDED,
            Reserved => &stock_events::RESERVED,
            Rejected => &stock_events::REJECTED,
            Released | StockVoid => &stock_events::RELEASED,
        }
    }

    /// What was just published.
    fn of(event: &Outgoing) -> Kind {
        let own = event.topic.codec();
        match event.topic.name {
            "payments.refunded" => {
                let refunded: PaymentRefunded = own.decode(own, &event.body).unwrap();
                if refunded.amount_cents.is_some() { Refunded } else { PaymentVoid }
            }
            "stock.released" => {
                let released: StockReleased = own.decode(own, &event.body).unwrap();
                if released.lines.is_empty() { StockVoid } else { Released }
            }
            name => KINDS.into_iter().find(|kind| kind.topic().name == name).unwrap(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Service {
    Order,
    Payment,
    Stock,
}

const SERVICES: [Service; 3] = [Service::Order, Service::Payment, Service::Stock];

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::Order => "order",
            Service::Payment => "payment",
            Service::Stock => "stock",
        }
    }

    fn hears(self, kind: Kind) -> bool {
        kind.topic().subscribers.contains(&self.name())
    }

    fn bit(self, kind: Kind) -> u64 {
        1 << (self as u64 * KINDS.len() as u64 + kind as u64)
    }
}

/// An order, as the three services know it together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    status: Status,
    payment_leg: PaymentLeg,
    stock_leg: StockLeg,
    payment: Option<payment::State>,
    reservation: Option<stock::State>,
    /// How often money was taken for it, and how often it was given back.
    charges: u8,
    refunds: u8,
    /// How many units are set aside for it.
    held: i8,
    /// A bit for each kind that was published, and for each that a service has heard.
    published: u16,
    heard: u64,
    /// A kind was published a second time.
    repeated: bool,
    /// A handler was given an event that cannot be.
    impossible: bool,
}

impl Hash for Placed {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let words = u64::from_be_bytes([
            self.status as u8,
            self.payment_leg as u8,
            self.stock_leg as u8,
            self.payment.map_or(u8::MAX, |state| state as u8),
            self.reservation.map_or(u8::MAX, |state| state as u8),
            self.charges,
            self.refunds,
            self.held as u8,
        ]);
        hasher.write_u64(words);
        let faults = u64::from(self.repeated) << 1 | u64::from(self.impossible);
        hasher.write_u64(faults << 62 | self.heard << 16 | u64::from(self.published));
    }
}

/// All orders, and what there is of the one item that each of them wants one of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World<const N: usize> {
    orders: [Placed; N],
    available: i8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// A service hears an event; `rich` says whether the customer has the money just then.
    Deliver { to: Service, kind: Kind, rich: bool },
    /// Its customer, or the deadline, ends the order.
    Cancel(CancelReason),
    /// Only in a mutant: the event counts as heard, and had no effect.
    Lose(Service, Kind),
}

/// A rule, broken. Each is a change to what the real handlers are shown, or to what is kept of
/// their answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    NonAtomicDedupeInPayment,
    NonAtomicDedupeInStock,
    NoTombstoneInStock,
    NoTombstoneInPayment,
    LateYesWins,
    CancelAfterConfirm,
    NoRefund,
    NoRelease,
    FirstYesDropped,
    ConfirmedOnOneYes,
    PaymentRefusalIgnored,
    StockRefusalIgnored,
    LegsOnlyWhilePending,
    LegsMayFall,
    OvertakingCancelUnanswered,
    UnguardedDecrement,
    OffsetBeforeCommit,
    ReleasedTwice,
    RefundedTwice,
}

/// Each with the promise that it breaks, one of them where it breaks several.
const MUTANTS: [(Mutant, &str); 19] = [
    (Mutant::NonAtomicDedupeInPayment, CHARGED_ONCE),
    (Mutant::NonAtomicDedupeInStock, IN_AGREEMENT),
    (Mutant::NoTombstoneInStock, IN_AGREEMENT),
    (Mutant::NoTombstoneInPayment, IN_AGREEMENT),
    (Mutant::LateYesWins, ENDS_ONCE),
    (Mutant::CancelAfterConfirm, ENDS_ONCE),
    (Mutant::NoRefund, IN_AGREEMENT),
    (Mutant::NoRelease, IN_AGREEMENT),
    (Mutant::FirstYesDropped, IN_AGREEMENT),
    (Mutant::ConfirmedOnOneYes, IN_AGREEMENT),
    (Mutant::PaymentRefusalIgnored, IN_AGREEMENT),
    (Mutant::StockRefusalIgnored, IN_AGREEMENT),
    (Mutant::LegsOnlyWhilePending, IN_AGREEMENT),
    (Mutant::LegsMayFall, IN_AGREEMENT),
    (Mutant::OvertakingCancelUnanswered, IN_AGREEMENT),
    (Mutant::UnguardedDecrement, NEVER_NEGATIVE),
    (Mutant::OffsetBeforeCommit, IN_AGREEMENT),
    (Mutant::ReleasedTwice, HELD_ONCE),
    (Mutant::RefundedTwice, CHARGED_ONCE),
];

const NEVER_NEGATIVE: &str = "stock is never negative";
const CONSERVED: &str = "stock is conserved";
const CHARGED_ONCE: &str = "an order is charged once at most, and refunded no more";
const HELD_ONCE: &str = "an order holds its units once at most";
const ENDS_ONCE: &str = "an order ends once, and stays ended";
const PUBLISHED_ONCE: &str = "nothing is published twice";
const POSSIBLE: &str = "no event is impossible";
const IN_AGREEMENT: &str = "when all is heard, every order has ended and all three agree";

/// One order and the item: all that a step can see and change.
type Part = (Placed, i8);

/// The model: so many orders, so many units, and the rule that is broken, if one is.
struct Saga<const N: usize> {
    units: i8,
    mutant: Option<Mutant>,
    /// What a step made of a part: handlers are pure, so each is asked once.
    known: Option<RwLock<HashMap<(Part, Step), Part>>>,
}

impl<const N: usize> Saga<N> {
    fn new(units: i8, mutant: Option<Mutant>) -> Self {
        Saga { units, mutant, known: Some(RwLock::default()) }
    }

    /// Asks the handlers anew at each step, though nothing but the answer is remembered.
    fn without_memory(units: i8) -> Self {
        Saga { units, mutant: None, known: None }
    }

    fn step(&self, part: Part, step: Step) -> Part {
        let Some(known) = &self.known else { return self.take(part, step) };
        if let Some(next) = known.read().unwrap().get(&(part, step)) {
            return *next;
        }
        let next = self.take(part, step);
        known.write().unwrap().insert((part, step), next);
        next
    }

    /// Takes a step with the rule in force, or with its mutant.
    fn take(&self, (before, available): Part, step: Step) -> Part {
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

    fn cancel(&self, shown: Placed, reason: CancelReason) -> Placed {
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
    fn deliver(&self, (shown, available): Part, to: Service, kind: Kind, rich: bool) -> Part {
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

    fn order(&self, shown: Placed, answer: Answer<impl Outcome>, rows: &Orders) -> Placed {
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

    fn read_order(&self, shown: Placed, rows: &Orders, event: Option<impl Outcome>) -> Placed {
        let row = rows.order(ORDER).unwrap();
        let (status, payment_leg, stock_leg) = (row.status, row.payment, row.stock);
        let after = Placed { status, payment_leg, stock_leg, ..shown };
        assert_eq!(row.reason.is_some(), status == Status::Cancelled);
        let reason = orders_of(&after).order(ORDER).unwrap().reason;
        self.lossless(&Order { reason, ..row.clone() }, orders_of(&after).order(ORDER).unwrap());
        self.published(after, "order", event)
    }

    fn payment(&self, shown: Placed, answer: Answer<impl Outcome>, rows: &Ledger) -> Placed {
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

    fn stock(
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
    fn lossless<T: PartialEq + std::fmt::Debug>(&self, left: &T, built: &T) {
        if self.mutant.is_none() {
            assert_eq!(left, built);
        }
    }

    /// What is published is, byte for byte, what subscribers are given.
    fn published(&self, after: Placed, by: &str, event: Option<impl Outcome>) -> Placed {
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
    fn quiescent(&self, world: &World<N>) -> bool {
        world.orders.iter().all(|placed| {
            deliveries(placed).all(|(service, kind)| placed.heard & service.bit(kind) != 0)
        })
    }
}

fn deliveries(placed: &Placed) -> impl Iterator<Item = (Service, Kind)> {
    let published = placed.published;
    let kinds = KINDS.into_iter().filter(move |kind| published & kind.bit() != 0);
    kinds.flat_map(|kind| {
        SERVICES
            .into_iter()
            .filter(move |service| service.hears(kind))
            .map(move |service| (service, kind))
    })
}

impl<const N: usize> Model for Saga<N> {
    type State = World<N>;
    type Action = (usize, Step);

    /// Every order was just placed, by the real command.
    fn init_states(&self) -> Vec<World<N>> {
        let blank = Placed {
            status: Status::Pending,
            payment_leg: PaymentLeg::Waiting,
            stock_leg: StockLeg::Waiting,
            payment: None,
            reservation: None,
            charges: 0,
            refunds: 0,
            held: 0,
            published: 0,
            heard: 0,
            repeated: false,
            impossible: false,
        };
        let (rows, event) = place();
        let placed = self.read_order(blank, &rows, Some(event));
        vec![World { orders: [placed; N], available: self.units }]
    }

    fn actions(&self, world: &World<N>, actions: &mut Vec<(usize, Step)>) {
        for (nth, placed) in world.orders.iter().enumerate() {
            actions.push((nth, Step::Cancel(CancelReason::Customer)));
            actions.push((nth, Step::Cancel(CancelReason::Deadline)));
            for (to, kind) in deliveries(placed) {
                actions.push((nth, Step::Deliver { to, kind, rich: true }));
                if (to, kind) == (Service::Payment, Created) {
                    actions.push((nth, Step::Deliver { to, kind, rich: false }));
                }
                if self.mutant == Some(Mutant::OffsetBeforeCommit) {
                    actions.push((nth, Step::Lose(to, kind)));
                }
            }
        }
    }

    fn next_state(&self, world: &World<N>, (nth, step): (usize, Step)) -> Option<World<N>> {
        let part = (world.orders[nth], world.available);
        let next = self.step(part, step);
        if next == part {
            return None;
        }
        let mut world = world.clone();
        (world.orders[nth], world.available) = next;
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_NEGATIVE, |_, world: &World<N>| world.available >= 0),
            Property::always(CONSERVED, |saga: &Saga<N>, world: &World<N>| {
                world.available + world.orders.iter().map(|placed| placed.held).sum::<i8>()
                    == saga.units
            }),
            Property::always(CHARGED_ONCE, |_, world: &World<N>| {
                world
                    .orders
                    .iter()
                    .all(|placed| placed.charges <= 1 && placed.refunds <= placed.charges)
            }),
            Property::always(HELD_ONCE, |_, world: &World<N>| {
                world.orders.iter().all(|placed| (0..=1).contains(&placed.held))
            }),
            Property::always(ENDS_ONCE, |_, world: &World<N>| {
                world.orders.iter().all(|placed| {
                    let said = placed.published & (Confirmed.bit() | Cancelled.bit());
                    said == match placed.status {
                        Status::Pending => 0,
                        Status::Confirmed => Confirmed.bit(),
                        Status::Cancelled => Cancelled.bit(),
                    }
                })
            }),
            Property::always(PUBLISHED_ONCE, |_, world: &World<N>| {
                world.orders.iter().all(|placed| !placed.repeated)
            }),
            Property::always(POSSIBLE, |_, world: &World<N>| {
                world.orders.iter().all(|placed| !placed.impossible)
            }),
            Property::always(IN_AGREEMENT, |saga: &Saga<N>, world: &World<N>| {
                !saga.quiescent(world) || world.orders.iter().all(ended_in_agreement)
            }),
            Property::sometimes("confirmed", |_, world: &World<N>| {
                world.orders.iter().any(|placed| placed.status == Status::Confirmed)
            }),
            Property::sometimes("refunded", |_, world: &World<N>| {
                world.orders.iter().any(|placed| placed.payment == Some(payment::State::Refunded))
            }),
            Property::sometimes("released", |_, world: &World<N>| {
                world.orders.iter().any(|placed| placed.reservation == Some(stock::State::Released))
            }),
            Property::sometimes("cancelled before anybody heard of it", |_, world: &World<N>| {
                world.orders.iter().any(|placed| {
                    let void = (Some(payment::State::Void), Some(stock::State::Void));
                    (placed.payment, placed.reservation) == void
                })
            }),
            Property::sometimes("out of stock", |_, world: &World<N>| {
                world.orders.iter().any(|placed| placed.reservation == Some(stock::State::Rejected))
            }),
        ]
    }
}

fn ended_in_agreement(placed: &Placed) -> bool {
    let legs = (placed.payment, placed.payment_leg, placed.reservation, placed.stock_leg);
    let done = (placed.charges - placed.refunds.min(placed.charges), placed.held);
    match placed.status {
        Status::Pending => false,
        Status::Confirmed => {
            let yes = (
                Some(payment::State::Verified),
                PaymentLeg::Verified,
                Some(stock::State::Reserved),
                StockLeg::Reserved,
            );
            legs == yes && done == (1, 1)
        }
        Status::Cancelled => {
            let payment_agrees = matches!(
                (placed.payment, placed.payment_leg),
                (Some(payment::State::Declined), PaymentLeg::Declined)
                    | (Some(payment::State::Refunded), PaymentLeg::Refunded)
                    | (Some(payment::State::Void), PaymentLeg::Void)
            );
            let stock_agrees = matches!(
                (placed.reservation, placed.stock_leg),
                (Some(stock::State::Rejected), StockLeg::Rejected)
                    | (Some(stock::State::Released), StockLeg::Released)
                    | (Some(stock::State::Void), StockLeg::Void)
            );
            payment_agrees && stock_agrees && done == (0, 0)
        }
    }
}

// Rows, built from what is known of an order.

fn at() -> At {
    At { now: DateTime::UNIX_EPOCH, event_id: PUBLISHED, cause: Some(HEARD) }
}

fn euros() -> String {
    "EUR".into()
}

fn orders_of(placed: &Placed) -> Orders {
    let mut rows = place().0;
    let ended = placed.status != Status::Pending;
    rows.put_order(Order {
        status: placed.status,
        reason: (placed.status == Status::Cancelled).then_some(Reason::Customer),
        payment: placed.payment_leg,
        stock: placed.stock_leg,
        ended_at: ended.then_some(at().now),
        ended_event_id: ended.then_some(PUBLISHED),
        ..rows.order(ORDER).unwrap().clone()
    });
    rows
}

fn place() -> (Orders, OrderCreated) {
    let mut rows = Orders::default();
    let (sku, name) = (SKU.to_string(), "Pen".to_string());
    rows.put_item(order::Item {
        sku,
        name,
        price_cents: TOTAL_CENTS,
        currency: euros(),
        version: 1,
    });
    let lines = vec![Wanted { sku: SKU.into(), quantity: 1 }];
    let place = PlaceOrder { order_id: ORDER, customer_id: CUSTOMER, lines };
    let at = At { cause: None, ..at() };
    let created = order_saga::place_order(&place, &mut rows, at).unwrap().unwrap();
    (rows, created)
}

fn taken(placed: &Placed) -> i64 {
    i64::from(placed.charges) - i64::from(placed.refunds)
}

fn ledger_of(placed: &Placed, rich: bool) -> Ledger {
    let mut rows = Ledger::default();
    let taken_cents = taken(placed) * TOTAL_CENTS;
    let amount_cents = taken_cents + if rich { TOTAL_CENTS } else { 0 };
    let deposit =
        Deposit { deposit_id: PUBLISHED, customer_id: CUSTOMER, amount_cents, currency: euros() };
    rows.deposit(&deposit, at().now);
    rows.take(CUSTOMER, taken_cents);
    if let Some(state) = placed.payment {
        use payment::State::{Declined, Refunded, Void};
        let void = state == Void;
        rows.put_payment(Payment {
            order_id: ORDER,
            state,
            customer_id: (!void).then_some(CUSTOMER),
            amount_cents: if void { 0 } else { TOTAL_CENTS },
            currency: (!void).then(euros),
            reason: (state == Declined).then(|| "insufficient_funds".into()),
            answer_event_id: (!void).then_some(PUBLISHED),
            undo_event_id: matches!(state, Refunded | Void).then_some(PUBLISHED),
            created_at: at().now,
            updated_at: at().now,
        });
    }
    rows
}

fn warehouse_of(placed: &Placed, available: i8, units: i8) -> Warehouse {
    let mut rows = Warehouse::default();
    rows.put_item(Item {
        sku: SKU.into(),
        name: "Pen".into(),
        price_cents: TOTAL_CENTS,
        currency: euros(),
        version: 1,
        delivered: units.into(),
        available: available.into(),
        reserved: i64::from(units) - i64::from(available),
        event_id: PUBLISHED,
        changed_at: at().now,
    });
    if let Some(state) = placed.reservation {
        use stock::State::{Rejected, Released, Reserved, Void};
        let line = stock::Line { sku: SKU.into(), quantity: 1 };
        rows.put_reservation(Reservation {
            order_id: ORDER,
            state,
            lines: Json(if matches!(state, Reserved | Released) { vec![line] } else { vec![] }),
            shortfall: (state == Rejected).then(|| {
                let (reason, sku) = (RejectReason::OutOfStock, SKU.into());
                Json(Shortfall { reason, sku, requested: 1, available: 0 })
            }),
            reason: (state == Rejected).then(|| "1 of pen ordered, 0 available".into()),
            answer_event_id: (state != Void).then_some(PUBLISHED),
            undo_event_id: matches!(state, Released | Void).then_some(PUBLISHED),
            created_at: at().now,
            updated_at: at().now,
        });
    }
    rows
}

// Events, as subscribers are given them.

fn created() -> OrderCreated {
    place().1
}

fn cancelled() -> OrderCancelled {
    OrderCancelled { order_id: ORDER, reason: CancelReason::Customer, occurred_at: at().now }
}

fn verified() -> PaymentVerified {
    let (amount_cents, currency) = (TOTAL_CENTS, euros());
    PaymentVerified { order_id: ORDER, amount_cents, currency, occurred_at: at().now }
}

fn declined() -> PaymentDeclined {
    let reason = DeclineReason::InsufficientFunds;
    PaymentDeclined { order_id: ORDER, reason, occurred_at: at().now }
}

fn refunded(something: bool) -> PaymentRefunded {
    let (amount_cents, currency) = (something.then_some(TOTAL_CENTS), something.then(euros));
    PaymentRefunded { order_id: ORDER, amount_cents, currency, occurred_at: at().now }
}

fn reserved() -> StockReserved {
    let lines = vec![ReservedLine { sku: SKU.into(), quantity: 1 }];
    StockReserved { order_id: ORDER, lines, occurred_at: at().now }
}

fn rejected() -> StockRejected {
    let (reason, sku, requested, available) = (RejectReason::OutOfStock, SKU.into(), 1, 0);
    StockRejected { order_id: ORDER, reason, sku, requested, available, occurred_at: at().now }
}

fn released(something: bool) -> StockReleased {
    let line = ReleasedLine { sku: SKU.into(), quantity: 1 };
    let lines = if something { vec![line] } else { vec![] };
    StockReleased { order_id: ORDER, lines, occurred_at: at().now }
}

fn confirmed() -> OrderConfirmed {
    let line =
        orders::ConfirmedLine { sku: SKU.into(), quantity: 1, unit_price_cents: TOTAL_CENTS };
    OrderConfirmed {
        order_id: ORDER,
        customer_id: CUSTOMER,
        lines: vec![line],
        total_cents: TOTAL_CENTS,
        currency: euros(),
        occurred_at: at().now,
    }
}

fn sample(kind: Kind) -> Vec<u8> {
    fn body(event: impl Event) -> Vec<u8> {
        Outgoing::of(&event).body
    }
    match kind {
        Created => body(created()),
        Verified => body(verified()),
        Declined => body(declined()),
        Refunded | PaymentVoid => body(refunded(kind == Refunded)),
        Reserved => body(reserved()),
        Rejected => body(rejected()),
        Released | StockVoid => body(released(kind == Released)),
        Cancelled => body(cancelled()),
        Confirmed => body(confirmed()),
    }
}

/// Explores everything; answers the number of states, which promises were broken and which
/// happenings were never seen.
fn explore<const N: usize>(saga: Saga<N>) -> (usize, Vec<String>) {
    let (began, units, mutant) = (Instant::now(), saga.units, saga.mutant);
    // A mutant is to show all that it breaks; a rule that is broken in earnest stops the search, which
    // might have no end then.
    let enough = match mutant {
        Some(_) => HasDiscoveries::All,
        None => HasDiscoveries::AnyFailures,
    };
    let checked = saga.checker().finish_when(enough).threads(2).spawn_bfs().join();
    let discovered = checked.discoveries();
    let mut findings = Vec::new();
    for property in checked.model().properties() {
        match (discovered.get(property.name), property.expectation) {
            (Some(path), stateright::Expectation::Always) => {
                let steps = path.clone().into_actions().len();
                findings.push(format!("{} [{steps} steps]", property.name));
            }
            (None, stateright::Expectation::Sometimes) if mutant.is_none() => {
                findings.push(format!("never seen: {}", property.name));
            }
            _ => {}
        }
    }
    let name = mutant.map_or("the saga".into(), |mutant| format!("{mutant:?}"));
    println!(
        "{name:27} orders={N} units={units} states={} steps={} depth={} {:.1}s {}",
        checked.unique_state_count(),
        checked.state_count(),
        checked.max_depth(),
        began.elapsed().as_secs_f32(),
        findings.join("; "),
    );
    (checked.unique_state_count(), findings)
}

#[test]
fn one_order_and_two_orders_always_end_in_agreement() {
    // With a unit for the only order, nothing is ever out of stock.
    assert_eq!(
        explore(Saga::<1>::without_memory(1)),
        (177, vec!["never seen: out of stock".into()])
    );
    assert_eq!(explore(Saga::<2>::without_memory(1)), (42_429, vec![]));
    assert_eq!(explore(Saga::<2>::new(1, None)), (42_429, vec![]));
}

#[test]
fn three_orders_for_two_units_always_end_in_agreement() {
    assert_eq!(explore(Saga::<3>::new(2, None)), (7_334_329, vec![]));
}

#[test]
fn every_broken_rule_is_caught() {
    let survivors: Vec<Mutant> = MUTANTS
        .into_iter()
        .filter(|(mutant, promise)| {
            let (_, findings) = explore(Saga::<2>::new(1, Some(*mutant)));
            !findings.iter().any(|finding| finding.starts_with(promise))
        })
        .map(|(mutant, _)| mutant)
        .collect();
    assert_eq!(survivors, []);
}
