//! The lag of a service's consumer group as a whole: whether every record of its topics was handled.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::PgPool;
use tokio::sync::Mutex;

use crate::consumer::by_partition::OffsetsByPartition;
use crate::consumer::offsets::CLUSTER_REQUEST_TIMEOUT;
use crate::consumer::positions;
use crate::consumer::rebalance::{self, GroupContext};
use crate::event::Isolation;

/// The maximum age of end offsets against which the lag is measured.
pub const LAG_VALID_FOR: Duration = Duration::from_secs(30);

/// The minimum interval between end offsets that are kept, however often the lag is measured.
const END_OFFSETS_INTERVAL: Duration = Duration::from_secs(1);

/// The lag of a service's consumer group, for other parts of the process.
#[derive(Clone)]
pub struct ConsumerLag {
    db: PgPool,
    clients: Arc<Mutex<BTreeMap<Isolation, ClientHandle>>>,
    /// The recent end offsets of all partitions, each with the time of its query.
    end_offsets: Arc<Mutex<Vec<(Instant, OffsetsByPartition)>>>,
}

/// A client of the group, and the settings of a client that queries the ends of its topics.
type ClientHandle = (Weak<StreamConsumer<GroupContext>>, ClientConfig);

impl ConsumerLag {
    pub(crate) fn new(db: PgPool) -> ConsumerLag {
        ConsumerLag { db, clients: Arc::default(), end_offsets: Arc::default() }
    }

    /// The lag is unknown until a client has joined for each of these.
    pub(crate) async fn expect_clients(&self, isolations: impl Iterator<Item = Isolation>) {
        let none = || (Weak::new(), ClientConfig::new());
        *self.clients.lock().await = isolations.map(|isolation| (isolation, none())).collect();
    }

    pub(crate) async fn attach(
        &self,
        isolation: Isolation,
        client: &Arc<StreamConsumer<GroupContext>>,
        plain: ClientConfig,
    ) {
        self.clients.lock().await.insert(isolation, (Arc::downgrade(client), plain));
        self.end_offsets.lock().await.clear();
    }

    /// The lag is unknown from now on, until the next client joins: a query would keep this client open.
    pub(crate) async fn detach(&self, isolation: Isolation) {
        self.clients.lock().await.insert(isolation, (Weak::new(), ClientConfig::new()));
    }

    /// The age of the latest moment up to which the group has handled every record: all instances, all partitions.
    /// It is one of the moments of the last 30 s at which this was called; later records may be unread. `None` if
    /// the lag is unknown, or if this was not called in that time. The latest call alone is not enough: positions are
    /// written once a second.
    pub async fn caught_up(&self) -> Option<Duration> {
        let members: Vec<_> = self.clients.lock().await.clone().into_iter().collect();
        let asked_at = Instant::now();
        let (mut handled, mut end_offsets) = (OffsetsByPartition::new(), OffsetsByPartition::new());
        for (isolation, (client, plain)) in members {
            let client = client.upgrade()?;
            // The committed offset alone does not suffice: another program may have committed it.
            let cluster = rebalance::cluster_id(&client).await?;
            let positions = positions::load(&self.db, &cluster).await.ok()?;
            let fetch = move || handled_and_end_offsets(&client, positions, (isolation, plain));
            let of_client = tokio::task::spawn_blocking(fetch).await.ok()?.ok()?;
            handled.extend(of_client.0);
            end_offsets.extend(of_client.1);
        }
        if end_offsets.is_empty() {
            return None;
        }
        let mut known = self.end_offsets.lock().await;
        let reached = reached_since(&handled, &mut known);
        if known.last().is_none_or(|(asked_at, _)| asked_at.elapsed() > END_OFFSETS_INTERVAL) {
            known.push((asked_at, end_offsets));
        }
        reached
    }
}

/// The age of the latest end offsets that the handled offsets reach. Drops end offsets that are too old.
fn reached_since(
    handled: &OffsetsByPartition,
    known: &mut Vec<(Instant, OffsetsByPartition)>,
) -> Option<Duration> {
    known.retain(|(asked_at, _)| asked_at.elapsed() < LAG_VALID_FOR);
    let reached = |(place, end)| handled.get(place).is_some_and(|next| next >= end);
    let reached = known.iter().rev().find(|(_, ends)| ends.iter().all(reached));
    reached.map(|(asked_at, _)| asked_at.elapsed())
}

