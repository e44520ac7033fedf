//! The offsets that a client stores, which librdkafka commits once a second.
//!
//! Promises: an offset is stored only after every record before it was handled; it is stored with the epoch of
//! the partition's leader, so that a truncated log is noticed when reading begins again; and the transaction
//! markers at a partition's end are skipped, so that they are no lag. An offset of an older generation breaks
//! them, and so does one from before the log was truncated.
//!
//! Only [`store`] stores offsets, called by the reader and before a revocation. Both run where the client is
//! polled, so that the assignment does not change meanwhile. The list with the client's position also has the
//! epochs, which rdkafka does not expose: an offset in it may be replaced by a lower one, and its epoch is then
//! that of a later record. A truncated log has only greater epochs, so that this hides no truncation.

use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

use crate::consumer::assignment::Assignment;
use crate::consumer::by_partition::{ByPartition, OffsetsByPartition, Position, entry_of};
use crate::consumer::gaps::Gap;
use crate::crash_point;

pub(crate) const CLUSTER_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How often offsets are stored, while records arrive.
pub(crate) const STORE_INTERVAL: Duration = Duration::from_millis(200);

/// How far a client's partitions were handled, and how much of that is stored.
#[derive(Default)]
pub(crate) struct HandledOffsets(Mutex<ByPartition<HandledOffset>>);

#[derive(Clone, Copy, Default)]
struct HandledOffset {
    /// The generation for which this holds; 0 for partitions that no rebalance assigned.
    generation: u64,
    handled: Option<i64>,
    stored: Option<i64>,
    /// The position in the database, once reading has begun by it.
    saved: Option<i64>,
}

impl HandledOffset {
    /// Forgets what holds for an older generation. Returns whether `generation` is the present one: a batch of an older
    /// one may end late.
    fn begin(&mut self, generation: u64) -> bool {
        if self.generation < generation {
            *self = HandledOffset { generation, ..HandledOffset::default() };
        }
        self.generation == generation
    }
}

impl HandledOffsets {
    /// Notes that every record of a partition before `next` was handled.
    pub(crate) fn record_handled(
        &self,
        topic: &str,
        partition: i32,
        next: i64,
        generation: Option<u64>,
    ) {
        let generation = generation.unwrap_or_default();
        let mut all = self.0.lock();
        let progress = entry_of(&mut all, topic, partition);
        if progress.begin(generation) {
            progress.handled = Some(next);
        }
    }

    /// Notes the position that the database has of a partition, whose records are read from now on.
    pub(crate) fn begin(&self, topic: &str, partition: i32, saved: i64, generation: u64) {
        let mut all = self.0.lock();
        let progress = entry_of(&mut all, topic, partition);
        if progress.begin(generation) {
            progress.saved = Some(saved);
        }
    }

    pub(crate) fn stored(&self, topic: &str, partition: i32) -> Option<i64> {
        self.0.lock().get(topic)?.get(&partition)?.stored
    }

    /// The positions that are higher than those of the database.
    pub(crate) fn unsaved(&self) -> Vec<Position> {
        let all = self.0.lock();
        let mut unsaved = Vec::new();
        for (topic, partitions) in &*all {
            for (partition, HandledOffset { handled, stored, saved, .. }) in partitions {
                let Some(next) = (*handled).max(*stored) else { continue };
                if saved.is_some_and(|saved| saved < next) {
                    unsaved.push(Position { topic: topic.clone(), partition: *partition, next });
                }
            }
        }
        unsaved
    }

    pub(crate) fn record_saved(&self, positions: &[Position]) {
        let mut all = self.0.lock();
        for Position { topic, partition, next } in positions {
            let progress = entry_of(&mut all, topic, *partition);
            progress.saved = progress.saved.map(|saved| saved.max(*next));
        }
    }

    /// Up to where every record of a partition was handled in this generation; `None` if none was.
    pub(crate) fn handled(&self, topic: &str, partition: i32, generation: u64) -> Option<i64> {
        let all = self.0.lock();
        let progress = all.get(topic)?.get(&partition)?;
        progress.handled.filter(|_| progress.generation == generation)
    }
}

#[derive(Default)]
pub struct ReadPositions(ByPartition<ReadPosition>);

#[derive(Clone, Copy, Default)]
struct ReadPosition {
    generation: u64,
    start: i64,
    next: Option<i64>,
    /// No record before it is missing: there were none, or it was reported.
    passed: i64,
    /// The first offset that was expected and not read since the log's start was last known, and how often it was
    /// known since. There were markers or compacted records, or records that were deleted.
    skipped: Option<(i64, u32)>,
}

