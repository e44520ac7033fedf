//! This service's consumer group: reading ahead of the handlers, and what the group knows of itself.
//!
//! Promise: as long as the process lives it keeps its partitions, however long its own database is
//! away. It is broken by not polling while there is no room.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use metrics::gauge;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use rdkafka::statistics::{Partition, Statistics};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{info, warn};

use crate::crash;
use crate::kafka::Sayings;
use crate::route;

/// Bytes of records that are read ahead or being handled, at most, keys and headers among them:
/// records may be a thousand times larger than events are.
const AHEAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// After so long without room for another record, fetching is paused and the group is kept.
const FULL_FOR_MAX: Duration = Duration::from_secs(10);

/// How long a poll for the group's sake takes.
const POLL: Duration = Duration::from_millis(100);

/// How long at most until it is looked whether something came. librdkafka wakes us, but only when what
/// waits to be read was nothing before: after one wake-up that is lost, in whichever layer, nothing more
/// would be read until the crate looks by itself, after 150 s (its issues 665 and 848).
const LOOKED_EVERY: Duration = Duration::from_secs(1);

/// How often the same reason for waiting is said.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// How long a question to the cluster may take.
const ASKED_WITHIN: Duration = Duration::from_secs(5);

/// How old the ends of the partitions may be, when it is asked whether all up to them was handled: what
/// came since may lie there unread.
const ENDS_COUNT_FOR: Duration = Duration::from_secs(30);

/// How far apart those are that are kept, however often it is asked.
const ENDS_KEPT_EVERY: Duration = Duration::from_secs(1);

/// While a client is joining, librdkafka puts off unsubscribing until it has joined, and does not tell.
/// That takes a second, or two, in which somebody has to go on polling.
const UNSUBSCRIBED_AFTER: Duration = Duration::from_secs(2);

/// The consumer group of a service, as far as others in the process need to know.
#[derive(Clone, Default)]
pub struct Group {
    client: Arc<Mutex<Weak<StreamConsumer<Reports>>>>,
    /// Where each partition ended whenever that was asked lately.
    ends: Arc<Mutex<Vec<(Instant, Ends)>>>,
}

type Ends = HashMap<(String, i32), i64>;

impl Group {
    pub(crate) async fn joined_by(&self, client: &Arc<StreamConsumer<Reports>>) {
        *self.client.lock().await = Arc::downgrade(client);
        self.ends.lock().await.clear();
    }

    /// Whether the group has handled everything that its topics held at one of the times when this was
    /// asked in the last 30 s: all instances, all partitions. False where that can't be told, and where
    /// it was not asked lately. The last time will not do alone: offsets are committed once a second.
    pub async fn caught_up(&self) -> bool {
        let Some(client) = self.client.lock().await.upgrade() else { return false };
        let asked = tokio::task::spawn_blocking(move || progress(&client)).await;
        let Ok(Ok((handled, ends))) = asked else { return false };
        let mut asked = self.ends.lock().await;
        let reached = has_reached(&handled, &mut asked);
        if asked.last().is_none_or(|(asked_at, _)| asked_at.elapsed() > ENDS_KEPT_EVERY) {
            asked.push((Instant::now(), ends));
        }
        reached
    }
}

/// Whether what was handled reaches to where all partitions ended at one time lately. Forgets what was
/// asked longer ago.
fn has_reached(handled: &Ends, asked: &mut Vec<(Instant, Ends)>) -> bool {
    asked.retain(|(asked_at, _)| asked_at.elapsed() < ENDS_COUNT_FOR);
    let reached = |(place, end)| handled.get(place).is_some_and(|next| next >= end);
    asked.iter().any(|(_, ends)| ends.iter().all(reached))
}

