//! Webhooks: what a system outside tells by itself. A delivery that was verified is stored, and its handler decides.

use std::time::Duration;

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

use crate::event::timer::TimerKey;

/// Every name of a webhook begins with this. A Kafka topic cannot have such a name.
pub const WEBHOOK_PREFIX: &str = "webhook/";

/// The body of a delivery, as JSON. Its sender may add fields, and send kinds that the service does not know: an enum has
/// a variant with `#[serde(other)]` for them.
pub trait Webhook: DeserializeOwned + Send + Sync + 'static {
    /// `webhook/` and who sends it: `webhook/carrier`. One of the service's own; it stays as long as a delivery is
    /// pending.
    const NAME: &'static str;

    /// For how long a delivery that its handler finds unprocessable is tried again: what it is about may be unknown
    /// still. Then it becomes a dead letter.
    const PATIENCE: Duration = Duration::from_secs(600);

    /// The timer that is set while the service waits for this delivery. The delivery continues the trace of what set
    /// it, and has the same cause. Without such a timer, a trace begins with it.
    fn awaited_by(&self) -> Option<TimerKey> {
        None
    }
}

/// The id of a delivery in the inbox: the same for each repeat. Ids of events are UUIDs of version 7, and this is one of
/// version 8, so no sender can choose the id of an event.
pub(crate) fn delivery_event_id(name: &str, delivery_id: &str) -> Uuid {
    let hash = Sha256::new().chain_update(name).chain_update([0]).chain_update(delivery_id);
    let hash: [u8; 32] = hash.finalize().into();
    Builder::from_custom_bytes(std::array::from_fn(|nth| hash[nth])).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_delivery_has_the_id_of_an_event_or_of_a_delivery_elsewhere() {
        let event_id = Uuid::now_v7();
        let id = delivery_event_id("webhook/carrier", &event_id.to_string());
        assert_eq!(id.get_version_num(), 8);
        assert_ne!(id, delivery_event_id("webhook/bank", &event_id.to_string()));
        assert_ne!(delivery_event_id("a", "bc"), delivery_event_id("ab", "c"));
        assert_eq!(id, delivery_event_id("webhook/carrier", &event_id.to_string()));
    }
}
