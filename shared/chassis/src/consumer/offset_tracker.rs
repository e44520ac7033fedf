//! How far each partition was handled.
//!
//! Promise: an offset is stored only if every record below it was handled or stored as a dead letter. An offset
//! above a record that is deferred, or that waits in its batch, breaks it.

use std::collections::BTreeSet;

use crate::consumer::assignment::Assignment;
use crate::consumer::by_partition::{ByPartition, entry_of};

/// The partitions that a client was assigned.
#[derive(Default)]
pub(crate) struct OffsetTracker {
    partitions: ByPartition<PartitionOffsets>,
}

#[derive(Default)]
struct PartitionOffsets {
    /// The generation for which this holds.
    generation: Option<u64>,
    /// The last record of the last batch. A topic may be read again from its beginning in the same generation, so it
    /// is not always the highest one.
    read: Option<i64>,
    /// Records of batches that were not handled yet. Some of them are deferred.
    unhandled: BTreeSet<i64>,
}

impl OffsetTracker {
    /// Notes a record of a batch, in the order of its partition, before any record of the batch is handled. They may
    /// be handled in any order.
    pub fn mark_read(&mut self, topic: &str, partition: i32, offset: i64, assigned: &Assignment) {
        let progress = self.partition_mut(topic, partition, assigned);
        progress.read = Some(offset);
        progress.unhandled.insert(offset);
    }

    /// Notes that a record was handled or stored as a dead letter. Returns the last offset up to which all were.
    pub fn mark_handled(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        assigned: &Assignment,
    ) -> Option<i64> {
        let progress = self.partition_mut(topic, partition, assigned);
        progress.unhandled.remove(&offset);
        let below = progress.unhandled.first().map(|first| first - 1);
        progress.read.map(|read| below.map_or(read, |below| read.min(below)))
    }

    fn partition_mut(
        &mut self,
        topic: &str,
        partition: i32,
        assigned: &Assignment,
    ) -> &mut PartitionOffsets {
        let progress = entry_of(&mut self.partitions, topic, partition);
        let generation = assigned.generation_of(topic, partition);
        if progress.generation != generation {
            *progress = PartitionOffsets { generation, ..PartitionOffsets::default() };
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a batch; returns what handling its records in the second order allows to be stored.
    fn handled(offsets: &mut OffsetTracker, batch: &[i64], in_order: &[i64]) -> Vec<Option<i64>> {
        let assigned = Assignment::default();
        batch.iter().for_each(|offset| offsets.mark_read("topic", 0, *offset, &assigned));
        let handle = |offset: &i64| offsets.mark_handled("topic", 0, *offset, &assigned);
        in_order.iter().map(handle).collect()
    }

    #[test]
    fn no_offset_is_stored_beyond_an_event_that_is_deferred() {
        let mut offsets = OffsetTracker::default();
        assert_eq!(handled(&mut offsets, &[4, 5], &[4, 5]), [Some(4), Some(5)]);
        assert_eq!(handled(&mut offsets, &[6, 7, 8, 9], &[7, 9]), [Some(5), Some(5)]);
        assert_eq!(handled(&mut offsets, &[], &[8]), [Some(5)], "the first one still waits");
        assert_eq!(handled(&mut offsets, &[], &[6]), [Some(9)], "all before it are handled");
        assert_eq!(handled(&mut offsets, &[3], &[3]), [Some(3)], "the topic is read again");
    }

    #[test]
    fn no_offset_is_stored_beyond_an_event_that_waits_in_its_batch() {
        let mut offsets = OffsetTracker::default();
        handled(&mut offsets, &[9], &[9]);
        // The schema of 11 was not known at first. Its transaction ends while that of 10 and 12 is tried again.
        assert_eq!(handled(&mut offsets, &[10, 11, 12], &[11]), [Some(9)]);
        assert_eq!(handled(&mut offsets, &[], &[10, 12]), [Some(11), Some(12)]);
    }
}