impl ReadPositions {
    /// Notes where reading begins in partitions that were assigned, of which nothing was read yet.
    pub(crate) fn record_start(&mut self, starts: &OffsetsByPartition, assigned: &Assignment) {
        for ((topic, partition), start) in starts {
            let read = entry_of(&mut self.0, topic, *partition);
            if let Some(generation) = assigned.generation_of(topic, *partition)
                && generation != read.generation
            {
                *read = ReadPosition { generation, start: *start, ..ReadPosition::default() };
            }
        }
    }

    /// Notes a record. If a greater offset was expected, the log was truncated: returns that offset, and notes nothing.
    pub(crate) fn record_read(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        generation: u64,
    ) -> Option<i64> {
        let read = entry_of(&mut self.0, topic, partition);
        if read.generation != generation {
            *read = ReadPosition { generation, ..ReadPosition::default() };
        }
        let before = read.next.unwrap_or(read.start);
        if offset < before {
            return Some(before);
        }
        let expected = before.max(read.passed);
        if offset > expected {
            read.skipped.get_or_insert((expected, 0));
        }
        read.next = Some(offset + 1);
        None
    }

    /// The records that were deleted from the beginning of logs before they were read, each time once. `stored` is the
    /// offset of a partition that is stored: it is behind the markers at the end.
    pub(super) fn deleted(
        &mut self,
        log_starts: &OffsetsByPartition,
        assigned: &Assignment,
        stored: impl Fn(&str, i32) -> Option<i64>,
    ) -> Vec<Gap> {
        let mut deleted = Vec::new();
        for ((topic, partition), log_start) in log_starts {
            if !self.is_known(topic, *partition, assigned) {
                continue;
            }
            let read = entry_of(&mut self.0, topic, *partition);
            let stored = stored(topic, *partition).unwrap_or_default();
            let next = read.next.unwrap_or(read.start).max(read.passed).max(stored);
            let from = read.skipped.map_or(next, |(from, _)| from);
            read.passed = next.max(*log_start);
            if from < *log_start {
                let (topic, partition) = (topic.clone(), *partition);
                deleted.push(Gap { topic, partition, from, to: *log_start });
                read.skipped = None;
            }
            // The start that is known now may be that of a moment before the offset was skipped.
            read.skipped =
                read.skipped.and_then(|(from, checks)| (checks == 0).then_some((from, 1)));
        }
        deleted
    }

    /// Where reading began when a partition was assigned.
    pub(crate) fn start(&self, topic: &str, partition: i32) -> Option<i64> {
        Some(self.0.get(topic)?.get(&partition)?.start)
    }

    /// Whether anything is known of a partition in the generation of its present assignment.
    pub(crate) fn is_known(&self, topic: &str, partition: i32, assigned: &Assignment) -> bool {
        let read = self.0.get(topic).and_then(|of_topic| of_topic.get(&partition));
        read.is_some_and(|read| assigned.generation_of(topic, partition) == Some(read.generation))
    }

    fn next_offset(&self, topic: &str, partition: i32, generation: u64) -> Option<i64> {
        let read = self.0.get(topic)?.get(&partition)?;
        read.next.filter(|_| read.generation == generation)
    }
}

/// Stores how far each partition was handled. If everything that was read was handled, that is the client's own
/// position: between the last record and it are only transaction markers and aborted records.
pub(crate) fn store<C: ConsumerContext>(
    client: &impl Consumer<C>,
    handled: &HandledOffsets,
    assignment: &Assignment,
    read: Option<&ReadPositions>,
) {
    let Ok(positions) = client.position() else { return };
    if handled.replace_positions(&positions, read, assignment) {
        // Fails for partitions that have moved to another instance, which reads these records again and finds
        // them in the inbox.
        let _ = client.store_offsets(&positions);
        crash_point!("consumer.stored");
    }
}

