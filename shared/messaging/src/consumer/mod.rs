//! The consumer applies the events of other services. It joins the service's consumer group, prefetches records,
//! and commits them in batches. Promise: every event has its effect exactly once or becomes a dead letter, and
//! none is dropped; `batch` and `offsets` keep it. An offset that is stored before the commit of its event
//! breaks it, and so does an offset of an older assignment.

pub mod assignment;
pub mod batch;
pub(crate) mod by_partition;
pub(crate) mod circuit_breaker;
pub(crate) mod commit;
pub mod deferred;
pub(crate) mod gaps;
pub mod handlers;
pub mod lag;
pub(crate) mod lag_metrics;
pub(crate) mod offsets;
pub mod pause;
mod position_writer;
pub(crate) mod positions;
pub mod prefetch;
pub(crate) mod prefetched_record;
pub mod rebalance;
mod replacement;
pub mod resources;
pub mod rewind;
pub mod router;
mod scheduler;
mod start;
pub mod wait;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{try_join, try_join_all};
use metrics::{counter, gauge};
use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::consumer::batch::BatchRunner;
use crate::consumer::lag::ConsumerLag;
use crate::consumer::pause::PAUSE_POLL_INTERVAL;
use crate::consumer::prefetched_record::PrefetchedRecord;
use crate::consumer::rebalance::GroupContext;
use crate::consumer::replacement::Replacement;
use crate::consumer::resources::ConsumerResources;
use crate::consumer::scheduler::Scheduler;
use crate::consumer::wait::LoopWait;
use crate::dead_letter;
use crate::event::Isolation;
use crate::flow::linger::{AdaptiveLinger, LingerLimits};
use crate::inbox;
use crate::kafka;
use crate::unit_of_work::UnitOfWork;

const BATCH_RECORDS_MAX: usize = 1_000;

/// Prefetched records that are not yet in a batch, at most.
const PREFETCH_MAX: usize = 2_000;

/// A batch of at least this many records counts as concurrent: the two answers to one command do not.
const SIBLINGS_MIN: usize = 3;

/// Within this time the records that were committed together arrive, from several partitions.
const LINGER_LIMITS: LingerLimits =
    LingerLimits { max_wait: Duration::from_millis(12), idle_gap: Duration::from_millis(6) };

/// How long leaving the group may take; correctness does not need it to succeed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The loop that applies events.
pub struct Consumer<R: UnitOfWork> {
    service: &'static str,
    /// Its present value; it changes with the credentials.
    config: watch::Receiver<ClientConfig>,
    /// What it shares with the admin port.
    pub resources: ConsumerResources<R>,
    lag: ConsumerLag,
}

impl<R: UnitOfWork> Consumer<R> {
    /// The consumer of a service, which connects to Kafka by the present value of `config`.
    pub fn new(
        service: &'static str,
        config: watch::Receiver<ClientConfig>,
        resources: ConsumerResources<R>,
    ) -> Consumer<R> {
        let ConsumerResources { db, registry, router, .. } = &resources;
        router.topics().for_each(|topic| registry.declare_topic(topic));
        let lag = ConsumerLag::new(db.clone());
        Consumer { service, config, resources, lag }
    }

    /// The lag of this service's consumer group.
    pub fn lag(&self) -> ConsumerLag {
        self.lag.clone()
    }

