//! What lies in the topics, once more: read again from an earlier place, or written a second time.
//! Either way nothing may change.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chassis::announce;
use chassis::event::{Retention, Topic};
use events::TOPICS;
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedMessage};
use rdkafka::producer::FutureRecord;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::client::Client;
use crate::strangers::{self, KEY};
use crate::topics::{self, headers, reader, watermarks};

const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// Records written again at a time: a producer's queue is bounded.
const SENT_TOGETHER: usize = 1_000;

/// Everything that a service knows, as one hash a table.
pub async fn known(client: &Client, service: &str) -> Result<BTreeMap<String, String>> {
    let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "select tablename::text from pg_tables
         where schemaname = 'public' and tablename not in ('_sqlx_migrations', 'idempotency_keys')",
    )
    .fetch_all(&mut db)
    .await?;
    let mut known = BTreeMap::new();
    for table in tables {
        // Of each row a hash, and of those one: all rows in one text would be too long.
        let sql = format!(
            "select count(*) || ' ' || coalesce(md5(string_agg(hash, '' order by hash)), '')
             from (select md5(row::text) as hash from \"{table}\" as row) as hashes"
        );
        let hash = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut db).await?;
        known.insert(format!("{service}.{table}"), hash);
    }
    Ok(known)
}

/// How many records a service has still to read.
pub async fn behind(client: &Client, service: &'static str) -> Result<i64> {
    Ok(places(client, service).await?.iter().map(|(next, high)| high - next).sum())
}

/// Of each partition that a service reads, the offset of the first record that its group has not handled
/// yet, and the high watermark.
pub async fn places(client: &Client, service: &'static str) -> Result<Vec<(i64, i64)>> {
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let group = reader(&kafka, service)?;
        let topics = TOPICS.iter().filter(|topic| topic.subscribers.contains(&service));
        let places = topics.map(|topic| topics::behind(&group, topic.name));
        Ok(places.collect::<Result<Vec<_>>>()?.concat())
    })
    .await?
}

/// Sets the group of a stopped service back, by so many records of each partition at most.
pub async fn rewind(client: &Client, service: &'static str, records: i64) -> Result<()> {
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let group = reader(&kafka, service)?;
        let mut places = TopicPartitionList::new();
        for topic in TOPICS.iter().filter(|topic| topic.subscribers.contains(&service)) {
            let watermarks = watermarks(&group, topic.name)?;
            let mut asked = TopicPartitionList::new();
            (0..).zip(&watermarks).for_each(|(partition, _)| {
                asked.add_partition(topic.name, partition);
            });
            let committed = group.committed_offsets(asked, ANSWERED_WITHIN)?;
            for place in committed.elements() {
                let (low, high) = watermarks[usize::try_from(place.partition())?];
                // What it has not handled yet stays unhandled: a place is only ever moved back.
                let next = match place.offset() {
                    Offset::Offset(next) => next.clamp(low, high),
                    _ => low,
                };
                let back = Offset::Offset(low.max(next.saturating_sub(records)));
                places.add_partition_offset(topic.name, place.partition(), back)?;
            }
        }
        group.commit(&places, CommitMode::Sync)?;
        Ok(())
    })
    .await?
}

/// How far a stopped service had read a topic that is kept from it for now.
pub struct Held {
    service: &'static str,
    places: TopicPartitionList,
}

/// Keeps what lies in a topic from a stopped service: it goes on behind it, and reads everything
/// else, until it is released.
pub async fn hold(client: &Client, service: &'static str, topic: &'static Topic) -> Result<Held> {
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let group = reader(&kafka, service)?;
        let (mut behind, mut asked) = (TopicPartitionList::new(), TopicPartitionList::new());
        for (partition, (_, high)) in (0..).zip(watermarks(&group, topic.name)?) {
            asked.add_partition(topic.name, partition);
            behind.add_partition_offset(topic.name, partition, Offset::Offset(high))?;
        }
        let places = group.committed_offsets(asked, ANSWERED_WITHIN)?;
        for mut place in places.elements() {
            if !matches!(place.offset(), Offset::Offset(_)) {
                place.set_offset(Offset::Offset(0))?;
            }
        }
        group.commit(&behind, CommitMode::Sync)?;
        Ok(Held { service, places })
    })
    .await?
}

/// Lets a stopped service have what was kept from it.
pub async fn release(client: &Client, held: Held) -> Result<()> {
    let kafka = client.addresses.kafka.clone();
    let Held { service, places } = held;
    tokio::task::spawn_blocking(move || {
        Ok(reader(&kafka, service)?.commit(&places, CommitMode::Sync)?)
    })
    .await?
}

pub fn admin(client: &Client) -> Result<AdminClient<DefaultClientContext>> {
    let admin = ClientConfig::new().set("bootstrap.servers", &client.addresses.kafka).create()?;
    Ok(admin)
}

