//! What can lie in a topic: poison, strangers, and everything once more from the beginning.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::avro::frame;
use e2e::client::Client;
use e2e::replays::{behind, known, rewind};
use e2e::strangers::{KEY, body, envelope, poison_everything, producer, schema_id};
use e2e::topics::{cluster_id, reader};
use e2e::topology::SERVICES;
use e2e::wait::eventually;
use events::TOPICS;
use futures::future::try_join_all;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::faults::read_all;
use crate::stage::{SOON, Stage, alone, basket, rich};

/// How long poison may hold up what lies behind it. A schema that nobody can tell takes some seconds,
/// once; a client that is of no more use is replaced after thirty.
const BLOCKED_MAX: Duration = Duration::from_secs(25);

/// What a topic takes by Kafka's default, and room for the key, the headers and the batch around it.
const TOPIC_TAKES: usize = 1024 * 1024;
const ROOM: usize = 2 * 1024;

/// So many of each topic, one after the other.
const LARGE_ONES: i32 = 4;

/// Of what is fetched ahead 1 MiB lies ready in Kafka's client and 16 MiB are with us, at most. A few
/// copies of what is being handled may be alive at a time.
const GROWTH_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The dead letters of a service that wait, in the cluster that there is now: other tests have made
/// it anew, and offsets began again.
pub async fn letters_of(
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
async fn poison_in_every_partition_of_every_topic_that_is_read_becomes_dead_letters_and_blocks_nobody()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        let before = stack.status().await?;
        // Whatever partition an order's events go to, poison comes before them and among them.
        let poisoned = AtomicBool::new(false);
        let poisoning = async {
            let places = poison_everything(client, true).await;
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
                        !reason.is_empty() && kind == "undecodable",
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

/// F27. As large as a topic takes, in every topic that somebody reads: many times what an event is.
#[tokio::test(flavor = "multi_thread")]
async fn records_as_large_as_their_topics_take_become_dead_letters_and_memory_stays_where_it_was()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        let before = try_join_all(SERVICES.map(async |name| stack.memory_bytes(name)));
        let before = before.await?;
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &client.addresses.kafka)
            .set("message.max.bytes", (2 * TOPIC_TAKES).to_string())
            .create()?;
        let mut grown_to = before.clone();
        for topic in TOPICS.iter().filter(|topic| !topic.subscribers.is_empty()) {
            let record = frame(schema_id(client, topic).await?, &vec![b'x'; TOPIC_TAKES - ROOM]);
            for nth in 0..LARGE_ONES {
                let headers = envelope(topic, Uuid::now_v7());
                let large = FutureRecord::to(topic.name).key(KEY).payload(&record);
                let large = large.headers(headers).partition(nth % topic.partitions);
                let landed = producer.send(large, SOON).await.map_err(|(error, _)| error)?;
                for service in topic.subscribers {
                    let place = (topic.name, landed.partition, landed.offset);
                    set_aside(client, service, place, "undecodable", BLOCKED_MAX).await?;
                }
                for (grown_to, name) in grown_to.iter_mut().zip(SERVICES) {
                    *grown_to = stack.memory_bytes(name)?.max(*grown_to);
                }
            }
        }
        for ((before, grown_to), name) in before.iter().zip(grown_to).zip(SERVICES) {
            let grown = grown_to.saturating_sub(*before);
            ensure!(grown < GROWTH_BYTES_MAX, "{name} grew by {grown} bytes");
        }
        Ok(())
    })
    .await
}

/// What lies at a place becomes a dead letter of this kind.
pub async fn set_aside(
    client: &Client,
    service: &str,
    place: (&str, i32, i64),
    kind: &str,
    within: Duration,
) -> Result<()> {
    eventually("the dead letter", within, async || {
        let letters = letters_of(client, service).await?;
        let letter = letters.iter().find(|l| (&*l.0, l.1, l.2) == place);
        ensure!(letter.is_some_and(|letter| letter.3 == kind), "{service}: {letter:?}");
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
            let record = FutureRecord::to(topic.name).key(KEY).payload(&record).headers(headers);
            let landed = producer.send(record, SOON).await.map_err(|(error, _)| error)?;
            let place = (topic.name, landed.partition, landed.offset);
            set_aside(client, "order", place, "impossible", SOON).await?;
        }
        Ok(())
    })
    .await
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
            rewind(client, service, i64::MAX).await?;
            let to_read = behind(client, service).await?;
            ensure!(to_read > 0, "{service} was not rewound");
            stack.start(service).await?;
            read_all(client, service).await?;
            assert_eq!(rows, known(client, service).await?);
        }
        assert_eq!(before, stage.verify().await?.records);
        Ok(())
    })
    .await
}
