//! The compact state of all orders at a moment, and what can happen next.

use std::hash::{Hash, Hasher};

use chassis::Topic;
use chassis::event::{Event, Outgoing};
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{StockRejected, StockReleased, StockReserved};
use order::{PaymentLeg, Reason, Status, StockLeg};

use EventKind::*;

/// The types of events. A refund or a release that undoes nothing has a kind of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
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

pub const EVENT_KINDS: [EventKind; 11] = [
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

impl EventKind {
    pub fn bit(self) -> u16 {
        1 << self as u16
    }

    pub fn topic(self) -> &'static Topic {
        match self {
            Created => OrderCreated::topic(),
            Confirmed => OrderConfirmed::topic(),
            Cancelled => OrderCancelled::topic(),
            Verified => PaymentVerified::topic(),
            Declined => PaymentDeclined::topic(),
            Refunded | PaymentVoid => PaymentRefunded::topic(),
            Reserved => StockReserved::topic(),
            Rejected => StockRejected::topic(),
            Released | StockVoid => StockReleased::topic(),
        }
    }

    /// What was just published.
    pub fn from_outgoing(event: &Outgoing) -> EventKind {
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
            name => EVENT_KINDS.into_iter().find(|kind| kind.topic().name == name).unwrap(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    Order,
    Payment,
    Stock,
}

pub const SERVICES: [Service; 3] = [Service::Order, Service::Payment, Service::Stock];

impl Service {
    pub fn name(self) -> &'static str {
        match self {
            Service::Order => "order",
            Service::Payment => "payment",
            Service::Stock => "stock",
        }
    }

    pub fn subscribes_to(self, kind: EventKind) -> bool {
        declaration::subscribers(kind.topic()).contains(&self.name())
    }

    pub fn bit(self, kind: EventKind) -> u64 {
        1 << (self as u64 * EVENT_KINDS.len() as u64 + kind as u64)
    }
}

/// An order, in all three services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderState {
    pub status: Status,
    pub payment_leg: PaymentLeg,
    pub stock_leg: StockLeg,
    pub payment: Option<payment::State>,
    pub reservation: Option<stock::State>,
    /// How often money was taken for it, and how often money was given back.
    pub charges: u8,
    pub refunds: u8,
    /// How many units are reserved for it.
    pub held: i8,
    /// A bit for each kind that was published, and for each kind that was delivered to a service.
    pub published: u16,
    pub delivered: u64,
    /// A kind was published a second time.
    pub published_twice: bool,
    /// A handler found an event unprocessable.
    pub unprocessable: bool,
}

impl Hash for OrderState {
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
        let faults = u64::from(self.published_twice) << 1 | u64::from(self.unprocessable);
        hasher.write_u64(faults << 62 | self.delivered << 16 | u64::from(self.published));
    }
}

/// All orders, and the available units of the item of which each of them orders one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World<const N: usize> {
    pub orders: [OrderState; N],
    pub available: i8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// An event is delivered to a service. `funded`: whether the customer has the money at that moment.
    Deliver { to: Service, kind: EventKind, funded: bool },
    /// The customer or the deadline cancels the order.
    Cancel(Reason),
    /// Only in a mutant: the event counts as delivered, and had no effect.
    Lose(Service, EventKind),
}

pub fn deliveries(placed: &OrderState) -> impl Iterator<Item = (Service, EventKind)> {
    let published = placed.published;
    let kinds = EVENT_KINDS.into_iter().filter(move |kind| published & kind.bit() != 0);
    kinds.flat_map(|kind| {
        SERVICES
            .into_iter()
            .filter(move |service| service.subscribes_to(kind))
            .map(move |service| (service, kind))
    })
}
