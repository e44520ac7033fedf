//! One refused record, schema or row blocks only itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::event::Event;
use chassis::event::avro::frame;
use e2e::client::http_client::Client;
use e2e::client::kafka;
use e2e::client::order::Order;
use e2e::client::sample_events;
use e2e::scenarios::order_faults;
use events::orders::OrderCreated;
use faults::registry_gateway::RegistryGateway;
use launcher::Stack;
use rdkafka::producer::{FutureProducer, FutureRecord};
use uuid::Uuid;

use crate::fixture::*;

/// How long other orders may take meanwhile.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(10);

const READERS: [&str; 2] = ["payment", "stock"];

/// Produces a record with this schema id in every partition of `orders.created`.
async fn send_with_schema(client: &Client, id: u32) -> Result<()> {
    let producer: FutureProducer = kafka::create_producer(client)?;
    for partition in 0..OrderCreated::topic().partitions {
        let payload = frame(id, b"abc");
        let record = FutureRecord::to(OrderCreated::topic().name)
            .partition(partition)
            .key(sample_events::POISON_KEY);
        let record = record
            .payload(&payload)
            .headers(sample_events::valid_headers(OrderCreated::topic(), Uuid::now_v7()));
        producer.send(record, TIMEOUT).await.map_err(|(error, _)| error)?;
    }
    Ok(())
}

/// Places orders, which must be confirmed in that time.
async fn confirm_others(client: &Client) -> Result<()> {
    let orders = place_orders(client, 12).await?;
    wait_until_confirmed_within(client, &orders, OTHERS_TIMEOUT).await
}

async fn count_dead_letters_with_reason(
    client: &Client,
    service: &str,
    reason_part: &str,
) -> Result<usize> {
    let letters = waiting_dead_letters(client, service).await?;
    Ok(letters.iter().filter(|(.., reason)| reason.contains(reason_part)).count())
}

pub async fn count_dead_letters_at_readers(client: &Client) -> Result<usize> {
    let mut letters = 0;
    for service in READERS {
        letters += waiting_dead_letters(client, service).await?.len();
    }
    Ok(letters)
}

/// The readers of `orders.created` use the registry through a gateway, and start without cached
/// schemas.
pub async fn with_registry_gateway(
    test: impl AsyncFnOnce(&Fixture, &RegistryGateway) -> Result<()>,
) -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let stack = &fixture.stack;
        let gateway = RegistryGateway::start(&stack.registry_url()?).await?;
        set_registry(stack, Some(&gateway.url())).await?;
        let tested = test(fixture, &gateway).await;
        set_registry(stack, None).await?;
        tested
    })
    .await
}

async fn set_registry(stack: &Stack, url: Option<&str>) -> Result<()> {
    for service in READERS {
        stack.set_environment(service, "SCHEMA_REGISTRY_URL", url)?;
        restart(stack, service).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_id_that_the_registry_refuses_makes_dead_letters_and_delays_no_order() -> Result<()>
{
    with_registry_gateway(async |Fixture { client, .. }, gateway| {
        gateway.reject("/schemas/ids/777", 403, 40301);
        send_with_schema(client, 777).await?;
        confirm_others(client).await?;
        for service in READERS {
            let count =
                async || count_dead_letters_with_reason(client, service, "schema 777").await;
            let records = OrderCreated::topic().partitions as usize;
            wait_for("a dead letter for each record", TIMEOUT, count, |it| *it == records).await?;
        }
        Ok(())
    })
    .await
}

/// An order above the limit of the rule.
async fn place_large_order(client: &Client) -> Result<Order> {
    client.place_until_accepted(rich_customer(), &[line("deck-lantern", 20)]).await
}

/// Runs `meanwhile` while the rule exists, and returns the order that it refuses.
pub async fn while_a_rule_refuses_an_order(
    Fixture { stack, client }: &Fixture,
    meanwhile: impl AsyncFnOnce(&Order) -> Result<()>,
) -> Result<()> {
    order_faults::reject_large_payments(stack).await?;
    let tested = async {
        let refused = place_large_order(client).await?;
        ensure!(refused.total_cents > order_faults::LARGE_PAYMENT_CENTS, "{refused:?}");
        confirm_others(client).await?;
        let log = std::fs::read_to_string(stack.log_file("payment")?)?;
        let waits = log.lines().find(|line| line.contains("too large for our rules"));
        let waits = waits.context("no line of the log reports that the event waits")?;
        ensure!(waits.contains("orders.created[") && waits.contains("]@"), "{waits}");
        meanwhile(&refused).await
    }
    .await;
    order_faults::accept_large_payments(stack).await?;
    tested
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_a_rule_of_the_database_refuses_waits_alone_and_ends_when_the_rule_is_gone()
-> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let mut refused = None;
        while_a_rule_refuses_an_order(fixture, async |order| {
            refused = Some(order.order_id);
            ensure!(
                count_dead_letters_with_reason(&fixture.client, "payment", "too large").await? == 0
            );
            Ok(())
        })
        .await?;
        let order_id = refused.context("an order was refused")?;
        let ended = fixture.client.wait_until_ended(order_id, TIMEOUT).await?;
        ensure!(ended.leg("payment") != "waiting", "{ended:?}");
        Ok(())
    })
    .await
}
