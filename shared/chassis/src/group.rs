//! What a service asks of its consumer group as a whole: whether all that its topics hold was handled.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::Mutex;

use crate::event::Isolation;
use crate::member::Reports;

/// How long a question to the cluster may take.
pub(crate) const ASKED_WITHIN: Duration = Duration::from_secs(5);

/// How old the ends of the partitions may be, when it is asked whether all up to them was handled.
pub const ENDS_COUNT_FOR: Duration = Duration::from_secs(30);

/// How far apart those are that are kept, however often it is asked.
const ENDS_KEPT_EVERY: Duration = Duration::from_secs(1);

/// The consumer group of a service, as far as others in the process need to know.
#[derive(Clone, Default)]
pub struct Group {
    clients: Arc<Mutex<BTreeMap<Isolation, Member>>>,
    /// Where each partition ended whenever that was asked lately.
    ends: Arc<Mutex<Vec<(Instant, Ends)>>>,
}

pub(crate) type Ends = HashMap<(String, i32), i64>;

/// A client of the group, and the settings of one that tells where its topics end.
type Member = (Weak<StreamConsumer<Reports>>, ClientConfig);

impl Group {
    /// Until a client has joined for each of these it can't be told.
    pub(crate) async fn joined_by_all(&self, isolations: impl Iterator<Item = Isolation>) {
        let none = || (Weak::new(), ClientConfig::new());
        *self.clients.lock().await = isolations.map(|isolation| (isolation, none())).collect();
    }

    pub(crate) async fn joined_by(
        &self,
        isolation: Isolation,
        client: &Arc<StreamConsumer<Reports>>,
        plain: ClientConfig,
    ) {
        self.clients.lock().await.insert(isolation, (Arc::downgrade(client), plain));
        self.ends.lock().await.clear();
    }

    /// From now on it can't be told, until a client joins anew: whoever asks would keep this one open.
    pub(crate) async fn left(&self, isolation: Isolation) {
        self.clients.lock().await.insert(isolation, (Weak::new(), ClientConfig::new()));
    }

    /// How long ago the group's topics held nothing that it has not handled by now: all instances, all
    /// partitions. The latest of the times when this was asked in the last 30 s; what came since may lie there
    /// unread. `None` where that can't be told, and where it was not asked lately. The last time will not do
    /// alone: offsets are committed once a second.
    pub async fn caught_up(&self) -> Option<Duration> {
        let members: Vec<_> = self.clients.lock().await.clone().into_iter().collect();
        let asked_at = Instant::now();
        let (mut handled, mut ends) = (Ends::new(), Ends::new());
        for (isolation, (client, plain)) in members {
            let client = client.upgrade()?;
            let asked = move || progress(&client, (isolation, plain));
            let of_client = tokio::task::spawn_blocking(asked).await.ok()?.ok()?;
            handled.extend(of_client.0);
            ends.extend(of_client.1);
        }
        if ends.is_empty() {
            return None;
        }
        let mut asked = self.ends.lock().await;
        let reached = has_reached(&handled, &mut asked);
        if asked.last().is_none_or(|(asked_at, _)| asked_at.elapsed() > ENDS_KEPT_EVERY) {
            asked.push((asked_at, ends));
        }
        reached
    }
}

/// How long ago, at the most, all partitions ended where what was handled reaches to. Forgets what was asked
/// too long ago.
fn has_reached(handled: &Ends, asked: &mut Vec<(Instant, Ends)>) -> Option<Duration> {
    asked.retain(|(asked_at, _)| asked_at.elapsed() < ENDS_COUNT_FOR);
    let reached = |(place, end)| handled.get(place).is_some_and(|next| next >= end);
    let reached = asked.iter().rev().find(|(_, ends)| ends.iter().all(reached));
    reached.map(|(asked_at, _)| asked_at.elapsed())
}

