//! What the checker keeps of a record: its position, its ids and hashes of the rest, at some 100 bytes.

use std::hash::Hash;

use chassis::event::Topic;
use events::TOPICS;
use uuid::Uuid;

/// The position of a record. The topic is its index in [`TOPICS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordPosition {
    pub topic: u8,
    pub partition: i32,
    pub offset: i64,
}

impl RecordPosition {
    pub fn topic(&self) -> &'static Topic {
        TOPICS[usize::from(self.topic)]
    }
}

impl std::fmt::Display for RecordPosition {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}[{}]@{}", self.topic().name, self.partition, self.offset)
    }
}

pub fn topic_index(topic: &Topic) -> u8 {
    let at = TOPICS.iter().position(|declared| declared.name == topic.name);
    u8::try_from(at.expect("every topic is declared")).expect("there are ten topics")
}

/// A record that decodes and has an event id, in few bytes: there may be millions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordSummary {
    pub order_id: Uuid,
    pub event_id: Uuid,
    pub position: RecordPosition,
    /// The hash of its content; see `content_hash.rs`.
    pub content_hash: u64,
    /// The hash of its trace id.
    pub trace_hash: u64,
    /// When the broker appended it, by the broker's clock, in milliseconds.
    pub appended_ms: i64,
    /// Whether an operator had it republished: its trace is not that of its decision.
    pub republished: bool,
}

/// An unknown record: it does not decode, or it has no event id.
#[derive(Clone, Debug)]
pub struct UnknownRecord {
    pub position: RecordPosition,
    /// SHA-256 of its bytes.
    pub hash: [u8; 32],
    pub reason: String,
}