impl HandledOffsets {
    /// Replaces the client's positions by the offsets to store. Returns whether any of them is new.
    fn replace_positions(
        &self,
        positions: &TopicPartitionList,
        read: Option<&ReadPositions>,
        assignment: &Assignment,
    ) -> bool {
        let mut all = self.0.lock();
        let mut is_new = false;
        for mut place in positions.elements() {
            let (topic, partition) = (place.topic(), place.partition());
            let position = match place.offset() {
                Offset::Offset(position) => Some(position),
                _ => None,
            };
            let generation = assignment.generation_of(topic, partition).unwrap_or_default();
            let progress = entry_of(&mut all, topic, partition);
            progress.begin(generation);
            let read = read.filter(|_| generation > 0);
            let read = read.map(|read| read.next_offset(topic, partition, generation));
            let next = match read {
                Some(read) if read == progress.handled => position.max(read),
                _ => progress.handled,
            };
            is_new |= next != progress.stored;
            progress.stored = next;
            // Nothing was stored in this generation, and an invalid offset stores nothing.
            let next = next.map_or(Offset::Invalid, Offset::Offset);
            let _ = place.set_offset(next);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Partition 0, assigned in this generation.
    fn assigned_in(generation: u64) -> Assignment {
        let mut assigned = Assignment::default();
        assigned.generation = generation;
        assigned.assign_partition("topic", 0);
        assigned
    }

    /// What is stored of partition 0, where the client's position is `position`.
    fn stored(
        offsets: &HandledOffsets,
        position: Offset,
        read: Option<&ReadPositions>,
        generation: u64,
    ) -> Offset {
        let mut positions = TopicPartitionList::new();
        positions.add_partition_offset("topic", 0, position).unwrap();
        offsets.replace_positions(&positions, read, &assigned_in(generation));
        positions.elements()[0].offset()
    }

    #[test]
    fn an_offset_is_stored_once_all_before_it_was_handled_and_transaction_markers_are_skipped() {
        let (offsets, mut read) = (HandledOffsets::default(), ReadPositions::default());
        let at = |offset| Offset::Offset(offset);
        assert_eq!(stored(&offsets, Offset::Invalid, Some(&read), 1), Offset::Invalid);
        assert_eq!(stored(&offsets, at(3), Some(&read), 1), at(3), "only control records");
        assert_eq!(read.record_read("topic", 0, 3, 1), None);
        assert_eq!(read.record_read("topic", 0, 4, 1), None);
        let offset = |handled, position, read| {
            offsets.record_handled("topic", 0, handled, Some(1));
            stored(&offsets, at(position), read, 1)
        };
        assert_eq!(offset(4, 5, Some(&read)), at(4), "the second is unhandled");
        assert_eq!(offset(5, 7, Some(&read)), at(7), "two control records");
        assert_eq!(offset(5, 7, None), at(5), "no read position");
        assert_eq!(
            stored(&offsets, at(7), Some(&ReadPositions::default()), 2),
            at(7),
            "assigned again"
        );
        assert_eq!(stored(&offsets, at(7), None, 3), Offset::Invalid, "assigned again");
        offsets.record_handled("topic", 0, 9, Some(2));
        assert_eq!(stored(&offsets, at(9), None, 3), Offset::Invalid, "of another assignment");
    }

    #[test]
    fn a_record_below_what_was_read_or_committed_shows_that_the_log_was_truncated() {
        let mut read = ReadPositions::default();
        let committed = OffsetsByPartition::from([(("topic".to_string(), 0), 12)]);
        read.record_start(&committed, &assigned_in(1));
        assert_eq!(read.next_offset("topic", 0, 1), None);
        assert_eq!(read.record_read("topic", 0, 8, 1), Some(12));
        assert_eq!(read.record_read("topic", 0, 9, 1), Some(12), "nothing was noted");
        assert_eq!(read.record_read("topic", 0, 12, 1), None);
        read.record_start(&committed, &assigned_in(1));
        assert_eq!(read.record_read("topic", 0, 13, 1), None, "known since assignment");
        assert_eq!(read.record_read("topic", 0, 12, 1), Some(14));
        assert_eq!(read.record_read("topic", 0, 3, 2), None, "it was assigned again");
    }

    #[test]
    fn records_that_were_deleted_before_they_were_read_are_told_once_and_markers_are_not() {
        let assigned = assigned_in(1);
        let at = |offset| OffsetsByPartition::from([(("topic".to_string(), 0), offset)]);
        let mut read = ReadPositions::default();
        let deleted = |read: &mut ReadPositions, log_start, stored: Option<i64>| {
            let deleted = read.deleted(&at(log_start), &assigned, |_, _| stored);
            deleted.into_iter().map(|gap| (gap.from, gap.to)).collect::<Vec<_>>()
        };
        assert_eq!(deleted(&mut read, 9, None), [], "it is not known where reading begins");
        read.record_start(&at(5), &assigned);
        assert_eq!(deleted(&mut read, 5, None), []);
        assert_eq!(deleted(&mut read, 9, None), [(5, 9)], "nothing was read since");
        assert_eq!(deleted(&mut read, 9, None), []);
        assert_eq!(read.record_read("topic", 0, 9, 1), None);
        assert_eq!(deleted(&mut read, 12, Some(12)), [], "two markers lay at the end");
        assert_eq!(read.record_read("topic", 0, 20, 1), None);
        assert_eq!(deleted(&mut read, 9, None), [], "the start from before");
        assert_eq!(deleted(&mut read, 15, None), [(12, 15)]);
        assert_eq!(read.record_read("topic", 0, 23, 1), None);
        assert_eq!([(); 2].map(|()| deleted(&mut read, 15, None)), [[], []]);
        assert_eq!(deleted(&mut read, 24, None), [], "handled, and deleted since");
    }
}
