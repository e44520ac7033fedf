//! The checker reads the databases and every record of every topic, and finds everything that violates one of
//! the invariants I1 to I17 (`invariants.rs`). It only reads: SQL, raw Kafka and the schema registry.
//! `make verify`, and each test that injects a fault, ends with it. A check that accepts a wrong state
//! breaks it, so each invariant has a violation made by hand in the tests, which must be found.

pub mod invariants;
pub mod findings;
pub mod record;
pub mod content_hash;
pub mod expected_records;
pub mod rows;
pub mod tally;
pub mod history_fold;
pub mod balances;
pub(crate) mod decoder;
pub mod topic_reader;
pub mod erasures;
pub mod records;
pub mod orders;
pub mod transitions;
pub mod change_log;
pub mod shipments;
pub mod exits;
pub mod relay_leadership;
pub mod waivers;
pub mod sources;
pub(crate) mod order_cases;
pub(crate) mod quiescence;
pub mod verdict;
pub mod coverage;
pub mod run;

#[cfg(test)]
pub(crate) mod test_cases;
