//! The topics as they lie in Kafka: every record from the first to the high watermark, read without
//! the chassis's consumer. What each one says is told by [`crate::said`].

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chassis::announce;
use chassis::avro::unframe;
use chassis::event::Topic;
use chrono::{DateTime, Utc};
use events::TOPICS;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message};
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::balances::Described;
use crate::client::Client;
use crate::facts::{self, Fact, Foreign, Place};
use crate::said::{What, Writer, said};

const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// After so long without a record, before the high watermark, something is wrong.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// How well the clocks of machines that run brokers are set, at least.
const CLOCKS_APART: Duration = Duration::from_millis(500);

/// What lies in all topics.
#[derive(Default)]
pub struct Log {
    pub records: u64,
    /// Of them, those that an operator had announced again.
    pub announced: u64,
    pub facts: Vec<Fact>,
    /// Events of topics that are no part of an order's saga: a fork's own.
    pub others: Vec<Fact>,
    /// The newest record of each item, and the events of all.
    pub items: HashMap<String, (Uuid, Described)>,
    pub item_events: HashSet<Uuid>,
    /// Records of items that first arrived after one that was made later.
    pub overtaken: Vec<(Place, String)>,
    pub foreign: Vec<Foreign>,
    /// What is wrong with the envelopes of records that otherwise say what they are.
    pub faults: Vec<(Place, String)>,
    /// Of the places asked for, those that hold no record.
    pub missing: HashSet<Place>,
}

/// A client of Kafka that belongs to no group of ours.
pub fn reader(kafka: &str, group: &str) -> Result<BaseConsumer> {
    let consumer = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        .set("isolation.level", "read_uncommitted")
        .set("allow.auto.create.topics", "false")
        .set_log_level(RDKafkaLogLevel::Critical)
        .create()?;
    Ok(consumer)
}

/// How many partitions a topic has.
pub fn partitions(client: &BaseConsumer, topic: &str) -> Result<i32> {
    let metadata = client.fetch_metadata(Some(topic), REQUEST_WITHIN)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    ensure!(partitions > 0, "there is no topic {topic}");
    Ok(i32::try_from(partitions)?)
}

/// The high watermarks of a topic's partitions, by their number.
pub fn watermarks(client: &BaseConsumer, topic: &str) -> Result<Vec<(i64, i64)>> {
    let partitions = partitions(client, topic)?;
    let of = |partition| Ok(client.fetch_watermarks(topic, partition, REQUEST_WITHIN)?);
    (0..partitions).map(of).collect()
}

/// How many records of a topic a group has not handled yet.
pub fn lag(group: &BaseConsumer, topic: &str) -> Result<i64> {
    Ok(behind(group, topic)?.iter().map(|(next, high)| high - next).sum())
}

/// Of each partition, the offset of the first record that a group has not handled yet, and the high
/// watermark.
pub fn behind(group: &BaseConsumer, topic: &str) -> Result<Vec<(i64, i64)>> {
    let watermarks = watermarks(group, topic)?;
    let mut places = TopicPartitionList::new();
    for partition in 0..watermarks.len() {
        places.add_partition(topic, i32::try_from(partition)?);
    }
    let committed = group.committed_offsets(places, REQUEST_WITHIN)?;
    let committed = committed.elements();
    let behind = committed.iter().map(|place| {
        let (low, high) = watermarks[usize::try_from(place.partition()).unwrap_or(0)];
        match place.offset() {
            Offset::Offset(next) => (next.max(low), high),
            _ => (low, high),
        }
    });
    Ok(behind.collect())
}

pub fn cluster_id(client: &BaseConsumer) -> Result<String> {
    client.client().fetch_cluster_id(REQUEST_WITHIN).context("Kafka does not tell its cluster's id")
}

/// How far the times of arrival of two brokers may be apart: not at all where they share a machine.
pub fn clocks_apart(client: &BaseConsumer) -> Result<Duration> {
    let metadata = client.fetch_metadata(None, REQUEST_WITHIN)?;
    let machines: HashSet<&str> = metadata.brokers().iter().map(|broker| broker.host()).collect();
    Ok(if machines.len() > 1 { CLOCKS_APART } else { Duration::ZERO })
}

