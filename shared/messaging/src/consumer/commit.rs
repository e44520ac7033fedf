//! The commit of a part of a batch, and how far each partition was handled by it.
//!
//! Promise: an offset is stored only if every record below it was handled or stored as a dead letter. An offset
//! above a record that is deferred, or that waits in its batch, breaks it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use metrics::counter;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Message, OwnedMessage};
use tracing::error;

use crate::consumer::assignment::Assignment;
use crate::consumer::by_partition::{ByPartition, entry_of};
use crate::consumer::rebalance::{self, GroupContext};
use crate::consumer::resources::ConsumerResources;
use crate::crash_point;
use crate::db::connection::DedicatedConnection;
use crate::dead_letter::{self, DeadLetterReason, RecordPosition};
use crate::flow::wakeups::Wakeups;
use crate::transaction::events::{AppliedEvents, apply_events};
use crate::transaction::failure::Failure;
use crate::transaction::incoming_record::IncomingRecord;
use crate::transaction::part::Part;
use crate::unit_of_work::UnitOfWork;

/// How long an attempt for a single event waits for a row that another transaction holds.
const SINGLE_EVENT_LOCK_TIMEOUT: &str = "100ms";

pub(crate) struct CommittedPart {
    /// The topics of the events that had their effect in this transaction.
    pub handled: HashSet<&'static str>,
    /// The positions of the records that became dead letters in this transaction.
    pub dead_letters: HashSet<RecordPosition>,
    had_effect: Vec<bool>,
}

impl CommittedPart {
    /// After the commit, never before.
    pub fn new(
        mut effect: AppliedEvents,
        dead_letters: Vec<RecordPosition>,
        wakeups: &Wakeups,
    ) -> CommittedPart {
        let had_effect = std::mem::take(&mut effect.had_effect);
        let handled = effect.after_commit(wakeups);
        CommittedPart { handled, dead_letters: dead_letters.into_iter().collect(), had_effect }
    }

    /// The records of its part that became dead letters in this transaction.
    pub fn new_dead_letters<'p, R: UnitOfWork>(
        &self,
        part: &'p Part<IncomingRecord<R>>,
    ) -> impl Iterator<Item = (&'p IncomingRecord<R>, &'p DeadLetterReason)> {
        part.items.iter().filter_map(|item| {
            let (_, _, reason) = item.as_dead_letter()?;
            let (topic, partition, offset) = item.position();
            let position = (topic.to_string(), partition, offset);
            self.dead_letters.contains(&position).then_some((item, reason))
        })
    }
}

/// Commits the parts of one client's batches, and notes up to which offset its partitions are handled.
pub(crate) struct PartCommitter<'a, R: UnitOfWork> {
    resources: &'a ConsumerResources<R>,
    client: &'a Arc<StreamConsumer<GroupContext>>,
    connection: DedicatedConnection,
    /// Whether the inbox is queried first: at first, and as long as batches contain duplicates. Duplicates arrive
    /// in runs, after a crash or when a partition moves to another instance.
    pub expects_duplicates: bool,
    offset_tracker: OffsetTracker,
}

