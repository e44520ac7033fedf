//! The events: one struct for each schema, which declares its topic.
//!
//! `schemas/*.avsc` is the source of truth. The structs are the same contracts in Rust, and a test compares each with
//! its schema.

pub mod purchases;

use chassis::Event;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The purchase was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "shop.accepted", publisher = "shop", key = "purchase_id")]
pub struct PurchaseAccepted {
    /// The purchase.
    pub purchase_id: Uuid,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use chassis::event::{declared_events, topics};
    use contracts::checks;

    #[test]
    fn structs_and_schemas_agree_and_every_version_is_recorded() {
        checks::assert_round_trips(declared_events());
        let schemas = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas");
        checks::assert_schema_files(topics(), schemas);
        checks::assert_documented(topics());
        checks::assert_personal_fields(topics());
        checks::assert_versions(schemas);
        checks::assert_inbox_outlasts_retention(topics());
    }
}
