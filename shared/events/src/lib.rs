//! The contracts between the services: one struct for each event, which declares its topic.
//!
//! `schemas/*.avsc` is the source of truth; the structs here are the same contracts in Rust, and a
//! test compares each with its schema. Who consumes a topic follows from the handlers of the services, which
//! `shared/declaration` collects. A record within a schema also has a struct of its own, under
//! the record's name, because the decoder compares the names. A service depends on this crate and on
//! the chassis, and on no other service.

#![warn(missing_docs)]

pub mod connect;
pub mod insights;
pub mod orders;
pub mod participants;
pub mod payments;
pub mod shipments;
pub mod stock;

use std::sync::LazyLock;
use std::time::Duration;

use chassis::event::{FACT_DAYS, Topic};
use contracts::InternalTopic;

/// The longest outage of a consumer after which it still finds every event: the retention, less a day.
pub const TOLERATED_OUTAGE: Duration = Duration::from_secs((FACT_DAYS as u64 - 1) * 24 * 3600);

/// Every declared topic, in the order of their names.
pub fn topics() -> &'static [&'static Topic] {
    chassis::event::topics()
}

/// The topics of the saga: each record in them is an event of a service's outbox. The others are computed by the stream
/// processor.
pub fn saga_topics() -> &'static [&'static Topic] {
    static TOPICS: LazyLock<Vec<&Topic>> = LazyLock::new(|| {
        topics().iter().copied().filter(|topic| topic.publisher != insights::NAME).collect()
    });
    &TOPICS
}

/// The topics that are no events, and that `contracts apply` creates.
pub static INTERNAL_TOPICS: [InternalTopic; 5] = {
    let [configs, offsets, statuses] = connect::STORAGE;
    [configs, offsets, statuses, connect::HEARTBEATS, connect::DEAD_LETTERS]
};

/// Checks that a currency has the form of an ISO 4217 code, three capital letters; whether the code
/// is assigned is not checked.
///
/// # Errors
/// If it has any other form.
pub fn parse_currency(code: &str) -> Result<String, &'static str> {
    match code.len() == 3 && code.bytes().all(|letter| letter.is_ascii_uppercase()) {
        true => Ok(code.to_string()),
        false => Err("it is not three capital letters"),
    }
}

#[cfg(test)]
mod tests;
