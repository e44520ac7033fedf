//! The contracts of a library that lends books: one event, its program, and its tests.
//!
//! `cargo run --example lending asyncapi` prints the AsyncAPI document. `apply` and `record` work as
//! in a crate of contracts of your own.

use std::process::ExitCode;

use chassis::event::topics;
use chassis::{Event, Subscriptions};
use chrono::{DateTime, Utc};
use contracts::Contracts;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A reader borrowed a book.
// The services that publish and handle it are not part of this example.
#[cfg_attr(not(test), allow(dead_code))]
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(
    topic = "loans.opened",
    publisher = "loan",
    key = "loan_id",
    // A crate whose folder, or one above it, has the folder `schemas` leaves it out.
    schema = include_str!("schemas/loans.opened.avsc")
)]
struct LoanOpened {
    loan_id: Uuid,
    isbn: String,
    branch: Branch,
    #[serde(with = "chrono::serde::ts_microseconds")]
    occurred_at: DateTime<Utc>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Branch {
    Desk,
    Bus,
    Unknown,
}

/// The handlers of a service say what it consumes: `("reminder", reminder::handlers().topics())`. Here are none.
fn subscriptions() -> Subscriptions {
    Subscriptions::new(["reminder", "statistics"].map(|name| (name, vec![LoanOpened::topic()])))
}

fn contracts() -> Contracts {
    Contracts::new("lending", "1.0.0", topics(), subscriptions())
        .title("Lending")
        .description("The events of a library that lends books.")
        .schemas_folder(SCHEMAS)
}

const SCHEMAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/lending/schemas");

fn main() -> ExitCode {
    contracts().main()
}

#[cfg(test)]
mod tests {
    use chassis::event::declared_events;
    use contracts::checks;

    use super::*;

    #[test]
    fn every_struct_writes_and_reads_exactly_its_schema() {
        checks::assert_round_trips(declared_events());
        for branch in [Branch::Desk, Branch::Bus, Branch::Unknown] {
            checks::assert_matches_schema(&LoanOpened {
                loan_id: Uuid::from_u128(7),
                isbn: "9780306406157".into(),
                branch,
                occurred_at: DateTime::UNIX_EPOCH,
            });
        }
    }

    #[test]
    fn every_schema_file_is_one_declared_topic_and_documents_its_fields() {
        checks::assert_schema_files(topics(), SCHEMAS);
        checks::assert_documented(topics());
    }

    #[test]
    fn every_consumer_keeps_its_inbox_for_longer_than_a_topic_can_redeliver() {
        checks::assert_inbox_outlasts_retention(topics());
    }

    #[test]
    fn every_recorded_version_and_the_current_one_can_read_each_other() {
        checks::assert_versions(SCHEMAS);
    }

    /// `cargo run --example lending asyncapi` rewrites the file.
    #[test]
    fn the_committed_asyncapi_document_is_the_one_that_the_topics_declare() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/lending/asyncapi.json");
        checks::assert_asyncapi_file(&contracts(), file);
    }
}
