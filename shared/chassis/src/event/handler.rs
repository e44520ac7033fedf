//! What a handler gets and returns: the context of its decision, and an outcome to publish.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::event::{Event, Outgoing};

/// The context of a handler's or a command's decision. Handlers have no clock and no randomness of their own, so
/// that a model checker and a property test can call them.
#[derive(Clone, Copy, Debug)]
pub struct HandlerContext {
    /// Now, by the clock of the service's database, at the start of the transaction.
    pub now: DateTime<Utc>,
    /// The id of the event that is published in response; rows record it.
    pub event_id: Uuid,
    /// The id of the event that is being handled; none for a command.
    pub causation_id: Option<Uuid>,
}

/// What a handler returns: an outcome to publish, nothing, or that the event is unprocessable.
pub type HandlerResult<O> = Result<Option<O>, Unprocessable>;

/// The reason why an event can never be handled. It becomes a dead letter. An event that can be handled once
/// another event has arrived is not unprocessable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unprocessable(pub String);

/// Leaves a handler with [`Unprocessable`], the reason formatted like `format!`.
#[macro_export]
macro_rules! unprocessable {
    ($($because:tt)*) => { return Err($crate::event::Unprocessable(format!($($because)*))) };
}

/// What a handler may publish: an event, one of several kinds of events, or `()` for a handler that never
/// publishes. A decision publishes one event at most, with the id [`HandlerContext::event_id`].
pub trait Outcome {
    /// The event to publish, if there is one.
    fn into_outgoing(self) -> Option<Outgoing>;
}

impl<E: Event> Outcome for E {
    fn into_outgoing(self) -> Option<Outgoing> {
        Some(Outgoing::from_event(&self))
    }
}

impl Outcome for () {
    fn into_outgoing(self) -> Option<Outgoing> {
        None
    }
}