/// A record's headers; `None` where the name of one is no text. Kafka takes any bytes for a name,
/// and the client's library panics over those that are not UTF-8. That is caught here, so whoever
/// wants to read a header asks here.
pub fn headers(message: &impl Message) -> Option<Vec<Header<'_, &[u8]>>> {
    let headers = message.headers();
    let read = || headers.into_iter().flat_map(Headers::iter).collect();
    catch_unwind(AssertUnwindSafe(read)).ok()
}

/// Reads every topic. `letters` are places of which is asked whether a record lies there.
pub async fn read_all(client: &Client, letters: HashSet<Place>) -> Result<Log> {
    let (client, handle) = (client.clone(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let mut reading = Reading {
            log: Log { missing: letters, ..Log::default() },
            writers: HashMap::new(),
            client,
            handle,
        };
        for topic in TOPICS {
            reading.topic(topic).with_context(|| format!("reading {}", topic.name))?;
        }
        Ok(reading.log)
    })
    .await?
}

struct Reading {
    log: Log,
    /// By schema id, as the registry has them; `None` where it has none.
    writers: HashMap<u32, Option<Writer>>,
    client: Client,
    handle: Handle,
}

impl Reading {
    fn topic(&mut self, topic: &'static Topic) -> Result<()> {
        let consumer = reader(&self.client.addresses.kafka, "verify")?;
        let watermarks = watermarks(&consumer, topic.name)?;
        let number = facts::topic_number(topic);
        let mut assigned = TopicPartitionList::new();
        let mut open = HashSet::new();
        for (partition, (low, high)) in (0..).zip(&watermarks) {
            if low < high {
                assigned.add_partition_offset(topic.name, partition, Offset::Offset(*low))?;
                open.insert(partition);
            }
        }
        consumer.assign(&assigned)?;
        while !open.is_empty() {
            let message = match consumer.poll(SILENT_MAX) {
                Some(Ok(message)) => message,
                // Also where the last record was compacted away.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                    continue;
                }
                Some(Err(error)) => return Err(error.into()),
                None => bail!("Kafka is silent"),
            };
            let partition = message.partition();
            let (_, high) = watermarks[usize::try_from(partition)?];
            if message.offset() + 1 >= high {
                open.remove(&partition);
            }
            // What came after we looked may be half of something.
            if message.offset() < high {
                let place = Place { topic: number, partition, offset: message.offset() };
                self.record(topic, place, &message)?;
            }
        }
        let below = |place: &Place| {
            let (low, _) = watermarks[usize::try_from(place.partition).unwrap_or(0)];
            place.topic == number && place.offset < low
        };
        self.log.missing.retain(|place| !below(place));
        Ok(())
    }

    fn record(
        &mut self,
        topic: &'static Topic,
        place: Place,
        message: &impl Message,
    ) -> Result<()> {
        self.log.records += 1;
        self.log.missing.remove(&place);
        if let Some(Ok((id, _))) = message.payload().map(unframe) {
            self.learn(id)?;
        }
        match self.read(topic, place, message) {
            Ok(Record::Fact(fact)) => self.log.facts.push(fact),
            Ok(Record::Other(fact)) => self.log.others.push(fact),
            Ok(Record::Item(event_id, item)) => self.item(place, event_id, item),
            Err(reason) => {
                let hash = Sha256::digest(message.payload().unwrap_or_default()).into();
                self.log.foreign.push(Foreign { place, hash, reason });
            }
        }
        Ok(())
    }

    /// An item's versions first arrive in ascending order; a repeat may come later.
    fn item(&mut self, place: Place, event_id: Uuid, item: Described) {
        let is_first = self.log.item_events.insert(event_id);
        let newest = self.log.items.get(&item.sku);
        if let Some((_, newest)) = newest.filter(|(_, newest)| newest.version > item.version)
            && is_first
        {
            let what = format!("version {} came before {}", newest.version, item.version);
            self.log.overtaken.push((place, what));
        }
        self.log.items.insert(item.sku.clone(), (event_id, item));
    }

    /// Asks the registry for a schema, once.
    fn learn(&mut self, id: u32) -> Result<()> {
        if self.writers.contains_key(&id) {
            return Ok(());
        }
        let url = format!("{}/schemas/ids/{id}", self.client.addresses.registry);
        let asked = self.handle.block_on(self.client.send(reqwest::Method::GET, &url, None, None));
        let answer = asked.context("the registry does not answer")?;
        let writer = match answer.status {
            200 => {
                let found: Json = answer.json()?;
                let text =
                    found["schema"].as_str().context("the registry's answer has no schema")?;
                Some(Writer::new(text)?)
            }
            404 => None,
            // A registry may be at a loss over an id that no schema could have.
            _ if i32::try_from(id).is_err() => None,
            _ => bail!("the registry says {answer} to schema {id}"),
        };
        self.writers.insert(id, writer);
        Ok(())
    }

    /// What a record says, or why it is none of ours.
    fn read(
        &mut self,
        topic: &'static Topic,
        place: Place,
        message: &impl Message,
    ) -> Result<Record, String> {
        let payload = message.payload().ok_or("it is empty")?;
        let (id, body) = unframe(payload).map_err(|error| error.0)?;
        let writer =
            self.writers[&id].as_ref().ok_or(format!("the registry has no schema {id}"))?;
        let key = message.key().map(String::from_utf8_lossy);
        let said = said(topic, writer, body, key.as_deref().unwrap_or_default())?;
        let headers = headers(message).ok_or("the name of a header is no text")?;
        let header = |name| {
            let header = headers.iter().find(|header| header.key == name)?;
            std::str::from_utf8(header.value?).ok()
        };
        let event_id = header("ce_id").ok_or("it has no ce_id")?;
        let event_id = Uuid::parse_str(event_id).map_err(|_| "its ce_id is no UUID")?;

        let source = format!("/{}", topic.publisher);
        let mut fault = |holds: bool, what: String| {
            if !holds {
                self.log.faults.push((place, what));
            }
        };
        fault(
            key.as_deref() == Some(said.key()),
            format!("its key is {key:?}, not {}", said.key()),
        );
        for (name, value) in [
            ("ce_specversion", "1.0"),
            ("ce_type", topic.name),
            ("ce_source", &source),
            ("content-type", "application/avro"),
        ] {
            let is = header(name);
            fault(is == Some(value), format!("{name} is {is:?}, not {value}"));
        }
        let time = header("ce_time").and_then(|time| time.parse::<DateTime<Utc>>().ok());
        fault(
            time == Some(said.occurred_at),
            format!("ce_time is {time:?}, not {}", said.occurred_at),
        );
        // An announced event has the trace that is made from its key, and no other has that one.
        let announced = header("traceparent") == Some(&*announce::traceparent(said.key()));
        let trace = header("traceparent").and_then(trace_id);
        fault(trace.is_some(), format!("its traceparent is {:?}", header("traceparent")));
        // What the order of arrival is told by; the publisher's own clock would tell when it was sent.
        let appended = message.timestamp();
        let is_brokers = matches!(appended, Timestamp::LogAppendTime(_));
        fault(is_brokers, format!("its time is not the broker's: {appended:?}"));
        let trace = facts::hash(&trace);
        self.log.announced += u64::from(announced);
        let appended_ms = appended.to_millis().unwrap_or_default();
        let fact = |order_id, content| Fact {
            order_id,
            event_id,
            place,
            content,
            trace,
            appended_ms,
            announced,
        };
        Ok(match said.what {
            What::Order(order_id, content, _) => Record::Fact(fact(order_id, content)),
            What::Item(item) => Record::Item(event_id, item),
            What::Other(_) => Record::Other(fact(Uuid::nil(), facts::hash(body))),
        })
    }
}

enum Record {
    Fact(Fact),
    Other(Fact),
    Item(Uuid, Described),
}

/// The trace's id of a W3C `traceparent`, if it is one.
fn trace_id(traceparent: &str) -> Option<&str> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return None;
    };
    let hex = |text: &str, length| {
        text.len() == length
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let fits = version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    let set = |text: &str| text.bytes().any(|b| b != b'0');
    (fits && set(trace) && set(span)).then_some(trace)
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
