//! What the checker keeps of a record: its position, and its ids or the hash of its bytes.

use std::cmp::Ordering;
use std::fmt::{self, Display};
use std::hash::{Hash, Hasher};

use chassis::event::Topic;
use uuid::Uuid;

/// The position of a record.
#[derive(Clone, Copy, Debug)]
pub struct RecordPosition {
    /// The declaration of its topic. Positions are compared by its name.
    pub topic: &'static Topic,
    /// The number of its partition.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
}

impl RecordPosition {
    fn sort_key(&self) -> (&'static str, i32, i64) {
        (self.topic.name, self.partition, self.offset)
    }
}

impl PartialEq for RecordPosition {
    fn eq(&self, other: &RecordPosition) -> bool {
        self.sort_key() == other.sort_key()
    }
}

impl Eq for RecordPosition {}

impl PartialOrd for RecordPosition {
    fn partial_cmp(&self, other: &RecordPosition) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RecordPosition {
    fn cmp(&self, other: &RecordPosition) -> Ordering {
        self.sort_key().cmp(&other.sort_key())
    }
}

impl Hash for RecordPosition {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.sort_key().hash(hasher);
    }
}

impl Display for RecordPosition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}[{}]@{}", self.topic.name, self.partition, self.offset)
    }
}

/// A record with an event id. There may be millions, so it is small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventRecord {
    /// The id of its event.
    pub event_id: Uuid,
    /// Where it is.
    pub position: RecordPosition,
}

/// An unknown record: it does not decode, or it has no event id.
#[derive(Clone, Debug)]
pub struct UnknownRecord {
    /// Where it is.
    pub position: RecordPosition,
    /// SHA-256 of its bytes.
    pub hash: [u8; 32],
    /// Why it is unknown.
    pub reason: String,
}