/// How far the group has committed in each partition of its topics, and where each ends now. A
/// partition that never held anything counts as handled up to its end.
///
/// Whatever an idle client asks waits behind the fetch that is under way on the same connection, for
/// half a second: so each question is asked once, of all partitions.
fn progress(client: &StreamConsumer<Reports>) -> KafkaResult<(Ends, Ends)> {
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
    let asked = |which: Offset| {
        let mut all = all.clone();
        all.set_all_offsets(which)?;
        // By time, of which the beginning and the end are special cases.
        places(&client.offsets_for_times(all, ASKED_WITHIN)?)
    };
    let (begins, ends) = (asked(Offset::Beginning)?, asked(Offset::End)?);
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

/// What the client tells about itself, as metrics and log lines.
#[derive(Default)]
pub struct Reports {
    sayings: Sayings,
    /// The id of the cluster that the client found first.
    cluster: OnceLock<String>,
    assigned: std::sync::Mutex<Assigned>,
    /// The partitions that it has now. librdkafka itself calls others `desired` as well: whatever it was
    /// asked the offsets of.
    held: std::sync::Mutex<Held>,
}

type Held = HashMap<String, HashSet<i32>>;

fn total(held: &Held) -> usize {
    held.values().map(HashSet::len).sum()
}

/// The partitions that a client was ever given, each with the number of the assignment that gave it
/// last.
///
/// A record that was read under an earlier assignment than the present one may lie elsewhere by now:
/// its topic or its whole cluster may have been made anew meanwhile. To store its offset would have
/// the records below it, which are others, never be read. Whatever was not stored when a partition
/// was given again is read again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Assigned {
    partitions: Arc<HashMap<String, HashMap<i32, u64>>>,
    last: u64,
}

impl Assigned {
    /// The number of the assignment by which a partition is this client's.
    pub(crate) fn by(&self, topic: &str, partition: i32) -> Option<u64> {
        self.partitions.get(topic)?.get(&partition).copied()
    }

    fn give(&mut self, given: &TopicPartitionList) {
        self.last += 1;
        let partitions = Arc::make_mut(&mut self.partitions);
        for place in given.elements() {
            let of_topic = partitions.entry(place.topic().to_string()).or_default();
            of_topic.insert(place.partition(), self.last);
        }
    }
}

impl Reports {
    /// As it is now.
    pub(crate) fn assigned(&self) -> Assigned {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, given: &TopicPartitionList) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for place in given.elements() {
            held.entry(place.topic().to_string()).or_default().insert(place.partition());
        }
        if given.count() > 0 {
            info!("reads {} partitions more, {} in all", given.count(), total(&held));
        }
    }

    fn let_go(&self, taken: &TopicPartitionList) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for place in taken.elements() {
            if let Some(of_topic) = held.get_mut(place.topic()) {
                of_topic.remove(&place.partition());
            }
        }
        if taken.count() > 0 {
            info!("reads {} partitions less, {} in all", taken.count(), total(&held));
        }
    }

    fn assigned_by(&self, message: &impl Message) -> Option<u64> {
        let assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        assigned.by(message.topic(), message.partition())
    }
}

/// The id of the cluster that a client reads from; `None` while it can't be told.
pub(crate) async fn cluster(client: &Arc<StreamConsumer<Reports>>) -> Option<String> {
    let client = client.clone();
    let asked = move || {
        let first = &client.context().cluster;
        if first.get().is_none() {
            let id = client.client().fetch_cluster_id(ASKED_WITHIN)?;
            let _ = first.set(id);
        }
        first.get().cloned()
    };
    tokio::task::spawn_blocking(asked).await.ok().flatten()
}

/// Unsubscribes a client that has no partitions, so that it says that it leaves.
///
/// When it is only closed, it says so where it has partitions and not where it has none (librdkafka's
/// `rd_kafka_cgrp_revoke_all_rejoin`). The group goes on waiting for it, and what is to move stands still,
/// until its session ends: so it went with whoever was stopped right after it had come, or had nothing
/// to do.
pub(crate) async fn unsubscribed(client: &Arc<StreamConsumer<Reports>>) {
    let client = client.clone();
    let unsubscribe = move || {
        let without = client.assignment().is_ok_and(|own| own.count() == 0);
        if without {
            client.unsubscribe();
        }
        without
    };
    let unsubscribe = tokio::task::spawn_blocking(unsubscribe);
    if let Ok(Ok(true)) = tokio::time::timeout(UNSUBSCRIBED_AFTER, unsubscribe).await {
        tokio::time::sleep(UNSUBSCRIBED_AFTER).await;
    }
}

/// Why a client is of no more use, if that is so.
pub(crate) fn beyond_repair(client: &StreamConsumer<Reports>) -> Option<&'static str> {
    client.context().sayings.beyond_repair()
}

