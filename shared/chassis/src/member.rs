//! This process as a member of its service's consumer group: the partitions that it has, what its client
//! tells of itself, and how it leaves.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::gauge;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::statistics::{Partition, Statistics};
use rdkafka::{ClientContext, TopicPartitionList};
use tracing::{info, warn};

use crate::crash;
use crate::group::{ASKED_WITHIN, Ends};
use crate::sayings::Sayings;

/// While a client is joining, librdkafka puts off unsubscribing until it has joined, and does not tell.
/// That takes a second, or two, in which somebody has to go on polling.
const UNSUBSCRIBED_AFTER: Duration = Duration::from_secs(2);

/// What the client tells about itself, as metrics and log lines.
#[derive(Default)]
pub struct Reports {
    pub(crate) sayings: Sayings,
    /// The id of the cluster that the client found first.
    cluster: OnceLock<String>,
    assigned: Mutex<Assigned>,
    /// The partitions that it has now. librdkafka itself calls others `desired` as well: whatever it was
    /// asked the offsets of.
    held: Mutex<Held>,
    /// Where those end, as far as that was asked: librdkafka learns of it with what it fetches, and does
    /// not fetch what is paused.
    pub(crate) ends: Mutex<Ends>,
}

type Held = HashMap<String, HashSet<i32>>;

fn total(held: &Held) -> usize {
    held.values().map(HashSet::len).sum()
}

/// The partitions that a client was ever given, each with the number of the assignment that gave it
/// last.
///
/// A record that was read under an earlier assignment than the present one may lie elsewhere by now:
/// its topic or its whole cluster may have been made anew meanwhile. To store its offset would have
/// the records below it, which are others, never be read. Whatever was not stored when a partition
/// was given again is read again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Assigned {
    partitions: Arc<HashMap<String, HashMap<i32, u64>>>,
    last: u64,
}

impl Assigned {
    /// The number of the assignment by which a partition is this client's.
    pub(crate) fn by(&self, topic: &str, partition: i32) -> Option<u64> {
        self.partitions.get(topic)?.get(&partition).copied()
    }

    fn give(&mut self, given: &TopicPartitionList) {
        self.last += 1;
        let partitions = Arc::make_mut(&mut self.partitions);
        for place in given.elements() {
            let of_topic = partitions.entry(place.topic().to_string()).or_default();
            of_topic.insert(place.partition(), self.last);
        }
    }
}

impl Reports {
    /// As it is now.
    pub(crate) fn assigned(&self) -> Assigned {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, given: &TopicPartitionList) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for place in given.elements() {
            held.entry(place.topic().to_string()).or_default().insert(place.partition());
        }
        if given.count() > 0 {
            info!("reads {} partitions more, {} in all", given.count(), total(&held));
        }
    }

    fn let_go(&self, taken: &TopicPartitionList) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for place in taken.elements() {
            if let Some(of_topic) = held.get_mut(place.topic()) {
                of_topic.remove(&place.partition());
            }
        }
        if taken.count() > 0 {
            info!("reads {} partitions less, {} in all", taken.count(), total(&held));
        }
    }

    /// Notes where partitions end; nothing, once they are fetched.
    pub(crate) fn end_at(&self, ends: Ends) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = ends;
    }

    /// How often it was given partitions.
    pub(crate) fn assignments(&self) -> u64 {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    pub(crate) fn assigned_by(&self, message: &impl Message) -> Option<u64> {
        let assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        assigned.by(message.topic(), message.partition())
    }
}

/// The id of the cluster that a client reads from; `None` while it can't be told.
pub(crate) async fn cluster(client: &Arc<StreamConsumer<Reports>>) -> Option<String> {
    let client = client.clone();
    let asked = move || {
        let first = &client.context().cluster;
        if first.get().is_none() {
            let id = client.client().fetch_cluster_id(ASKED_WITHIN)?;
            let _ = first.set(id);
        }
        first.get().cloned()
    };
    tokio::task::spawn_blocking(asked).await.ok().flatten()
}

/// Unsubscribes a client that has no partitions, so that it says that it leaves.
///
/// When it is only closed, it says so where it has partitions and not where it has none (librdkafka's
/// `rd_kafka_cgrp_revoke_all_rejoin`). The group goes on waiting for it, and what is to move stands still,
/// until its session ends: so it went with whoever was stopped right after it had come, or had nothing
/// to do.
pub(crate) async fn unsubscribed(client: &Arc<StreamConsumer<Reports>>) {
    let client = client.clone();
    let unsubscribe = move || {
        let without = client.assignment().is_ok_and(|own| own.count() == 0);
        if without {
            client.unsubscribe();
        }
        without
    };
    let unsubscribe = tokio::task::spawn_blocking(unsubscribe);
    if let Ok(Ok(true)) = tokio::time::timeout(UNSUBSCRIBED_AFTER, unsubscribe).await {
        tokio::time::sleep(UNSUBSCRIBED_AFTER).await;
    }
}

/// Why a client is of no more use, if that is so.
pub(crate) fn beyond_repair(client: &StreamConsumer<Reports>) -> Option<&'static str> {
    client.context().sayings.beyond_repair()
}