impl<'a, R: UnitOfWork> PartCommitter<'a, R> {
    pub fn new(
        resources: &'a ConsumerResources<R>,
        client: &'a Arc<StreamConsumer<GroupContext>>,
    ) -> PartCommitter<'a, R> {
        PartCommitter {
            resources,
            client,
            connection: DedicatedConnection::new(&resources.db),
            expects_duplicates: true,
            offset_tracker: OffsetTracker::default(),
        }
    }

    /// Applies the events and stores the dead letters of a part, in one transaction.
    pub async fn try_commit(
        &mut self,
        part: &Part<IncomingRecord<R>>,
    ) -> Result<CommittedPart, Failure> {
        let dead_letters: Vec<_> =
            part.items.iter().filter_map(IncomingRecord::as_dead_letter).collect();
        let mut cluster = String::new();
        if !dead_letters.is_empty() {
            // In a recreated cluster offsets start again, and its id distinguishes the positions.
            let id = rebalance::cluster_id(self.client).await;
            let unknown = || Failure::Unavailable("the id of the Kafka cluster is unknown".into());
            cluster = id.ok_or_else(unknown)?;
        }
        let attempts = i32::try_from(part.attempts.count).unwrap_or(i32::MAX);
        let mut tx = match part.items.len() {
            1 => self.connection.begin_with_lock_timeout(SINGLE_EVENT_LOCK_TIMEOUT).await?,
            _ => self.connection.begin().await?,
        };
        let (now, expects_duplicates) = (tx.now, self.expects_duplicates);
        let prepared = async {
            let effect =
                apply_events(&mut tx, &part.items, now, expects_duplicates, attempts).await?;
            let new = dead_letter::store(&mut tx, &cluster, &dead_letters, attempts).await?;
            tx.check_hung_commits().await?;
            Ok::<_, Failure>((effect, new))
        };
        let prepared = prepared.await;
        let (tx, (effect, new)) = tx.keep_or_rollback(prepared).await?;
        crash_point!("dead_letters.stored", !dead_letters.is_empty());
        crash_point!("consumer.prepared", effect.has_effect());
        tx.commit().await?;
        crash_point!("dead_letters.committed", !dead_letters.is_empty());
        crash_point!("consumer.committed", effect.has_effect());
        self.expects_duplicates = effect.has_duplicates();
        Ok(CommittedPart::new(effect, new, &self.resources.wakeups))
    }

    /// Notes the records of a batch: no offset above them is stored before they are handled.
    pub fn mark_read(&mut self, batch: &[OwnedMessage], assigned: &Assignment) {
        for message in batch {
            let (topic, partition) = (message.topic(), message.partition());
            self.offset_tracker.mark_read(topic, partition, message.offset(), assigned);
        }
    }

    /// After the commit, never before: logs the new dead letters, and notes up to which offset every record of
    /// the part's partitions was handled. That offset is stored next.
    pub fn record_committed(
        &mut self,
        part: &Part<IncomingRecord<R>>,
        committed: &CommittedPart,
        assigned: &Assignment,
    ) {
        log_dead_letters(part, committed);
        self.report_gaps(part, committed);
        let mut handled: HashMap<(&str, i32), Option<i64>> = HashMap::new();
        for item in &part.items {
            let (topic, partition, offset) = item.position();
            let up_to = self.offset_tracker.mark_handled(topic, partition, offset, assigned);
            handled.insert((topic, partition), up_to);
        }
        let offsets = &self.client.context().offsets;
        for ((topic, partition), up_to) in handled {
            let by = assigned.generation_of(topic, partition);
            if let Some(offset) = up_to {
                offsets.record_handled(topic, partition, offset + 1, by);
            }
        }
    }

    /// Tells the gaps of this client which records were handled for the first time. A record without an inbox row does
    /// not tell whether it is the first time.
    fn report_gaps(&self, part: &Part<IncomingRecord<R>>, committed: &CommittedPart) {
        let gaps = &self.client.context().gaps;
        if gaps.is_empty() {
            return;
        }
        let new = part.items.iter().zip(&committed.had_effect);
        let new = new.filter(|(item, is_new)| **is_new && item.inbox_key().is_some());
        let letters = committed.new_dead_letters(part).map(|(item, _)| item);
        for item in new.map(|(item, _)| item).chain(letters) {
            let (topic, partition, offset) = item.position();
            gaps.record_first_handling(topic, partition, offset);
        }
    }
}

/// After the commit, never before: logs, traces and counts the new dead letters.
pub(crate) fn log_dead_letters<R: UnitOfWork>(
    part: &Part<IncomingRecord<R>>,
    committed: &CommittedPart,
) {
    for (item, reason) in committed.new_dead_letters(part) {
        let (topic, partition, offset) = item.position();
        let reason: String = reason.detail.chars().take(300).collect();
        item.in_context(|| error!("{topic}[{partition}]@{offset} is a dead letter: {reason}"));
        item.trace_dead_letter(&reason);
        counter!("dead_letters_total", "topic" => topic.to_string()).increment(1);
    }
}

#[derive(Default)]
struct OffsetTracker {
    partitions: ByPartition<PartitionOffsets>,
}

#[derive(Default)]
struct PartitionOffsets {
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
    fn mark_read(&mut self, topic: &str, partition: i32, offset: i64, assigned: &Assignment) {
        let progress = self.partition_mut(topic, partition, assigned);
        progress.read = Some(offset);
        progress.unhandled.insert(offset);
    }

    /// Notes that a record was handled or stored as a dead letter. Returns the last offset up to which all were.
    fn mark_handled(
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
