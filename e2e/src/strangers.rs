//! Records that no service published: bytes that are no event, and events that cannot be. Each must
//! become a dead letter at everybody who reads its topic, and hold up nobody.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chassis::avro::frame;
use chassis::event::{Event, Topic};
use chrono::Utc;
use events::TOPICS;
use events::orders::{
    CancelReason, ConfirmedLine, OrderCancelled, OrderConfirmed, OrderCreated, OrderLine,
};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockItem, StockRejected, StockReleased,
    StockReserved,
};
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::client::{Client, Order};
use crate::facts::{Place, topic_number};
use crate::raw_record;
use crate::sabotage::TOO_STRICT;
use crate::topology::SERVICES;
use crate::wait::eventually;

const SENT_WITHIN: Duration = Duration::from_secs(30);

/// The key of all of them: no order has it.
pub const KEY: &str = "stranger";

/// Below the largest id that a registry could give, and never given.
pub const UNKNOWN_SCHEMA: u32 = 2_000_000_001;

/// Where records landed: partition and offset, by topic.
pub type Places = BTreeMap<&'static str, Vec<(i32, i64)>>;

/// Where the dead letters lie that were made on purpose: by a stranger's record, or by a migration
/// that refuses what is right.
pub async fn spoiled(client: &Client) -> Result<HashSet<Place>> {
    let mut spoiled = HashSet::new();
    for service in SERVICES {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        let letters: Vec<(String, i32, i64)> = sqlx::query_as(
            "select topic, partition, \"offset\" from dead_letters
             where key = convert_to($1, 'UTF8') or reason like '%' || $2 || '%'",
        )
        .bind(KEY)
        .bind(TOO_STRICT)
        .fetch_all(&mut db)
        .await?;
        for (topic, partition, offset) in letters {
            let topic = TOPICS.iter().find(|declared| declared.name == topic);
            let topic = topic_number(topic.context("a letter of no topic")?);
            spoiled.insert(Place { topic, partition, offset });
        }
    }
    Ok(spoiled)
}

pub fn producer(client: &Client) -> Result<FutureProducer> {
    let producer = ClientConfig::new()
        .set("bootstrap.servers", &client.addresses.kafka)
        .set("enable.idempotence", "true")
        // A key's records lie where its publisher writes them.
        .set("partitioner", "murmur2_random")
        .create()?;
    Ok(producer)
}

/// The body of a right event of a topic, about an order that nobody placed.
pub fn body(topic: &Topic) -> Result<Vec<u8>> {
    let (order_id, customer_id, occurred_at) = (Uuid::now_v7(), Uuid::now_v7(), Utc::now());
    let (sku, quantity, unit_price_cents) = (|| "pen".to_string(), 1, 150);
    let (total_cents, amount_cents, currency) = (150, 150, || "EUR".to_string());
    match topic.name {
        "orders.created" => {
            let lines = vec![OrderLine { sku: sku(), quantity, unit_price_cents }];
            let currency = currency();
            of(OrderCreated { order_id, customer_id, lines, total_cents, currency, occurred_at })
        }
        "orders.confirmed" => {
            let lines = vec![ConfirmedLine { sku: sku(), quantity, unit_price_cents }];
            let currency = currency();
            of(OrderConfirmed { order_id, customer_id, lines, total_cents, currency, occurred_at })
        }
        "orders.cancelled" => {
            of(OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at })
        }
        "payments.verified" => {
            of(PaymentVerified { order_id, amount_cents, currency: currency(), occurred_at })
        }
        "payments.declined" => {
            of(PaymentDeclined { order_id, reason: DeclineReason::NoAccount, occurred_at })
        }
        "payments.refunded" => {
            let (amount_cents, currency) = (Some(amount_cents), Some(currency()));
            of(PaymentRefunded { order_id, amount_cents, currency, occurred_at })
        }
        "stock.reserved" => {
            let lines = vec![ReservedLine { sku: sku(), quantity }];
            of(StockReserved { order_id, lines, occurred_at })
        }
        "stock.rejected" => {
            let (requested, available) = (1, 0);
            let reason = RejectReason::OutOfStock;
            of(StockRejected { order_id, reason, sku: sku(), requested, available, occurred_at })
        }
        "stock.released" => {
            let lines = vec![ReleasedLine { sku: sku(), quantity }];
            of(StockReleased { order_id, lines, occurred_at })
        }
        "stock.items" => {
            let (name, price_cents, version) = ("Pen".to_string(), 150, 1);
            of(StockItem {
                sku: sku(),
                name,
                price_cents,
                currency: currency(),
                version,
                occurred_at,
            })
        }
        name => bail!("say here what a record of {name} looks like"),
    }
}

fn of<E: Event>(event: E) -> Result<Vec<u8>> {
    Ok(E::topic().codec().encode(&event)?)
}

