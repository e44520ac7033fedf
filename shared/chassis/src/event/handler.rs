//! What a handler gets and returns: the context of its decision, and an outcome to publish.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid, Variant, Version};

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

/// The id of the event that a service publishes in response to another. The same cause always has the same response:
/// a service whose database was set back to a backup decides once more, and the subscribers of its first event
/// recognise the second one as a duplicate. It is a UUIDv7 with the time of the cause, so that ids grow with time.
pub(crate) fn response_id(service: &str, cause: Uuid) -> Uuid {
    let hash = Sha256::new().chain_update(cause).chain_update(service).finalize();
    let mut bytes = cause.into_bytes();
    bytes[6..].copy_from_slice(&hash[..10]);
    let id = Builder::from_bytes(bytes).with_version(Version::SortRand);
    id.with_variant(Variant::RFC4122).into_uuid()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_has_an_id_that_its_cause_and_its_service_determine() {
        let (cause, other) = (Uuid::now_v7(), Uuid::now_v7());
        let id = response_id("till", cause);
        assert_eq!(response_id("till", cause), id);
        assert_ne!(response_id("bank", cause), id);
        assert_ne!(response_id("till", other), id);
        assert_eq!(id.get_version(), Some(Version::SortRand));
        assert_eq!(
            (id.get_variant(), id.get_timestamp()),
            (Variant::RFC4122, cause.get_timestamp())
        );
        let foreign = Uuid::from_u128(7);
        assert_eq!(response_id("till", foreign).get_version(), Some(Version::SortRand));
    }
}
