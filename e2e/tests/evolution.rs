//! A newer version of the services, with newer contracts and a newer database: it is made in a scratch
//! copy of this checkout, works beside the one that is tested, and then takes its place and gives it
//! back, one instance after the other.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::Client;
use e2e::metrics::Metrics;
use e2e::scratch::{Scratch, edited};
use e2e::template::checkout;
use e2e::topics::{reader, watermarks};
use e2e::wait::eventually;
use e2e::{Stack, seed, verify};
use futures::future::try_join_all;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::stage::{aside, basket, rich};
use crate::upgrade;

/// Generous: services come and go, and a group that loses a member settles in its own time.
const WITHIN: Duration = Duration::from_secs(120);

/// Orders that each client places, and cancels, in a round.
const ORDERS: usize = 6;

/// The newer version, as what is to be replaced in which file: `orders.cancelled` has a field more and
/// its enum a symbol more, and the order service uses both whenever a customer cancels.
const NEWER: [(&str, &str, &str); 6] = [
    (
        "schemas/orders.cancelled.avsc",
        r#""fields": ["#,
        r#""fields": [{"name": "channel", "type": ["null", "string"], "default": null, "doc": "Where."},"#,
    ),
    ("schemas/orders.cancelled.avsc", r#""deadline","#, r#""deadline", "changed_mind","#),
    (
        "shared/events/src/orders.rs",
        "pub struct OrderCancelled {",
        "pub struct OrderCancelled {\n/// Where.\npub channel: Option<String>,",
    ),
    (
        "shared/events/src/orders.rs",
        "    Deadline,",
        "    Deadline,\n/// The newer word.\nChangedMind,",
    ),
    (
        "services/order/src/order.rs",
        "OrderCancelled { order_id",
        "OrderCancelled { channel: None, order_id",
    ),
    // Its own rows keep the older word: they are for others to read as well.
    (
        "services/order/src/saga.rs",
        "    orders.said(&cancelled, order_id, at);\n    Some(cancelled)\n",
        "    orders.said(&cancelled, order_id, at);
         Some(match reason {
             Reason::Customer => OrderCancelled {
                 reason: events::orders::CancelReason::ChangedMind,
                 channel: Some(String::from(\"shop\")),
                 ..cancelled
             },
             _ => cancelled,
         })\n",
    ),
];

/// Seconds instead of the minutes that making it takes: `make check` runs this by name.
#[test]
fn the_newer_version_is_made_of_lines_that_are_there() -> Result<()> {
    let root = checkout()?;
    NEWER.iter().try_for_each(|(file, from, to)| edited(&root, file, from, to).map(drop))
}

/// Orders placed with stock away, so that they are pending: half of them are cancelled. Then stock
/// is back, and all end.
async fn round(stack: &Stack, stock: &str, clients: &[&Client]) -> Result<()> {
    stack.stop(stock).await?;
    let (mut cancelled, mut others) = (Vec::new(), Vec::new());
    for client in clients {
        let place =
            || try_join_all((0..ORDERS).map(async |_| client.placed(rich(), &basket()).await));
        for order in place().await? {
            client.cancelled(order.order_id).await?;
            cancelled.push(order.order_id);
        }
        others.extend(place().await?.into_iter().map(|order| order.order_id));
    }
    stack.start(stock).await?;
    for (orders, status) in [(cancelled, "cancelled"), (others, "confirmed")] {
        for order_id in orders {
            let ended = clients[0].ended(order_id, WITHIN).await?;
            ensure!(ended.status == status, "{ended:?}");
        }
    }
    Ok(())
}

/// Cancellations that an instance of the order service has published, by its own count.
async fn cancellations_of(stack: &Stack, client: &Client, name: &str) -> Result<u64> {
    let metrics = Metrics::of(stack, client, name).await?;
    let count = metrics.labelled("events_published_total", "topic=\"orders.cancelled\"");
    Ok(count.unwrap_or_default() as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_run_side_by_side_and_replace_each_other_under_load_and_nobody_notices()
-> Result<()> {
    let scratch = Scratch::copy("evolution").await?;
    for (file, from, to) in NEWER {
        scratch.edit(file, from, to)?;
    }
    upgrade::make_database_newer(&scratch)?;
    let programs = ["order", "payment", "stock", "contracts"];
    let programs = programs.iter().flat_map(|program| ["--bin", program]);
    scratch.cargo(&["build"].into_iter().chain(programs).collect::<Vec<_>>()).await?;
    let recorded = scratch.run(scratch.programs().join("contracts"), &["record"]).await?;
    ensure!(recorded.contains("orders.cancelled."), "a version more: {recorded}");

    aside(async || {
        let stack = Stack::ephemeral()?;
        stack.up().await?;
        let client = Client::of(&stack)?;
        seed::run(&client).await?;
        stack.apply_contracts(&scratch.programs()).await?;
        stack.migrate(&scratch.programs(), "order").await?;
        for name in ["order-2", "payment-2", "stock-2"] {
            stack.set_programs(name, &scratch.programs())?;
        }

        // A newer order service takes orders too; all who read are older, and so is the relay.
        stack.start("order-2").await?;
        let mut addresses = client.addresses.clone();
        addresses.apis.insert("order".to_string(), stack.url("order-2")?);
        let newer = Client::at(addresses)?;
        round(&stack, "stock", &[&client, &newer]).await?;
        let each = 2 * ORDERS as u64;
        // More than once where a relay's session ended before it had deleted what it sent.
        let published = async |by, not_by| {
            eventually("all to be acknowledged", WITHIN, async || {
                let is = cancellations_of(&stack, &client, by).await?;
                ensure!(is >= each, "{by} published {is} of {each}");
                let is = cancellations_of(&stack, &client, not_by).await?;
                ensure!(is == 0, "{not_by} published {is}");
                Ok(())
            })
            .await
        };
        published("order", "order-2").await?;

        // Then all who read are newer, and so is the relay; the older order service still takes orders.
        for name in ["payment", "stock"] {
            stack.start(&format!("{name}-2")).await?;
            stack.stop(name).await?;
        }
        stack.stop("order").await?;
        let led = newer.placed(rich(), &basket()).await?;
        newer.ended(led.order_id, WITHIN).await?;
        stack.start("order").await?;
        round(&stack, "stock-2", &[&client, &newer]).await?;
        published("order-2", "order").await?;

        let versions =
            format!("{}/subjects/orders.cancelled-value/versions", stack.registry_url()?);
        let versions: Vec<u32> = reqwest::get(versions).await?.json().await?;
        ensure!(versions.len() == 2, "the registry knows {versions:?}");
        let (kafka, topic) = (stack.kafka_bootstrap()?, events::orders::CANCELLED.name);
        let written = tokio::task::block_in_place(|| schema_ids(&kafka, topic))?;
        ensure!(written.len() == 2, "records were written with the schemas {written:?}");
        for name in ["payment", "stock"] {
            stack.start(name).await?;
        }
        let verdict =
            verify::run(&client, &verify::Options { within: Duration::from_secs(60) }).await?;
        ensure!(verdict.holds() && verdict.letters_waiting == 0, "{}", verdict.lines().join("\n"));
        stack.clean().await?;
        upgrade::forward_and_back(&scratch.programs()).await
    })
    .await
}

/// The ids of the schemas that a topic's records were written with.
fn schema_ids(kafka: &str, topic: &str) -> Result<BTreeSet<u32>> {
    let reader = reader(kafka, "evolution")?;
    let (mut places, mut left) = (TopicPartitionList::new(), 0);
    for (partition, (low, high)) in (0..).zip(watermarks(&reader, topic)?) {
        places.add_partition_offset(topic, partition, Offset::Offset(low))?;
        left += high - low;
    }
    reader.assign(&places)?;
    let mut ids = BTreeSet::new();
    while left > 0 {
        match reader.poll(WITHIN).context("a record is missing")? {
            Err(KafkaError::PartitionEOF(_)) => continue,
            record => {
                let record = record?;
                let payload = record.payload().context("a record is empty")?;
                ids.insert(chassis::avro::unframe(payload)?.0);
                left -= 1;
            }
        }
    }
    Ok(ids)
}
