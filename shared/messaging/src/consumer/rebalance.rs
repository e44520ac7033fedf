//! This process as a member of its service's consumer group: its partitions, the events of its client, and how
//! it leaves the group.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::{ClientContext, TopicPartitionList};
use tracing::{info, warn};

use crate::consumer::assignment::{Assignment, OwnedPartitions};
use crate::consumer::by_partition::OffsetsByPartition;
use crate::consumer::gaps::SuspectedGaps;
use crate::consumer::lag_metrics;
use crate::consumer::offsets::{self, CLUSTER_REQUEST_TIMEOUT, HandledOffsets, ReadPositions};
use crate::crash_point;
use crate::event::Isolation;
use crate::kafka::client_health::ClientHealth;

/// While a client is joining, librdkafka defers its unsubscription until it has joined, and reports nothing.
/// That takes one or two seconds, in which the client must be polled.
const UNSUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The callbacks of a client: its log lines and metrics, and its partitions.
#[derive(Default)]
pub struct GroupContext {
    isolation: Isolation,
    pub(crate) health: ClientHealth,
    /// The id of the cluster that the client found first.
    cluster_id: OnceLock<String>,
    assignment: Mutex<Assignment>,
    pub(crate) offsets: HandledOffsets,
    pub(crate) gaps: SuspectedGaps,
    /// The partitions that it has now. librdkafka calls others `desired` as well: all partitions whose offsets
    /// were queried.
    partitions: Mutex<OwnedPartitions>,
    /// Their end offsets, as far as they were queried: librdkafka learns them by fetching, and does not fetch
    /// paused partitions.
    pub end_offsets: Mutex<OffsetsByPartition>,
    /// The first offsets of their logs, since the last statistics.
    pub(crate) log_starts: Mutex<Option<OffsetsByPartition>>,
    /// Whether partitions were revoked whose positions may not be written yet.
    revoked: AtomicBool,
    /// The last rewind that an operator asked for, and the last one that was considered where reading began.
    requested_rewind: AtomicI64,
    applied_rewind: AtomicI64,
}

fn partition_count(partitions: &OwnedPartitions) -> usize {
    partitions.values().map(HashSet::len).sum()
}

impl GroupContext {
    pub(crate) fn new(isolation: Isolation) -> GroupContext {
        GroupContext { isolation, ..GroupContext::default() }
    }

    pub fn assignment(&self) -> Assignment {
        self.assignment.lock().clone()
    }

    /// The id of the cluster, if [`cluster_id`] has found it.
    pub(crate) fn known_cluster_id(&self) -> Option<&str> {
        self.cluster_id.get().map(String::as_str)
    }

    fn add_partitions(&self, given: &TopicPartitionList) {
        let mut partitions = self.partitions.lock();
        for place in given.elements() {
            partitions.entry(place.topic().to_string()).or_default().insert(place.partition());
        }
        if given.count() > 0 {
            info!("{} partitions assigned, {} in all", given.count(), partition_count(&partitions));
        }
    }

    fn remove_partitions(&self, taken: &TopicPartitionList) {
        let mut partitions = self.partitions.lock();
        for place in taken.elements() {
            if let Some(of_topic) = partitions.get_mut(place.topic()) {
                of_topic.remove(&place.partition());
            }
        }
        if taken.count() > 0 {
            info!("{} partitions revoked, {} in all", taken.count(), partition_count(&partitions));
        }
    }

    pub(super) fn request_rewind(&self, rewind_id: i64) {
        self.requested_rewind.fetch_max(rewind_id, Ordering::Relaxed);
    }

    /// Notes that reading began, or begins again, with knowledge of a rewind.
    pub(super) fn record_rewind(&self, rewind_id: i64) {
        self.applied_rewind.fetch_max(rewind_id, Ordering::Relaxed);
    }

    pub(super) fn known_rewind(&self) -> i64 {
        self.applied_rewind.load(Ordering::Relaxed)
    }

    /// Begins a generation with all partitions, if an operator has asked for a rewind since reading began: what was
    /// read before belongs to an old generation, and reading begins again.
    pub(super) fn begin_rewind(&self) {
        let requested = self.requested_rewind.load(Ordering::Relaxed);
        if requested <= self.known_rewind() {
            return;
        }
        self.record_rewind(requested);
        let mut assignment = self.assignment.lock();
        assignment.generation += 1;
        for (topic, partitions) in &*self.partitions.lock() {
            for partition in partitions {
                assignment.assign_partition(topic, *partition);
            }
        }
    }

    pub(super) fn take_revoked(&self) -> bool {
        self.revoked.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.assignment.lock().generation
    }

    /// Notes that the log of a partition was truncated: records that were read before belong to an old
    /// generation from now on.
    pub(crate) fn on_log_truncated(&self, topic: &str, partition: i32) -> u64 {
        let mut assignment = self.assignment.lock();
        assignment.generation += 1;
        assignment.assign_partition(topic, partition);
        assignment.generation
    }

    pub(crate) fn generation_of(&self, topic: &str, partition: i32) -> Option<u64> {
        self.assignment.lock().generation_of(topic, partition)
    }
}

/// The id of the cluster that a client reads from; `None` while it is unknown.
pub(crate) async fn cluster_id(client: &Arc<StreamConsumer<GroupContext>>) -> Option<String> {
    let first = &client.context().cluster_id;
    if first.get().is_none() {
        let client = client.clone();
        let fetch = move || client.client().fetch_cluster_id(CLUSTER_REQUEST_TIMEOUT);
        let _ = first.set(tokio::task::spawn_blocking(fetch).await.ok()??);
    }
    first.get().cloned()
}

