//! Prefetch: records are read ahead of their handlers, up to a bound of records and of bytes.
//!
//! Promise: as long as the process lives it keeps its partitions, however long its own database is unavailable.
//! A client that is not polled while there is no room breaks it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::{Message, OwnedMessage};
use sqlx::PgPool;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::error::Elapsed;
use tracing::{error, warn};

use crate::consumer::offsets::{ReadPositions, STORE_INTERVAL};
use crate::consumer::position_writer::PositionWriter;
use crate::consumer::prefetched_record::{PREFETCH_BYTES_MAX, PrefetchedRecord, memory_bytes};
use crate::consumer::rebalance::{self, GroupContext};
use crate::consumer::{gaps, lag, start};
use crate::telemetry::{log_throttle::LogThrottle, refusals};

/// After this time without room for another record, fetching is paused and the partitions are kept.
const FULL_MAX: Duration = Duration::from_secs(10);

/// Timeout of a poll that only keeps the membership of the group.
const KEEPALIVE_POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// The longest interval between two polls. librdkafka wakes the reader only when a record enters an empty queue.
/// If one such wake-up is lost, in any layer, nothing more is read until the crate polls by itself, after 150 s
/// (its issues 665 and 848).
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

type ReceivedRecord = (OwnedMessage, Option<u64>);

struct PrefetchReader {
    client: Arc<StreamConsumer<GroupContext>>,
    db: PgPool,
    positions: ReadPositions,
    /// Records for which there was no room yet.
    unplaced: VecDeque<ReceivedRecord>,
    /// When a record last arrived, or polls without one were last counted.
    last_record_at: Instant,
    log_throttle: LogThrottle,
    /// Whether fetching is paused because there is no room, or because it is not known where reading begins.
    is_paused: bool,
    resume_retry: ResumeRetry,
    /// The last generation of which all partitions are read from the right offset, and the last attempt.
    begun_generation: u64,
    begun_at: Instant,
    stored_at: Instant,
    position_writer: PositionWriter,
}

impl PrefetchReader {
    fn new(client: Arc<StreamConsumer<GroupContext>>, db: PgPool) -> PrefetchReader {
        let now = Instant::now();
        PrefetchReader {
            position_writer: PositionWriter::new(client.clone(), db.clone()),
            client,
            db,
            positions: ReadPositions::default(),
            unplaced: VecDeque::new(),
            last_record_at: now,
            log_throttle: LogThrottle::default(),
            is_paused: false,
            resume_retry: ResumeRetry::new(),
            begun_generation: 0,
            begun_at: now,
            stored_at: now,
        }
    }

    async fn next_record(&mut self) -> Option<ReceivedRecord> {
        if let Some(unplaced) = self.unplaced.pop_front() {
            return Some(unplaced);
        }
        match self.receive(STORE_INTERVAL).await {
            Ok(Ok(received)) => {
                self.last_record_at = Instant::now();
                return self.track(received).await;
            }
            Ok(Err(error)) => {
                // The client reconnects by itself.
                let text = error.to_string();
                if !refusals::report_kafka(&error, &text) && self.log_throttle.should_log("", &text)
                {
                    warn!("the consumer cannot read from Kafka: {text}");
                }
            }
            Err(_) if self.last_record_at.elapsed() >= CHECK_INTERVAL => {
                self.last_record_at = Instant::now();
                self.client.context().health.poll_timed_out();
            }
            Err(_) => {}
        }
        None
    }

    async fn receive(&self, within: Duration) -> Result<KafkaResult<ReceivedRecord>, Elapsed> {
        let received = tokio::time::timeout(within, self.client.recv()).await?;
        Ok(received.map(|message| {
            let (topic, partition) = (message.topic(), message.partition());
            (message.detach(), self.client.context().generation_of(topic, partition))
        }))
    }

    /// Pauses fetching while there is no room for a record, and polls the client further.
    async fn pause(&mut self, unplaced: ReceivedRecord) {
        self.unplaced.push_front(unplaced);
        self.pause_fetching();
        if let Ok(assigned) = self.client.assignment() {
            let client = self.client.clone();
            // Records that arrive meanwhile are lag too. The query is not awaited: the cluster may be unreachable.
            tokio::task::spawn_blocking(move || {
                if let Ok(ends) = lag::end_offsets(&client, assigned) {
                    *client.context().end_offsets.lock() = ends;
                }
            });
        }
        if let Ok(Ok(received)) = self.receive(KEEPALIVE_POLL_TIMEOUT).await {
            let tracked = self.track(received).await;
            self.unplaced.extend(tracked);
        }
    }

    fn pause_fetching(&mut self) {
        let assigned = self.client.assignment();
        self.is_paused = assigned.and_then(|assigned| self.client.pause(&assigned)).is_ok();
    }

    fn resume_if_paused(&mut self) {
        if self.is_paused {
            self.is_paused = resume_all(&self.client).is_err();
            self.client.context().end_offsets.lock().clear();
            self.resume_retry.restart();
        }
    }

    /// Records the position of a record; `None` if the record will be read again.
    async fn track(&mut self, (message, generation): ReceivedRecord) -> Option<ReceivedRecord> {
        let Some(assigned_in) = generation else { return Some((message, generation)) };
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        if !self.is_begun(topic, partition) {
            if self.begun_at.elapsed() >= STORE_INTERVAL || assigned_in > self.begun_generation {
                self.begin_reading().await;
            }
            // It was sought now. Or Kafka or the database did not answer, and it is not known where reading begins.
            if !self.is_begun(topic, partition) {
                self.pause_fetching();
            }
            return None;
        }
        let Some(before) = self.positions.record_read(topic, partition, offset, assigned_in) else {
            return Some((message, generation));
        };
        error!(
            "{topic}[{partition}] was truncated: the consumer expected offset {before} and read {offset}. The topic has lost the records in between"
        );
        counter!("consumer_log_truncated_total", "topic" => topic.to_string()).increment(1);
        let handled = self.client.context().offsets.handled(topic, partition, assigned_in);
        let handled = handled.or_else(|| self.positions.start(topic, partition));
        let generation = self.client.context().on_log_truncated(topic, partition);
        if handled.is_some_and(|handled| handled < offset) {
            // What was read belongs to an old generation now, and is dropped. The records below the truncation that
            // were not handled are read again, from the committed offset on, as after an assignment.
            self.begin_reading().await;
            return None;
        }
        let _ = self.positions.record_read(topic, partition, offset, generation);
        Some((message, Some(generation)))
    }