/// How far the group has committed in each partition of its topics, and where each ends now. A
/// partition that never held anything counts as handled up to its end.
///
/// Whatever an idle client asks waits behind the fetch that is under way on the same connection, for
/// half a second: so each question is asked once, of all partitions.
fn progress(
    client: &StreamConsumer<Reports>,
    (isolation, plain): (Isolation, ClientConfig),
) -> KafkaResult<(Ends, Ends)> {
    let subscribed = client.subscription()?;
    let subscribed: HashSet<String> =
        subscribed.elements().iter().map(|topic| topic.topic().to_string()).collect();
    let mut all = TopicPartitionList::new();
    let metadata = client.fetch_metadata(None, ASKED_WITHIN)?;
    for topic in &subscribed {
        // One that is not listed, since it is gone or may not be seen, is one that can't be told of.
        let listed = metadata.topics().iter().find(|listed| listed.name() == topic);
        let partitions = listed.filter(|topic| topic.error().is_none()).map(|t| t.partitions());
        let partitions = partitions.filter(|partitions| !partitions.is_empty());
        let unknown = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic);
        for partition in partitions.ok_or(unknown)? {
            all.add_partition(topic, partition.id());
        }
    }
    let committed = client.committed_offsets(all.clone(), ASKED_WITHIN)?;
    let begins = asked(client, all.clone(), Offset::Beginning)?;
    let ends = match isolation {
        Isolation::ReadUncommitted => asked(client, all.clone(), Offset::End)?,
        // This client is told where it may read to. What an open transaction holds back lies there as well.
        Isolation::ReadCommitted => {
            asked(&plain.create::<BaseConsumer>()?, all.clone(), Offset::End)?
        }
    };
    if ends.len() < all.count() {
        return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset));
    }
    let mut handled = places(&committed)?;
    for (place, begin) in begins {
        let next = handled.entry(place).or_insert(begin);
        // What has expired is nobody's to handle.
        *next = (*next).max(begin);
    }
    Ok((handled, ends))
}

/// Where the partitions of a list end now.
pub(crate) fn ends(
    client: &StreamConsumer<Reports>,
    partitions: TopicPartitionList,
) -> KafkaResult<Ends> {
    asked(client, partitions, Offset::End)
}

/// By time, of which the beginning and the end are special cases.
fn asked<C: ConsumerContext>(
    client: &impl Consumer<C>,
    mut partitions: TopicPartitionList,
    which: Offset,
) -> KafkaResult<Ends> {
    partitions.set_all_offsets(which)?;
    places(&client.offsets_for_times(partitions, ASKED_WITHIN)?)
}

/// The offsets of a list, where there are any.
fn places(list: &TopicPartitionList) -> KafkaResult<Ends> {
    let mut places = Ends::new();
    for element in list.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            places.insert((element.topic().to_string(), element.partition()), offset);
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_partitions_ended_long_ago_says_nothing_of_what_came_since() {
        let ends = |end| Ends::from([(("topic".to_string(), 0), end)]);
        let now = Instant::now();
        let long_ago = now.checked_sub(ENDS_COUNT_FOR).unwrap();
        for (handled, asked_at, reached) in
            [(7, now, true), (8, now, true), (6, now, false), (7, long_ago, false)]
        {
            let mut asked = vec![(asked_at, ends(7))];
            assert_eq!(has_reached(&ends(handled), &mut asked).is_some(), reached, "{handled}");
        }
        let mut asked = vec![(now, ends(7))];
        assert_eq!(
            has_reached(&Ends::new(), &mut asked),
            None,
            "a partition that can't be told of"
        );
        let before = now.checked_sub(ENDS_COUNT_FOR / 2).unwrap();
        let mut asked = vec![(before, ends(7)), (now, ends(8))];
        let ago = |handled, asked: &mut _| has_reached(&ends(handled), asked).unwrap();
        assert!(ago(7, &mut asked) >= ENDS_COUNT_FOR / 2, "the eighth lies there unread");
        assert!(ago(8, &mut asked) < ENDS_COUNT_FOR / 2);
    }
}