/// Unsubscribes a client that has no partitions, so that it leaves its group.
///
/// A client that is only closed leaves the group if it has partitions, and does not if it has none (librdkafka's
/// `rd_kafka_cgrp_revoke_all_rejoin`). The group then waits for it, and partitions cannot move, until its
/// session ends. That happened to instances that were stopped right after they had started, or that had no
/// partition.
pub(crate) async fn leave_group(client: &Arc<StreamConsumer<GroupContext>>) {
    let client = client.clone();
    let unsubscribe = move || {
        let is_unassigned = client.assignment().is_ok_and(|own| own.count() == 0);
        if is_unassigned {
            client.unsubscribe();
        }
        is_unassigned
    };
    let unsubscribe = tokio::task::spawn_blocking(unsubscribe);
    if let Ok(Ok(true)) = tokio::time::timeout(UNSUBSCRIBE_TIMEOUT, unsubscribe).await {
        tokio::time::sleep(UNSUBSCRIBE_TIMEOUT).await;
    }
}

/// Stores how far each partition was handled, see `offsets::store`.
pub fn store_offsets(client: &impl Consumer<GroupContext>, read: Option<&ReadPositions>) {
    let context = client.context();
    // These are positions in a cluster that is gone. In the cluster that replaced it they would stand for other
    // records, and the records before them would never be read.
    if !context.health.cluster_changed() {
        offsets::store(client, &context.offsets, &context.assignment(), read);
    }
}

/// Why a client must be replaced, if it must.
pub(crate) fn fatal_reason(client: &StreamConsumer<GroupContext>) -> Option<&'static str> {
    client.context().health.fatal_reason()
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        self.health.on_log(level, kind, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            // The statistics would report it in up to ten seconds.
            lag_metrics::record_unread(&self.partitions.lock());
        }
        self.health.on_error(&error, text);
    }

    fn stats(&self, statistics: Statistics) {
        self.health.on_statistics(&statistics);
        let owned = self.partitions.lock().clone();
        let end_offsets = self.end_offsets.lock().clone();
        let fetches_all = lag_metrics::record(&statistics, &owned, &end_offsets, self.isolation);
        self.health.all_partitions_fetched(fetches_all);
        *self.log_starts.lock() = Some(lag_metrics::log_starts(&statistics, &owned));
    }
}

impl ConsumerContext for GroupContext {
    /// Before an assignment: from here on, no offset that was read in an earlier generation may be stored.
    /// Before a revocation: the offsets of what was handled are stored.
    fn pre_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(given) => self.assignment.lock().assign(given),
            // The client commits the stored offsets when it gives up the partitions.
            Rebalance::Revoke(_) => {
                store_offsets(client, None);
                self.revoked.store(true, Ordering::Relaxed);
            }
            Rebalance::Error(_) => {}
        }
    }

    /// A partition that was paused when it was revoked is still paused when it is assigned again, and is
    /// resumed here. If there is still no room, the reader pauses it again.
    fn post_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        crash_point!("group.revoked", matches!(rebalance, Rebalance::Revoke(_)));
        match rebalance {
            Rebalance::Revoke(taken) => self.remove_partitions(taken),
            Rebalance::Assign(given) => {
                self.add_partitions(given);
                if let Err(error) = client.resume(given) {
                    warn!("newly assigned partitions could not be resumed: {error}");
                }
            }
            Rebalance::Error(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::{Broker, Partition, Topic};

    use super::*;

    /// librdkafka also calls partitions `desired` whose offsets were only queried, and never fetches those.
    #[test]
    fn a_client_is_replaced_for_an_assigned_partition_that_it_does_not_fetch_and_for_no_other() {
        let given = |partitions: &[i32]| {
            let mut list = TopicPartitionList::new();
            for partition in partitions {
                list.add_partition("topic", *partition);
            }
            list
        };
        let seen = |reports: &GroupContext, state: &str| {
            let partition = |(partition, state): (i32, &str)| {
                let (desired, fetch_state) = (true, state.to_string());
                (partition, Partition { partition, desired, fetch_state, ..Partition::default() })
            };
            let partitions = [(0, "active"), (1, state)].map(partition).into();
            let topic = Topic { topic: "topic".into(), partitions, ..Topic::default() };
            let topics = [("topic".to_string(), topic)].into();
            let broker = Broker { source: "learned".into(), ..Broker::default() };
            let brokers = [("broker".to_string(), broker)].into();
            reports.stats(Statistics { topics, brokers, ..Statistics::default() });
            reports.health.fatal_reason().is_some()
        };
        let times = |reports: &GroupContext, state| [(); 4].map(|()| seen(reports, state));
        for state in ["none", "stopped"] {
            let reports = GroupContext::default();
            reports.add_partitions(&given(&[0]));
            assert_eq!(times(&reports, state), [false; 4], "another client has it");
            reports.add_partitions(&given(&[1]));
            assert_eq!(times(&reports, state), [false, false, true, true], "{state}");
            assert!(!seen(&reports, "active"));
            reports.remove_partitions(&given(&[1]));
            assert_eq!(times(&reports, state), [false; 4], "it was revoked");
        }
    }
}
