//! The offsets that a client stores, which librdkafka commits once a second.
//!
//! Promises: an offset is stored only once every record before it was handled; it is stored with the epoch
//! of the partition's leader, so that a log which lost its tail is noticed when reading begins again; and
//! the marks of transactions at a partition's end are passed, so that they are no lag. They are broken by
//! storing an offset of an assignment that has ended, or one from before the log lost its tail.
//!
//! Only [`store`] stores, from the reader and when partitions are taken away. Both run where the client is
//! polled, so that no assignment changes meanwhile. The list that the client's position comes in holds the
//! epochs too, which rdkafka shows nowhere: an offset in it may be replaced by a lower one, and the epoch is
//! then that of a later record. A log that was cut has only greater epochs, so that this hides no cut.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};

use crate::crash;
use crate::group::Ends;
use crate::member::{Assigned, Reports};

/// How often offsets are stored, while records come.
pub(crate) const STORED_EVERY: Duration = Duration::from_millis(200);

type ByPartition<T> = HashMap<String, HashMap<i32, T>>;

fn entry<'a, T: Default>(all: &'a mut ByPartition<T>, topic: &str, partition: i32) -> &'a mut T {
    if !all.contains_key(topic) {
        all.insert(topic.to_string(), HashMap::new());
    }
    all.get_mut(topic).expect("it is there now").entry(partition).or_default()
}

/// How far a client's partitions were handled, and how much of that is stored.
#[derive(Default)]
pub(crate) struct Offsets(Mutex<ByPartition<Progress>>);

#[derive(Clone, Copy, Default)]
struct Progress {
    /// The number of the assignment for which this holds; 0 for partitions that no rebalance gave.
    by: u64,
    handled: Option<i64>,
    stored: Option<i64>,
}

impl Offsets {
    /// Notes that every record of a partition before `next` was handled.
    pub(crate) fn handled(&self, topic: &str, partition: i32, next: i64, by: Option<u64>) {
        let by = by.unwrap_or_default();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = entry(&mut all, topic, partition);
        if progress.by != by {
            *progress = Progress { by, ..Progress::default() };
        }
        progress.handled = Some(next);
    }
}

/// How far a reader has read each partition.
#[derive(Default)]
pub(crate) struct Read(ByPartition<ReadTo>);

#[derive(Clone, Copy, Default)]
struct ReadTo {
    by: u64,
    /// Where the group had come when the partition was assigned.
    began: i64,
    next: Option<i64>,
}

impl Read {
    /// Notes where the group had come in partitions that were assigned, and that nothing of them was read.
    pub(crate) fn began(&mut self, committed: &Ends, by: impl Fn(&str, i32) -> Option<u64>) {
        for ((topic, partition), next) in committed {
            let read = entry(&mut self.0, topic, *partition);
            if let Some(by) = by(topic, *partition).filter(|by| *by != read.by) {
                *read = ReadTo { by, began: *next, next: None };
            }
        }
    }

    /// Notes a record. Answers where the partition had come before, if that is further than this record: its
    /// log has lost its tail.
    pub(crate) fn record(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        by: u64,
    ) -> Option<i64> {
        let read = entry(&mut self.0, topic, partition);
        if read.by != by {
            *read = ReadTo { by, ..ReadTo::default() };
        }
        let before = read.next.unwrap_or(read.began);
        read.next = Some(offset + 1);
        (offset < before).then_some(before)
    }

    /// Whether anything is known of a partition under the assignment that it has now.
    pub(crate) fn is_of(&self, topic: &str, partition: i32, assigned: &Assigned) -> bool {
        let read = self.0.get(topic).and_then(|of_topic| of_topic.get(&partition));
        read.is_some_and(|read| assigned.by(topic, partition) == Some(read.by))
    }

    fn next(&self, topic: &str, partition: i32, by: u64) -> Option<i64> {
        let read = self.0.get(topic)?.get(&partition).filter(|read| read.by == by)?;
        read.next
    }
}

