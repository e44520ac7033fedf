//! Redelivery: records are read again from an earlier offset, or written a second time. Neither may
//! change anything (I7).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chassis::admin::republish;
use chassis::event::{Retention, Topic};
use checker::kafka::{self, create_consumer, headers, watermarks};
use events::TOPICS;
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedMessage};
use rdkafka::producer::FutureRecord;
use rdkafka::{Offset, TopicPartitionList};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::client::http_client::Client;
use crate::client::kafka::{admin_client, create_producer};
use crate::client::sample_events::POISON_KEY;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Records written at a time, since a producer's queue is bounded.
const SEND_BATCH_MAX: usize = 1_000;

/// The state of a service, as one hash a table.
pub async fn table_hashes(client: &Client, service: &str) -> Result<BTreeMap<String, String>> {
    let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables
         where schemaname in ('public', 'chassis')
           and tablename not in ('_sqlx_migrations', 'migrations', 'idempotency_keys', 'consumer_positions')",
    )
    .fetch_all(&mut db)
    .await?;
    let mut known = BTreeMap::new();
    for table in tables {
        // A hash of the hashes of the rows, since one text of all rows would be too long.
        let sql = format!(
            "select count(*) || ' ' || coalesce(md5(string_agg(hash, '' order by hash)), '')
             from (select md5(row::text) as hash from {table} as row) as hashes"
        );
        let hash = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut db).await?;
        known.insert(format!("{service}.{table}"), hash);
    }
    Ok(known)
}

/// The number of records that a service has not handled.
pub async fn consumer_lag(client: &Client, service: &'static str) -> Result<i64> {
    Ok(group_positions(client, service).await?.iter().map(|(next, high)| high - next).sum())
}

/// For each partition that a service reads: the offset of the first record that its group has not
/// handled, and the high watermark.
pub async fn group_positions(client: &Client, service: &'static str) -> Result<Vec<(i64, i64)>> {
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let group = create_consumer(&kafka, service)?;
        let topics = TOPICS.iter().filter(|topic| topic.subscribers.contains(&service));
        let positions = topics.map(|topic| kafka::group_positions(&group, topic.name));
        Ok(positions.collect::<Result<Vec<_>>>()?.concat())
    })
    .await?
}

/// Rewinds the group of a stopped service by at most this number of records of each partition.
pub async fn reset_offsets(client: &Client, service: &'static str, records: i64) -> Result<()> {
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let group = create_consumer(&kafka, service)?;
        let mut positions = TopicPartitionList::new();
        for topic in TOPICS.iter().filter(|topic| topic.subscribers.contains(&service)) {
            let watermarks = watermarks(&group, topic.name)?;
            let mut asked = TopicPartitionList::new();
            (0..).zip(&watermarks).for_each(|(partition, _)| {
                asked.add_partition(topic.name, partition);
            });
            let committed = group.committed_offsets(asked, REQUEST_TIMEOUT)?;
            for position in committed.elements() {
                let (low, high) = watermarks[usize::try_from(position.partition())?];
                // An unhandled record stays unhandled: an offset only moves back.
                let next = match position.offset() {
                    Offset::Offset(next) => next.clamp(low, high),
                    _ => low,
                };
                let back = Offset::Offset(low.max(next.saturating_sub(records)));
                positions.add_partition_offset(topic.name, position.partition(), back)?;
            }
        }
        group.commit(&positions, CommitMode::Sync)?;
        Ok(())
    })
    .await?
}

/// The offsets of a stopped service in a withheld topic.
pub struct WithheldTopic {
    service: &'static str,
    positions: TopicPartitionList,
}

/// Withholds a topic from a stopped service: it skips the records of that topic and reads all
/// others, until [`release`] restores the offsets. A committed offset alone would not skip them.
pub async fn withhold(
    client: &Client,
    service: &'static str,
    topic: &'static Topic,
) -> Result<WithheldTopic> {
    let skip = "insert into chassis.rewinds (topic, to_offset, reason) values ($1, $2, 'withheld')";
    let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
    sqlx::query(skip).bind(topic.name).bind(i64::MAX).execute(&mut db).await?;
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let group = create_consumer(&kafka, service)?;
        let mut asked = TopicPartitionList::new();
        for (partition, _) in (0..).zip(watermarks(&group, topic.name)?) {
            asked.add_partition(topic.name, partition);
        }
        let positions = group.committed_offsets(asked, REQUEST_TIMEOUT)?;
        for mut position in positions.elements() {
            if !matches!(position.offset(), Offset::Offset(_)) {
                position.set_offset(Offset::Offset(0))?;
            }
        }
        Ok(WithheldTopic { service, positions })
    })
    .await?
}

/// Restores the offsets of a withheld topic.
pub async fn release(client: &Client, held: WithheldTopic) -> Result<()> {
    let kafka = client.addresses.kafka.clone();
    let WithheldTopic { service, positions } = held;
    tokio::task::spawn_blocking(move || {
        Ok(create_consumer(&kafka, service)?.commit(&positions, CommitMode::Sync)?)
    })
    .await?
}

