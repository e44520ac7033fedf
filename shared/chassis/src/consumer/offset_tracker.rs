//! How far each partition was handled.
//!
//! Promise: an offset is stored only if every record below it was handled or stored as a dead letter. An offset
//! above a deferred event breaks it.

use std::collections::BTreeSet;

use crate::consumer::assignment::Assignment;
use crate::consumer::offsets::{ByPartition, entry_of};

/// The partitions that a client was assigned.
#[derive(Default)]
pub(crate) struct OffsetTracker {
    partitions: ByPartition<PartitionOffsets>,
}

#[derive(Default)]
struct PartitionOffsets {
    /// The generation for which this holds.
    generation: Option<u64>,
    /// The last record that was handled in order.
    handled: Option<i64>,
    /// Records that are deferred.
    deferred: BTreeSet<i64>,
}

impl OffsetTracker {
    /// Notes that a record is deferred, and that the records behind it are not.
    pub fn mark_deferred(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        assigned: &Assignment,
    ) {
        let progress = self.partition_mut(topic, partition, assigned);
        if progress.deferred.insert(offset) {
            progress.handled = progress.handled.max(Some(offset));
        }
    }

    /// Notes that a record was handled or stored as a dead letter. Returns the last one up to which all were.
    pub fn mark_handled(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        assigned: &Assignment,
    ) -> Option<i64> {
        let progress = self.partition_mut(topic, partition, assigned);
        // A topic may be read again from its beginning in the same generation: the last record counts, not the
        // highest one.
        if !progress.deferred.remove(&offset) {
            progress.handled = Some(offset);
        }
        let below = progress.deferred.first().map(|first| first - 1);
        match below {
            Some(below) => progress.handled.map(|handled| handled.min(below)),
            None => progress.handled,
        }
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

    #[test]
    fn no_offset_is_stored_beyond_an_event_that_is_deferred() {
        let (mut offsets, assigned) = (OffsetTracker::default(), Assignment::default());
        let mut handle = |offset| offsets.mark_handled("topic", 0, offset, &assigned);
        assert_eq!([handle(4), handle(5)], [Some(4), Some(5)]);
        offsets.mark_deferred("topic", 0, 6, &assigned);
        offsets.mark_deferred("topic", 0, 8, &assigned);
        let mut handle = |offset| offsets.mark_handled("topic", 0, offset, &assigned);
        assert_eq!([handle(7), handle(9)], [Some(5), Some(5)]);
        assert_eq!(handle(8), Some(5), "the first one still waits");
        assert_eq!(handle(6), Some(9), "all before it are handled");
        assert_eq!(handle(3), Some(3), "the topic is read again");
    }
}