/// Up to where each partition of the group's topics was handled, by Kafka and by the database, and its end offset. A
/// partition that never had a record counts as handled up to its end.
///
/// A request of an idle client waits behind the pending fetch on the same connection, for half a second. So each
/// request is made once, for all partitions.
fn handled_and_end_offsets(
    client: &StreamConsumer<GroupContext>,
    positions: OffsetsByPartition,
    (isolation, plain): (Isolation, ClientConfig),
) -> KafkaResult<(OffsetsByPartition, OffsetsByPartition)> {
    let subscribed = client.subscription()?;
    let mut all = TopicPartitionList::new();
    let metadata = client.fetch_metadata(None, CLUSTER_REQUEST_TIMEOUT)?;
    for topic in subscribed.elements() {
        // The lag is unknown if the topic was deleted or is not authorised.
        let listed = metadata.topics().iter().find(|listed| listed.name() == topic.topic());
        let listed = listed.filter(|it| it.error().is_none() && !it.partitions().is_empty());
        let unknown = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic);
        for partition in listed.ok_or(unknown)?.partitions() {
            all.add_partition(topic.topic(), partition.id());
        }
    }
    let committed = client.committed_offsets(all.clone(), CLUSTER_REQUEST_TIMEOUT)?;
    let start_offsets = request_offsets(client, all.clone(), Offset::Beginning)?;
    let end_offsets = match isolation {
        Isolation::ReadUncommitted => request_offsets(client, all.clone(), Offset::End)?,
        // This client would get the end of the committed records. Records of an open transaction count as well.
        Isolation::ReadCommitted => {
            request_offsets(&plain.create::<BaseConsumer>()?, all.clone(), Offset::End)?
        }
    };
    if end_offsets.len() < all.count() {
        return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset));
    }
    let committed = valid_offsets(&committed)?;
    let mut handled = start_offsets;
    for (place, next) in &mut handled {
        if let (Some(committed), Some(position)) = (committed.get(place), positions.get(place)) {
            // Expired records cannot be handled.
            *next = (*next).max(*committed.min(position));
        }
    }
    Ok((handled, end_offsets))
}

pub(crate) fn end_offsets(
    client: &StreamConsumer<GroupContext>,
    partitions: TopicPartitionList,
) -> KafkaResult<OffsetsByPartition> {
    request_offsets(client, partitions, Offset::End)
}

/// Requests offsets by time, of which the beginning and the end are special cases.
pub(super) fn request_offsets<C: ConsumerContext>(
    client: &impl Consumer<C>,
    mut partitions: TopicPartitionList,
    which: Offset,
) -> KafkaResult<OffsetsByPartition> {
    partitions.set_all_offsets(which)?;
    valid_offsets(&client.offsets_for_times(partitions, CLUSTER_REQUEST_TIMEOUT)?)
}

/// The offsets of a list, as far as it has any.
pub(super) fn valid_offsets(list: &TopicPartitionList) -> KafkaResult<OffsetsByPartition> {
    let mut offsets = OffsetsByPartition::new();
    for element in list.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert((element.topic().to_string(), element.partition()), offset);
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_offsets_of_long_ago_do_not_count_as_caught_up() {
        let ends = |end| OffsetsByPartition::from([(("topic".to_string(), 0), end)]);
        let now = Instant::now();
        let long_ago = now.checked_sub(LAG_VALID_FOR).unwrap();
        for (handled, asked_at, reached) in
            [(7, now, true), (8, now, true), (6, now, false), (7, long_ago, false)]
        {
            let mut asked = vec![(asked_at, ends(7))];
            assert_eq!(reached_since(&ends(handled), &mut asked).is_some(), reached, "{handled}");
        }
        let mut asked = vec![(now, ends(7))];
        assert_eq!(
            reached_since(&OffsetsByPartition::new(), &mut asked),
            None,
            "a partition whose offset is unknown"
        );
        let before = now.checked_sub(LAG_VALID_FOR / 2).unwrap();
        let mut asked = vec![(before, ends(7)), (now, ends(8))];
        let ago = |handled, asked: &mut _| reached_since(&ends(handled), asked).unwrap();
        assert!(ago(7, &mut asked) >= LAG_VALID_FOR / 2, "the eighth lies there unread");
        assert!(ago(8, &mut asked) < LAG_VALID_FOR / 2);
    }
}
