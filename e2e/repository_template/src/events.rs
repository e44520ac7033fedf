//! The contracts: one struct for each schema, and the one declaration of topics.
//!
//! `schemas/*.avsc` is the source of truth. The structs are the same contracts in Rust, and a test compares each with
//! its schema.

use chassis::{Event, Retention, Topic};
use chrono::{DateTime, Utc};
use contracts::Contracts;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// At most so many instances of a service share a topic.
const PARTITIONS: i32 = 3;

/// A consumer may be down for 13 days.
const FACT_RETENTION: Retention = Retention::Days(14);

/// See [`RequestCreated`]. Another service publishes it: this repository declares it too, so that it runs by itself.
pub static REQUEST_CREATED: Topic = Topic::new(
    "requests.created",
    "request",
    &["shop"],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../schemas/requests.created.avsc"),
);

/// See [`RequestAccepted`].
pub static ACCEPTED: Topic = Topic::new(
    "shop.accepted",
    "shop",
    &[],
    PARTITIONS,
    FACT_RETENTION,
    include_str!("../schemas/shop.accepted.avsc"),
);

/// All topics, with publisher and subscribers.
pub static TOPICS: [&Topic; 2] = [&REQUEST_CREATED, &ACCEPTED];

/// The declaration, for the program `contracts` and for tests.
pub static CONTRACTS: Contracts = Contracts::new("shop", env!("CARGO_PKG_VERSION"), &TOPICS);

/// Someone requested something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCreated {
    /// The request.
    pub request_id: Uuid,
    /// What is requested: 1 to 200 characters.
    pub subject: String,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// The request was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestAccepted {
    /// The request.
    pub request_id: Uuid,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

impl Event for RequestCreated {
    fn topic() -> &'static Topic {
        &REQUEST_CREATED
    }
    fn key(&self) -> String {
        self.request_id.to_string()
    }
}

impl Event for RequestAccepted {
    fn topic() -> &'static Topic {
        &ACCEPTED
    }
    fn key(&self) -> String {
        self.request_id.to_string()
    }
}
