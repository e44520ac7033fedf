//! Records that no service published: bytes that are no event, and events that cannot be. Each must
//! become a dead letter at everybody who reads its topic, and hold up nobody.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result};
use chassis::event::avro::frame;
use chassis::event::{Event, Topic};
use chrono::Utc;
use events::TOPICS;
use events::orders::OrderCreated;
use events::payments::{PaymentRefunded, PaymentVerified};
use events::stock::{ReservedLine, StockReserved};
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::checker::record::{RecordPosition, topic_index};
use crate::client::http_client::Client;
use crate::client::kafka::create_producer;
use crate::client::order::Order;
use crate::client::raw_record;
use crate::client::sample_events::{POISON_KEY, encode, schema_id, valid_body, valid_headers};
use crate::launcher::eventually::eventually;
use crate::launcher::topology::SERVICES;
use crate::scenarios::order_faults::BAD_CONSTRAINT;

const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Below the largest id that a registry could give, and never given.
pub const UNKNOWN_SCHEMA: u32 = 2_000_000_001;

/// Where records landed: partition and offset, by topic.
pub type PositionsByTopic = BTreeMap<&'static str, Vec<(i32, i64)>>;

/// Where the dead letters lie that were made on purpose: by a stranger's record, or by a migration
/// that refuses what is right.
pub async fn expected_dead_letters(client: &Client) -> Result<HashSet<RecordPosition>> {
    let mut positions = HashSet::new();
    for service in SERVICES {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        let letters: Vec<(String, i32, i64)> = sqlx::query_as(
            "select topic, partition, \"offset\" from dead_letters
             where key = convert_to($1, 'UTF8') or reason like '%' || $2 || '%'",
        )
        .bind(POISON_KEY)
        .bind(BAD_CONSTRAINT)
        .fetch_all(&mut db)
        .await?;
        for (topic, partition, offset) in letters {
            let topic = TOPICS.iter().find(|declared| declared.name == topic);
            let topic = topic_index(topic.context("a letter of no topic")?);
            positions.insert(RecordPosition { topic, partition, offset });
        }
    }
    Ok(positions)
}

