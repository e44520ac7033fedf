//! Events that wait by themselves while all others go on, those of their own partition too.
//!
//! An event is deferred where what stops it stops nothing else: its schema is not known yet, a row that it needs is
//! locked, a rule of the database's own refuses it. Handlers do not depend on the order of events.

use std::time::Duration;

use metrics::gauge;
use rdkafka::message::Message;
use tokio::time::Instant;

use crate::member::Assigned;
use crate::route::Item;
use crate::rows::Rows;

/// Events that are deferred at a time, at most, and the bytes of their records. With more, the consumer waits: it
/// is no matter of single events.
const EVENTS_MAX: usize = 1_000;
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// Between two tries of an event, at first and at most.
const WAIT_MIN: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How often, and for how long, one event was tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tries {
    pub count: u32,
    pub since: Instant,
    wait: Duration,
}

impl Tries {
    pub fn new(count: u32) -> Tries {
        Tries { count, since: Instant::now(), wait: WAIT_MIN / 2 }
    }

    /// Whether the event was not deferred yet.
    pub fn is_first(&self) -> bool {
        self.wait < WAIT_MIN
    }
}

/// A deferred event.
pub(crate) struct DeferredEvent<R: Rows> {
    pub item: Item<R>,
    pub tries: Tries,
    /// The assignment under which it was read.
    assignment: Option<u64>,
    due_at: Instant,
    bytes: usize,
}

/// Those of one consumer.
pub(crate) struct Deferred<R: Rows> {
    events: Vec<DeferredEvent<R>>,
    bytes: usize,
}

impl<R: Rows> Deferred<R> {
    pub fn new() -> Deferred<R> {
        Deferred { events: Vec::new(), bytes: 0 }
    }

    pub fn has_room_for(&self, item: &Item<R>) -> bool {
        let is_first = self.events.is_empty();
        is_first || self.events.len() < EVENTS_MAX && self.bytes + bytes_of(item) <= BYTES_MAX
    }

    /// Defers an event, each time for twice as long as before, by a random part less.
    pub fn defer(&mut self, item: Item<R>, mut tries: Tries, assigned: &Assigned) {
        tries.wait = (tries.wait * 2).min(WAIT_MAX);
        let assignment = assigned.by(item.message.topic(), item.message.partition());
        let due_at = Instant::now() + tries.wait.mul_f64(rand::random_range(0.5..1.0));
        let bytes = bytes_of(&item);
        self.bytes += bytes;
        self.events.push(DeferredEvent { item, tries, assignment, due_at, bytes });
        self.report();
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.events.iter().map(|event| event.due_at).min()
    }

    /// The oldest one.
    pub fn oldest(&self) -> Option<&DeferredEvent<R>> {
        self.events.iter().min_by_key(|event| event.tries.since)
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Takes those that are due. Those whose partition was assigned again since are dropped: they are read again,
    /// here or elsewhere.
    pub fn take_due(&mut self, assigned: &Assigned) -> Vec<DeferredEvent<R>> {
        let now = Instant::now();
        let is_ours = |event: &DeferredEvent<R>| {
            let message = &event.item.message;
            event.assignment == assigned.by(message.topic(), message.partition())
        };
        self.events.retain(is_ours);
        let due = self.events.extract_if(.., |event| event.due_at <= now).collect();
        self.bytes = self.events.iter().map(|event| event.bytes).sum();
        self.report();
        due
    }

    fn report(&self) {
        gauge!("consumer_events_deferred").set(self.events.len() as f64);
    }
}

impl<R: Rows> Drop for Deferred<R> {
    fn drop(&mut self) {
        gauge!("consumer_events_deferred").set(0);
    }
}

fn bytes_of<R: Rows>(item: &Item<R>) -> usize {
    item.message.payload().map_or(0, <[u8]>::len) + item.message.key().map_or(0, <[u8]>::len)
}
