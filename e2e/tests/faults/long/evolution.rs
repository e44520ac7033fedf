//! A newer version of the services, with newer contracts and a newer database: it is built in a
//! copy of this checkout, runs beside the tested version, and then the two replace each other, one
//! instance after the other.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::event::{Event, Topic};
use checker::read_topic;
use e2e::client::http_client::Client;
use e2e::metrics::Metrics;
use e2e::mutants::worktree::{Worktree, replaced_once};
use e2e::stack_description::{checkout, stack_description};
use launcher::{Stack, eventually};
use rdkafka::{ClientConfig, Message};
use sqlx::{Connection, PgConnection};

use crate::fixture::*;
use crate::upgrade;

/// A long timeout: services restart, and a group that loses a member rebalances after its session
/// timeout.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

/// The number of orders that each client places, and cancels, in a round.
const ORDERS_PER_CLIENT: usize = 6;

/// The newer version, as replacements of text in files: `orders.cancelled` has a new field and its
/// enum a new symbol, and the order service uses both whenever a customer cancels. The chassis writes a new column of
/// its inbox.
const NEWER_VERSION_EDITS: [(&str, &str, &str); 7] = [
    upgrade::NEWER_INBOX,
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
        "services/order/src/order/published.rs",
        "OrderCancelled { order_id",
        "OrderCancelled { channel: None, order_id",
    ),
    // The rows keep the older symbol, since other versions read them as well.
    (
        "services/order/src/saga.rs",
        "    Some(ended)\n",
        "    Some(match ended {
             Ended::Cancelled(cancelled) if reason == Some(Reason::Customer) => {
                 Ended::Cancelled(OrderCancelled {
                     reason: events::orders::CancelReason::ChangedMind,
                     channel: Some(String::from(\"shop\")),
                     ..cancelled
                 })
             }
             ended => ended,
         })\n",
    ),
];

/// This takes seconds instead of the minutes of a build: `make check` runs it by name.
#[test]
fn every_line_that_the_newer_version_replaces_exists() -> Result<()> {
    let root = checkout();
    NEWER_VERSION_EDITS
        .iter()
        .try_for_each(|(file, from, to)| replaced_once(&root, file, from, to).map(drop))
}

/// Places orders with stock stopped, so that they are pending, and cancels half of them. Then stock
/// is started, and all orders end.
async fn place_and_cancel(stack: &Stack, stock: &str, clients: &[&Client]) -> Result<()> {
    stack.stop(stock).await?;
    let (mut cancelled, mut others) = (Vec::new(), Vec::new());
    for client in clients {
        for order in place_orders(client, ORDERS_PER_CLIENT).await? {
            client.cancel_until_accepted(&order).await?;
            cancelled.push(order.order_id);
        }
        let placed = place_orders(client, ORDERS_PER_CLIENT).await?;
        others.extend(placed.into_iter().map(|order| order.order_id));
    }
    stack.start(stock).await?;
    for (orders, status) in [(cancelled, "cancelled"), (others, "confirmed")] {
        for order_id in orders {
            let ended = clients[0].wait_until_ended(order_id, SETTLE_TIMEOUT).await?;
            ensure!(ended.status == status, "{ended:?}");
        }
    }
    Ok(())
}

