//! The partitions of a client, and in which generation it was assigned each of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rdkafka::TopicPartitionList;

pub(crate) type OwnedPartitions = HashMap<String, HashSet<i32>>;

/// All partitions that a client was ever assigned, each with the generation in which it was assigned last.
///
/// A record that was read in an earlier generation may have another offset by now: its topic or its whole
/// cluster may have been recreated. If its offset were stored, other records below that offset would never be
/// read. Records whose offsets are not stored when a partition is assigned again are read again.
#[derive(Clone, Debug, Default)]
pub struct Assignment {
    partitions: Arc<HashMap<String, HashMap<i32, u64>>>,
    pub(super) generation: u64,
}

impl Assignment {
    /// The generation in which this partition was assigned. Offsets from an older generation are not stored.
    pub(crate) fn generation_of(&self, topic: &str, partition: i32) -> Option<u64> {
        self.partitions.get(topic)?.get(&partition).copied()
    }

    pub(super) fn assign(&mut self, given: &TopicPartitionList) {
        self.generation += 1;
        for place in given.elements() {
            self.assign_partition(place.topic(), place.partition());
        }
    }

    pub(super) fn assign_partition(&mut self, topic: &str, partition: i32) {
        let partitions = Arc::make_mut(&mut self.partitions);
        partitions.entry(topic.to_string()).or_default().insert(partition, self.generation);
    }
}
