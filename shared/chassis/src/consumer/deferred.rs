//! Deferred events: each waits by itself while all others are handled, those of its own partition too.
//!
//! An event is deferred if its obstacle concerns no other event: its schema is not known yet, a row that it needs
//! is locked, a rule of the database refuses it, or the serving role lacks a right that it needs. Handlers do not
//! depend on the order of events.

use std::time::Duration;

use metrics::gauge;
use rdkafka::message::Message;
use tokio::time::Instant;

use crate::consumer::assignment::Assignment;
use crate::flow::backoff::RetryBackoff;
use crate::transaction::incoming_record::IncomingRecord;
use crate::unit_of_work::UnitOfWork;

/// Events that are deferred at a time, at most, and the bytes of their records. With more, the consumer waits: the
/// fault is then not in single events.
const EVENTS_MAX: usize = 1_000;
const BYTES_MAX: usize = 4 * 1024 * 1024;

const DEFER_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_millis(500), delay_max: Duration::from_secs(10) };

/// The number of attempts for one event, and the time since the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempts {
    pub count: u32,
    pub started_at: Instant,
    deferrals: u32,
}

impl Attempts {
    pub fn new(count: u32) -> Attempts {
        Attempts { count, started_at: Instant::now(), deferrals: 0 }
    }

    pub fn is_first(&self) -> bool {
        self.deferrals == 0
    }
}

pub(crate) struct DeferredEvent<R: UnitOfWork> {
    pub item: IncomingRecord<R>,
    pub attempts: Attempts,
    generation: Option<u64>,
    due_at: Instant,
    bytes: usize,
}

pub(crate) struct DeferredQueue<R: UnitOfWork> {
    events: Vec<DeferredEvent<R>>,
    bytes: usize,
}

impl<R: UnitOfWork> DeferredQueue<R> {
    pub fn new() -> DeferredQueue<R> {
        DeferredQueue { events: Vec::new(), bytes: 0 }
    }

    pub fn has_room_for(&self, item: &IncomingRecord<R>) -> bool {
        let is_first = self.events.is_empty();
        is_first || self.events.len() < EVENTS_MAX && self.bytes + record_bytes(item) <= BYTES_MAX
    }

    /// Defers an event, each time for longer, up to a bound.
    pub fn defer(
        &mut self,
        item: IncomingRecord<R>,
        mut attempts: Attempts,
        assigned: &Assignment,
    ) {
        attempts.deferrals += 1;
        let (topic, partition, _) = item.position();
        let generation = assigned.generation_of(topic, partition);
        let due_at = Instant::now() + DEFER_BACKOFF.pause_after(attempts.deferrals);
        let bytes = record_bytes(&item);
        self.bytes += bytes;
        self.events.push(DeferredEvent { item, attempts, generation, due_at, bytes });
        self.update_gauge();
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.events.iter().map(|event| event.due_at).min()
    }

    pub fn oldest(&self) -> Option<&DeferredEvent<R>> {
        self.events.iter().min_by_key(|event| event.attempts.started_at)
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Takes the events that are due. Events whose partition has been assigned again are dropped: they are read
    /// again, here or by another instance.
    pub fn take_due(&mut self, assigned: &Assignment) -> Vec<DeferredEvent<R>> {
        let now = Instant::now();
        self.events.retain(|event| {
            let (topic, partition, _) = event.item.position();
            event.generation == assigned.generation_of(topic, partition)
        });
        let due = self.events.extract_if(.., |event| event.due_at <= now).collect();
        self.bytes = self.events.iter().map(|event| event.bytes).sum();
        self.update_gauge();
        due
    }

    fn update_gauge(&self) {
        gauge!("consumer_events_deferred").set(self.events.len() as f64);
    }
}

impl<R: UnitOfWork> Drop for DeferredQueue<R> {
    fn drop(&mut self) {
        gauge!("consumer_events_deferred").set(0);
    }
}

fn record_bytes<R: UnitOfWork>(item: &IncomingRecord<R>) -> usize {
    item.message.payload().map_or(0, <[u8]>::len) + item.message.key().map_or(0, <[u8]>::len)
}
