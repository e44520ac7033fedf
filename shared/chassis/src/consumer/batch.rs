//! Batches of records on their way through the consumer.
//!
//! Promises:
//! - Every event in Kafka is handled or stored as a dead letter, and none is dropped. A temporary failure that is
//!   treated as a permanent one breaks this.
//! - An event's effect, its inbox row and what it publishes are one transaction.
//! - A partition's offset advances only over committed records, without a gap. An offset that is stored before the
//!   commit breaks this, and so does an offset above a deferred event.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, histogram};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::OwnedMessage;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::consumer::assignment::Assignment;
use crate::consumer::circuit_breaker::CircuitBreaker;
use crate::consumer::commit::SubBatchCommitter;
use crate::consumer::deferred::{Attempts, DeferredQueue};
use crate::consumer::pause;
use crate::consumer::rebalance::GroupContext;
use crate::consumer::resources::ConsumerResources;
use crate::consumer::retry::{RetryReason, rejection_reason};
use crate::consumer::sub_batch::{SplitBy, SubBatch, describe_record};
use crate::consumer::wait::{ATTEMPT_TIMEOUT, LoopWait};
use crate::crash_point;
use crate::db::{self, DbErrorClass};
use crate::dead_letter::DeadLetterReason;
use crate::kafka::record::schema_id;
use crate::transaction::failure::{ApplyError, Reaction, Step};
use crate::transaction::incoming_record::{Content, IncomingRecord};
use crate::unit_of_work::UnitOfWork;

const DEFERRED_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// While fewer events wait, each is logged when it is deferred. An outage of the registry may defer a thousand.
const DEFERRED_LOGGED_MAX: usize = 10;

pub(crate) struct BatchRunner<'a, R: UnitOfWork> {
    resources: &'a ConsumerResources<R>,
    client: &'a Arc<StreamConsumer<GroupContext>>,
    wait: LoopWait<'a>,
    committer: SubBatchCommitter<'a, R>,
    circuit_breaker: CircuitBreaker,
    deferred: DeferredQueue<R>,
    deferred_logged_at: Instant,
    /// By topic: when an event last had its effect.
    last_success_at: HashMap<&'static str, Instant>,
}

