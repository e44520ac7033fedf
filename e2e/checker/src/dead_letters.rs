//! The dead letters of all services, by the position of their record.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::findings::Findings;
use crate::invariants::{InvariantName, MessagingInvariant};
use crate::record::{RecordPosition, UnknownRecord};

/// A dead letter of a service.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The position of its record.
    pub position: RecordPosition,
    /// The service that could not handle it.
    pub service: &'static str,
    /// SHA-256 of its bytes.
    pub hash: [u8; 32],
    /// `waiting`, `replayed` or `discarded`.
    pub state: String,
    /// Why it could not be handled.
    pub reason: String,
}

/// Which services have a dead letter of which record. The hash shows whether the record at that
/// position is still the same.
#[derive(Debug, Default)]
pub struct DeadLetterIndex {
    by_position: HashMap<RecordPosition, Vec<(&'static str, [u8; 32])>>,
    waiting: HashSet<RecordPosition>,
    /// Of any cluster: a discard outlives the topic that its record was in.
    discarded: HashSet<(&'static str, Uuid)>,
}

impl DeadLetterIndex {
    /// The index of these dead letters, and of the events that a service discarded.
    pub fn from_rows(
        rows: &[DeadLetter],
        discarded: HashSet<(&'static str, Uuid)>,
    ) -> DeadLetterIndex {
        let mut dead_letters = DeadLetterIndex { discarded, ..DeadLetterIndex::default() };
        for DeadLetter { position, service, hash, state, .. } in rows {
            dead_letters.add(*position, service, *hash);
            if state == "waiting" {
                dead_letters.add_waiting(*position);
            }
        }
        dead_letters
    }

    /// Adds a dead letter of a service, by the position and the hash of its record.
    pub fn add(&mut self, position: RecordPosition, service: &'static str, hash: [u8; 32]) {
        self.by_position.entry(position).or_default().push((service, hash));
    }

    /// The positions of all records with a dead letter.
    pub fn positions(&self) -> impl Iterator<Item = RecordPosition> {
        self.by_position.keys().copied()
    }

    /// Marks a dead letter of this record as waiting: it is neither replayed nor discarded.
    pub fn add_waiting(&mut self, position: RecordPosition) {
        self.waiting.insert(position);
    }

    /// Whether a service discarded this event.
    pub fn is_discarded(&self, service: &'static str, event_id: Uuid) -> bool {
        self.discarded.contains(&(service, event_id))
    }

    /// Whether any service has a dead letter of this record.
    pub fn contains(&self, position: RecordPosition) -> bool {
        self.by_position.contains_key(&position)
    }

    /// Whether this service has a dead letter of this record.
    pub fn contains_for(&self, position: RecordPosition, service: &str) -> bool {
        self.by_position
            .get(&position)
            .is_some_and(|dead_letters| dead_letters.iter().any(|(of, _)| *of == service))
    }

    /// Whether a dead letter of this record waits for an operator.
    pub fn is_waiting(&self, position: RecordPosition) -> bool {
        self.waiting.contains(&position)
    }

    /// Whether this service has a dead letter of this record with the same bytes.
    pub fn contains_exactly(&self, record: &UnknownRecord, service: &str) -> bool {
        let dead_letters = self.by_position.get(&record.position);
        dead_letters.is_some_and(|dead_letters| dead_letters.contains(&(service, record.hash)))
    }
}

/// Each dead letter is one that the run expects.
pub fn check_dead_letters<I: InvariantName>(
    dead_letters: &[DeadLetter],
    expected: &HashSet<RecordPosition>,
    findings: &mut Findings<I>,
) {
    let violates = MessagingInvariant::DeadLetters;
    for DeadLetter { position, service, reason, .. } in dead_letters {
        findings.unless(expected.contains(position), violates, "unexpected dead letter", || {
            format!("{position}: a dead letter of {service}, although the run did not make it unprocessable: {reason}")
        });
    }
}

/// An unknown record needs a dead letter of every subscriber of its topic. In a topic without
/// subscribers it is always a finding, since the first subscriber added later would stop at it.
pub fn check_unknown_record<I: InvariantName>(
    record: &UnknownRecord,
    subscribers: &[&str],
    dead_letters: &DeadLetterIndex,
    findings: &mut Findings<I>,
) {
    let UnknownRecord { position, reason, .. } = record;
    let has_subscriber = !subscribers.is_empty();
    findings.unless(has_subscriber, MessagingInvariant::Readable, "unknown", || {
        format!("{position}: {reason}, and its topic has no subscriber")
    });
    for service in subscribers {
        let is_known = dead_letters.contains_exactly(record, service);
        findings.unless(is_known, MessagingInvariant::DeadLetters, "unknown", || {
            format!("{position}: {reason}; {service} has no dead letter of it")
        });
    }
}