/// Deletes the offsets of a stopped service.
pub async fn delete_offsets(client: &Client, service: &str) -> Result<()> {
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    for deleted in admin_client(client)?.delete_groups(&[service], &options).await? {
        if let Err((group, error)) = deleted {
            bail!("the offsets of {group} could not be deleted: {error}");
        }
    }
    Ok(())
}

/// Marks a record that is written again here, unlike one that a relay sent again.
const COPY_HEADER: &str = "copy";

/// Writes the newest records of every topic again, each once to three times, in their order within
/// a partition. So the newest record of a key stays the newest in a compacted topic. Unknown
/// records are skipped. Returns the number of events of orders written that were not republished:
/// without the header they would look like duplicates of a relay.
pub async fn produce_again(client: &Client, newest: i64) -> Result<u64> {
    produce_again_with_rng(client, newest, &mut StdRng::from_os_rng()).await
}

/// Like [`produce_again`], with a given random generator.
pub async fn produce_again_with_rng(client: &Client, newest: i64, rng: &mut StdRng) -> Result<u64> {
    let producer = create_producer(client)?;
    let mut written = 0;
    for topic in TOPICS {
        let kafka = client.addresses.kafka.clone();
        let records =
            tokio::task::spawn_blocking(move || newest_records(&kafka, topic.name, newest));
        let records = records.await??;
        for together in records.chunks(SEND_BATCH_MAX) {
            // Queued in this order, which each partition keeps.
            let mut sent = Vec::with_capacity(together.len() * 2);
            for record in together {
                let times = rng.random_range(1..=3);
                sent.extend(std::iter::repeat_n(record, times));
                written += if is_relayed_once(topic, record) { times as u64 } else { 0 };
            }
            let sent = sent.into_iter();
            let sent: Vec<_> = sent
                .map(|record| {
                    let headers = record.headers().cloned().unwrap_or_default();
                    let headers = headers.insert(Header { key: COPY_HEADER, value: Some("again") });
                    let mut again = FutureRecord::to(topic.name)
                        .partition(record.partition())
                        .payload(record.payload().unwrap_or_default())
                        .headers(headers);
                    again.key = record.key();
                    producer.send_result(again).map_err(|(error, _)| error)
                })
                .collect::<Result<_, KafkaError>>()?;
            let landed = try_join_all(sent).await.context("the producer was dropped")?;
            landed
                .into_iter()
                .try_for_each(|landed| landed.map(drop).map_err(|(error, _)| error))?;
        }
    }
    Ok(written)
}

/// The number of records in the topics that were written again and would count as duplicates of a
/// relay. It includes those of an interrupted fault.
pub async fn count_copies(client: &Client) -> Result<u64> {
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let mut copies = 0;
        for topic in TOPICS {
            for_each_newest(&kafka, topic.name, i64::MAX, |record| {
                copies +=
                    u64::from(has_header(record, COPY_HEADER) && is_relayed_once(topic, record));
            })?;
        }
        Ok(copies)
    })
    .await?
}

/// Whether a record is an event of an order, which a relay sends once, and is not republished.
fn is_relayed_once(topic: &Topic, record: &impl Message) -> bool {
    let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
    let trace = republish::traceparent(&key);
    let is_announced = header(record, "traceparent").is_some_and(|of| of == trace.as_bytes());
    topic.retention != Retention::Compact && !is_announced
}

/// No header if the headers cannot be read.
fn header<'a>(record: &'a impl Message, name: &str) -> Option<&'a [u8]> {
    headers(record)?.into_iter().find(|header| header.key == name)?.value
}

fn has_header(record: &impl Message, name: &str) -> bool {
    header(record, name).is_some()
}

/// The newest events of a topic, in order of their positions.
fn newest_records(kafka: &ClientConfig, topic: &str, newest: i64) -> Result<Vec<OwnedMessage>> {
    let mut records = Vec::new();
    for_each_newest(kafka, topic, newest, |record| {
        if record.key() != Some(POISON_KEY.as_bytes()) && has_header(record, "ce_id") {
            records.push(record.detach());
        }
    })?;
    Ok(records)
}

/// Reads the newest records of a topic, at most this number.
fn for_each_newest(
    kafka: &ClientConfig,
    topic: &str,
    newest: i64,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<()> {
    let consumer = create_consumer(kafka, "replays")?;
    let watermarks = watermarks(&consumer, topic)?;
    let of_partition = newest.div_euclid(i64::try_from(watermarks.len())?).max(1);
    let mut positions = TopicPartitionList::new();
    let mut open = HashSet::new();
    for (partition, (low, high)) in (0..).zip(&watermarks) {
        if low < high {
            let from = Offset::Offset((*low).max(high - of_partition));
            positions.add_partition_offset(topic, partition, from)?;
            open.insert(partition);
        }
    }
    consumer.assign(&positions)?;
    while !open.is_empty() {
        match consumer.poll(REQUEST_TIMEOUT) {
            Some(Ok(record)) => each(&record),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(error.into()),
            None => bail!("Kafka does not answer"),
        }
    }
    Ok(())
}
