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
use crate::event::Isolation;
use crate::group::{ASKED_WITHIN, Ends};
use crate::offsets::{self, Offsets};
use crate::sayings::Sayings;

/// While a client is joining, librdkafka puts off unsubscribing until it has joined, and does not tell.
/// That takes a second, or two, in which somebody has to go on polling.
const UNSUBSCRIBED_AFTER: Duration = Duration::from_secs(2);

/// What librdkafka calls a partition that is fetched, and a broker that it is connected to.
const ACTIVE: &str = "active";
const BROKER_UP: &str = "UP";

/// What the client tells about itself, as metrics and log lines.
#[derive(Default)]
pub struct Reports {
    isolation: Isolation,
    pub(crate) sayings: Sayings,
    /// The id of the cluster that the client found first.
    cluster: OnceLock<String>,
    assigned: Mutex<Assigned>,
    pub(crate) offsets: Offsets,
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
        for place in given.elements() {
            self.give_one(place.topic(), place.partition());
        }
    }

    fn give_one(&mut self, topic: &str, partition: i32) {
        let partitions = Arc::make_mut(&mut self.partitions);
        partitions.entry(topic.to_string()).or_default().insert(partition, self.last);
    }
}

impl Reports {
    /// For a client of topics of this isolation.
    pub(crate) fn new(isolation: Isolation) -> Reports {
        Reports { isolation, ..Reports::default() }
    }

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

    /// Notes that the log of a partition lost its tail: whatever was read of it until now is of no assignment
    /// that counts any longer.
    pub(crate) fn lost_its_tail(&self, topic: &str, partition: i32) -> u64 {
        let mut assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        assigned.last += 1;
        assigned.give_one(topic, partition);
        assigned.last
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
            let lag: i64 = partitions().map(|of| lag(of, end(of), self.isolation)).sum();
            gauge!("consumer_lag", "topic" => topic.topic.clone()).set(lag as f64);
            let followed = partitions().filter(|of| is_followed(of, &statistics)).count();
            gauge!("consumer_partitions", "topic" => topic.topic.clone()).set(followed as f64);
            fetches_all &= partitions().all(is_fetched);
        }
        self.sayings.fetches_all(fetches_all);
    }
}

impl ConsumerContext for Reports {
    /// Before the client takes offsets for what it is given: from here on, none that was read under the
    /// last assignment may be stored. Before partitions are taken away: what was handled of them is stored.
    fn pre_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(given) => {
                self.assigned.lock().unwrap_or_else(PoisonError::into_inner).give(given);
            }
            // The client commits what is stored of them when it lets them go.
            Rebalance::Revoke(_) => offsets::store(client, None),
            Rebalance::Error(_) => {}
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
fn lag(partition: &Partition, end: Option<i64>, isolation: Isolation) -> i64 {
    let Partition { consumer_lag_stored, consumer_lag, ls_offset, hi_offset, lo_offset, .. } =
        *partition;
    // librdkafka counts up to where this client may read. What lies behind an open transaction is behind too.
    let (readable, open) = match isolation {
        Isolation::ReadUncommitted if hi_offset > 0 => (ls_offset.max(hi_offset), 0),
        Isolation::ReadUncommitted => (ls_offset, 0),
        Isolation::ReadCommitted => (ls_offset, (hi_offset - ls_offset.max(0)).max(0)),
    };
    // Before it was ever fetched, no end is known, and no lag.
    let known = if readable < 0 { partition.committed_offset.max(lo_offset) } else { readable };
    let unknown = end.map_or(0, |end| (end - known.max(0)).max(0));
    unknown.max(open)
        + match (consumer_lag_stored, consumer_lag) {
            (stored, _) if stored >= 0 => stored,
            (_, committed) if committed >= 0 => committed,
            _ => (readable - lo_offset).max(0),
        }
}

/// Whether what is known of a partition is of now: it is fetched, and the broker that it is fetched from is
/// there.
fn is_followed(partition: &Partition, statistics: &Statistics) -> bool {
    let broker = statistics.brokers.values().find(|broker| broker.nodeid == partition.broker);
    partition.fetch_state == ACTIVE && broker.is_some_and(|broker| broker.state == BROKER_UP)
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
            lag(&partition, end, Isolation::ReadUncommitted)
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
        let of = |end| lag(&unfetched, end, Isolation::ReadUncommitted);
        assert_eq!([of(None), of(Some(19))], [0, 7]);
    }

    #[test]
    fn what_an_open_transaction_holds_back_is_lag_where_committed_records_are_read() {
        let of = |isolation, consumer_lag_stored| {
            let (lo_offset, ls_offset, hi_offset, consumer_lag) = (10, 17, 20, -1);
            let partition = Partition {
                consumer_lag_stored,
                consumer_lag,
                lo_offset,
                ls_offset,
                hi_offset,
                ..Partition::default()
            };
            [lag(&partition, None, isolation), lag(&partition, Some(24), isolation)]
        };
        // What librdkafka counts ends where this client may read to.
        assert_eq!(of(Isolation::ReadCommitted, 0), [3, 7]);
        assert_eq!(of(Isolation::ReadCommitted, -1), [10, 14]);
        assert_eq!(of(Isolation::ReadUncommitted, 3), [3, 7]);
        assert_eq!(of(Isolation::ReadUncommitted, -1), [10, 14]);
    }

    #[test]
    fn a_partition_is_followed_while_it_is_fetched_from_a_broker_that_is_there() {
        let followed = |fetch_state: &str, broker, state: &str| {
            let (nodeid, state) = (1, state.to_string());
            let known = Broker { nodeid, state, ..Broker::default() };
            let brokers = [("broker".to_string(), known)].into();
            let fetch_state = fetch_state.to_string();
            let partition = Partition { fetch_state, broker, ..Partition::default() };
            is_followed(&partition, &Statistics { brokers, ..Statistics::default() })
        };
        assert!(followed("active", 1, "UP"));
        assert!(!followed("active", 1, "TRY_CONNECT"), "the broker is away");
        assert!(!followed("active", -1, "UP"), "nobody leads it");
        assert!(!followed("validate-epoch-wait", 1, "UP"));
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
