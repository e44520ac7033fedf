//! Deferred events: each waits by itself while all others are handled, those of its own partition too.
//!
//! An event is deferred if its obstacle concerns no other event: its schema is not known yet, a row that it needs
//! is locked, a rule of the database refuses it, or the serving role lacks a right that it needs. Handlers do not
//! depend on the order of events.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use metrics::gauge;
use rdkafka::message::Message;
use tokio::time::Instant;

use crate::consumer::assignment::Assignment;
use crate::db::DbErrorClass;
use crate::dead_letter::DeadLetterReason;
use crate::flow::backoff::RetryBackoff;
use crate::flow::unless_test;
use crate::transaction::failure::Failure;
use crate::transaction::incoming_record::IncomingRecord;
use crate::transaction::part::{Attempts, Part};
use crate::unit_of_work::UnitOfWork;

/// Events that are deferred at a time, at most, and the bytes of their records. With more, the consumer waits: the
/// fault is then not in single events.
const EVENTS_MAX: usize = 1_000;
const BYTES_MAX: usize = 4 * 1024 * 1024;

const DEFER_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_millis(500), delay_max: Duration::from_secs(10) };

/// An event that a rule of the database refuses becomes a dead letter after at least this number of attempts
/// over at least this time, if another event of its topic had its effect meanwhile: a rule that refuses every
/// event is no fault of a single one.
fn rejected_attempts_min() -> u64 {
    unless_test(10, 4)
}
pub fn rejected_for_min() -> Duration {
    Duration::from_secs(unless_test(300, 5))
}

/// The shortest time for which an unknown schema id is requested, even for an old record.
const UNKNOWN_SCHEMA_WAIT_MIN: Duration = Duration::from_secs(2);

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
    /// By topic: when an event last had its effect.
    last_success_at: HashMap<&'static str, Instant>,
}

impl<R: UnitOfWork> DeferredQueue<R> {
    pub fn new() -> DeferredQueue<R> {
        DeferredQueue { events: Vec::new(), bytes: 0, last_success_at: HashMap::new() }
    }

    pub fn has_room_for(&self, item: &IncomingRecord<R>) -> bool {
        let is_first = self.events.is_empty();
        is_first || self.events.len() < EVENTS_MAX && self.bytes + record_bytes(item) <= BYTES_MAX
    }

    /// Notes the topics whose events had their effect now.
    pub fn record_success(&mut self, topics: &HashSet<&'static str>) {
        let now = Instant::now();
        self.last_success_at.extend(topics.iter().map(|topic| (*topic, now)));
    }

    /// Why a single event that has waited becomes a dead letter now, if it does.
    pub fn expiry_reason(
        &self,
        part: &Part<IncomingRecord<R>>,
        failure: &Failure,
        lag_max: Duration,
    ) -> Option<DeadLetterReason> {
        let (item, waited) = (&part.items[0], part.attempts.started_at.elapsed());
        match failure {
            Failure::SchemaPending { reason, is_unregistered: true } => {
                let is_old = waited > lag_max
                    || waited > UNKNOWN_SCHEMA_WAIT_MIN && item.age() > Some(lag_max)
                    || !self.has_room_for(item);
                is_old.then(|| DeadLetterReason::undecodable(reason))
            }
            Failure::Database(DbErrorClass::DatabaseRule, error) => {
                let succeeded = self.last_success_at.get(item.message.topic());
                let others_go_on = succeeded.is_some_and(|at| *at > part.attempts.started_at);
                let tried = u64::from(part.attempts.count) >= rejected_attempts_min()
                    && waited >= rejected_for_min();
                let reason = || DeadLetterReason::handler_failed(rejection_reason(error));
                (others_go_on && tried).then(reason)
            }
            _ => None,
        }
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

/// Why a part waits, for the log.
pub(super) fn wait_reason(failure: &Failure) -> String {
    match failure {
        Failure::Database(DbErrorClass::DatabaseRule, error) => rejection_reason(error),
        _ => failure.to_string(),
    }
}

fn rejection_reason(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    let DeadLetterReason { detail: reason, .. } = DeadLetterReason::rejected_by_database(error);
    format!("{reason} (SQLSTATE {})", code.as_deref().unwrap_or("unknown"))
}

fn record_bytes<R: UnitOfWork>(item: &IncomingRecord<R>) -> usize {
    item.message.payload().map_or(0, <[u8]>::len) + item.message.key().map_or(0, <[u8]>::len)
}
