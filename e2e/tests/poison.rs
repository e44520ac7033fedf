//! Records that do not belong into a topic: poison, foreign records, and everything a second time
//! from the beginning.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::event::avro::frame;
use chassis::kafka::RECORD_BYTES_MAX;
use e2e::client::http_client::Client;
use e2e::client::kafka::create_producer;
use e2e::client::sample_events::{POISON_KEY, schema_id, valid_headers};
use e2e::scenarios::poison::poison_all_topics;
use e2e::stack_description::{SERVICES, subscribers};
use events::saga_topics;
use futures::future::try_join_all;
use launcher::eventually;
use rdkafka::producer::FutureRecord;
use serde_json::Value;
use uuid::Uuid;

use crate::fixture::*;

/// How long poison may block the records behind it. A schema that the registry cannot resolve takes
/// some seconds, once; a stuck client is replaced after thirty.
const BLOCKED_MAX: Duration = Duration::from_secs(25);

/// Room for key, headers and batch in the largest record that a topic accepts.
const RECORD_OVERHEAD_BYTES: usize = 2 * 1024;

/// This number of records in each topic, one after the other.
const LARGE_RECORDS: i32 = 4;

/// Bound of the prefetch: 1 MiB in Kafka's client and 16 MiB in ours. A few copies of the records
/// in progress may exist at a time.
const GROWTH_BYTES_MAX: u64 = 32 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn poison_in_every_partition_of_every_subscribed_topic_becomes_dead_letters_and_blocks_nothing()
-> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let before = stack.status().await?;
        // Poison precedes the events of an order in every partition, and lies between them.
        let poisoned = AtomicBool::new(false);
        let poisoning = async {
            let positions = poison_all_topics(client, true, &mut rand::rng()).await;
            poisoned.store(true, Ordering::Relaxed);
            positions
        };
        let ordering = async {
            let mut last_ones = 20;
            while last_ones > 0 {
                last_ones -= i32::from(poisoned.load(Ordering::Relaxed));
                let placed = place_orders(client, 1).await?;
                wait_until_confirmed_within(client, &placed, BLOCKED_MAX).await?;
            }
            Ok(())
        };
        let (positions, ()) = tokio::try_join!(poisoning, ordering)?;
        for topic in saga_topics() {
            for service in subscribers(topic) {
                let poison = &positions[topic.name];
                let count = wait_for_poison(client, service, topic.name, poison).await?;
                let url = format!("{}/dead-letters", client.addresses.admins[service]);
                let listed: Value = client.get_url(&url).await?;
                ensure!(listed["waiting"].as_u64() >= Some(count as u64), "{}", listed["waiting"]);
                let first = &listed["dead_letters"][0];
                ensure!(first["reason"].is_string() && first["topic"].is_string(), "{first}");
            }
        }
        let after = stack.status().await?;
        let pids = before.iter().map(|it| it.pid).eq(after.iter().map(|it| it.pid));
        ensure!(pids, "a component crashed: {before:?} {after:?}");
        Ok(())
    })
    .await
}

/// Waits until each poison record of a topic is a dead letter of a service, and returns how many
/// dead letters the service has then.
async fn wait_for_poison(
    client: &Client,
    service: &str,
    topic: &str,
    poison: &[(i32, i64)],
) -> Result<usize> {
    let dead_letters = eventually("every dead letter", TIMEOUT, async || {
        let letters = waiting_dead_letters(client, service).await?;
        let found: HashSet<(&str, i32, i64)> =
            letters.iter().map(|letter| (&*letter.0, letter.1, letter.2)).collect();
        let missing = poison.iter().find(|at| !found.contains(&(topic, at.0, at.1)));
        ensure!(missing.is_none(), "{service} has none of {topic} at {missing:?}");
        Ok(letters)
    })
    .await?;
    // Other tests have left dead letters of other kinds.
    let ours = dead_letters.iter().filter(|(of, partition, offset, ..)| {
        of == topic && poison.contains(&(*partition, *offset))
    });
    for letter @ (.., kind, reason) in ours {
        ensure!(!reason.is_empty() && kind == "undecodable", "{letter:?}");
    }
    Ok(dead_letters.len())
}

/// F27. Records of the largest size, in every topic with subscribers.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn records_as_large_as_their_topics_allow_become_dead_letters_and_memory_stays_bounded()
-> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let before = try_join_all(SERVICES.map(async |name| stack.memory_bytes(name)));
        let before = before.await?;
        let producer = create_producer(client)?;
        let mut grown_to = before.clone();
        for topic in saga_topics().iter().filter(|topic| !subscribers(topic).is_empty()) {
            let record = frame(
                schema_id(client, topic).await?,
                &vec![b'x'; RECORD_BYTES_MAX - RECORD_OVERHEAD_BYTES],
            );
            for nth in 0..LARGE_RECORDS {
                let headers = valid_headers(topic, Uuid::now_v7());
                let large = FutureRecord::to(topic.name).key(POISON_KEY).payload(&record);
                let large = large.headers(headers).partition(nth % topic.partitions);
                let landed = producer.send(large, TIMEOUT).await.map_err(|(error, _)| error)?;
                for service in subscribers(topic) {
                    let position = (topic.name, landed.partition, landed.offset);
                    wait_for_dead_letter(client, service, position, "undecodable", BLOCKED_MAX)
                        .await?;
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
