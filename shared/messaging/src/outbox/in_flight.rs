//! The records in flight: how many there may be, of which keys and topics, and which of their rows the
//! broker has acknowledged.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use metrics::{Counter, Histogram, counter, histogram};

use crate::outbox::producer::{Client, InFlight};

const IN_FLIGHT_MAX: usize = 8_000;

/// Records of one topic in flight, at most: a topic that stalls must leave room for the others.
const TOPIC_IN_FLIGHT_MAX: usize = 2_000;

/// A topic that takes no more records is stalled if its oldest record has been in flight for so long. If a single
/// partition has no leader, records of the other partitions are still acknowledged.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Acknowledged rows are deleted once there are this many. A poll that deletes is a commit and waits for the disk;
/// a poll that only reads is faster, and new events wait for it. Until a row is deleted, the next active relay
/// sends it once more.
pub const DELETE_BATCH_MIN: usize = 64;

/// Fewer rows are deleted by the first poll after this delay, which begins when the first of them is acknowledged.
pub const DELETE_DELAY_MAX: Duration = Duration::from_millis(100);

pub struct InFlightRecords {
    /// The keys of the records in flight, one record each.
    keys: HashSet<String>,
    topics: HashMap<String, TopicInFlight>,
    /// When the last delivery report arrived, or a record was sent while none was in flight.
    pub last_delivery_at: Instant,
    /// Positions of rows that were acknowledged and are not deleted yet.
    acknowledged: Vec<i64>,
    first_acknowledged_at: Instant,
}

struct TopicInFlight {
    /// By the time at which a record was sent, and the position of its row.
    in_flight: BTreeSet<(Instant, i64)>,
    /// The client that sent all of them.
    client: Client,
    published: Counter,
    wait_time: Histogram,
}

impl TopicInFlight {
    fn new(topic: &str) -> TopicInFlight {
        TopicInFlight {
            in_flight: BTreeSet::new(),
            client: Client::Batching,
            published: counter!("events_published_total", "topic" => topic.to_string()),
            wait_time: histogram!("outbox_wait_seconds", "topic" => topic.to_string()),
        }
    }

    fn is_full(&self) -> bool {
        self.in_flight.len() >= TOPIC_IN_FLIGHT_MAX
    }

    fn is_stalled(&self) -> bool {
        let takes_batches = !self.is_full() && self.client == Client::Batching;
        let oldest = self.in_flight.first();
        !takes_batches && oldest.is_some_and(|(sent_at, _)| sent_at.elapsed() > STALL_TIMEOUT)
    }

    /// See [`InFlightRecords::client_for`].
    fn client_for(&self, is_alone: bool) -> Option<Client> {
        match self.client {
            _ if self.is_full() => None,
            _ if self.in_flight.is_empty() => Some(Client::for_rows(is_alone)),
            Client::Batching => Some(Client::Batching),
            Client::Prompt => is_alone.then_some(Client::Prompt),
        }
    }
}

impl InFlightRecords {
    pub(super) fn new() -> InFlightRecords {
        InFlightRecords {
            keys: HashSet::new(),
            topics: HashMap::new(),
            last_delivery_at: Instant::now(),
            acknowledged: Vec::new(),
            first_acknowledged_at: Instant::now(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.keys.len() >= IN_FLIGHT_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.keys.iter()
    }

    pub(super) fn contains_key(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// The client for the next record of a topic, or none if it must wait for a delivery report. All records of a
    /// topic in flight are of one client: a recreated cluster gives the producer ids of both clients out again, so
    /// it could write a record of one client and then take a record of the other for its duplicate.
    pub fn client_for(&self, topic: &str, is_alone: bool) -> Option<Client> {
        let topic = self.topics.get(topic);
        topic.map_or(Some(Client::for_rows(is_alone)), |of| of.client_for(is_alone))
    }

    /// Topics that take no more records, whose oldest record has been in flight for too long.
    pub(super) fn stalled_topics(&self) -> impl Iterator<Item = &String> {
        self.topics.iter().filter(|(_, of)| of.is_stalled()).map(|(topic, _)| topic)
    }

    /// How long no delivery report has arrived while records are in flight.
    pub(super) fn silent_for(&self) -> Duration {
        if self.is_empty() { Duration::ZERO } else { self.last_delivery_at.elapsed() }
    }

    pub(super) fn on_sent(&mut self, topic: &str, key: &str, client: Client, sent: (Instant, i64)) {
        if self.keys.is_empty() {
            self.last_delivery_at = Instant::now();
        }
        self.keys.insert(key.to_owned());
        if !self.topics.contains_key(topic) {
            self.topics.insert(topic.to_owned(), TopicInFlight::new(topic));
        }
        let topic = self.topics.get_mut(topic).expect("it is there now");
        topic.client = client;
        topic.in_flight.insert(sent);
    }

    /// Removes a record from those in flight, whether it was written or not.
    pub(super) fn on_delivery(&mut self, flight: &InFlight) {
        self.keys.remove(&flight.key);
        self.last_delivery_at = Instant::now();
        let topic = self.topics.get_mut(&flight.topic).expect("its topic is noted when it is sent");
        topic.in_flight.remove(&(flight.sent_at, flight.position));
    }

    /// Records that a record was written; `wait_time` is the time since its event was decided.
    pub(super) fn on_persisted(&mut self, flight: &InFlight, wait_time: Duration) {
        if let Some(topic) = self.topics.get(&flight.topic) {
            topic.wait_time.record(wait_time);
            topic.published.increment(1);
        }
        if self.acknowledged.is_empty() {
            self.first_acknowledged_at = Instant::now();
        }
        self.acknowledged.push(flight.position);
    }

    pub(super) fn acknowledged(&self) -> &Vec<i64> {
        &self.acknowledged
    }

    pub(super) fn on_deleted(&mut self) {
        self.acknowledged.clear();
    }

    /// Whether the acknowledged rows are to be deleted now: there are enough of them, the first of them is
    /// old enough, or the poll reads no rows, so that the delete is all that it does.
    pub(super) fn should_delete(&self, row_limit: usize) -> bool {
        !self.acknowledged.is_empty()
            && (row_limit == 0
                || self.acknowledged.len() >= DELETE_BATCH_MIN
                || self.first_acknowledged_at.elapsed() > DELETE_DELAY_MAX)
    }
}
