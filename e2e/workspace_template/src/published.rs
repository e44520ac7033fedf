//! What the service publishes: nothing yet. An event first needs its schema and its topic:
//! docs/how-to/change-a-service.md. `services/stock` shows commands, and events that are published.

use chassis::RepublishSource;

use crate::purchases::ConfirmedPurchase;

/// What a handler publishes.
pub type Published = ();

impl ConfirmedPurchase {
    /// The event about this purchase.
    pub fn published(&self) -> Option<Published> {
        None
    }
}

/// The rows from which events are republished.
pub fn sources() -> [RepublishSource; 0] {
    []
}
