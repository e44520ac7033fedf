//! Batches of records on their way through the consumer.
//!
//! Promises:
//! - Every event in Kafka is handled or stored as a dead letter, and none is dropped. A temporary failure that is
//!   treated as a permanent one breaks this.
//! - An event's effect, its inbox row and what it publishes are one transaction.
//! - A partition's offset advances only over committed records, without a gap. An offset that is stored before the
//!   commit breaks this, and so does an offset above a deferred event.

use std::collections::HashSet;
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
use crate::consumer::commit::PartCommitter;
use crate::consumer::deferred::{DeferredQueue, wait_reason};
use crate::consumer::pause;
use crate::consumer::rebalance::GroupContext;
use crate::consumer::resources::ConsumerResources;
use crate::consumer::wait::{ATTEMPT_TIMEOUT, LoopWait};
use crate::crash_point;
use crate::db;
use crate::kafka::record::schema_id;
use crate::transaction::failure::{Failure, Next};
use crate::transaction::incoming_record::{Content, IncomingRecord};
use crate::transaction::part::Part;
use crate::unit_of_work::UnitOfWork;

const DEFERRED_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// While fewer events wait, each is logged when it is deferred. An outage of the registry may defer a thousand.
const DEFERRED_LOGGED_MAX: usize = 10;

pub struct BatchRunner<'a, R: UnitOfWork> {
    resources: &'a ConsumerResources<R>,
    client: &'a Arc<StreamConsumer<GroupContext>>,
    wait: LoopWait<'a>,
    committer: PartCommitter<'a, R>,
    circuit_breaker: CircuitBreaker,
    deferred: DeferredQueue<R>,
    deferred_logged_at: Instant,
}

