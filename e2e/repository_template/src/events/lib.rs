//! The contracts: one struct for each schema, and the one declaration of topics.
//!
//! `schemas/*.avsc` is the source of truth. The structs are the same contracts in Rust, and a test compares each with
//! its schema.

pub mod purchases;

use chassis::{Event, Retention, Topic};
use chrono::{DateTime, Utc};
use contracts::Contracts;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// At most so many instances of a service share a topic.
const PARTITIONS: i32 = 3;

/// A consumer may be down for 13 days.
const FACT_RETENTION: Retention = Retention::Days(14);

/// See [`PurchaseAccepted`].
pub static ACCEPTED: Topic = Topic::new(
    "shop.accepted",
    "shop",
    &[],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../../schemas/shop.accepted.avsc"),
);

/// All topics, with publisher and subscribers.
pub static TOPICS: [&Topic; 2] = [&purchases::CONFIRMED, &ACCEPTED];

/// The declaration, for the program `contracts` and for tests.
pub static CONTRACTS: Contracts = Contracts::new("shop", env!("CARGO_PKG_VERSION"), &TOPICS);

/// The purchase was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurchaseAccepted {
    /// The purchase.
    pub purchase_id: Uuid,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

impl Event for PurchaseAccepted {
    fn topic() -> &'static Topic {
        &ACCEPTED
    }
    fn key(&self) -> String {
        self.purchase_id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use contracts::checks;

    use super::purchases::{ConfirmedLine, PurchaseConfirmed};
    use super::*;

    #[test]
    fn structs_and_schemas_agree_and_every_version_is_recorded() {
        let (purchase_id, occurred_at) = (Uuid::from_u128(7), DateTime::default());
        checks::assert_matches_schema(&PurchaseConfirmed {
            purchase_id,
            customer_id: Uuid::max(),
            lines: vec![ConfirmedLine { sku: "pen".into(), quantity: 2, unit_price_cents: 150 }],
            total_cents: 300,
            currency: "EUR".into(),
            occurred_at,
        });
        checks::assert_matches_schema(&PurchaseAccepted { purchase_id, occurred_at });
        let schemas = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas");
        checks::assert_schema_files(&TOPICS, schemas);
        checks::assert_documented(&TOPICS);
        checks::assert_versions(schemas);
        checks::assert_inbox_outlasts_retention(&TOPICS);
        let asyncapi = concat!(env!("CARGO_MANIFEST_DIR"), "/asyncapi.json");
        checks::assert_asyncapi_file(&CONTRACTS, asyncapi);
    }
}