/// Whether that cluster is gone, and one that was made anew answers in its place.
pub(crate) fn was_replaced(client: &StreamConsumer<Reports>) -> bool {
    client.context().sayings.cluster_replaced()
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        self.sayings.say(level, kind, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.sayings.say(RDKafkaLogLevel::Error, &error.to_string(), text);
    }

    fn stats(&self, statistics: Statistics) {
        self.sayings.counted(&statistics);
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut fetches_all = true;
        for topic in statistics.topics.values() {
            let own = held.get(&topic.topic);
            let is_own = |of: &&Partition| own.is_some_and(|own| own.contains(&of.partition));
            let partitions = || topic.partitions.values().filter(is_own);
            let end = |of: &Partition| ends.get(&(topic.topic.clone(), of.partition)).copied();
            let lag: i64 = partitions().map(|of| lag(of, end(of))).sum();
            gauge!("consumer_lag", "topic" => topic.topic.clone()).set(lag as f64);
            fetches_all &= partitions().all(is_fetched);
        }
        self.sayings.fetches_all(fetches_all);
    }
}

impl ConsumerContext for Reports {
    /// Before the client takes offsets for what it is given: from here on, none that was read under the
    /// last assignment may be stored.
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(given) = rebalance {
            self.assigned.lock().unwrap_or_else(PoisonError::into_inner).give(given);
        }
    }

    /// A partition that was paused when it went away comes back paused, and nobody else would
    /// resume it. Where there is still no room, the reader pauses it again.
    fn post_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        crash::point!("group.revoked", matches!(rebalance, Rebalance::Revoke(_)));
        if let Rebalance::Revoke(taken) = rebalance {
            self.let_go(taken);
        }
        if let Rebalance::Assign(given) = rebalance {
            self.hold(given);
            if let Err(error) = client.resume(given) {
                warn!("newly assigned partitions could not be resumed: {error}");
            }
        }
    }
}

/// Whether a partition that a client has is fetched, or about to be. It is in none of these states but for
/// a moment: before it was ever fetched, and when it was taken away and is given again.
fn is_fetched(partition: &Partition) -> bool {
    !matches!(&*partition.fetch_state, "none" | "stopped")
}

/// How far behind a partition is that a client has. Before anything of it was handled here, that is as far
/// as the group had come; and all there is, where it had handled nothing. The partition may end further
/// on than its client knows.
fn lag(partition: &Partition, end: Option<i64>) -> i64 {
    let Partition { consumer_lag_stored, consumer_lag, ls_offset, lo_offset, .. } = *partition;
    // Before it was ever fetched, no end is known, and no lag.
    let known = if ls_offset < 0 { partition.committed_offset.max(lo_offset) } else { ls_offset };
    let unknown = end.map_or(0, |end| (end - known.max(0)).max(0));
    unknown
        + match (consumer_lag_stored, consumer_lag) {
            (stored, _) if stored >= 0 => stored,
            (_, committed) if committed >= 0 => committed,
            _ => (ls_offset - lo_offset).max(0),
        }
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::{Broker, Topic};

    use super::*;

    #[test]
    fn what_was_never_handled_is_behind_by_what_there_is() {
        let of = |stored, committed, end| {
            let partition = Partition {
                consumer_lag_stored: stored,
                consumer_lag: committed,
                lo_offset: 10,
                ls_offset: 17,
                ..Partition::default()
            };
            lag(&partition, end)
        };
        let lags = [of(0, 5, None), of(3, 5, None), of(-1, 5, None), of(-1, -1, None)];
        assert_eq!(lags, [0, 3, 5, 7]);
        assert_eq!([of(3, 5, Some(12)), of(3, 5, Some(19))], [3, 5], "it ends further on");
        let unfetched = Partition {
            consumer_lag_stored: -1,
            consumer_lag: -1,
            committed_offset: 12,
            lo_offset: -1001,
            ls_offset: -1001,
            ..Partition::default()
        };
        assert_eq!([lag(&unfetched, None), lag(&unfetched, Some(19))], [0, 7]);
    }

    /// What it was asked the offsets of, librdkafka wants as well, and never fetches.
    #[test]
    fn a_client_is_given_up_for_a_partition_that_it_has_and_does_not_fetch_and_for_no_other() {
        let given = |partitions: &[i32]| {
            let mut list = TopicPartitionList::new();
            for partition in partitions {
                list.add_partition("topic", *partition);
            }
            list
        };
        let seen = |reports: &Reports, state: &str| {
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
            reports.sayings.beyond_repair().is_some()
        };
        let times = |reports: &Reports, state| [(); 4].map(|()| seen(reports, state));
        for state in ["none", "stopped"] {
            let reports = Reports::default();
            reports.hold(&given(&[0]));
            assert_eq!(times(&reports, state), [false; 4], "it is another one's");
            reports.hold(&given(&[1]));
            assert_eq!(times(&reports, state), [false, false, true, true], "{state}");
            assert!(!seen(&reports, "active"));
            reports.let_go(&given(&[1]));
            assert_eq!(times(&reports, state), [false; 4], "it was taken away");
        }
    }
}
