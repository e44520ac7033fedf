#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod captured_events;
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
pub mod record;
mod sources;
mod topic_reader;
mod writer_schemas;

pub use captured_events::LogEnds;
pub use check::{Verdict, check};
pub use findings::Findings;
pub use format::group_digits;
pub use invariants::{InvariantName, MessagingInvariant};
pub use sources::{Sources, System};
pub use topic_reader::read_topic;
pub use writer_schemas::{WriterSchema, WriterSchemas};
