//! How far each partition was handled.
//!
//! Promise: an offset is stored only where every record below it was handled or set aside. It is broken by
//! storing one beyond an event that is deferred.

use std::collections::{BTreeSet, HashMap};

use crate::member::Assigned;

/// The partitions that a client was assigned.
#[derive(Default)]
pub(crate) struct Progress {
    partitions: HashMap<String, HashMap<i32, OfPartition>>,
}

#[derive(Default)]
struct OfPartition {
    /// The assignment that this is about.
    assignment: Option<u64>,
    /// The last record that was handled in order.
    handled: Option<i64>,
    /// Records that wait by themselves.
    deferred: BTreeSet<i64>,
}

impl Progress {
    /// Notes that a record waits by itself, and those behind it do not.
    pub fn defer(&mut self, topic: &str, partition: i32, offset: i64, assigned: &Assigned) {
        let progress = self.of(topic, partition, assigned);
        if progress.deferred.insert(offset) {
            progress.handled = progress.handled.max(Some(offset));
        }
    }

    /// Notes that a record was handled or set aside. Answers the last one up to which all were.
    pub fn handle(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        assigned: &Assigned,
    ) -> Option<i64> {
        let progress = self.of(topic, partition, assigned);
        // A topic may be read again from its beginning under the same assignment: the last one counts, and not the
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

    fn of(&mut self, topic: &str, partition: i32, assigned: &Assigned) -> &mut OfPartition {
        if !self.partitions.contains_key(topic) {
            self.partitions.insert(topic.to_string(), HashMap::new());
        }
        let partitions = self.partitions.get_mut(topic).expect("it is there now");
        let progress = partitions.entry(partition).or_default();
        let assignment = assigned.by(topic, partition);
        if progress.assignment != assignment {
            *progress = OfPartition { assignment, ..OfPartition::default() };
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_offset_is_stored_beyond_an_event_that_is_deferred() {
        let (mut offsets, assigned) = (Progress::default(), Assigned::default());
        let mut handle = |offset| offsets.handle("topic", 0, offset, &assigned);
        assert_eq!([handle(4), handle(5)], [Some(4), Some(5)]);
        offsets.defer("topic", 0, 6, &assigned);
        offsets.defer("topic", 0, 8, &assigned);
        let mut handle = |offset| offsets.handle("topic", 0, offset, &assigned);
        assert_eq!([handle(7), handle(9)], [Some(5), Some(5)]);
        assert_eq!(handle(8), Some(5), "the first one waits still");
        assert_eq!(handle(6), Some(9), "all up to there");
        assert_eq!(handle(3), Some(3), "the log is read again");
    }
}
