//! One transaction of events: duplicates are found, rows are loaded, handlers decide, and the rows, the inbox
//! and the outbox are written. The caller has begun the transaction and commits it: the consumer with a batch
//! from Kafka, whose offsets it stores afterwards, and the admin port with one replayed dead letter, which it
//! settles in the same transaction. Promise: an event's effect, its inbox row and what it publishes are
//! committed together or not at all. A write outside this transaction breaks it.

pub(crate) mod incoming_record;

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use chrono::{DateTime, Utc};
use metrics::{counter, histogram};
use opentelemetry::Context;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::crash_point;
use crate::db;
use crate::dead_letter::{DeadLetterReason, ReasonKind};
use crate::event::{HandlerContext, Retention, Topic, Unprocessable};
use crate::flow::wakeups::Wakeups;
use crate::inbox;
use crate::outbox::{self, Envelope};
use crate::telemetry;
use crate::telemetry::panics::catch_panic;
use crate::transaction::incoming_record::{Content, IncomingRecord};
use crate::unit_of_work::UnitOfWork;
use crate::unit_of_work::write_batch::WriteBatch;

/// Why a batch could not be applied. Its transaction has to be rolled back.
pub(crate) enum ApplyError {
    Database(sqlx::Error),
    /// The event at this index cannot be handled.
    Event(usize, DeadLetterReason),
    /// Something else is unavailable for now.
    Unavailable(String),
}

impl ApplyError {
    /// Whether the cause may be a duplicate: an event that was assumed to be new but was handled before.
    pub fn may_be_duplicate(&self) -> bool {
        match self {
            ApplyError::Event(..) => true,
            ApplyError::Database(error) => db::classify(error).may_be_duplicate(),
            ApplyError::Unavailable(_) => false,
        }
    }
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> ApplyError {
        ApplyError::Database(error)
    }
}

/// The result of a batch that is applied and not committed yet.
#[must_use]
pub(crate) struct Applied {
    /// By topic: when each event occurred, as far as its record has that time.
    handled: BTreeMap<&'static str, Vec<Option<DateTime<Utc>>>>,
    /// When its transaction began, by the database's clock.
    now: DateTime<Utc>,
    /// When handling began, right after that, by ours.
    started_at: Instant,
    /// Events that had their effect before: index, id and topic.
    duplicates: Vec<(usize, Uuid, &'static Topic)>,
    publishes: bool,
    /// End when they are dropped.
    _spans: Vec<Context>,
}

/// How duplicates are recognised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DedupMode {
    /// The inbox is queried first.
    CheckFirst,
    /// Every event is assumed to be new, and its inbox row is written with its effect. That saves one round
    /// trip of five, which is a tenth of the cost of small batches. If the assumption is wrong the batch
    /// fails, and it is tried again with [`DedupMode::CheckFirst`]. The value is the time at which the
    /// transaction began.
    ///
    /// Two instances that handle the same events at the same moment, one in each mode, may deadlock.
    /// Postgres ends one of the transactions after a second, and it is tried again.
    Optimistic(DateTime<Utc>),
}

