//! What can lie in a topic: poison, strangers, and everything once more from the beginning.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::avro::frame;
use chassis::event::{Event, Topic};
use chrono::Utc;
use e2e::client::{Client, eventually};
use e2e::topics::{cluster_id, lag, reader, watermarks};
use e2e::topology::SERVICES;
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
use rdkafka::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::stage::{SOON, Stage, alone, basket, rich};

const PARTITIONS: i32 = 12;

/// How long poison may hold up what lies behind it.
const BLOCKED_MAX: Duration = Duration::from_secs(5);

/// Below the largest id that a registry could give, and never given.
const UNKNOWN_SCHEMA: u32 = 2_000_000_001;

fn producer(client: &Client) -> Result<FutureProducer> {
    let producer = ClientConfig::new()
        .set("bootstrap.servers", &client.addresses.kafka)
        .set("enable.idempotence", "true")
        .create()?;
    Ok(producer)
}

/// The body of a right event of a topic, about an order that nobody placed.
fn body(topic: &Topic) -> Result<Vec<u8>> {
    fn of<E: Event>(event: E) -> Result<Vec<u8>> {
        Ok(E::topic().codec().encode(&event)?)
    }
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
        _ => {
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
    }
}

/// The envelope of a right event.
fn envelope(topic: &Topic, event_id: Uuid) -> OwnedHeaders {
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
async fn schema_id(client: &Client, topic: &Topic) -> Result<u32> {
    let url = format!("{}/subjects/{}/versions/latest", client.addresses.registry, topic.subject());
    let found: Value = client.get(&url).await?;
    u32::try_from(found["id"].as_u64().context("a version has an id")?).context("an id")
}

/// Every kind of record that is no event, with or without the envelope of one.
fn poison(id: u32, body: &[u8]) -> Vec<(&'static str, Option<Vec<u8>>, bool)> {
    let right = frame(id, body);
    let mut wrong_magic = right.clone();
    wrong_magic[0] = 1;
    // An array, or a string, that claims to be as long as memory.
    let mut bomb = frame(id, &body[..1]);
    bomb.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    let random: Vec<u8> = (0..200).map(|_| rand::random()).collect();
    vec![
        ("nothing", None, true),
        ("no bytes", Some(vec![]), true),
        ("random bytes", Some([&[7], &random[..]].concat()), true),
        ("random bytes without an envelope", Some([&[7], &random[..]].concat()), false),
        ("random bytes of a schema", Some(frame(id, &[&[0x7f], &random[..]].concat())), true),
        ("a wrong magic byte", Some(wrong_magic), true),
        ("an unknown schema id", Some(frame(UNKNOWN_SCHEMA, body)), true),
        ("a schema id that can't be", Some(frame(u32::MAX, body)), true),
        ("a header only", Some(right[..5].to_vec()), true),
        ("half a header", Some(right[..3].to_vec()), true),
        ("a cut record", Some(right[..right.len() - 1].to_vec()), true),
        ("half a record", Some(right[..right.len() / 2].to_vec()), true),
        ("a byte too many", Some([&right[..], &[0]].concat()), true),
        ("too many bytes", Some(frame(id, &vec![b'x'; 300 * 1024])), true),
        ("a bomb", Some(bomb), true),
        ("an event without an id", Some(right), false),
    ]
}

/// Where each record of a poisoning lies: partition and offset, by topic.
type Places = BTreeMap<&'static str, Vec<(i32, i64)>>;

async fn poison_everything(client: &Client) -> Result<Places> {
    let producer = producer(client)?;
    let mut places = Places::new();
    for topic in TOPICS {
        let id = schema_id(client, topic).await?;
        let kinds = poison(id, &body(topic)?);
        let records =
            (0..PARTITIONS).flat_map(|partition| kinds.iter().map(move |kind| (partition, kind)));
        let sent = records.map(async |(partition, (what, payload, with_envelope))| {
            let headers =
                if *with_envelope { envelope(topic, Uuid::now_v7()) } else { OwnedHeaders::new() };
            let mut record =
                FutureRecord::to(topic.name).partition(partition).key("poison").headers(headers);
            if let Some(payload) = payload {
                record = record.payload(payload);
            }
            let landed = producer.send(record, SOON).await.map_err(|(error, _)| error);
            let landed = landed.with_context(|| format!("{what} for {}", topic.name))?;
            Ok::<_, anyhow::Error>((landed.partition, landed.offset))
        });
        places.insert(topic.name, try_join_all(sent).await?);
    }
    Ok(places)
}

/// The dead letters of a service that wait, in the cluster that there is now: other tests have made
/// it anew, and offsets began again.
async fn letters_of(
    client: &Client,
    service: &str,
) -> Result<Vec<(String, i32, i64, String, String)>> {
    let cluster = reader(&client.addresses.kafka, "records-test")?;
    let cluster = tokio::task::block_in_place(|| cluster_id(&cluster))?;
    let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
    let sql = "select topic, partition, \"offset\", kind, reason from dead_letters
               where cluster = $1 and state = 'waiting'";
    Ok(sqlx::query_as(sql).bind(cluster).fetch_all(&mut db).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_in_every_partition_of_every_topic_becomes_dead_letters_and_blocks_nobody()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        let before = stack.status().await?;
        // Whatever partition an order's events go to, poison comes before them and among them.
        let poisoned = AtomicBool::new(false);
        let poisoning = async {
            let places = poison_everything(client).await;
            poisoned.store(true, Ordering::Relaxed);
            places
        };
        let ordering = async {
            let mut last_ones = 20;
            while last_ones > 0 {
                last_ones -= i32::from(poisoned.load(Ordering::Relaxed));
                let placed = client.placed(rich(), &basket()).await?;
                let ended = client.ended(placed.order_id, BLOCKED_MAX).await?;
                ensure!(ended.status == "confirmed", "{ended:?}");
            }
            Ok(())
        };
        let (places, ()) = tokio::try_join!(poisoning, ordering)?;
        for topic in TOPICS {
            for service in topic.subscribers {
                let letters = eventually("every dead letter", SOON, async || {
                    let letters = letters_of(client, service).await?;
                    let missing = places[topic.name].iter().find(|(partition, offset)| {
                        !letters.iter().any(|letter| {
                            (letter.0.as_str(), letter.1, letter.2)
                                == (topic.name, *partition, *offset)
                        })
                    });
                    ensure!(
                        missing.is_none(),
                        "{service} has none of {} at {missing:?}",
                        topic.name
                    );
                    Ok(letters)
                })
                .await?;
                // Other tests have left letters of other kinds.
                let ours = letters.iter().filter(|(of, partition, offset, ..)| {
                    of == topic.name && places[topic.name].contains(&(*partition, *offset))
                });
                for (_, partition, offset, kind, reason) in ours {
                    ensure!(
                        !reason.is_empty() && ["undecodable", "impossible"].contains(&&**kind),
                        "{partition}@{offset} of {}: {kind}: {reason}",
                        topic.name
                    );
                }
                let url = format!("{}/dead-letters", client.addresses.operators[*service]);
                let listed: Value = client.get(&url).await?;
                ensure!(
                    listed["waiting"].as_u64() >= Some(letters.len() as u64),
                    "{}",
                    listed["waiting"]
                );
                let first = &listed["dead_letters"][0];
                ensure!(first["reason"].is_string() && first["topic"].is_string(), "{first}");
            }
        }
        let after = stack.status().await?;
        let pids = |status: &[e2e::stack::Status]| -> Vec<_> {
            status.iter().map(|member| member.pid).collect()
        };
        assert_eq!(pids(&before), pids(&after), "nobody crashed");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_about_an_order_that_nobody_placed_is_a_dead_letter() -> Result<()> {
    alone(async |Stage { client, .. }| {
        let producer = producer(client)?;
        for topic in [&events::payments::VERIFIED, &events::stock::RELEASED] {
            let record = frame(schema_id(client, topic).await?, &body(topic)?);
            let headers = envelope(topic, Uuid::now_v7());
            let record =
                FutureRecord::to(topic.name).key("stranger").payload(&record).headers(headers);
            let landed = producer.send(record, SOON).await.map_err(|(error, _)| error)?;
            eventually("the dead letter", SOON, async || {
                let letters = letters_of(client, "order").await?;
                let letter = letters.iter().find(|letter| {
                    (letter.0.as_str(), letter.1, letter.2)
                        == (topic.name, landed.partition, landed.offset)
                });
                ensure!(letter.is_some_and(|letter| letter.3 == "impossible"), "{letter:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

/// Everything that a service knows, as one hash a table.
async fn known(client: &Client, service: &str) -> Result<BTreeMap<String, String>> {
    let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "select tablename::text from pg_tables
         where schemaname = 'public' and tablename not in ('_sqlx_migrations', 'idempotency_keys')",
    )
    .fetch_all(&mut db)
    .await?;
    let mut known = BTreeMap::new();
    for table in tables {
        let sql = format!(
            "select count(*) || ' ' || coalesce(md5(string_agg(row::text, '|' order by row::text)), '')
             from \"{table}\" as row"
        );
        let hash = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut db).await?;
        known.insert(format!("{service}.{table}"), hash);
    }
    Ok(known)
}

/// Sets the group of a stopped service back to the first record of everything it reads.
fn rewind(client: &Client, service: &str) -> Result<()> {
    let group = reader(&client.addresses.kafka, service)?;
    let mut places = TopicPartitionList::new();
    for topic in TOPICS.iter().filter(|topic| topic.subscribers.contains(&service)) {
        for (partition, (low, _)) in (0..).zip(watermarks(&group, topic.name)?) {
            places.add_partition_offset(topic.name, partition, Offset::Offset(low))?;
        }
    }
    group.commit(&places, CommitMode::Sync)?;
    Ok(())
}

fn behind(client: &Client, service: &str) -> Result<i64> {
    let group = reader(&client.addresses.kafka, service)?;
    let topics = TOPICS.iter().filter(|topic| topic.subscribers.contains(&service));
    topics.map(|topic| lag(&group, topic.name)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn replaying_every_topic_from_offset_0_changes_no_row_and_publishes_nothing() -> Result<()> {
    alone(async |stage| {
        let Stage { stack, client } = stage;
        for order in
            try_join_all((0..20).map(async |_| client.placed(rich(), &basket()).await)).await?
        {
            client.ended(order.order_id, SOON).await?;
        }
        let before = stage.verify().await?.records;
        for service in SERVICES {
            stack.stop(service).await?;
            let rows = known(client, service).await?;
            tokio::task::block_in_place(|| rewind(client, service))?;
            let to_read = tokio::task::block_in_place(|| behind(client, service))?;
            ensure!(to_read > 0, "{service} was not rewound");
            stack.start(service).await?;
            eventually("everything to be read again", SOON, async || {
                let left = tokio::task::block_in_place(|| behind(client, service))?;
                ensure!(left == 0, "{service} has {left} records to read");
                Ok(())
            })
            .await?;
            assert_eq!(rows, known(client, service).await?);
        }
        assert_eq!(before, stage.verify().await?.records);
        Ok(())
    })
    .await
}
