//! The lag of a client's partitions, from the statistics of librdkafka.

use metrics::gauge;
use rdkafka::statistics::{Partition, Statistics};

use crate::consumer::assignment::OwnedPartitions;
use crate::consumer::by_partition::OffsetsByPartition;
use crate::event::Isolation;

/// librdkafka's states of a partition that is fetched, and of a broker that is connected.
const FETCH_ACTIVE: &str = "active";
const BROKER_UP: &str = "UP";

/// Sets the metrics of all topics. Returns whether every assigned partition is fetched.
pub(super) fn record(
    statistics: &Statistics,
    owned: &OwnedPartitions,
    end_offsets: &OffsetsByPartition,
    isolation: Isolation,
) -> bool {
    let mut fetches_all = true;
    for topic in statistics.topics.values() {
        let own = owned.get(&topic.topic);
        let is_own = |of: &&Partition| own.is_some_and(|own| own.contains(&of.partition));
        let partitions = || topic.partitions.values().filter(is_own);
        let end = |of: &Partition| end_offsets.get(&(topic.topic.clone(), of.partition)).copied();
        let lag: i64 = partitions().map(|of| lag(of, end(of), isolation)).sum();
        gauge!("consumer_lag", "topic" => topic.topic.clone()).set(lag as f64);
        let active = partitions().filter(|of| is_active(of, statistics)).count();
        gauge!("consumer_partitions", "topic" => topic.topic.clone()).set(active as f64);
        fetches_all &= partitions().all(is_fetched);
    }
    fetches_all
}

/// The first offset of each assigned partition's log, as Kafka told it about ten seconds ago.
pub(super) fn log_starts(statistics: &Statistics, owned: &OwnedPartitions) -> OffsetsByPartition {
    let mut starts = OffsetsByPartition::new();
    for (topic, partitions) in owned {
        let Some(known) = statistics.topics.get(topic) else { continue };
        for partition in partitions {
            let start = known.partitions.get(partition).map_or(-1, |of| of.lo_offset);
            if start >= 0 {
                starts.insert((topic.clone(), *partition), start);
            }
        }
    }
    starts
}

/// Sets the metric of partitions to none for these topics.
pub(super) fn record_unread(owned: &OwnedPartitions) {
    for topic in owned.keys() {
        gauge!("consumer_partitions", "topic" => topic.clone()).set(0);
    }
}

/// Whether an assigned partition is fetched, or about to be. It is in one of the other states only for a moment:
/// before it is first fetched, and between its revocation and its next assignment.
fn is_fetched(partition: &Partition) -> bool {
    !matches!(&*partition.fetch_state, "none" | "stopped")
}

/// The lag of an assigned partition. Before this client has handled anything of it, its lag counts from the group's
/// committed offset, and from the partition's beginning if there is none. The partition may have more records than
/// its client has detected.
fn lag(partition: &Partition, end: Option<i64>, isolation: Isolation) -> i64 {
    let Partition { consumer_lag_stored, consumer_lag, ls_offset, hi_offset, lo_offset, .. } =
        *partition;
    // librdkafka counts up to the last record that this client may read. Records behind an open transaction are lag
    // too.
    let (readable, open) = match isolation {
        Isolation::ReadUncommitted if hi_offset > 0 => (ls_offset.max(hi_offset), 0),
        Isolation::ReadUncommitted => (ls_offset, 0),
        Isolation::ReadCommitted => (ls_offset, (hi_offset - ls_offset.max(0)).max(0)),
    };
    // Before the first fetch, neither the end nor the lag is known.
    let known = if readable < 0 { partition.committed_offset.max(lo_offset) } else { readable };
    let unknown = end.map_or(0, |end| (end - known.max(0)).max(0));
    unknown.max(open)
        + match (consumer_lag_stored, consumer_lag) {
            (stored, _) if stored >= 0 => stored,
            (_, committed) if committed >= 0 => committed,
            _ => (readable - lo_offset).max(0),
        }
}

/// Whether the statistics of a partition are current: it is fetched, and its broker is up.
fn is_active(partition: &Partition, statistics: &Statistics) -> bool {
    let broker = statistics.brokers.values().find(|broker| broker.nodeid == partition.broker);
    partition.fetch_state == FETCH_ACTIVE && broker.is_some_and(|broker| broker.state == BROKER_UP)
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::Broker;

    use super::*;

    #[test]
    fn a_partition_that_was_never_handled_lags_by_all_its_records() {
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
        assert_eq!([of(3, 5, Some(12)), of(3, 5, Some(19))], [3, 5], "more records");
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
    fn records_of_an_open_transaction_are_lag_where_committed_records_are_read() {
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
        // librdkafka counts up to the last record that this client may read.
        assert_eq!(of(Isolation::ReadCommitted, 0), [3, 7]);
        assert_eq!(of(Isolation::ReadCommitted, -1), [10, 14]);
        assert_eq!(of(Isolation::ReadUncommitted, 3), [3, 7]);
        assert_eq!(of(Isolation::ReadUncommitted, -1), [10, 14]);
    }

    #[test]
    fn a_partition_is_active_while_it_is_fetched_from_a_broker_that_is_up() {
        let active = |fetch_state: &str, broker, state: &str| {
            let (nodeid, state) = (1, state.to_string());
            let known = Broker { nodeid, state, ..Broker::default() };
            let brokers = [("broker".to_string(), known)].into();
            let fetch_state = fetch_state.to_string();
            let partition = Partition { fetch_state, broker, ..Partition::default() };
            is_active(&partition, &Statistics { brokers, ..Statistics::default() })
        };
        assert!(active("active", 1, "UP"));
        assert!(!active("active", 1, "TRY_CONNECT"), "not connected");
        assert!(!active("active", -1, "UP"), "it has no leader");
        assert!(!active("validate-epoch-wait", 1, "UP"));
    }
}