/// A record that is no event: what it is, its bytes, and its headers.
type PoisonCase = (&'static str, Option<Vec<u8>>, HeaderKind);

/// The headers of a record that is no event.
enum HeaderKind {
    /// Those of an event.
    Valid,
    Missing,
    /// One whose name is no text, which whoever reads it may stumble over.
    Unreadable,
}

/// The name of a header: no UTF-8 text has these bytes.
const NON_UTF8_NAME: [u8; 2] = [0xff, 0xfe];

/// Every kind of record that is no event.
fn poison_cases(id: u32, body: &[u8], rng: &mut impl Rng) -> Vec<PoisonCase> {
    use HeaderKind::{Missing, Unreadable, Valid};
    let right = frame(id, body);
    let mut wrong_magic = right.clone();
    wrong_magic[0] = 1;
    // An array, or a string, that claims to be as long as memory.
    let mut bomb = frame(id, &body[..1]);
    bomb.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    let random: Vec<u8> = (0..200).map(|_| rng.random()).collect();
    vec![
        ("nothing", None, Valid),
        ("no bytes", Some(vec![]), Valid),
        ("random bytes", Some([&[7], &random[..]].concat()), Valid),
        ("random bytes without an envelope", Some([&[7], &random[..]].concat()), Missing),
        ("random bytes of a schema", Some(frame(id, &[&[0x7f], &random[..]].concat())), Valid),
        ("a wrong magic byte", Some(wrong_magic), Valid),
        ("an unknown schema id", Some(frame(UNKNOWN_SCHEMA, body)), Valid),
        ("a schema id that can't be", Some(frame(u32::MAX, body)), Valid),
        ("a header only", Some(right[..5].to_vec()), Valid),
        ("half a header", Some(right[..3].to_vec()), Valid),
        ("a cut record", Some(right[..right.len() - 1].to_vec()), Valid),
        ("half a record", Some(right[..right.len() / 2].to_vec()), Valid),
        ("a byte too many", Some([&right[..], &[0]].concat()), Valid),
        ("too many bytes", Some(frame(id, &vec![b'x'; 300 * 1024])), Valid),
        ("a bomb", Some(bomb), Valid),
        ("an event without an id", Some(right.clone()), Missing),
        ("a header whose name is no text", Some(right), Unreadable),
    ]
}

/// Every kind of poison in every topic that somebody reads: in every partition, or in one that is drawn
/// for each. Where nobody reads, nobody could set it aside, and the checker refuses it.
pub async fn poison_all_topics(client: &Client, all_partitions: bool) -> Result<PositionsByTopic> {
    poison_with_rng(client, all_partitions, &mut StdRng::from_os_rng()).await
}

/// The same, its bytes and partitions drawn by these lots.
pub async fn poison_with_rng(
    client: &Client,
    all_partitions: bool,
    rng: &mut StdRng,
) -> Result<PositionsByTopic> {
    let producer = create_producer(client)?;
    let mut places = PositionsByTopic::new();
    for topic in TOPICS.iter().filter(|topic| !topic.subscribers.is_empty()) {
        let id = schema_id(client, topic).await?;
        let kinds = poison_cases(id, &valid_body(topic)?, rng);
        let mut partitions = || {
            let drawn = rng.random_range(0..topic.partitions);
            if all_partitions { 0..topic.partitions } else { drawn..drawn + 1 }
        };
        let records = kinds
            .iter()
            .flat_map(|kind| partitions().map(move |partition| (partition, kind)))
            .collect::<Vec<_>>();
        let sent = records.into_iter().map(async |(partition, (what, payload, headers))| {
            let payload = payload.as_deref();
            let record = FutureRecord::to(topic.name).partition(partition);
            let landed = match headers {
                HeaderKind::Valid => {
                    send(&producer, record, payload, valid_headers(topic, Uuid::now_v7())).await
                }
                HeaderKind::Missing => send(&producer, record, payload, OwnedHeaders::new()).await,
                HeaderKind::Unreadable => {
                    send_unreadable(client, (topic.name, partition), payload).await
                }
            };
            landed.with_context(|| format!("{what} for {}", topic.name))
        });
        places.insert(topic.name, try_join_all(sent).await?);
    }
    Ok(places)
}

async fn send(
    producer: &FutureProducer,
    record: FutureRecord<'_, str, [u8]>,
    payload: Option<&[u8]>,
    headers: OwnedHeaders,
) -> Result<(i32, i64)> {
    let mut record = record.key(POISON_KEY).headers(headers);
    record.payload = payload;
    let landed = producer.send(record, SEND_TIMEOUT).await.map_err(|(error, _)| error)?;
    Ok((landed.partition, landed.offset))
}

/// A record that the client's library can't write. Where it may have landed and nobody said so, it
/// lands again: one more that is none of ours.
async fn send_unreadable(
    client: &Client,
    (topic, partition): (&str, i32),
    payload: Option<&[u8]>,
) -> Result<(i32, i64)> {
    let (kafka, payload) = (&client.addresses.kafka, payload.unwrap_or_default());
    let offset = eventually("Kafka to take the record", SEND_TIMEOUT, async || {
        raw_record::produce(
            kafka,
            (topic, partition),
            POISON_KEY.as_bytes(),
            payload,
            &NON_UTF8_NAME,
        )
        .await
    });
    Ok((partition, offset.await?))
}

/// What ISO 4217 keeps for tests: three letters like any other, and no order's.
const OTHER_CURRENCY: &str = "XTS";

/// Events that decode and cannot be: an order of less than nothing, answers about an order that
/// nobody placed, and, about `order`, answers that say another amount, currency or quantity.
pub async fn send_unprocessable(client: &Client, order: &Order) -> Result<PositionsByTopic> {
    let producer = create_producer(client)?;
    let (order_id, occurred_at) = (order.order_id, Utc::now());
    let (currency, total_cents) = (order.currency.clone(), order.total_cents);
    let nothing = OrderCreated {
        order_id: Uuid::now_v7(),
        customer_id: order.customer_id,
        lines: Vec::new(),
        total_cents: i64::MIN,
        currency: currency.clone(),
        occurred_at,
    };
    let other_amount = PaymentVerified {
        order_id,
        amount_cents: total_cents.wrapping_add(1),
        currency: currency.clone(),
        occurred_at,
    };
    let other_currency = PaymentVerified {
        order_id,
        amount_cents: total_cents,
        currency: OTHER_CURRENCY.to_string(),
        occurred_at,
    };
    let overflowing = PaymentRefunded {
        order_id,
        amount_cents: Some(i64::MAX),
        currency: Some(currency),
        occurred_at,
    };
    let line = |quantity| ReservedLine { sku: order.lines[0].sku.clone(), quantity };
    let negative = StockReserved { order_id, lines: vec![line(-1)], occurred_at };
    let too_much = StockReserved { order_id, lines: vec![line(i32::MAX)], occurred_at };
    let mut events: Vec<(&'static Topic, Vec<u8>)> = vec![
        (OrderCreated::topic(), encode(nothing)?),
        (PaymentVerified::topic(), encode(other_amount)?),
        (PaymentVerified::topic(), encode(other_currency)?),
        (PaymentRefunded::topic(), encode(overflowing)?),
        (StockReserved::topic(), encode(negative)?),
        (StockReserved::topic(), encode(too_much)?),
    ];
    for topic in TOPICS {
        // Nobody places that order; but a cancellation of it might be one that overtook it.
        if topic.subscribers == ["order"] && topic.name != events::stock::ITEMS.name {
            events.push((topic, valid_body(topic)?));
        }
    }
    let mut places = PositionsByTopic::new();
    for (topic, body) in events {
        let record = frame(schema_id(client, topic).await?, &body);
        let headers = valid_headers(topic, Uuid::now_v7());
        let place = send(&producer, FutureRecord::to(topic.name), Some(&record), headers).await?;
        places.entry(topic.name).or_default().push(place);
    }
    Ok(places)
}