/// Has Kafka forget how far a stopped service had read.
pub async fn forget(client: &Client, service: &str) -> Result<()> {
    let options = AdminOptions::new().request_timeout(Some(ANSWERED_WITHIN));
    for deleted in admin(client)?.delete_groups(&[service], &options).await? {
        if let Err((group, error)) = deleted {
            bail!("the offsets of {group} stay: {error}");
        }
    }
    Ok(())
}

/// Tells a record that is written again from one that a relay sent again.
const COPY: &str = "copy";

/// Writes the newest records of every topic again, each once to three times, in their order within a
/// partition, so that of a compacted topic the newest of a key stays the newest. What is none of
/// ours is left out. Answers how many events of orders were written that had not been announced
/// again: those that look as if a relay had sent them twice, but for a header.
pub async fn reproduce(client: &Client, newest: i64) -> Result<u64> {
    reproduce_drawn(client, newest, &mut StdRng::from_os_rng()).await
}

/// The same, how often each is written drawn by these lots.
pub async fn reproduce_drawn(client: &Client, newest: i64, lots: &mut StdRng) -> Result<u64> {
    let producer = strangers::producer(client)?;
    let mut written = 0;
    for topic in TOPICS {
        let kafka = client.addresses.kafka.clone();
        let records = tokio::task::spawn_blocking(move || last_of(&kafka, topic.name, newest));
        let records = records.await??;
        for together in records.chunks(SENT_TOGETHER) {
            // Queued in this order, of which each partition keeps its own.
            let mut sent = Vec::with_capacity(together.len() * 2);
            for record in together {
                let times = lots.random_range(1..=3);
                sent.extend(std::iter::repeat_n(record, times));
                written += if is_sent_once(topic, record) { times as u64 } else { 0 };
            }
            let sent = sent.into_iter();
            let sent: Vec<_> = sent
                .map(|record| {
                    let headers = record.headers().cloned().unwrap_or_default();
                    let headers = headers.insert(Header { key: COPY, value: Some("again") });
                    let mut again = FutureRecord::to(topic.name)
                        .partition(record.partition())
                        .payload(record.payload().unwrap_or_default())
                        .headers(headers);
                    again.key = record.key();
                    producer.send_result(again).map_err(|(error, _)| error)
                })
                .collect::<Result<_, KafkaError>>()?;
            let landed = try_join_all(sent).await.context("a producer that went away")?;
            landed
                .into_iter()
                .try_for_each(|landed| landed.map(drop).map_err(|(error, _)| error))?;
        }
    }
    Ok(written)
}

/// How many records lie in the topics that were written again, and that look as if a relay had sent
/// them twice. Those of a fault that was broken off are among them.
pub async fn copies(client: &Client) -> Result<u64> {
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let mut copies = 0;
        for topic in TOPICS {
            newest_of(&kafka, topic.name, i64::MAX, |record| {
                copies += u64::from(has(record, COPY) && is_sent_once(topic, record));
            })?;
        }
        Ok(copies)
    })
    .await?
}

/// Whether a record's event is one of an order's, which a relay sends once, and that nobody had
/// announced again.
fn is_sent_once(topic: &Topic, record: &impl Message) -> bool {
    let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
    let trace = announce::traceparent(&key);
    let is_announced = header(record, "traceparent").is_some_and(|of| of == trace.as_bytes());
    topic.retention != Retention::Compact && !is_announced
}

/// Of a record whose headers can't be read, none.
fn header<'a>(record: &'a impl Message, name: &str) -> Option<&'a [u8]> {
    headers(record)?.into_iter().find(|header| header.key == name)?.value
}

fn has(record: &impl Message, name: &str) -> bool {
    header(record, name).is_some()
}

/// The newest events of a topic, in order of their places.
fn last_of(kafka: &str, topic: &str, newest: i64) -> Result<Vec<OwnedMessage>> {
    let mut records = Vec::new();
    newest_of(kafka, topic, newest, |record| {
        if record.key() != Some(KEY.as_bytes()) && has(record, "ce_id") {
            records.push(record.detach());
        }
    })?;
    Ok(records)
}

/// Goes through the newest records of a topic, so many at most.
fn newest_of(
    kafka: &str,
    topic: &str,
    newest: i64,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<()> {
    let consumer = reader(kafka, "replays")?;
    let watermarks = watermarks(&consumer, topic)?;
    let of_partition = newest.div_euclid(i64::try_from(watermarks.len())?).max(1);
    let mut places = TopicPartitionList::new();
    let mut open = HashSet::new();
    for (partition, (low, high)) in (0..).zip(&watermarks) {
        if low < high {
            let from = Offset::Offset((*low).max(high - of_partition));
            places.add_partition_offset(topic, partition, from)?;
            open.insert(partition);
        }
    }
    consumer.assign(&places)?;
    while !open.is_empty() {
        match consumer.poll(ANSWERED_WITHIN) {
            Some(Ok(record)) => each(&record),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(error.into()),
            None => bail!("Kafka is silent"),
        }
    }
    Ok(())
}
