//! Redelivery: records are read again from an earlier offset, or written a second time. Neither may
//! change anything (I7).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chassis::admin::republish;
use chassis::event::{Retention, Topic};
use checker::kafka::{self, create_consumer, headers, watermarks};
use declaration::SUBSCRIPTIONS;
use events::saga_topics;
use futures::future::try_join_all;
use rand::Rng;
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedMessage};
use rdkafka::producer::FutureRecord;
use rdkafka::{Offset, TopicPartitionList};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::client::http_client::Client;
use crate::client::kafka::{admin_client, create_producer};
use crate::client::sample_events::POISON_KEY;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The group that reads records to write them again; it commits nothing.
const READER: &str = "replays";

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
    in_group(client, service, move |group| {
        let positions = SUBSCRIPTIONS
            .topics(service)
            .iter()
            .map(|topic| kafka::group_positions(group, topic.name));
        Ok(positions.collect::<Result<Vec<_>>>()?.concat())
    })
    .await
}

/// Calls Kafka as a client of a group, on a thread that may block.
pub async fn in_group<T: Send + 'static>(
    client: &Client,
    group: &'static str,
    call: impl FnOnce(&BaseConsumer) -> Result<T> + Send + 'static,
) -> Result<T> {
    let kafka = client.addresses.kafka.clone();
    tokio::task::spawn_blocking(move || call(&create_consumer(&kafka, group)?)).await?
}

/// The committed offsets of a group in every partition of a topic.
fn committed_offsets(
    group: &BaseConsumer,
    partitions: usize,
    topic: &str,
) -> Result<TopicPartitionList> {
    let mut asked = TopicPartitionList::new();
    for (partition, _) in (0..).zip(0..partitions) {
        asked.add_partition(topic, partition);
    }
    Ok(group.committed_offsets(asked, REQUEST_TIMEOUT)?)
}

/// Rewinds the group of a stopped service by at most this number of records of each partition.
pub async fn reset_offsets(client: &Client, service: &'static str, records: i64) -> Result<()> {
    in_group(client, service, move |group| {
        let mut positions = TopicPartitionList::new();
        for topic in SUBSCRIPTIONS.topics(service) {
            let watermarks = watermarks(group, topic.name)?;
            for position in committed_offsets(group, watermarks.len(), topic.name)?.elements() {
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
        Ok(group.commit(&positions, CommitMode::Sync)?)
    })
    .await
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
    in_group(client, service, move |group| {
        let partitions = watermarks(group, topic.name)?.len();
        let positions = committed_offsets(group, partitions, topic.name)?;
        for mut position in positions.elements() {
            if !matches!(position.offset(), Offset::Offset(_)) {
                position.set_offset(Offset::Offset(0))?;
            }
        }
        Ok(WithheldTopic { service, positions })
    })
    .await
}

/// Restores the offsets of a withheld topic.
pub async fn release(client: &Client, held: WithheldTopic) -> Result<()> {
    let WithheldTopic { service, positions } = held;
    in_group(client, service, move |group| Ok(group.commit(&positions, CommitMode::Sync)?)).await
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
pub async fn produce_again(client: &Client, newest: i64, rng: &mut impl Rng) -> Result<u64> {
    let producer = create_producer(client)?;
    let mut written = 0;
    for topic in saga_topics() {
        let records =
            in_group(client, READER, move |reader| newest_records(reader, topic.name, newest))
                .await?;
        for together in records.chunks(SEND_BATCH_MAX) {
            // Queued in this order, which each partition keeps.
            let mut sent = Vec::with_capacity(together.len() * 2);
            for record in together {
                let times = rng.random_range(1..=3);
                written += if is_relayed_once(topic, record) { times as u64 } else { 0 };
                for _ in 0..times {
                    let headers = record.headers().cloned().unwrap_or_default();
                    let headers = headers.insert(Header { key: COPY_HEADER, value: Some("again") });
                    let mut again = FutureRecord::to(topic.name)
                        .partition(record.partition())
                        .payload(record.payload().unwrap_or_default())
                        .headers(headers);
                    again.key = record.key();
                    sent.push(producer.send_result(again).map_err(|(error, _)| error)?);
                }
            }
            for landed in try_join_all(sent).await.context("the producer was dropped")? {
                landed.map_err(|(error, _)| error)?;
            }
        }
    }
    Ok(written)
}

/// The number of records in the topics that were written again and would count as duplicates of a
/// relay. It includes those of an interrupted fault.
pub async fn count_copies(client: &Client) -> Result<u64> {
    let mut copies = 0;
    for topic in saga_topics() {
        copies += in_group(client, READER, move |reader| {
            let mut copies = 0;
            for_each_newest(reader, topic.name, i64::MAX, |record| {
                copies +=
                    u64::from(has_header(record, COPY_HEADER) && is_relayed_once(topic, record));
            })?;
            Ok(copies)
        })
        .await?;
    }
    Ok(copies)
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
fn newest_records(reader: &BaseConsumer, topic: &str, newest: i64) -> Result<Vec<OwnedMessage>> {
    let mut records = Vec::new();
    for_each_newest(reader, topic, newest, |record| {
        if record.key() != Some(POISON_KEY.as_bytes()) && has_header(record, "ce_id") {
            records.push(record.detach());
        }
    })?;
    Ok(records)
}

/// Reads the newest records of a topic, at most this number.
fn for_each_newest(
    reader: &BaseConsumer,
    topic: &str,
    newest: i64,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<()> {
    let watermarks = watermarks(reader, topic)?;
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
    reader.assign(&positions)?;
    while !open.is_empty() {
        match reader.poll(REQUEST_TIMEOUT) {
            Some(Ok(record)) => each(&record),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(error.into()),
            None => bail!("Kafka does not answer"),
        }
    }
    Ok(())
}
