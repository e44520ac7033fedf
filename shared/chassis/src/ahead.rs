//! Reading ahead of the handlers.
//!
//! Promise: as long as the process lives it keeps its partitions, however long its own database is
//! away. It is broken by not polling while there is no room.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{error, warn};

use crate::group::{self, Ends};
use crate::member::{Assigned, Reports};
use crate::news::News;
use crate::offsets::{self, Read, STORED_EVERY};
use crate::route;

/// Memory of records that are read ahead or being handled, at most, keys and headers among them: records may
/// be a thousand times larger than events are.
const AHEAD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What each record and each header takes up beside its bytes, about: a stranger's record may have a hundred
/// thousand headers of two bytes.
const RECORD_BYTES: usize = 256;
const HEADER_BYTES: usize = 64;

/// After so long without room for another record, fetching is paused and the group is kept.
const FULL_FOR_MAX: Duration = Duration::from_secs(10);

/// How long a poll for the group's sake takes.
const POLL: Duration = Duration::from_millis(100);

/// How often to look whether something came, at least. librdkafka wakes us only when a record comes
/// into an empty queue: if one such wake-up is lost, in whichever layer, nothing more is read until
/// the crate looks by itself, after 150 s (its issues 665 and 848).
const LOOKED_EVERY: Duration = Duration::from_secs(1);

/// How long each of two questions may take by which the offsets of an assignment are validated.
const VALIDATED_WITHIN: Duration = Duration::from_secs(2);

/// How often what was resumed is resumed again, a look apart. librdkafka loses a resume that meets a
/// rebalance, and says that all went well (its issue 5591): that partition would never be read again. Where
/// nothing is paused another one does nothing; for ever, it would meet rebalances itself.
const RESUMED_AGAIN: u32 = 2;

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
        headers.iter().map(|header| HEADER_BYTES + header.key.len() + of(header.value)).sum()
    });
    (RECORD_BYTES + of(message.payload()) + of(message.key()) + headers).min(AHEAD_BYTES_MAX)
}

/// When all that a client has is to be resumed again.
struct Resumes {
    left: u32,
    /// The number of the assignment that was seen last.
    assignment: u64,
    looked_at: Instant,
}

impl Resumes {
    fn look(&mut self, client: &StreamConsumer<Reports>) {
        if self.looked_at.elapsed() < LOOKED_EVERY {
            return;
        }
        self.looked_at = Instant::now();
        let assignment = client.context().assignments();
        if self.assignment != assignment {
            (self.assignment, self.left) = (assignment, RESUMED_AGAIN);
        } else if self.left > 0 {
            self.left -= 1;
            let _ = resume(client);
        }
    }
}

fn resume(client: &StreamConsumer<Reports>) -> KafkaResult<()> {
    client.resume(&client.assignment()?)
}

/// What one client has read.
struct Reader {
    client: Arc<StreamConsumer<Reports>>,
    read: Read,
    /// The number of the last assignment whose offsets were validated.
    validated: u64,
    validated_at: Instant,
    stored_at: Instant,
}

impl Reader {
    fn of(client: Arc<StreamConsumer<Reports>>) -> Reader {
        let now = Instant::now();
        Reader { client, read: Read::default(), validated: 0, validated_at: now, stored_at: now }
    }

    /// Notes a record, and answers it with the assignment that it belongs to; `None` where it comes again.
    async fn note(
        &mut self,
        (message, by): (OwnedMessage, Option<u64>),
    ) -> Option<(OwnedMessage, Option<u64>)> {
        let Some(number) = by else { return Some((message, by)) };
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        let is_new = number > self.validated
            && !self.read.is_of(topic, partition, &self.client.context().assigned());
        if is_new && self.validate().await.contains(&(topic.to_string(), partition)) {
            return None;
        }
        let Some(before) = self.read.record(topic, partition, offset, number) else {
            return Some((message, by));
        };
        error!(
            "{topic}[{partition}] has lost its tail: {before} was next, and {offset} is there anew. What is \
             written there now is read; what was lost is not"
        );
        counter!("consumer_log_truncated_total", "topic" => topic.to_string()).increment(1);
        let number = self.client.context().lost_its_tail(topic, partition);
        let _ = self.read.record(topic, partition, offset, number);
        Some((message, Some(number)))
    }

    /// Has the client go to where the group had come in what was assigned, before anything of it is read:
    /// only where it is sent to an offset does it validate the offset's epoch, and not where it begins with
    /// one that was committed. Where the log has lost its tail it goes back to where that was cut. Answers
    /// the partitions that are read from there; where Kafka does not tell, it is tried again, as long as
    /// nothing of them was read.
    async fn validate(&mut self) -> HashSet<(String, i32)> {
        self.validated_at = Instant::now();
        let (last, assigned) =
            (self.client.context().assignments(), self.client.context().assigned());
        let mut new = TopicPartitionList::new();
        for place in self.client.assignment().iter().flat_map(TopicPartitionList::elements) {
            if !self.read.is_of(place.topic(), place.partition(), &assigned) {
                new.add_partition(place.topic(), place.partition());
            }
        }
        let client = self.client.clone();
        let asked = move || sought(&client, new);
        let Ok(Ok((at, all))) = tokio::task::spawn_blocking(asked).await else {
            return HashSet::new();
        };
        self.read.began(&at, |topic, partition| assigned.by(topic, partition));
        if all {
            self.validated = last;
        }
        at.into_keys().collect()
    }

