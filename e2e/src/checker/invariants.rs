//! The invariants I1 to I17: what must hold in every run. Verdicts, fault lists and mutants use
//! these names. This file is the only definition of each, and every finding of the checker names
//! one.

use std::fmt::{self, Display};

use checker::{InvariantName, MessagingInvariant};

/// The ids are names and nothing more: verdicts, docs/testing.md and the patches in `e2e/mutants/patches` use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Invariant {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
    I9,
    I10,
    I11,
    I12,
    I13,
    I14,
    I15,
    I16,
    I17,
}

use Invariant::*;

impl Invariant {
    pub const ALL: [Invariant; 17] =
        [I1, I2, I3, I4, I5, I6, I7, I8, I9, I10, I11, I12, I13, I14, I15, I16, I17];
}

impl From<MessagingInvariant> for Invariant {
    fn from(of_messaging: MessagingInvariant) -> Invariant {
        match of_messaging {
            MessagingInvariant::HandledOnce => I7,
            MessagingInvariant::Published => I8,
            MessagingInvariant::Ordered => I9,
            MessagingInvariant::DeadLetters => I10,
            MessagingInvariant::Readable => I12,
            MessagingInvariant::Quiescent => I13,
        }
    }
}

impl InvariantName for Invariant {
    fn description(self) -> &'static str {
        match self {
            I1 => {
                "an acknowledged order is stored as its client requested it; an order with an unknown \
                 outcome is stored once or not at all; a refused order is not stored"
            }
            I2 => {
                "an Idempotency-Key creates at most one order; a repeated request gets the same response; \
                 another request with the same key is refused"
            }
            I3 => {
                "an order ends in exactly one state, with all its legs ended; its history folds to that \
                 state; no state ever goes back"
            }
            I4 => {
                "the order service agrees with its participants on every leg, and with stock on every item"
            }
            I5 => {
                "money is conserved and never negative: deposits equal balances plus payments taken, \
                 and payments taken equal the totals of confirmed orders"
            }
            I6 => {
                "goods are conserved and never negative: deliveries equal available plus reserved \
                 units, and reserved units equal the reservations of orders"
            }
            I7 => "each subscriber handled every event once, and the event had its effect once",
            I8 => {
                "every event that a row records is in its topic with the same content; duplicates exist \
                 only in topics"
            }
            I9 => {
                "the events of one service for one key first arrive in the order of their decisions, \
                 and at most one relay of a service is active"
            }
            I10 => {
                "the dead letters are exactly the records that the run made unprocessable; no record \
                 that only had to wait is among them"
            }
            I11 => "every event has the state that it reports, and every such state has its event",
            I12 => "every record decodes with a schema of the registry and has a valid envelope",
            I13 => {
                "the stack becomes quiescent in time: no record is unread, no event is unpublished, no \
                 order is pending, no outcome is unknown"
            }
            I14 => {
                "no process exited unless the run ended it, and no request failed within a service"
            }
            I15 => "a confirmed order has one trace through all services",
            I16 => "memory, connections and tables return to their size before the run",
            I17 => {
                "in a stack that ships, a confirmed order is exactly one parcel at the carrier, in the state \
                 that its shipment has, or a task waits for a person"
            }
        }
    }
}

impl Display for Invariant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{self:?}"))
    }
}

#[cfg(test)]
#[path = "invariants_tests.rs"]
mod tests;