    /// Whether a partition is read from the right offset.
    fn is_begun(&self, topic: &str, partition: i32) -> bool {
        self.positions.is_known(topic, partition, &self.client.context().assignment())
    }

    /// Seeks to where reading begins in newly assigned partitions, before any of their records is read. The client
    /// validates the epoch of an offset only if it is sought, and not if it begins with a committed one. In a truncated
    /// log it goes back to the truncation. If Kafka or the database does not answer, this is repeated, and no record is
    /// handed on meanwhile.
    async fn begin_reading(&mut self) {
        self.begun_at = Instant::now();
        let assigned = self.client.context().assignment();
        let mut new = TopicPartitionList::new();
        for place in self.client.assignment().iter().flat_map(TopicPartitionList::elements) {
            if !self.positions.is_known(place.topic(), place.partition(), &assigned) {
                new.add_partition(place.topic(), place.partition());
            }
        }
        match start::begin(&self.client, &self.db, new, &assigned).await {
            Ok((starts, all)) => {
                self.positions.record_start(&starts, &assigned);
                if all {
                    self.begun_generation = assigned.generation;
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.log_throttle.should_log("start", &text) {
                    warn!("the consumer does not know its start offsets yet: {text}");
                }
            }
        }
    }

    async fn run_due_tasks(&mut self) {
        self.client.context().health.poll_returned();
        if !self.is_paused {
            self.resume_retry.retry_if_due(&self.client);
        }
        self.client.context().begin_rewind();
        let is_new = self.client.context().generation() > self.begun_generation;
        if is_new && self.begun_at.elapsed() >= STORE_INTERVAL {
            self.begin_reading().await;
            if self.client.context().generation() == self.begun_generation {
                self.resume_if_paused();
            }
        }
        if self.stored_at.elapsed() >= STORE_INTERVAL {
            rebalance::store_offsets(&*self.client, Some(&self.positions));
            self.stored_at = Instant::now();
            self.report_deleted();
        }
        self.position_writer.write_if_due();
    }

    /// Reports records that the log lost at its beginning before they were read.
    fn report_deleted(&mut self) {
        let context = self.client.context();
        let Some(log_starts) = context.log_starts.lock().take() else { return };
        let assigned = context.assignment();
        let stored = |topic: &str, partition| context.offsets.stored(topic, partition);
        let deleted = self.positions.deleted(&log_starts, &assigned, stored);
        deleted.iter().for_each(gaps::report_deleted);
    }
}

/// Prefetches records, up to a bound of records and of bytes. If there is no room for a while, fetching is paused
/// and the client is polled further: the service must not lose its partitions in an outage of its database.
pub async fn prefetch(
    client: Arc<StreamConsumer<GroupContext>>,
    db: PgPool,
    prefetched: mpsc::Sender<PrefetchedRecord>,
) {
    let memory = Arc::new(Semaphore::new(PREFETCH_BYTES_MAX));
    let mut reader = PrefetchReader::new(client, db);
    loop {
        reader.run_due_tasks().await;
        let Some((message, generation)) = reader.next_record().await else { continue };
        let bytes = memory_bytes(&message) as u32;
        let room =
            async { (memory.clone().acquire_many_owned(bytes).await, prefetched.reserve().await) };
        match tokio::time::timeout(FULL_MAX, room).await {
            Ok((Ok(permit), Ok(place))) => {
                place.send(PrefetchedRecord { message, generation, permit });
                reader.resume_if_paused();
            }
            // The batches of this client have ended.
            Ok(_) => return,
            Err(_) => reader.pause((message, generation)).await,
        }
    }
}

/// How often a resume is repeated, and at which interval. librdkafka loses a resume that coincides with a
/// rebalance, and reports success (its issue 5591): that partition would never be read again. A resume without a
/// paused partition does nothing; without a limit, the repetitions themselves would coincide with rebalances.
const RESUME_RETRIES: u32 = 2;
const RESUME_INTERVAL: Duration = Duration::from_secs(1);

/// The resume of paused partitions, repeated because librdkafka may lose it.
struct ResumeRetry {
    remaining: u32,
    generation: u64,
    checked_at: Instant,
}

impl ResumeRetry {
    fn new() -> ResumeRetry {
        ResumeRetry { remaining: 0, generation: 0, checked_at: Instant::now() }
    }

    fn restart(&mut self) {
        (self.remaining, self.checked_at) = (RESUME_RETRIES, Instant::now());
    }

    fn retry_if_due(&mut self, client: &StreamConsumer<GroupContext>) {
        if self.checked_at.elapsed() < RESUME_INTERVAL {
            return;
        }
        self.checked_at = Instant::now();
        let generation = client.context().generation();
        if self.generation != generation {
            (self.generation, self.remaining) = (generation, RESUME_RETRIES);
        } else if self.remaining > 0 {
            self.remaining -= 1;
            let _ = resume_all(client);
        }
    }
}

fn resume_all(client: &StreamConsumer<GroupContext>) -> KafkaResult<()> {
    client.resume(&client.assignment()?)
}