/// The envelope of a right event.
pub fn envelope(topic: &Topic, event_id: Uuid) -> OwnedHeaders {
    let (id, source) = (event_id.to_string(), format!("/{}", topic.publisher));
    let time = Utc::now().to_rfc3339();
    [
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_type", topic.name),
        ("ce_source", &source),
        ("ce_time", &time),
        ("content-type", "application/avro"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ]
    .into_iter()
    .fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}

/// The id of a topic's schema in the registry.
pub async fn schema_id(client: &Client, topic: &Topic) -> Result<u32> {
    let url = format!("{}/subjects/{}/versions/latest", client.addresses.registry, topic.subject());
    let found: Value = client.get(&url).await?;
    u32::try_from(found["id"].as_u64().context("a version has an id")?).context("an id")
}

/// A record that is no event: what it is, its bytes, and its headers.
type Poison = (&'static str, Option<Vec<u8>>, Envelope);

/// The headers of a record that is no event.
enum Envelope {
    /// Those of an event.
    Right,
    Missing,
    /// One whose name is no text, which whoever reads it may stumble over.
    Unreadable,
}

/// The name of a header: no UTF-8 text has these bytes.
const NO_TEXT: [u8; 2] = [0xff, 0xfe];

/// Every kind of record that is no event.
fn poison(id: u32, body: &[u8], lots: &mut impl Rng) -> Vec<Poison> {
    use Envelope::{Missing, Right, Unreadable};
    let right = frame(id, body);
    let mut wrong_magic = right.clone();
    wrong_magic[0] = 1;
    // An array, or a string, that claims to be as long as memory.
    let mut bomb = frame(id, &body[..1]);
    bomb.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    let random: Vec<u8> = (0..200).map(|_| lots.random()).collect();
    vec![
        ("nothing", None, Right),
        ("no bytes", Some(vec![]), Right),
        ("random bytes", Some([&[7], &random[..]].concat()), Right),
        ("random bytes without an envelope", Some([&[7], &random[..]].concat()), Missing),
        ("random bytes of a schema", Some(frame(id, &[&[0x7f], &random[..]].concat())), Right),
        ("a wrong magic byte", Some(wrong_magic), Right),
        ("an unknown schema id", Some(frame(UNKNOWN_SCHEMA, body)), Right),
        ("a schema id that can't be", Some(frame(u32::MAX, body)), Right),
        ("a header only", Some(right[..5].to_vec()), Right),
        ("half a header", Some(right[..3].to_vec()), Right),
        ("a cut record", Some(right[..right.len() - 1].to_vec()), Right),
        ("half a record", Some(right[..right.len() / 2].to_vec()), Right),
        ("a byte too many", Some([&right[..], &[0]].concat()), Right),
        ("too many bytes", Some(frame(id, &vec![b'x'; 300 * 1024])), Right),
        ("a bomb", Some(bomb), Right),
        ("an event without an id", Some(right.clone()), Missing),
        ("a header whose name is no text", Some(right), Unreadable),
    ]
}

/// Every kind of poison in every topic that somebody reads: in every partition, or in one that is drawn
/// for each. Where nobody reads, nobody could set it aside, and the checker refuses it.
pub async fn poison_everything(client: &Client, all_partitions: bool) -> Result<Places> {
    poison_drawn(client, all_partitions, &mut StdRng::from_os_rng()).await
}

/// The same, its bytes and partitions drawn by these lots.
pub async fn poison_drawn(
    client: &Client,
    all_partitions: bool,
    lots: &mut StdRng,
) -> Result<Places> {
    let producer = producer(client)?;
    let mut places = Places::new();
    for topic in TOPICS.iter().filter(|topic| !topic.subscribers.is_empty()) {
        let id = schema_id(client, topic).await?;
        let kinds = poison(id, &body(topic)?, lots);
        let mut partitions = || {
            let drawn = lots.random_range(0..topic.partitions);
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
                Envelope::Right => {
                    send(&producer, record, payload, envelope(topic, Uuid::now_v7())).await
                }
                Envelope::Missing => send(&producer, record, payload, OwnedHeaders::new()).await,
                Envelope::Unreadable => {
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
    let mut record = record.key(KEY).headers(headers);
    record.payload = payload;
    let landed = producer.send(record, SENT_WITHIN).await.map_err(|(error, _)| error)?;
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
    let offset = eventually("Kafka to take the record", SENT_WITHIN, async || {
        raw_record::produce(kafka, (topic, partition), KEY.as_bytes(), payload, &NO_TEXT).await
    });
    Ok((partition, offset.await?))
}

/// What ISO 4217 keeps for tests: three letters like any other, and no order's.
const OTHER_CURRENCY: &str = "XTS";

/// Events that decode and cannot be: an order of less than nothing, answers about an order that
/// nobody placed, and, about `order`, answers that say another amount, currency or quantity.
pub async fn send_impossible(client: &Client, order: &Order) -> Result<Places> {
    let producer = producer(client)?;
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
        (OrderCreated::topic(), of(nothing)?),
        (PaymentVerified::topic(), of(other_amount)?),
        (PaymentVerified::topic(), of(other_currency)?),
        (PaymentRefunded::topic(), of(overflowing)?),
        (StockReserved::topic(), of(negative)?),
        (StockReserved::topic(), of(too_much)?),
    ];
    for topic in TOPICS {
        // Nobody places that order; but a cancellation of it might be one that overtook it.
        if topic.subscribers == ["order"] && topic.name != events::stock::ITEMS.name {
            events.push((topic, body(topic)?));
        }
    }
    let mut places = Places::new();
    for (topic, body) in events {
        let record = frame(schema_id(client, topic).await?, &body);
        let headers = envelope(topic, Uuid::now_v7());
        let place = send(&producer, FutureRecord::to(topic.name), Some(&record), headers).await?;
        places.entry(topic.name).or_default().push(place);
    }
    Ok(places)
}
