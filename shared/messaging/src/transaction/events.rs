//! Events on the one path: the consumer's batches, and dead letters that are replayed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use chrono::{DateTime, Utc};
use metrics::{counter, histogram};
use opentelemetry::Context;
use opentelemetry::trace::{Status, TraceContextExt};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::dead_letter::DeadLetterReason;
use crate::event::timer::TimerKey;
use crate::event::{HandlerContext, Unprocessable};
use crate::flow::wakeups::Wakeups;
use crate::inbox;
use crate::scheduled;
use crate::transaction::decisions::DecisionAges;
use crate::transaction::failure::Failure;
use crate::transaction::incoming_record::{Content, IncomingRecord};
use crate::transaction::{self, DedupKey, Wanted, WorkItem};
use crate::unit_of_work::UnitOfWork;
use crate::unit_of_work::write_batch::WriteBatch;

impl<R: UnitOfWork> WorkItem<R> for IncomingRecord<R> {
    /// The span of an event that was handled now, which ends when it is dropped. `None` for a record that is no
    /// event, and for an event that had its effect before.
    type Output = Option<Context>;
    const CRASH_POINTS: [&str; 3] =
        ["transaction.loaded", "transaction.deduplicated", "transaction.decided"];

    fn keys(&self, keys: &mut R::Keys) {
        if let Content::Event(_, handler) = &self.content {
            handler.keys(keys);
        }
    }

    fn dedup_key(&self) -> Option<DedupKey<'_>> {
        self.inbox_key().map(|(event_id, topic)| DedupKey::Event(event_id, topic))
    }

    fn timer(&self) -> Option<(&TimerKey, Uuid)> {
        Some((self.timer.as_ref()?, self.event_id?))
    }

    /// A timer that was cancelled or moved counts as one that has fired.
    ///
    /// If a publisher gives one id to events of two topics, the second is no duplicate of the first and must not
    /// be dropped.
    async fn find_duplicates(
        tx: &mut PgConnection,
        items: &[Self],
    ) -> Result<HashMap<usize, Option<Context>>, Failure> {
        let keys = items.iter().filter_map(IncomingRecord::inbox_key);
        let topics = inbox::topics_of(tx, keys.map(|(event_id, _)| event_id).collect()).await?;
        let mut duplicates = HashMap::new();
        for (nth, item) in items.iter().enumerate() {
            let Some((event_id, topic)) = item.inbox_key() else { continue };
            let Some(known) = topics.get(&event_id) else { continue };
            if known != topic {
                let detail = format!("its id is that of an event of {known}");
                let reason = DeadLetterReason::unprocessable(detail);
                return Err(Failure::Undecidable(nth, reason));
            }
            duplicates.insert(nth, None);
        }
        let timers = Vec::from_iter(items.iter().filter_map(Self::timer));
        let pending = scheduled::lock(tx, &timers).await?;
        for (nth, item) in items.iter().enumerate() {
            if item.timer().is_some_and(|(_, event_id)| !pending.contains(&event_id)) {
                duplicates.insert(nth, None);
            }
        }
        Ok(duplicates)
    }

    fn decide(
        &self,
        rows: &mut R,
        now: DateTime<Utc>,
    ) -> Result<(Option<Context>, Wanted), Unprocessable> {
        let Content::Event(source, handler) = &self.content else {
            return Ok((None, Wanted::default()));
        };
        let span = self.span(*source);
        let causation_id = self.causation_id;
        let event_id = self.event_id.map_or_else(Uuid::now_v7, |id| handler.response_id(id));
        let context = HandlerContext { now, event_id, causation_id };
        let current = span.with_value(self.labels()).attach();
        let effects = handler.decide(rows, context);
        drop(current);
        let effects = effects.inspect_err(|_| span.span().set_status(Status::error("")))?;
        let wanted = Wanted::of_decision(effects, context, &span);
        Ok((Some(span), wanted))
    }

    fn store_keys(
        writes: &mut WriteBatch<'_>,
        accepted: &[(&Self, &Option<Context>)],
        attempts: i32,
    ) {
        inbox::insert(writes, accepted.iter().filter_map(|(item, _)| item.inbox_key()), attempts);
    }
}

#[must_use]
pub struct AppliedEvents {
    /// By topic: when each event occurred, as far as its record has that time.
    handled: BTreeMap<&'static str, Vec<Option<DateTime<Utc>>>>,
    duplicates: Vec<&'static str>,
    /// Whether each record of the batch had its effect in this transaction.
    pub had_effect: Vec<bool>,
    /// When its transaction began, by the database's clock.
    now: DateTime<Utc>,
    /// When handling began, right after that, by ours.
    started_at: Instant,
    publishes: bool,
    ages: DecisionAges,
    /// End when they are dropped.
    _spans: Vec<Context>,
}

/// Applies the events of a batch. Records that are no events are skipped. `attempts` is the number of this attempt,
/// from 1; the inbox stores it.
pub async fn apply_events<R: UnitOfWork>(
    tx: &mut PgConnection,
    items: &[IncomingRecord<R>],
    now: DateTime<Utc>,
    expects_duplicates: bool,
    attempts: i32,
) -> Result<AppliedEvents, Failure> {
    let started_at = Instant::now();
    let applied = transaction::apply(tx, items, now, expects_duplicates, attempts).await?;
    let (publishes, ages) = (applied.publishes, applied.ages);
    let (mut handled, mut duplicates) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
    let mut spans = Vec::with_capacity(items.len());
    let had_effect = applied.answers.iter().map(|answer| matches!(answer, Some(Some(_)))).collect();
    for (item, answer) in items.iter().zip(applied.answers) {
        let Content::Event(source, _) = &item.content else { continue };
        match answer.flatten() {
            Some(span) => {
                handled.entry(source.name()).or_default().push(item.sent_at);
                spans.push(span);
            }
            None => duplicates.push(source.name()),
        }
    }
    Ok(AppliedEvents {
        handled,
        duplicates,
        had_effect,
        now,
        started_at,
        publishes,
        ages,
        _spans: spans,
    })
}

impl AppliedEvents {
    pub fn has_duplicates(&self) -> bool {
        !self.duplicates.is_empty()
    }

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
        self.ages.record();
        let handling = self.started_at.elapsed();
        for (topic, sent_at) in &self.handled {
            counter!("events_handled_total", "topic" => *topic).increment(sent_at.len() as u64);
            let delivery = histogram!("event_delivery_seconds", "topic" => *topic);
            // Unknown if the clocks differ by more than the delivery took.
            let took = |at: &DateTime<Utc>| (self.now - at).to_std().ok();
            let took = sent_at.iter().flatten().filter_map(took);
            took.for_each(|took| delivery.record(took + handling));
        }
        for topic in self.duplicates {
            counter!("events_deduplicated_total", "topic" => topic).increment(1);
        }
        self.handled.into_keys().collect()
    }
}
