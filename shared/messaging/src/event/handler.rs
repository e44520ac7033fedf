//! What a handler gets and returns: the context of its decision with the ids of its events, and its result.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid, Variant, Version};

use crate::event::Event;

/// The context of a handler's or a command's decision. Handlers have no clock and no randomness of their own, so
/// that a model checker and a property test can call them.
#[derive(Clone, Copy, Debug)]
pub struct HandlerContext {
    /// Now, by the clock of the service's database, at the start of the transaction.
    pub now: DateTime<Utc>,
    /// The id of the event of a decision that publishes one at most; rows record it. See [`HandlerContext::id_of`].
    pub event_id: Uuid,
    /// The id of the event that is being handled; none for a command.
    pub causation_id: Option<Uuid>,
}

impl HandlerContext {
    /// The id of an event of a tuple or a struct of outcomes that may hold two events. It follows from the cause, the
    /// service, the topic and the key. The event's row records it, so that it can be republished.
    pub fn id_of<E: Event>(&self, event: &E) -> Uuid {
        keyed_id(self.event_id, E::topic().name, &event.key())
    }
}

/// The id of the event that a service publishes in response to another. The same cause always has the same response:
/// a service whose database was set back to a backup decides once more, and the subscribers of its first event
/// recognise the second one as a duplicate. It is a UUIDv7 with the time of the cause, so that ids grow with time.
pub fn response_id(service: &str, cause: Uuid) -> Uuid {
    let hash = Sha256::new().chain_update(cause).chain_update(service).finalize();
    let mut bytes = cause.into_bytes();
    bytes[6..].copy_from_slice(&hash[..10]);
    let id = Builder::from_bytes(bytes).with_version(Version::SortRand);
    id.with_variant(Variant::RFC4122).into_uuid()
}

/// The id of an event of several. `event_id` is that of the context. No name of a service has a slash.
pub(super) fn keyed_id(event_id: Uuid, topic: &str, key: &str) -> Uuid {
    response_id(&format!("{topic}/{key}"), event_id)
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

    #[test]
    fn an_event_of_several_has_an_id_that_its_cause_its_service_its_topic_and_its_key_determine() {
        let cause = Uuid::now_v7();
        let event_id = response_id("till", cause);
        let id = keyed_id(event_id, "till.counted", "a");
        assert_eq!(keyed_id(response_id("till", cause), "till.counted", "a"), id);
        for other in [
            event_id,
            keyed_id(response_id("bank", cause), "till.counted", "a"),
            keyed_id(response_id("till", Uuid::now_v7()), "till.counted", "a"),
            keyed_id(event_id, "till.tallied", "a"),
            keyed_id(event_id, "till.counted", "b"),
        ] {
            assert_ne!(other, id);
        }
        assert_eq!(
            (id.get_version(), id.get_timestamp()),
            (Some(Version::SortRand), cause.get_timestamp())
        );
    }

    /// A service may be set back to a backup of an older version.
    #[test]
    fn no_version_changes_how_ids_are_derived() {
        let cause = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_cdef);
        let event_id = response_id("till", cause);
        assert_eq!(event_id.to_string(), "01934a5b-6c7d-7f7f-bc72-d59a9a4225c3");
        assert_eq!(
            keyed_id(event_id, "till.counted", "a").to_string(),
            "01934a5b-6c7d-76c0-986e-fdafa599795f"
        );
    }
}