impl<'a, R: UnitOfWork> BatchRunner<'a, R> {
    pub(crate) fn new(
        resources: &'a ConsumerResources<R>,
        client: &'a Arc<StreamConsumer<GroupContext>>,
        stop: &'a CancellationToken,
    ) -> BatchRunner<'a, R> {
        let ConsumerResources { heartbeat, wakeups, .. } = resources;
        BatchRunner {
            resources,
            client,
            wait: LoopWait { heartbeat, wakeups, stop },
            committer: SubBatchCommitter::new(resources, client),
            circuit_breaker: CircuitBreaker::default(),
            deferred: DeferredQueue::new(),
            deferred_logged_at: Instant::now(),
            last_success_at: HashMap::new(),
        }
    }

    pub(crate) async fn wait_while_paused(&self) {
        pause::wait_while_paused(&self.resources.db, &self.wait).await;
    }

    /// Handles a batch, part by part from left to right. Returns early only when it is stopped; records that
    /// are not committed by then are read again.
    pub(crate) async fn handle(&mut self, messages: Vec<OwnedMessage>, assigned: &Assignment) {
        histogram!("consumer_batch_size").record(messages.len() as f64);
        crash_point!("consumer.polled");
        self.committer.mark_read(&messages, assigned);
        let items = self.decode(messages).await;
        let (unread, items): (Vec<_>, Vec<_>) =
            items.into_iter().partition(IncomingRecord::is_unread);
        let attempts = Attempts::new(0);
        let mut parts = SubBatch::new(unread, attempts).split(SplitBy::Singles);
        parts.extend((!items.is_empty()).then_some(SubBatch::new(items, attempts)));
        self.run_sub_batches(parts, assigned).await;
    }

    pub(crate) async fn retry_deferred(&mut self) {
        let assigned = self.client.context().assignment();
        let due = self.take_due(&assigned).await;
        self.run_sub_batches(due, &assigned).await;
    }

    /// When [`BatchRunner::retry_deferred`] has something to do.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.deferred.next_due()
    }

    /// The deferred events that are due. Those that only waited for their schema, and have it now, are events like any
    /// other: they share a transaction. An outage of the registry may have left a thousand of them.
    async fn take_due(&mut self, assigned: &Assignment) -> Vec<SubBatch<R>> {
        let due = self.deferred.take_due(assigned);
        if due.is_empty() {
            return Vec::new();
        }
        let (messages, attempts): (Vec<_>, Vec<_>) =
            due.into_iter().map(|event| (event.item.message, event.attempts)).unzip();
        let (mut readable, mut parts) = (Vec::new(), Vec::new());
        for (item, attempts) in self.decode(messages).await.into_iter().zip(attempts) {
            if attempts.count > 0 || item.is_unread() {
                parts.push(SubBatch::new(vec![item], attempts));
            } else {
                readable.push(item);
            }
        }
        if !readable.is_empty() {
            parts.push(SubBatch::new(readable, Attempts::new(0)));
        }
        parts
    }

    /// Runs sub-batches from left to right, until each is committed or deferred, or the consumer is stopped. There
    /// may be a thousand of them, each with a transaction of its own.
    async fn run_sub_batches(&mut self, mut parts: Vec<SubBatch<R>>, assigned: &Assignment) {
        let mut failures = 0;
        parts.reverse();
        while let Some(part) = parts.pop() {
            if self.wait.stop.is_cancelled() {
                return;
            }
            match self.try_sub_batch(part, assigned).await {
                Step::Done => failures = 0,
                // Pushed from right to left: the left part is popped, and has to end, first.
                Step::Next(next) => parts.extend(next.into_iter().rev()),
                Step::Retry(part) => {
                    parts.push(part);
                    if self.wait.back_off(&mut failures).await.is_err() {
                        return;
                    }
                    // Deferred events that are due run before it.
                    parts.extend(self.take_due(assigned).await);
                }
            }
            let db = &self.resources.db;
            if let Some(reason) = self.circuit_breaker.open_reason(db).await {
                self.circuit_breaker.open(db, &self.wait, &reason).await;
            }
        }
    }

    async fn decode(&self, messages: Vec<OwnedMessage>) -> Vec<IncomingRecord<R>> {
        let ids: HashSet<u32> = messages.iter().filter_map(schema_id).collect();
        let schemas = self.resources.registry.get_schemas(ids).await;
        let router = &self.resources.router;
        let parse = |message| router.parse(message, &schemas);
        let items = messages.into_iter().map(parse).collect();
        self.resources.registry.keep_used(&schemas).await;
        items
    }

    async fn try_sub_batch(
        &mut self,
        mut part: SubBatch<R>,
        assigned: &Assignment,
    ) -> Step<SubBatch<R>> {
        self.resources.heartbeat.beat();
        if let Content::SchemaPending { reason, .. } = &part.items[0].content {
            let reason = reason.clone();
            return self.wait_or_expire(part, RetryReason::UnknownSchema, reason, assigned);
        }
        part.attempts.count += 1;
        match db::with_timeout(ATTEMPT_TIMEOUT, self.committer.try_commit(&part)).await {
            Ok(committed) => {
                self.circuit_breaker.record_committed(&part, &committed);
                let now = Instant::now();
                self.last_success_at.extend(committed.handled.iter().map(|topic| (*topic, now)));
                self.committer.record_committed(&part, &committed, assigned);
                Step::Done
            }
            Err(error) => self.react(part, error, assigned),
        }
    }

    /// The step after a failed attempt, as [`crate::transaction::failure`] decides it.
    fn react(
        &mut self,
        mut part: SubBatch<R>,
        error: ApplyError,
        assigned: &Assignment,
    ) -> Step<SubBatch<R>> {
        let (count, checked) = (part.items.len(), self.committer.expects_duplicates);
        let (wait, reason) = match error.reaction(count, checked) {
            Reaction::CheckDuplicates => {
                self.committer.expects_duplicates = true;
                part.attempts.count -= 1;
                return Step::Next(vec![part]);
            }
            Reaction::Isolate(_, cause) if count == 1 => return to_dead_letter(part, cause),
            Reaction::Isolate(nth, _) => return Step::Next(part.split(SplitBy::Isolating(nth))),
            Reaction::Singles => return Step::Next(part.split(SplitBy::Singles)),
            Reaction::Bisect => return Step::Next(part.split(SplitBy::Halves)),
            Reaction::Race(_) if part.races == 0 => {
                part.races += 1;
                return Step::Next(vec![part]);
            }
            Reaction::Race(_) if count > 1 => return Step::Next(part.split(SplitBy::Halves)),
            Reaction::Wait(reason) => (RetryReason::AllEvents, reason),
            // A dead letter that the database refuses waits like an event: it must not be dropped.
            Reaction::Race(error) | Reaction::Single(_, error)
                if part.items[0].as_dead_letter().is_some() =>
            {
                (RetryReason::AllEvents, error.to_string())
            }
            Reaction::Race(error) | Reaction::Single(DbErrorClass::Permanent, error) => {
                return to_dead_letter(part, DeadLetterReason::rejected_by_database(&error));
            }
            Reaction::Single(DbErrorClass::DatabaseRule, error) => {
                (RetryReason::DatabaseRule, rejection_reason(&error))
            }
            Reaction::Single(_, error) => (RetryReason::SingleEvent, error.to_string()),
        };
        self.wait_or_expire(part, wait, reason, assigned)
    }

    /// A sub-batch waits here, or a single event is deferred; one that has waited long enough becomes a dead letter.
    fn wait_or_expire(
        &mut self,
        part: SubBatch<R>,
        wait: RetryReason,
        reason: String,
        assigned: &Assignment,
    ) -> Step<SubBatch<R>> {
        let has_room = self.deferred.has_room_for(&part.items[0]);
        let lag_max = self.resources.registry.lag_max;
        let successes = &self.last_success_at;
        if let Some(cause) = wait.dead_letter_reason(&part, &reason, lag_max, has_room, successes) {
            return to_dead_letter(part, cause);
        }
        if part.items.len() > 1 || matches!(wait, RetryReason::AllEvents) || !has_room {
            counter!("consumer_retries_total").increment(1);
            let (count, first) = (part.items.len(), describe_record(&part.items[0]));
            part.items[0].in_context(|| {
                warn!("{count} events are retried, the first is {first}: {reason}");
            });
            return Step::Retry(part);
        }
        let SubBatch { items, attempts, .. } = part;
        items.into_iter().for_each(|item| self.defer(item, attempts, assigned, &reason));
        Step::Done
    }

    /// Defers an event: it waits by itself, and its partition's offset stays below it.
    fn defer(
        &mut self,
        item: IncomingRecord<R>,
        attempts: Attempts,
        assigned: &Assignment,
        reason: &str,
    ) {
        counter!("consumer_retries_total").increment(1);
        if attempts.is_first() && self.deferred.len() < DEFERRED_LOGGED_MAX {
            let record = describe_record(&item);
            item.in_context(|| warn!("{record} is deferred: {reason}"));
        }
        self.deferred.defer(item, attempts, assigned);
        if !attempts.is_first() && self.deferred_logged_at.elapsed() > DEFERRED_LOG_INTERVAL {
            self.deferred_logged_at = Instant::now();
            if let Some(oldest) = self.deferred.oldest() {
                let (count, first) = (self.deferred.len(), describe_record(&oldest.item));
                let waited = oldest.attempts.started_at.elapsed();
                let log = || {
                    warn!(
                        "{count} events are deferred, the oldest, {first}, for {waited:.0?}: {reason}"
                    )
                };
                oldest.item.in_context(log);
            }
        }
    }
}

/// A single event that can't be handled is a dead letter from now on, and is stored as one.
fn to_dead_letter<R: UnitOfWork>(
    mut part: SubBatch<R>,
    cause: DeadLetterReason,
) -> Step<SubBatch<R>> {
    part.items[0].content = Content::Poison(cause);
    Step::Next(vec![part])
}