/// Whether that cluster is gone, and one that was made anew answers in its place.
pub(crate) fn was_replaced(client: &StreamConsumer<Reports>) -> bool {
    client.context().sayings.cluster_replaced()
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        self.sayings.say(level, kind, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.sayings.say(RDKafkaLogLevel::Error, &error.to_string(), text);
    }

    fn stats(&self, statistics: Statistics) {
        self.sayings.counted(&statistics);
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut fetches_all = true;
        for topic in statistics.topics.values() {
            let own = held.get(&topic.topic);
            let is_own = |of: &&Partition| own.is_some_and(|own| own.contains(&of.partition));
            let partitions = || topic.partitions.values().filter(is_own);
            let lag: i64 = partitions().map(lag).sum();
            gauge!("consumer_lag", "topic" => topic.topic.clone()).set(lag as f64);
            fetches_all &= partitions().all(is_fetched);
        }
        self.sayings.fetches_all(fetches_all);
    }
}

impl ConsumerContext for Reports {
    /// A partition that was paused when it went away comes back paused, and nobody else would
    /// resume it. Where there is still no room, the reader pauses it again.
    fn post_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        crash::point!("group.revoked", matches!(rebalance, Rebalance::Revoke(_)));
        if let Rebalance::Revoke(taken) = rebalance {
            self.let_go(taken);
        }
        if let Rebalance::Assign(given) = rebalance {
            self.assigned.lock().unwrap_or_else(PoisonError::into_inner).give(given);
            self.hold(given);
            if let Err(error) = client.resume(given) {
                warn!("newly assigned partitions could not be resumed: {error}");
            }
        }
    }
}

/// Whether a partition that a client has is fetched, or about to be. It is in none of these states but for
/// a moment: before it was ever fetched, and when it was taken away and is given again.
fn is_fetched(partition: &Partition) -> bool {
    !matches!(&*partition.fetch_state, "none" | "stopped")
}

/// How far behind a partition is that a client has. Before anything of it was handled here, that is as far
/// as the group had come; and all there is, where it had handled nothing.
fn lag(partition: &Partition) -> i64 {
    let Partition { consumer_lag_stored, consumer_lag, ls_offset, lo_offset, .. } = *partition;
    match (consumer_lag_stored, consumer_lag) {
        (stored, _) if stored >= 0 => stored,
        (_, committed) if committed >= 0 => committed,
        _ => (ls_offset - lo_offset).max(0),
    }
}

/// A record that was read ahead, with its share of the memory for such records.
pub(crate) struct Ahead {
    pub message: OwnedMessage,
    /// The assignment under which it was read.
    by: Option<u64>,
    pub memory: OwnedSemaphorePermit,
}

impl Ahead {
    /// Whether its partition was not given anew since it was read.
    pub(crate) fn is_of(&self, assigned: &Assigned) -> bool {
        self.by == assigned.by(self.message.topic(), self.message.partition())
    }
}

/// What a record takes up here, as far as there is room at all; all there is where that can't be told.
fn bytes_of(message: &OwnedMessage) -> usize {
    let of = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    let headers = route::headers(message).map_or(AHEAD_BYTES_MAX, |headers| {
        headers.iter().map(|header| header.key.len() + of(header.value)).sum()
    });
    (of(message.payload()) + of(message.key()) + headers).clamp(1, AHEAD_BYTES_MAX)
}

