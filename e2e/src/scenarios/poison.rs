//! Records that no service published: undecodable bytes, and events that cannot be valid. Each must
//! become a dead letter of every subscriber of its topic, and block no other record.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result};
use chassis::event::avro::{BODY_BYTES_MAX, frame};
use chassis::event::{Event, Topic};
use checker::record::RecordPosition;
use chrono::Utc;
use events::orders::OrderCreated;
use events::participants::participants;
use events::payments::{PaymentRefunded, PaymentVerified};
use events::saga_topics;
use events::stock::{ReservedLine, StockItem, StockReserved};
use futures::future::try_join_all;
use launcher::eventually;
use rand::Rng;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::client::http_client::Client;
use crate::client::kafka::create_producer;
use crate::client::order::Order;
use crate::client::raw_record;
use crate::client::sample_events::{POISON_KEY, encode, schema_id, valid_body, valid_headers};
use crate::scenarios::order_faults::BAD_CONSTRAINT;
use crate::stack_description::{SERVICES, subscribers};

const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// An id below the largest one, which no registry ever assigns.
pub const UNKNOWN_SCHEMA: u32 = 2_000_000_001;

/// The positions of the produced records: partition and offset, by topic.
pub type PositionsByTopic = BTreeMap<&'static str, Vec<(i32, i64)>>;

/// The positions of intended dead letters: of records produced here, and of events that a bad
/// migration refuses.
pub async fn expected_dead_letters(client: &Client) -> Result<HashSet<RecordPosition>> {
    let mut positions = HashSet::new();
    for service in SERVICES {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        let letters: Vec<(String, i32, i64)> = sqlx::query_as(
            "select topic, partition, \"offset\" from chassis.dead_letters
             where key = convert_to($1, 'UTF8') or reason like '%' || $2 || '%'",
        )
        .bind(POISON_KEY)
        .bind(BAD_CONSTRAINT)
        .fetch_all(&mut db)
        .await?;
        for (topic, partition, offset) in letters {
            let topic = saga_topics().iter().find(|declared| declared.name == topic);
            let topic = topic.context("a dead letter of an unknown topic")?;
            positions.insert(RecordPosition { topic, partition, offset });
        }
    }
    Ok(positions)
}

/// A record that is not an event: its description, bytes and headers.
type PoisonCase = (&'static str, Option<Vec<u8>>, HeaderKind);

/// The headers of a record that is not an event.
enum HeaderKind {
    /// The headers of an event.
    Valid,
    Missing,
    /// A header whose name is not text, which a reader may fail on.
    Unreadable,
}

/// The name of a header: these bytes are not UTF-8.
const NON_UTF8_NAME: [u8; 2] = [0xff, 0xfe];

/// Every kind of record that is not an event.
fn poison_cases(id: u32, body: &[u8], rng: &mut impl Rng) -> Vec<PoisonCase> {
    use HeaderKind::{Missing, Unreadable, Valid};
    let right = frame(id, body);
    let mut wrong_magic = right.clone();
    wrong_magic[0] = 1;
    // An array, or a string, whose declared length would exhaust memory.
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
        ("too many bytes", Some(frame(id, &vec![b'x'; BODY_BYTES_MAX + 1])), Valid),
        ("a bomb", Some(bomb), Valid),
        ("an event without an id", Some(right.clone()), Missing),
        ("a header whose name is no text", Some(right), Unreadable),
    ]
}

/// Produces every kind of poison in every topic with subscribers: in every partition, or in a
/// random one for each. The bytes are drawn as well. In a topic without subscribers no service would store a dead letter, and
/// the checker refuses the record.
pub async fn poison_all_topics(
    client: &Client,
    all_partitions: bool,
    rng: &mut impl Rng,
) -> Result<PositionsByTopic> {
    let producer = create_producer(client)?;
    let mut places = PositionsByTopic::new();
    for topic in saga_topics().iter().filter(|topic| !subscribers(topic).is_empty()) {
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

/// A record that librdkafka cannot write. If Kafka may have stored it without a response, it is
/// written again: that is one more foreign record.
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

/// The currency code that ISO 4217 reserves for tests: three letters like any other, and used by no
/// order.
const OTHER_CURRENCY: &str = "XTS";

/// Events that decode and cannot be valid: an order with a negative amount, responses about an
/// order that does not exist, and, about `order`, responses with another amount, currency or
/// quantity.
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
        also_asks: participants().map(|it| it.service.to_owned()).to_vec(),
        occurred_at,
    };
    let paid = |amount_cents, currency: &str| {
        let currency = currency.to_string();
        encode(PaymentVerified { order_id, amount_cents, currency, occurred_at })
    };
    let overflowing = PaymentRefunded {
        order_id,
        amount_cents: Some(i64::MAX),
        currency: Some(currency.clone()),
        occurred_at,
    };
    let reserved = |quantity| {
        let lines = vec![ReservedLine { sku: order.lines[0].sku.clone(), quantity }];
        encode(StockReserved { order_id, lines, occurred_at })
    };
    let mut events: Vec<(&'static Topic, Vec<u8>)> = vec![
        (OrderCreated::topic(), encode(nothing)?),
        (PaymentVerified::topic(), paid(total_cents.wrapping_add(1), &currency)?),
        (PaymentVerified::topic(), paid(total_cents, OTHER_CURRENCY)?),
        (PaymentRefunded::topic(), encode(overflowing)?),
        (StockReserved::topic(), reserved(-1)?),
        (StockReserved::topic(), reserved(i32::MAX)?),
    ];
    for topic in saga_topics() {
        // This order is never placed; but a cancellation of it could be one that overtook its
        // order.
        if subscribers(topic) == ["order"] && topic.name != StockItem::topic().name {
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
