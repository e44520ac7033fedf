//! The invariants of messaging: what holds for every stack of services on the chassis.

use std::fmt::{self, Display};

/// An invariant of messaging. A checker of more than messaging has a type of its own, into which this
/// one converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MessagingInvariant {
    /// Each subscriber handled every event once.
    HandledOnce,
    /// Every event that a service published is in its topic.
    Published,
    /// The events of one key arrived in the order in which their service made them.
    Ordered,
    /// The dead letters are the records that cannot be handled.
    DeadLetters,
    /// Every record can be read.
    Readable,
    /// Everything becomes quiescent in time.
    Quiescent,
}

/// The type of a checker's invariants, for its findings. It displays the name of each.
pub trait InvariantName: Copy + Ord + Display + From<MessagingInvariant> {
    /// The invariant in one sentence.
    fn description(self) -> &'static str;
}

impl InvariantName for MessagingInvariant {
    fn description(self) -> &'static str {
        match self {
            Self::HandledOnce => "each subscriber handled every event once, and no other event",
            Self::Published => "every event that a service published is in its topic",
            Self::Ordered => {
                "of two events of one service for one key, the one that the service made first \
                 arrives first"
            }
            Self::DeadLetters => {
                "a record that cannot be handled is a dead letter of every subscriber, and every dead \
                 letter has its record"
            }
            Self::Readable => {
                "every record decodes with a schema of the registry and has an event id"
            }
            Self::Quiescent => {
                "the stack becomes quiescent in time: no event waits in an outbox, no record is unread, \
                 no consumer is paused"
            }
        }
    }
}

impl Display for MessagingInvariant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{self:?}"))
    }
}