impl<'a, R: UnitOfWork> BatchRunner<'a, R> {
    pub fn new(
        resources: &'a ConsumerResources<R>,
        client: &'a Arc<StreamConsumer<GroupContext>>,
        stop: &'a CancellationToken,
    ) -> BatchRunner<'a, R> {
        let ConsumerResources { heartbeat, wakeups, .. } = resources;
        BatchRunner {
            resources,
            client,
            wait: LoopWait { heartbeat, wakeups, stop },
            committer: PartCommitter::new(resources, client),
            circuit_breaker: CircuitBreaker::default(),
            deferred: DeferredQueue::new(),
            deferred_logged_at: Instant::now(),
        }
    }

    pub(crate) async fn wait_while_paused(&self) {
        pause::wait_while_paused(&self.resources.db, &self.wait).await;
    }

    /// Handles a batch, part by part from left to right. Returns early only when it is stopped; records that
    /// are not committed by then are read again.
    pub async fn handle(&mut self, messages: Vec<OwnedMessage>, assigned: &Assignment) {
        histogram!("consumer_batch_size").record(messages.len() as f64);
        crash_point!("consumer.polled");
        self.committer.mark_read(&messages, assigned);
        let items = self.decode(messages).await;
        let (unread, items): (Vec<_>, Vec<_>) =
            items.into_iter().partition(IncomingRecord::is_unread);
        let mut parts = Vec::from_iter((!items.is_empty()).then(|| Part::new(items)));
        parts.extend(Part::new(unread).singles());
        self.run_parts(parts, assigned).await;
    }

    pub async fn retry_deferred(&mut self) {
        let assigned = self.client.context().assignment();
        let mut due = self.take_due(&assigned).await;
        due.reverse();
        self.run_parts(due, &assigned).await;
    }

    /// When [`BatchRunner::retry_deferred`] has something to do.
    pub fn next_due(&self) -> Option<Instant> {
        self.deferred.next_due()
    }

    /// The deferred events that are due. Those that only waited for their schema, and have it now, are events like any
    /// other: they share a transaction. An outage of the registry may have left a thousand of them.
    async fn take_due(&mut self, assigned: &Assignment) -> Vec<Part<IncomingRecord<R>>> {
        let due = self.deferred.take_due(assigned);
        if due.is_empty() {
            return Vec::new();
        }
        let (messages, attempts): (Vec<_>, Vec<_>) =
            due.into_iter().map(|event| (event.item.message, event.attempts)).unzip();
        let (mut readable, mut parts) = (Vec::new(), Vec::new());
        for (item, attempts) in self.decode(messages).await.into_iter().zip(attempts) {
            if attempts.count > 0 || item.is_unread() {
                parts.push(Part { items: vec![item], attempts, races: 0 });
            } else {
                readable.push(item);
            }
        }
        if !readable.is_empty() {
            parts.push(Part::new(readable));
        }
        parts
    }

    /// Runs parts until each is committed or deferred, or the consumer is stopped. The last one comes first. There may
    /// be a thousand of them, each with a transaction of its own.
    async fn run_parts(&mut self, mut parts: Vec<Part<IncomingRecord<R>>>, assigned: &Assignment) {
        let mut failures = 0;
        while let Some(mut part) = parts.pop() {
            if self.wait.stop.is_cancelled() {
                return;
            }
            match self.try_part(&mut part, assigned).await {
                Ok(()) => failures = 0,
                Err(failure) => match self.next(&part, &failure) {
                    Next::CheckDuplicates => {
                        self.committer.expects_duplicates = true;
                        part.attempts.count -= 1;
                        parts.push(part);
                    }
                    Next::Race => {
                        part.races += 1;
                        parts.push(part);
                    }
                    Next::Isolate(nth) => parts.extend(part.isolate(nth)),
                    Next::Singles => parts.extend(part.singles()),
                    Next::Halves => parts.extend(part.halves()),
                    Next::Retry => {
                        log_retry(&part, &failure);
                        parts.push(part);
                        if self.wait.back_off(&mut failures).await.is_err() {
                            return;
                        }
                        // Deferred events that are due run before it.
                        parts.extend(self.take_due(assigned).await);
                    }
                    Next::Defer => {
                        self.defer(part, &failure, assigned);
                        failures = 0;
                    }
                    // It is a dead letter from now on, and is stored as one.
                    Next::Reject(cause) => {
                        part.items[0].content = Content::DeadLetter(cause);
                        parts.push(part);
                    }
                },
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

    async fn try_part(
        &mut self,
        part: &mut Part<IncomingRecord<R>>,
        assigned: &Assignment,
    ) -> Result<(), Failure> {
        self.resources.heartbeat.beat();
        if let Content::SchemaPending { reason, is_unregistered } = &part.items[0].content {
            let (reason, is_unregistered) = (reason.clone(), *is_unregistered);
            return Err(Failure::SchemaPending { reason, is_unregistered });
        }
        part.attempts.count += 1;
        let committed = db::with_timeout(ATTEMPT_TIMEOUT, self.committer.try_commit(part)).await?;
        self.circuit_breaker.record_committed(part, &committed);
        self.deferred.record_success(&committed.handled);
        self.committer.record_committed(part, &committed, assigned);
        Ok(())
    }

    /// What follows a failed attempt. A single event that has waited long enough becomes a dead letter.
    fn next(&self, part: &Part<IncomingRecord<R>>, failure: &Failure) -> Next {
        let (item, lag_max) = (&part.items[0], self.resources.registry.lag_max);
        match failure.next(part.items.len(), self.committer.expects_duplicates, part.races) {
            // A dead letter that the database refuses waits like an event: it must not be dropped.
            Next::Defer | Next::Reject(_) if item.as_dead_letter().is_some() => Next::Retry,
            Next::Defer => match self.deferred.expiry_reason(part, failure, lag_max) {
                Some(cause) => Next::Reject(cause),
                None if self.deferred.has_room_for(item) => Next::Defer,
                None => Next::Retry,
            },
            next => next,
        }
    }

    /// Defers an event: it waits by itself, and its partition's offset stays below it.
    fn defer(
        &mut self,
        mut part: Part<IncomingRecord<R>>,
        failure: &Failure,
        assigned: &Assignment,
    ) {
        counter!("consumer_retries_total").increment(1);
        let (reason, attempts) = (wait_reason(failure), part.attempts);
        let (item, is_first) = (part.items.remove(0), attempts.deferrals == 0);
        if is_first && self.deferred.len() < DEFERRED_LOGGED_MAX {
            let record = item.describe();
            item.in_context(|| warn!("{record} is deferred: {reason}"));
        }
        self.deferred.defer(item, attempts, assigned);
        if !is_first && self.deferred_logged_at.elapsed() > DEFERRED_LOG_INTERVAL {
            self.deferred_logged_at = Instant::now();
            if let Some(oldest) = self.deferred.oldest() {
                let (count, first) = (self.deferred.len(), oldest.item.describe());
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

fn log_retry<R: UnitOfWork>(part: &Part<IncomingRecord<R>>, failure: &Failure) {
    counter!("consumer_retries_total").increment(1);
    let (count, first) = (part.items.len(), part.items[0].describe());
    let reason = wait_reason(failure);
    let log = || warn!("{count} events are retried, the first is {first}: {reason}");
    part.items[0].in_context(log);
}