/// Applies a batch of events. Duplicates are skipped, and so are records that are no event. `attempts` is the
/// number of this attempt, from 1; the inbox stores it.
pub(crate) async fn apply<R: UnitOfWork>(
    tx: &mut PgConnection,
    items: &[IncomingRecord<R>],
    mode: DedupMode,
    attempts: i32,
) -> Result<Applied, ApplyError> {
    let started_at = Instant::now();
    let dedup_keys: Vec<_> = items.iter().filter_map(IncomingRecord::dedup_key).collect();
    let (mut admitted, now) = match mode {
        DedupMode::CheckFirst => inbox::insert_new(tx, &dedup_keys, attempts).await?,
        DedupMode::Optimistic(now) => {
            (dedup_keys.iter().map(|(event_id, _)| *event_id).collect(), now)
        }
    };
    crash_point!("transaction.deduplicated", !admitted.is_empty());
    let mut keys = R::Keys::default();
    let (mut new, mut duplicates) = (Vec::with_capacity(items.len()), Vec::new());
    for (nth, item) in items.iter().enumerate() {
        if let Content::Event(topic, work) = &item.content {
            // Removed from the set, so that a duplicate within the batch is recognised too.
            let state = topic.retention == Retention::Compact;
            if state || item.event_id.is_some_and(|id| admitted.remove(&id)) {
                work.keys(&mut keys);
                new.push((nth, *topic, item, work));
            } else if let Some(event_id) = item.event_id {
                duplicates.push((nth, event_id, *topic));
            }
        }
    }
    if !duplicates.is_empty() {
        check_duplicate_topics(tx, &duplicates, &dedup_keys).await?;
    }
    let mut rows = R::load(tx, keys).await?;
    crash_point!("transaction.loaded", !new.is_empty());
    let (mut envelopes, mut spans) = (Vec::new(), Vec::with_capacity(new.len()));
    for (nth, topic, item, work) in &new {
        let span = item.span(topic);
        let context = HandlerContext { now, event_id: Uuid::now_v7(), causation_id: item.event_id };
        let decided = catch_panic(|| work.decide(&mut rows, context))
            .map_err(|panic| (ReasonKind::HandlerFailed, format!("its handler panicked: {panic}")))
            .and_then(|answer| {
                answer.map_err(|Unprocessable(why)| (ReasonKind::Unprocessable, why))
            });
        match decided {
            Ok(event) => envelopes.extend(event.map(|event| Envelope {
                event,
                event_id: context.event_id,
                traceparent: Some(telemetry::traceparent(&span)),
                causation_id: item.event_id,
                occurred_at: now,
            })),
            Err((kind, reason)) => {
                return Err(ApplyError::Event(*nth, DeadLetterReason { kind, detail: reason }));
            }
        }
        spans.push(span);
    }
    crash_point!("transaction.decided", !new.is_empty());
    let mut writes = WriteBatch::new(tx);
    if mode != DedupMode::CheckFirst {
        inbox::insert(&mut writes, &dedup_keys, attempts);
    }
    rows.save(&mut writes);
    outbox::insert(&mut writes, &envelopes);
    // Durably also if all of it was handled before: the offsets of its records are stored next.
    writes.execute_durably().await?;
    let mut handled: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (_, topic, item, _) in &new {
        handled.entry(topic.name).or_default().push(item.sent_at);
    }
    let publishes = !envelopes.is_empty();
    Ok(Applied { handled, now, started_at, duplicates, publishes, _spans: spans })
}

/// Checks that every duplicate has the id of an event of its own topic. If a publisher gives the same id to
/// events of two topics, the second is no duplicate of the first and must not be dropped. `dedup_keys` are the
/// batch's own, which may not be in the inbox yet.
pub(crate) async fn check_duplicate_topics(
    tx: &mut PgConnection,
    duplicates: &[(usize, Uuid, &'static Topic)],
    dedup_keys: &[(Uuid, &'static str)],
) -> Result<(), ApplyError> {
    let event_ids: Vec<_> = duplicates.iter().map(|(_, event_id, _)| *event_id).collect();
    let known = inbox::topics_of(tx, &event_ids).await?;
    for (nth, event_id, topic) in duplicates {
        let entered = || dedup_keys.iter().find(|(id, _)| id == event_id).map(|(_, topic)| *topic);
        let known = known.get(event_id).map(String::as_str).or_else(entered);
        if let Some(other) = known.filter(|known| *known != topic.name) {
            let reason = format!("its id is that of an event of {other}");
            return Err(ApplyError::Event(
                *nth,
                DeadLetterReason { kind: ReasonKind::Unprocessable, detail: reason },
            ));
        }
    }
    Ok(())
}

impl Applied {
    /// Whether any event had its effect before.
    pub fn has_duplicates(&self) -> bool {
        !self.duplicates.is_empty()
    }

    /// Whether any event had its effect in this transaction.
    pub fn has_effect(&self) -> bool {
        !self.handled.is_empty()
    }

    /// After the commit, never before: wakes the relay and the change feed, and updates the metrics. Returns
    /// the topics whose events had an effect.
    pub fn after_commit(self, wakeups: &Wakeups) -> HashSet<&'static str> {
        if self.publishes {
            wakeups.relay.notify_one();
        }
        wakeups.change_feed.send_replace(());
        let handling = self.started_at.elapsed();
        for (topic, decided) in &self.handled {
            counter!("events_handled_total", "topic" => *topic).increment(decided.len() as u64);
            let delivery = histogram!("event_delivery_seconds", "topic" => *topic);
            // Unknown if the clocks differ by more than the delivery took.
            let took = |at: &DateTime<Utc>| (self.now - at).to_std().ok();
            let took = decided.iter().flatten().filter_map(took);
            took.for_each(|took| delivery.record(took + handling));
        }
        for (_, _, topic) in &self.duplicates {
            counter!("events_deduplicated_total", "topic" => topic.name).increment(1);
        }
        self.handled.into_keys().collect()
    }
}