    /// Runs until it is stopped. After temporary failures it tries again, without end.
    ///
    /// # Errors
    /// Permanent failures: a Kafka client cannot be created from its settings or cannot subscribe, or the
    /// prefetching task has ended.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let db = &self.resources.db;
        let pruning =
            [tokio::spawn(inbox::prune(db.clone())), tokio::spawn(dead_letter::prune(db.clone()))];
        // The isolation of a client applies to all its topics: topics of another isolation have another client,
        // which is a member of the same group.
        let topics = self.resources.router.topics_by_isolation();
        self.lag.expect_clients(topics.keys().copied()).await;
        let read = async |(isolation, topics): (&Isolation, &Vec<&'static str>)| {
            while !stop.is_cancelled() {
                self.run_client(*isolation, topics, &stop).await?;
            }
            anyhow::Ok(())
        };
        let fire = async {
            if let Some(heartbeat) = &self.resources.scheduler_heartbeat {
                let wakeups = &self.resources.wakeups;
                let wait = LoopWait { heartbeat, wakeups, stop: &stop };
                Scheduler::new(&self.resources, &self.lag, wait).run().await;
            }
            Ok(())
        };
        let ended = try_join(try_join_all(topics.iter().map(read)), fire).await.map(drop);
        pruning.iter().for_each(JoinHandle::abort);
        ended
    }

    /// Reads with one client, until it is stopped or has to be replaced, for example because the Kafka cluster was
    /// recreated. The next client continues from the committed offsets, and reads a recreated cluster from its
    /// beginning.
    async fn run_client(
        &self,
        isolation: Isolation,
        topics: &[&'static str],
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        for topic in topics {
            // Until the client reports its partitions: partitions that it does not read have no lag here.
            gauge!("consumer_partitions", "topic" => *topic).set(0);
            gaps::start_counters(topic);
        }
        let mut config = self.config.clone();
        let settings = config.borrow_and_update().clone();
        let client: StreamConsumer<GroupContext> =
            kafka::consumer_config(self.service, &settings, isolation)
                .create_with_context(GroupContext::new(isolation))?;
        let client = Arc::new(client);
        client.subscribe(topics)?;
        let plain = kafka::client_config(self.service, &settings);
        self.lag.attach(isolation, &client, plain).await;
        let (prefetched, records) = mpsc::channel(PREFETCH_MAX);
        let prefetching =
            tokio::spawn(prefetch::prefetch(client.clone(), self.resources.db.clone(), prefetched));

        let mut replacement = Replacement::new(config);
        self.run_batches(&client, records, stop, &mut replacement).await?;

        let is_replaced = replacement.is_due();
        if is_replaced {
            info!("the consumer replaces its client: its credentials changed");
        }
        if stop.is_cancelled() || is_replaced {
            // The prefetching task continues meanwhile: its polls keep the membership.
            rebalance::leave_group(&client).await;
        } else if let Some(reason) = rebalance::fatal_reason(&client) {
            warn!("the consumer replaces its client: {reason}");
            counter!("consumer_clients_replaced_total").increment(1);
        }
        prefetching.abort();
        position_writer::save(&self.resources.db, client.context()).await;
        self.lag.detach(isolation).await;
        // Once no other reference exists, the client commits the stored offsets and leaves the group, so that other
        // members take over at once. If it hangs, its session expires, or `max.poll.interval.ms` if it still sends
        // heartbeats.
        if tokio::time::timeout(LEAVE_TIMEOUT, kafka::close_in_background(client)).await.is_err() {
            warn!("the consumer did not leave its group in time");
        }
        Ok(())
    }

    /// Handles the prefetched records of a client in batches, until it is stopped or has to be replaced.
    async fn run_batches(
        &self,
        client: &Arc<StreamConsumer<GroupContext>>,
        mut records: mpsc::Receiver<PrefetchedRecord>,
        stop: &CancellationToken,
        replacement: &mut Replacement,
    ) -> anyhow::Result<()> {
        let mut batches = BatchRunner::new(&self.resources, client, stop);
        batches.wait_while_paused().await;
        let mut batch = Vec::with_capacity(BATCH_RECORDS_MAX);
        let mut pause_checked_at = Instant::now();
        let mut linger = AdaptiveLinger::new(SIBLINGS_MIN);
        while !stop.is_cancelled()
            && rebalance::fatal_reason(client).is_none()
            && !replacement.is_due()
        {
            self.resources.heartbeat.beat();
            if pause_checked_at.elapsed() > PAUSE_POLL_INTERVAL {
                batches.wait_while_paused().await;
                pause_checked_at = Instant::now();
            }
            let due_at = batches.next_due();
            let due = tokio::time::sleep_until(due_at.unwrap_or_else(tokio::time::Instant::now));
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = due, if due_at.is_some() => batches.retry_deferred().await,
                taken = records.recv_many(&mut batch, BATCH_RECORDS_MAX) => {
                    anyhow::ensure!(taken > 0, "the prefetching task ended");
                    linger.collect(&mut batch, BATCH_RECORDS_MAX, &mut records, LINGER_LIMITS).await;
                    let behind = batch.len() == BATCH_RECORDS_MAX;
                    let assigned = client.context().assignment();
                    let (messages, permits): (Vec<_>, Vec<_>) = batch
                        .drain(..)
                        .filter(|record| record.is_current(&assigned))
                        .map(|record| (record.message, record.permit))
                        .unzip();
                    batches.handle(messages, &assigned).await;
                    self.resources.wakeups.consumer_backpressure.report_busy(behind);
                    drop(permits);
                }
                // No record arrived for a while: the consumer is not behind, though its last batch was full.
                () = tokio::time::sleep(PAUSE_POLL_INTERVAL) => {
                    self.resources.wakeups.consumer_backpressure.report_busy(false);
                    client.context().health.prefetch_empty();
                }
            }
        }
        Ok(())
    }
}
