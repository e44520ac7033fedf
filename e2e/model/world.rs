//! The compact state of all orders at a moment, and what can happen next.

use std::hash::{Hash, Hasher};
use std::iter;
use std::sync::LazyLock;

use chassis::Topic;
use chassis::event::Event;
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use events::participants::{LegState, LegState::*, PARTICIPANTS, participants};
use order::{Reason, Status};

use crate::mutants::Mutant;
use EventKind::*;

/// A participant is known by its place in the list.
pub const PAYMENT: usize = 0;
pub const STOCK: usize = 1;

/// What an answer can make of a leg.
pub const ANSWERS: [LegState; 5] = [Accepted, Refused, Undone, Void, UndoRefused];

/// One order and the item: all that a step can see and change.
pub type StepState = (OrderState, i8);

/// So many units, and the rule that is broken, if one is.
#[derive(Clone, Copy)]
pub struct Rules {
    pub units: i8,
    pub mutant: Option<Mutant>,
}

impl Rules {
    /// The row that a handler left equals the row that is built from the compact state: that state
    /// lacks nothing that a handler could read.
    pub fn assert_lossless<T: PartialEq + std::fmt::Debug>(&self, left: &T, built: &T) {
        if self.mutant.is_none() {
            assert_eq!(left, built);
        }
    }
}

/// The types of events. An undoing of nothing has a kind of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    Created,
    Confirmed,
    Cancelled,
    /// The answer of a participant that alone leads to a state of its leg.
    Answer(usize, LegState),
}

impl EventKind {
    pub fn all() -> impl Iterator<Item = EventKind> {
        let answers = (0..PARTICIPANTS).flat_map(|nth| ANSWERS.map(|state| Answer(nth, state)));
        let answers = answers.filter(|kind| match *kind {
            Answer(nth, UndoRefused) => may_refuse_undo(nth),
            _ => true,
        });
        [Created, Confirmed, Cancelled].into_iter().chain(answers)
    }

    pub fn bit(self) -> u32 {
        let index = match self {
            Created => 0,
            Confirmed => 1,
            Cancelled => 2,
            Answer(nth, state) => 2 + ANSWERS.len() * nth + state as usize,
        };
        1 << index
    }

    pub fn topic(self) -> &'static Topic {
        match self {
            Created => OrderCreated::topic(),
            Confirmed => OrderConfirmed::topic(),
            Cancelled => OrderCancelled::topic(),
            Answer(nth, Accepted) => participants()[nth].accepted,
            Answer(nth, Refused) => participants()[nth].refused,
            Answer(nth, UndoRefused) => participants()[nth].undo_refused.unwrap(),
            Answer(nth, _) => participants()[nth].undone,
        }
    }
}

/// Whether the undo of a participant may fail.
pub fn may_refuse_undo(nth: usize) -> bool {
    participants()[nth].undo_refused.is_some()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    Order,
    Participant(usize),
}

impl Service {
    fn all() -> impl Iterator<Item = Service> {
        iter::once(Service::Order).chain((0..PARTICIPANTS).map(Service::Participant))
    }

    fn subscribes_to(self, kind: EventKind) -> bool {
        let name = match self {
            Service::Order => "order",
            Service::Participant(nth) => participants()[nth].service,
        };
        declaration::subscribers(kind.topic()).contains(&name)
    }

    /// The bit of this event's delivery to this service.
    pub fn bit(self, kind: EventKind) -> u32 {
        1 << SUBSCRIPTIONS.iter().position(|delivery| *delivery == (self, kind)).unwrap()
    }
}

/// An order, in all services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderState {
    pub status: Status,
    pub legs: [LegState; PARTICIPANTS],
    /// What each participant has in its own rows, in the same words.
    pub own: [Option<LegState>; PARTICIPANTS],
    /// How often money was taken for it, and how often money was given back.
    pub charges: u8,
    pub refunds: u8,
    /// How many units are reserved for it.
    pub held: i8,
    /// A bit for each kind that was published, and for each kind that was delivered to a service.
    pub published: u32,
    pub delivered: u32,
    /// A kind was published a second time.
    pub published_twice: bool,
    /// A handler found an event unprocessable.
    pub unprocessable: bool,
}

impl OrderState {
    /// The whole state in few words.
    pub fn key(&self) -> [u64; 3] {
        let counts = [self.status as u8, self.charges, self.refunds, self.held as u8];
        let legs = self.legs.iter().zip(self.own);
        // Seven states each: six, and none.
        let legs = legs.fold(0, |sum, (leg, own)| {
            sum * 49 + *leg as u64 * 7 + own.map_or(6, |own| own as u64)
        });
        let faults = u64::from(self.published_twice) << 1 | u64::from(self.unprocessable);
        [
            legs << 32 | u64::from(u32::from_be_bytes(counts)),
            faults << 32 | u64::from(self.published),
            self.delivered.into(),
        ]
    }
}

impl Hash for OrderState {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.key().iter().for_each(|word| hasher.write_u64(*word));
    }
}

/// All orders, and the available units of the item of which each of them orders one. The orders are alike, so they are
/// sorted: two worlds that differ in their names alone are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World<const N: usize> {
    pub orders: [OrderState; N],
    pub available: i8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// An event is delivered to a service. `willing`: whether a participant has no reason for a no, such as a customer who
    /// does not have the money at that moment, and whether it can undo.
    Deliver { to: Service, kind: EventKind, willing: bool },
    /// The customer or the deadline cancels the order.
    Cancel(Reason),
    /// An operator settles what this participant could not undo.
    Settle(usize),
    /// Only in a mutant: the event counts as delivered, and had no effect.
    Lose(Service, EventKind),
}

/// Each event with each service that subscribes to it.
static SUBSCRIPTIONS: LazyLock<Vec<(Service, EventKind)>> = LazyLock::new(|| {
    let subscribers = |kind: EventKind| {
        Service::all().filter(move |service| service.subscribes_to(kind)).map(move |it| (it, kind))
    };
    EventKind::all().flat_map(subscribers).collect()
});

pub fn deliveries(placed: &OrderState) -> impl Iterator<Item = (Service, EventKind)> {
    let published = placed.published;
    SUBSCRIPTIONS.iter().copied().filter(move |(_, kind)| published & kind.bit() != 0)
}