/// Stores how far each partition was handled. Where it is known what was read and all of it was handled, as
/// far as the client itself has come: what lies between are marks of transactions, and records that were
/// aborted.
pub(crate) fn store<C: Consumer<Reports>>(client: &C, read: Option<&Read>) {
    let reports = client.context();
    // These are places in a cluster that is gone: stored, they would be taken for places in the one that was
    // made anew, and the records before them never be read.
    if reports.sayings.cluster_replaced() {
        return;
    }
    let Ok(positions) = client.position() else { return };
    let assigned = reports.assigned();
    if reports.offsets.replace(&positions, read, |topic, partition| assigned.by(topic, partition)) {
        // Fails for partitions that have moved on to another instance, which reads these records once more
        // and finds them in the inbox.
        let _ = client.store_offsets(&positions);
        crash::point!("consumer.stored");
    }
}

impl Offsets {
    /// Replaces the client's positions by what is to be stored. Answers whether any of it is new.
    fn replace(
        &self,
        positions: &TopicPartitionList,
        read: Option<&Read>,
        by: impl Fn(&str, i32) -> Option<u64>,
    ) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_new = false;
        for mut place in positions.elements() {
            let (topic, partition) = (place.topic(), place.partition());
            let position = match place.offset() {
                Offset::Offset(position) => Some(position),
                _ => None,
            };
            let by = by(topic, partition).unwrap_or_default();
            let progress = entry(&mut all, topic, partition);
            if progress.by != by {
                *progress = Progress { by, ..Progress::default() };
            }
            let read = read.filter(|_| by > 0).map(|read| read.next(topic, partition, by));
            let next = match read {
                Some(read) if read == progress.handled => position.max(read),
                _ => progress.handled,
            };
            is_new |= next != progress.stored;
            progress.stored = next;
            // Nothing of it was stored under this assignment, and to store nothing changes nothing.
            let next = next.map_or(Offset::Invalid, Offset::Offset);
            let _ = place.set_offset(next);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is stored of partition 0, where the client's position is `position`.
    fn stored(offsets: &Offsets, position: Offset, read: Option<&Read>, by: u64) -> Offset {
        let mut positions = TopicPartitionList::new();
        positions.add_partition_offset("topic", 0, position).unwrap();
        offsets.replace(&positions, read, |_, _| Some(by));
        positions.elements()[0].offset()
    }

    #[test]
    fn an_offset_is_stored_once_all_before_it_was_handled_and_marks_behind_it_are_passed() {
        let (offsets, mut read) = (Offsets::default(), Read::default());
        let at = |offset| Offset::Offset(offset);
        assert_eq!(stored(&offsets, Offset::Invalid, Some(&read), 1), Offset::Invalid);
        assert_eq!(stored(&offsets, at(3), Some(&read), 1), at(3), "there were only marks");
        assert_eq!(read.record("topic", 0, 3, 1), None);
        assert_eq!(read.record("topic", 0, 4, 1), None);
        let offset = |handled, position, read| {
            offsets.handled("topic", 0, handled, Some(1));
            stored(&offsets, at(position), read, 1)
        };
        assert_eq!(offset(4, 5, Some(&read)), at(4), "the other one is not handled");
        assert_eq!(offset(5, 7, Some(&read)), at(7), "two marks");
        assert_eq!(offset(5, 7, None), at(5), "what was read is not known");
        assert_eq!(stored(&offsets, at(7), Some(&Read::default()), 2), at(7), "given anew");
        assert_eq!(stored(&offsets, at(7), None, 3), Offset::Invalid, "given anew");
        offsets.handled("topic", 0, 9, Some(2));
        assert_eq!(stored(&offsets, at(9), None, 3), Offset::Invalid, "of another assignment");
    }

    #[test]
    fn a_record_that_lies_before_what_was_read_or_committed_tells_that_the_log_lost_its_tail() {
        let mut read = Read::default();
        let committed = Ends::from([(("topic".to_string(), 0), 12)]);
        read.began(&committed, |_, _| Some(1));
        assert_eq!(read.next("topic", 0, 1), None);
        assert_eq!(read.record("topic", 0, 8, 1), Some(12));
        assert_eq!(read.record("topic", 0, 9, 1), None);
        read.began(&committed, |_, _| Some(1));
        assert_eq!(read.record("topic", 0, 10, 1), None, "it is known since it was given");
        assert_eq!(read.record("topic", 0, 9, 1), Some(11));
        assert_eq!(read.record("topic", 0, 3, 2), None, "it was given anew");
    }
}
