//! What the checker keeps of a record that decodes: its position, its ids and hashes of the rest, at some
//! 100 bytes.

use checker::record::RecordPosition;
use uuid::Uuid;

/// The hashes of the personal fields of a record, and of its others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PersonalHashes {
    pub personal: u64,
    pub other: u64,
}

/// A record that decodes and has an event id, in few bytes: there may be millions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordSummary {
    pub order_id: Uuid,
    pub event_id: Uuid,
    pub position: RecordPosition,
    /// The hash of its content; see `content_hash.rs`.
    pub content_hash: u64,
    /// Of a topic with personal fields.
    pub personal_hashes: Option<PersonalHashes>,
    /// The hash of its trace id.
    pub trace_hash: u64,
    /// When the broker appended it, by the broker's clock, in milliseconds.
    pub appended_ms: i64,
    /// Whether an operator had it republished: its trace is not that of its decision.
    pub republished: bool,
}