/// Reads ahead, up to a bound of records and of bytes. Where there is no room for long, fetching is
/// paused and the group goes on being polled: an outage of our database must not cost us our
/// partitions.
pub(crate) async fn read(client: Arc<StreamConsumer<Reports>>, ahead: mpsc::Sender<Ahead>) {
    let memory = Arc::new(Semaphore::new(AHEAD_BYTES_MAX));
    let mut unplaced = VecDeque::new();
    let mut paused = false;
    let mut said = (String::new(), Instant::now());
    loop {
        let received = |message: &BorrowedMessage<'_>| {
            (message.detach(), client.context().assigned_by(message))
        };
        let (message, by) = match unplaced.pop_front() {
            Some(received) => received,
            None => match tokio::time::timeout(LOOKED_EVERY, client.recv()).await {
                Err(_) => {
                    client.context().sayings.nothing_came();
                    continue;
                }
                Ok(Ok(message)) => received(&message),
                Ok(Err(error)) => {
                    // The client goes on by itself; one line says what it is waiting for.
                    let text = error.to_string();
                    if said.0 != text || said.1.elapsed() > SAID_EVERY {
                        warn!("reading waits: {text}");
                        said = (text, Instant::now());
                    }
                    continue;
                }
            },
        };
        let bytes = bytes_of(&message) as u32;
        let room =
            async { (memory.clone().acquire_many_owned(bytes).await, ahead.reserve().await) };
        match tokio::time::timeout(FULL_FOR_MAX, room).await {
            Ok((Ok(memory), Ok(place))) => {
                place.send(Ahead { message, by, memory });
                if paused && let Ok(assigned) = client.assignment() {
                    paused = client.resume(&assigned).is_err();
                }
            }
            Ok(_) => return,
            Err(_) => {
                unplaced.push_front((message, by));
                if let Ok(assigned) = client.assignment() {
                    paused = client.pause(&assigned).is_ok();
                }
                if let Ok(Ok(message)) = tokio::time::timeout(POLL, client.recv()).await {
                    unplaced.push_back(received(&message));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::statistics::{Broker, Topic};

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
            assert_eq!(has_reached(&ends(handled), &mut asked), reached, "{handled}");
        }
        let mut asked = vec![(now, ends(7))];
        assert!(!has_reached(&Ends::new(), &mut asked), "a partition that can't be told of");
    }

    #[test]
    fn what_was_never_handled_is_behind_by_what_there_is() {
        let of = |stored, committed| {
            let partition = Partition {
                consumer_lag_stored: stored,
                consumer_lag: committed,
                lo_offset: 10,
                ls_offset: 17,
                ..Partition::default()
            };
            lag(&partition)
        };
        assert_eq!([of(0, 5), of(3, 5), of(-1, 5), of(-1, -1)], [0, 3, 5, 7]);
    }

    /// What it was asked the offsets of, librdkafka wants as well, and never fetches.
    #[test]
    fn a_client_is_given_up_for_a_partition_that_it_has_and_does_not_fetch_and_for_no_other() {
        let given = |partitions: &[i32]| {
            let mut list = TopicPartitionList::new();
            for partition in partitions {
                list.add_partition("topic", *partition);
            }
            list
        };
        let seen = |reports: &Reports, state: &str| {
            let partition = |(partition, state): (i32, &str)| {
                let (desired, fetch_state) = (true, state.to_string());
                (partition, Partition { partition, desired, fetch_state, ..Partition::default() })
            };
            let partitions = [(0, "active"), (1, state)].map(partition).into();
            let topic = Topic { topic: "topic".into(), partitions, ..Topic::default() };
            let topics = [("topic".to_string(), topic)].into();
            let broker = Broker { source: "learned".into(), ..Broker::default() };
            let brokers = [("broker".to_string(), broker)].into();
            reports.stats(Statistics { topics, brokers, ..Statistics::default() });
            reports.sayings.beyond_repair().is_some()
        };
        let times = |reports: &Reports, state| [(); 4].map(|()| seen(reports, state));
        for state in ["none", "stopped"] {
            let reports = Reports::default();
            reports.hold(&given(&[0]));
            assert_eq!(times(&reports, state), [false; 4], "it is another one's");
            reports.hold(&given(&[1]));
            assert_eq!(times(&reports, state), [false, false, true, true], "{state}");
            assert!(!seen(&reports, "active"));
            reports.let_go(&given(&[1]));
            assert_eq!(times(&reports, state), [false; 4], "it was taken away");
        }
    }

    #[test]
    fn a_record_takes_up_its_key_and_its_headers_too() {
        let record = |payload: Option<Vec<u8>>, headers| {
            let (key, time) = (Some(vec![0; 30]), Timestamp::NotAvailable);
            bytes_of(&OwnedMessage::new(payload, key, "topic".into(), time, 0, 0, headers))
        };
        let headers = || {
            let value = Some(&[0; 1_000]);
            Some(OwnedHeaders::new().insert(Header { key: "name", value }))
        };
        assert_eq!(record(None, None), 30);
        assert_eq!(record(Some(vec![0; 200]), headers()), 1_234);
        assert_eq!(record(Some(vec![0; 2 * AHEAD_BYTES_MAX]), headers()), AHEAD_BYTES_MAX);
    }
}