    /// What is due between two records.
    async fn between(&mut self) {
        let is_new = self.client.context().assignments() > self.validated;
        if is_new && self.validated_at.elapsed() >= STORED_EVERY {
            self.validate().await;
        }
        if self.stored_at.elapsed() >= STORED_EVERY {
            offsets::store(&*self.client, Some(&self.read));
            self.stored_at = Instant::now();
        }
    }
}

/// Sends a client to where its group had come in these partitions; to the beginning where that is nowhere.
/// Answers where each of them is read from, and whether those are all: one whose fetching has not begun can't
/// be sent anywhere yet.
fn sought(client: &StreamConsumer<Reports>, new: TopicPartitionList) -> KafkaResult<(Ends, bool)> {
    let count = new.count();
    if count == 0 {
        return Ok((Ends::new(), true));
    }
    // The list has the epochs as well.
    let mut places = client.committed_offsets(new, VALIDATED_WITHIN)?;
    for mut place in places.elements() {
        if !matches!(place.offset(), Offset::Offset(_)) {
            place.set_offset(Offset::Beginning)?;
        }
    }
    places = client.seek_partitions(places, VALIDATED_WITHIN)?;
    let mut at = Ends::new();
    for place in places.elements() {
        if place.error().is_ok() {
            let offset = place.offset().to_raw().unwrap_or_default().max(0);
            at.insert((place.topic().to_string(), place.partition()), offset);
        }
    }
    let all = at.len() == count;
    Ok((at, all))
}

/// Reads ahead, up to a bound of records and of bytes. Where there is no room for long, fetching is
/// paused and the group goes on being polled: an outage of our database must not cost us our
/// partitions.
pub(crate) async fn read(client: Arc<StreamConsumer<Reports>>, ahead: mpsc::Sender<Ahead>) {
    let memory = Arc::new(Semaphore::new(AHEAD_BYTES_MAX));
    let mut unplaced = VecDeque::new();
    let mut paused = false;
    let mut resumes = Resumes { left: 0, assignment: 0, looked_at: Instant::now() };
    let mut news = News::default();
    let mut came_at = Instant::now();
    let mut reader = Reader::of(client.clone());
    loop {
        client.context().sayings.reader_came_round();
        if !paused {
            resumes.look(&client);
        }
        reader.between().await;
        let received = |message: &BorrowedMessage<'_>| {
            (message.detach(), client.context().assigned_by(message))
        };
        let (message, by) = match unplaced.pop_front() {
            Some(received) => received,
            None => match tokio::time::timeout(STORED_EVERY, client.recv()).await {
                Err(_) => {
                    if came_at.elapsed() >= LOOKED_EVERY {
                        came_at = Instant::now();
                        client.context().sayings.nothing_came();
                    }
                    continue;
                }
                Ok(Ok(message)) => {
                    came_at = Instant::now();
                    let received = received(&message);
                    let Some(received) = reader.note(received).await else { continue };
                    received
                }
                Ok(Err(error)) => {
                    // The client goes on by itself; one line says what it is waiting for.
                    let text = error.to_string();
                    if news.is_news("", &text) {
                        warn!("reading waits: {text}");
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
                if paused {
                    paused = resume(&client).is_err();
                    client.context().end_at(Ends::new());
                    (resumes.left, resumes.looked_at) = (RESUMED_AGAIN, Instant::now());
                }
            }
            Ok(_) => return,
            Err(_) => {
                unplaced.push_front((message, by));
                if let Ok(assigned) = client.assignment() {
                    paused = client.pause(&assigned).is_ok();
                    let of_it = client.clone();
                    // What comes meanwhile is behind too. Not waited for: the cluster may be away.
                    tokio::task::spawn_blocking(move || {
                        group::ends(&of_it, assigned).map(|ends| of_it.context().end_at(ends))
                    });
                }
                if let Ok(Ok(message)) = tokio::time::timeout(POLL, client.recv()).await {
                    let received = received(&message);
                    unplaced.extend(reader.note(received).await);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

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
        assert_eq!(record(None, None), RECORD_BYTES + 30);
        assert_eq!(record(Some(vec![0; 200]), headers()), RECORD_BYTES + HEADER_BYTES + 1_234);
        assert_eq!(record(Some(vec![0; 2 * AHEAD_BYTES_MAX]), headers()), AHEAD_BYTES_MAX);
    }
}
