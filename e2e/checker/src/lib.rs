#![doc = include_str!("../README.md")]
//!
//! A function that asks a database, Kafka or the registry fails if it does not respond.
#![warn(missing_docs)]

mod check;
pub mod dead_letters;
pub mod envelope;
pub mod findings;
mod format;
pub mod http;
pub mod inbox;
mod invariants;
pub mod kafka;
pub mod outbox_log;
mod quiescence;
pub mod record;
mod sources;
mod topic_reader;
mod topics;
mod writer_schemas;

pub use check::{Verdict, check, retained_since};
pub use findings::Findings;
pub use format::group_digits;
pub use invariants::{InvariantName, MessagingInvariant};
pub use sources::{Sources, System};
pub use topic_reader::{read_records, read_topic};
pub use topics::{KeepRecords, Topics};
pub use writer_schemas::{WriterSchema, WriterSchemas};
