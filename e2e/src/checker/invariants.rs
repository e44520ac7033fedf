//! The invariants I1 to I16: what must hold in every run. Verdicts, fault lists and mutants use
//! these names. This file is the only definition of each, and every finding of the checker names
//! one.

use std::fmt::{self, Display};

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
}

use Invariant::*;

impl Invariant {
    pub const ALL: [Invariant; 16] =
        [I1, I2, I3, I4, I5, I6, I7, I8, I9, I10, I11, I12, I13, I14, I15, I16];

    /// The invariant in one sentence.
    pub fn description(self) -> &'static str {
        match self {
            I1 => {
                "an order that was acknowledged is there as it was asked for; one whose client was \
                 left in doubt is there once or not at all, one that was refused is not"
            }
            I2 => {
                "an Idempotency-Key makes one order at most; the same request is answered the same, \
                 another one under the same key is refused"
            }
            I3 => {
                "an order ends in exactly one state with both its legs ended, its history comes to \
                 that, and what has ended or climbed never changes back"
            }
            I4 => "what the order says of payment, stock and items is what they say themselves",
            I5 => {
                "money is conserved and never negative: what came in is there or was taken, and \
                 what was taken is what confirmed orders cost"
            }
            I6 => {
                "goods are conserved and never negative: what was delivered is available or \
                 reserved, and what is reserved is what orders hold"
            }
            I7 => "every fact was handled once by each of its subscribers, and had its effect once",
            I8 => {
                "what the rows say was published lies in its topic, word for word; repeats lie only \
                 there"
            }
            I9 => {
                "the records that one service made for one key first arrived in the order in which \
                 they were made, and one relay of a service was active"
            }
            I10 => {
                "the dead letters are the records that were put there to be dead, and nothing that \
                 only had to wait"
            }
            I11 => {
                "there is no event without the state that it tells of, and no such state without"
            }
            I12 => "every record is read with a schema of the registry and has a right envelope",
            I13 => {
                "everything comes to rest in time: nothing is left to read or to publish, no order \
                 is pending, no client is in doubt"
            }
            I14 => "nobody died but by the hand of the run, and no request failed within a service",
            I15 => "a confirmed order is one trace through the three services",
            I16 => "memory, connections and tables come back to what they were",
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
