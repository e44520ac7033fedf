//! The commit of a sub-batch, and the offsets that it allows to be stored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use metrics::counter;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Message, OwnedMessage};
use tracing::error;

use crate::consumer::assignment::Assignment;
use crate::consumer::offset_tracker::OffsetTracker;
use crate::consumer::rebalance::{self, GroupContext};
use crate::consumer::resources::ConsumerResources;
use crate::consumer::sub_batch::SubBatch;
use crate::crash_point;
use crate::db::connection::DedicatedConnection;
use crate::dead_letter::{self, DeadLetterReason, RecordPosition};
use crate::transaction::events::apply_events;
use crate::transaction::failure::ApplyError;
use crate::transaction::incoming_record::IncomingRecord;
use crate::unit_of_work::UnitOfWork;

/// How long an attempt for a single event waits for a row that another transaction holds.
const SINGLE_EVENT_LOCK_TIMEOUT: &str = "100ms";

/// What the commit of a sub-batch changed.
pub(crate) struct CommittedSubBatch {
    /// The topics of the events that had their effect in this transaction.
    pub handled: HashSet<&'static str>,
    /// The positions of the records that became dead letters in this transaction.
    pub dead_letters: HashSet<RecordPosition>,
    /// Whether each record of the sub-batch had its effect in this transaction.
    had_effect: Vec<bool>,
}

impl CommittedSubBatch {
    /// The records of its sub-batch that became dead letters in this transaction.
    pub fn new_dead_letters<'p, R: UnitOfWork>(
        &self,
        part: &'p SubBatch<R>,
    ) -> impl Iterator<Item = (&'p IncomingRecord<R>, &'p DeadLetterReason)> {
        part.items.iter().filter_map(|item| {
            let (message, _, reason) = item.as_dead_letter()?;
            let position = (message.topic().to_string(), message.partition(), message.offset());
            self.dead_letters.contains(&position).then_some((item, reason))
        })
    }
}

/// Commits the sub-batches of one client, and notes up to which offset its partitions are handled.
pub(crate) struct SubBatchCommitter<'a, R: UnitOfWork> {
    resources: &'a ConsumerResources<R>,
    client: &'a Arc<StreamConsumer<GroupContext>>,
    connection: DedicatedConnection,
    /// Whether the inbox is queried first: at first, and as long as batches contain duplicates. Duplicates arrive
    /// in runs, after a crash or when a partition moves to another instance.
    pub expects_duplicates: bool,
    offset_tracker: OffsetTracker,
}

impl<'a, R: UnitOfWork> SubBatchCommitter<'a, R> {
    pub fn new(
        resources: &'a ConsumerResources<R>,
        client: &'a Arc<StreamConsumer<GroupContext>>,
    ) -> SubBatchCommitter<'a, R> {
        SubBatchCommitter {
            resources,
            client,
            connection: DedicatedConnection::new(&resources.db),
            expects_duplicates: true,
            offset_tracker: OffsetTracker::default(),
        }
    }

    /// Applies the events and stores the dead letters of a sub-batch, in one transaction.
    pub async fn try_commit(
        &mut self,
        part: &SubBatch<R>,
    ) -> Result<CommittedSubBatch, ApplyError> {
        let dead_letters: Vec<_> =
            part.items.iter().filter_map(IncomingRecord::as_dead_letter).collect();
        let cluster = match dead_letters.is_empty() {
            true => String::new(),
            false => self.cluster_id().await?,
        };
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
            Ok::<_, ApplyError>((effect, new))
        };
        let prepared = prepared.await;
        let (tx, (mut effect, new)) = tx.keep_or_rollback(prepared).await?;
        crash_point!("dead_letters.stored", !dead_letters.is_empty());
        crash_point!("consumer.prepared", effect.has_effect());
        tx.commit().await?;
        crash_point!("dead_letters.committed", !dead_letters.is_empty());
        crash_point!("consumer.committed", effect.has_effect());
        self.expects_duplicates = effect.has_duplicates();
        let had_effect = std::mem::take(&mut effect.had_effect);
        let handled = effect.after_commit(&self.resources.wakeups);
        Ok(CommittedSubBatch { handled, dead_letters: new.into_iter().collect(), had_effect })
    }

    /// Notes the records of a batch: no offset above them is stored before they are handled.
    pub fn mark_read(&mut self, batch: &[OwnedMessage], assigned: &Assignment) {
        for message in batch {
            let (topic, partition) = (message.topic(), message.partition());
            self.offset_tracker.mark_read(topic, partition, message.offset(), assigned);
        }
    }

    /// After the commit, never before: logs the new dead letters, and notes up to which offset every record of
    /// the sub-batch's partitions was handled. That offset is stored next.
    pub fn record_committed(
        &mut self,
        part: &SubBatch<R>,
        committed: &CommittedSubBatch,
        assigned: &Assignment,
    ) {
        for (item, reason) in committed.new_dead_letters(part) {
            let IncomingRecord { message, .. } = item;
            let (topic, partition, offset) =
                (message.topic(), message.partition(), message.offset());
            let reason: String = reason.detail.chars().take(300).collect();
            item.in_context(|| error!("{topic}[{partition}]@{offset} is a dead letter: {reason}"));
            item.trace_dead_letter(&reason);
            counter!("dead_letters_total", "topic" => topic.to_string()).increment(1);
        }
        self.report_gaps(part, committed);
        let mut handled: HashMap<(&str, i32), Option<i64>> = HashMap::new();
        for IncomingRecord { message, .. } in &part.items {
            let (topic, partition, offset) =
                (message.topic(), message.partition(), message.offset());
            let up_to = self.offset_tracker.mark_handled(topic, partition, offset, assigned);
            handled.insert((topic, partition), up_to);
        }
        let offsets = &self.client.context().offsets;
        for ((topic, partition), up_to) in handled {
            let next = up_to.map(|offset| offset + 1);
            let by = assigned.generation_of(topic, partition);
            next.into_iter().for_each(|next| offsets.record_handled(topic, partition, next, by));
        }
    }

    /// Tells the gaps of this client which records were handled for the first time. A record without an inbox row does
    /// not tell whether it is the first time.
    fn report_gaps(&self, part: &SubBatch<R>, committed: &CommittedSubBatch) {
        let gaps = &self.client.context().gaps;
        if gaps.is_empty() {
            return;
        }
        let new = part.items.iter().zip(&committed.had_effect);
        let new = new.filter(|(item, is_new)| **is_new && item.inbox_key().is_some());
        let letters = committed.new_dead_letters(part).map(|(item, _)| item);
        for IncomingRecord { message, .. } in new.map(|(item, _)| item).chain(letters) {
            gaps.record_first_handling(message.topic(), message.partition(), message.offset());
        }
    }

    /// The id of the Kafka cluster. In a recreated cluster offsets start again, and its id distinguishes the
    /// positions.
    async fn cluster_id(&self) -> Result<String, ApplyError> {
        let cluster = rebalance::cluster_id(self.client).await;
        cluster
            .ok_or_else(|| ApplyError::Unavailable("the id of the Kafka cluster is unknown".into()))
    }
}