/// The number of cancellations that an instance of the order service has published, by its metrics.
async fn published_cancellations(stack: &Stack, client: &Client, name: &str) -> Result<u64> {
    let metrics = Metrics::fetch(stack, client, name).await?;
    let count = metrics.sum_with_label("events_published_total", "topic=\"orders.cancelled\"");
    Ok(count.unwrap_or_default() as u64)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn two_versions_run_side_by_side_and_replace_each_other_under_load_without_client_errors()
-> Result<()> {
    let scratch = Worktree::create("evolution").await?;
    for (file, from, to) in NEWER_VERSION_EDITS {
        scratch.edit(file, from, to)?;
    }
    upgrade::add_newer_migrations(&scratch)?;
    let programs = ["order", "payment", "stock", "contracts"];
    let programs = programs.iter().flat_map(|program| ["--bin", program]);
    scratch.cargo(&["build"].into_iter().chain(programs).collect::<Vec<_>>()).await?;
    let recorded = scratch.run(scratch.programs_directory().join("contracts"), &["record"]).await?;
    ensure!(recorded.contains("orders.cancelled."), "a new version is recorded: {recorded}");

    without_fixture(async || {
        let stack = Stack::ephemeral(&stack_description())?;
        let client = start_and_seed(&stack).await?;
        stack.apply_contracts(&scratch.programs_directory()).await?;
        upgrade::migrate_all(&stack, &scratch.programs_directory()).await?;
        for name in ["order-2", "payment-2", "stock-2"] {
            stack.set_programs(name, &scratch.programs_directory())?;
        }

        // A newer order service accepts orders too; all readers are older, and so is the relay.
        stack.start("order-2").await?;
        let newer = client_of_second_order(&stack, &client)?;
        place_and_cancel(&stack, "stock", &[&client, &newer]).await?;
        let each = 2 * ORDERS_PER_CLIENT as u64;
        // More than once if a relay's session ended before it had deleted the rows that it sent.
        let published = async |by, not_by| {
            eventually("all to be acknowledged", SETTLE_TIMEOUT, async || {
                let is = published_cancellations(&stack, &client, by).await?;
                ensure!(is >= each, "{by} published {is} of {each}");
                let is = published_cancellations(&stack, &client, not_by).await?;
                ensure!(is == 0, "{not_by} published {is}");
                Ok(())
            })
            .await
        };
        published("order", "order-2").await?;

        // Now all readers are newer, and so is the relay; the older order service still accepts
        // orders.
        for name in ["payment", "stock"] {
            stack.start(&format!("{name}-2")).await?;
            stack.stop(name).await?;
        }
        stack.stop("order").await?;
        let led = newer.place_until_accepted(rich_customer(), &basket()).await?;
        newer.wait_until_ended(led.order_id, SETTLE_TIMEOUT).await?;
        stack.start("order").await?;
        place_and_cancel(&stack, "stock-2", &[&client, &newer]).await?;
        published("order-2", "order").await?;

        assert_both_versions_written(&stack).await?;
        for name in ["payment", "stock"] {
            stack.start(name).await?;
        }
        let verdict = verify_within(&client, Duration::from_secs(60)).await?;
        ensure!(verdict.dead_letters_waiting == 0, "{}", verdict.lines().join("\n"));
        stack.clean().await?;
        upgrade::upgrade_and_roll_back(&scratch.programs_directory()).await
    })
    .await
}

/// A client that sends its orders to the second instance of the order service.
pub fn client_of_second_order(stack: &Stack, client: &Client) -> Result<Client> {
    let mut addresses = client.addresses.clone();
    addresses.apis.insert("order".to_string(), stack.url("order-2")?);
    Client::new(addresses)
}

/// The registry has two versions of the cancellation, and records were written with both. Entries of stock's inbox were
/// written by both versions of the chassis.
async fn assert_both_versions_written(stack: &Stack) -> Result<()> {
    let versions = format!("{}/subjects/orders.cancelled-value/versions", stack.registry_url()?);
    let versions: Vec<u32> = reqwest::get(versions).await?.json().await?;
    ensure!(versions.len() == 2, "the registry has {versions:?}");
    let kafka = stack.kafka_client()?;
    let topic = events::orders::OrderCancelled::topic();
    let written = tokio::task::block_in_place(|| schema_ids(&kafka, topic))?;
    ensure!(written.len() == 2, "records were written with the schemas {written:?}");
    let mut db = PgConnection::connect(&stack.database_url("stock")?).await?;
    let handlers = "select distinct handled_by from chassis.inbox order by 1";
    let handlers: Vec<String> = sqlx::query_scalar(handlers).fetch_all(&mut db).await?;
    ensure!(handlers == ["", "the newer version"], "entries were written by {handlers:?}");
    Ok(())
}

/// The ids of the schemas with which a topic's records were written.
fn schema_ids(kafka: &ClientConfig, topic: &'static Topic) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    read_topic(kafka, topic, |_, record| {
        let payload = record.payload().context("a record is empty")?;
        ids.insert(chassis::event::avro::unframe(payload)?.0);
        Ok(())
    })?;
    Ok(ids)
}
