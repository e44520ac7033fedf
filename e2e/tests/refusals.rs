//! One record, one schema, one row that is refused stops itself and nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::avro::frame;
use e2e::client::{Client, Order};
use e2e::faults::registry_gateway::RegistryGateway;
use e2e::wait::eventually;
use e2e::{Stack, sabotage, strangers};
use events::orders::CREATED;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::time::Instant;
use uuid::Uuid;

use crate::records::letters_of;
use crate::stage::{SOON, Stage, alone, place_all, rich, wish};

/// How long others may take beside what is refused.
const OTHERS_WITHIN: Duration = Duration::from_secs(10);

const READERS: [&str; 2] = ["payment", "stock"];

/// A record with this schema id in every partition of `orders.created`.
async fn send_with_schema(client: &Client, id: u32) -> Result<()> {
    let producer: FutureProducer = strangers::producer(client)?;
    for partition in 0..CREATED.partitions {
        let payload = frame(id, b"abc");
        let record = FutureRecord::to(CREATED.name).partition(partition).key(strangers::KEY);
        let record =
            record.payload(&payload).headers(strangers::envelope(&CREATED, Uuid::now_v7()));
        producer.send(record, SOON).await.map_err(|(error, _)| error)?;
    }
    Ok(())
}

/// Each order is confirmed within the time that others may take.
async fn all_end_beside_it(client: &Client, orders: &[Order]) -> Result<()> {
    let deadline = Instant::now() + OTHERS_WITHIN;
    for order in orders {
        let ended = client.ended(order.order_id, deadline - Instant::now()).await?;
        ensure!(ended.status == "confirmed", "{ended:?}");
    }
    Ok(())
}

async fn letters_that_say(client: &Client, service: &str, word: &str) -> Result<usize> {
    let letters = letters_of(client, service).await?;
    Ok(letters.iter().filter(|(.., reason)| reason.contains(word)).count())
}

pub async fn letters_at_readers(client: &Client) -> Result<usize> {
    let mut letters = 0;
    for service in READERS {
        letters += letters_of(client, service).await?.len();
    }
    Ok(letters)
}

/// The readers of `orders.created` ask the registry through a gateway, and start with nothing known.
pub async fn through_a_gateway(
    test: impl AsyncFnOnce(&Stage, &RegistryGateway) -> Result<()>,
) -> Result<()> {
    alone(async |stage| {
        let stack = &stage.stack;
        let gateway = RegistryGateway::before(&stack.registry_url()?).await?;
        set_registry(stack, Some(&gateway.url())).await?;
        let tested = test(stage, &gateway).await;
        set_registry(stack, None).await?;
        tested
    })
    .await
}

async fn set_registry(stack: &Stack, url: Option<&str>) -> Result<()> {
    for service in READERS {
        stack.set_environment(service, "SCHEMA_REGISTRY_URL", url)?;
        stack.stop(service).await?;
        stack.start(service).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_id_that_the_registry_refuses_makes_dead_letters_and_holds_up_no_order()
-> Result<()> {
    through_a_gateway(async |Stage { client, .. }, gateway| {
        gateway.refuse("/schemas/ids/777", 403, 40301);
        send_with_schema(client, 777).await?;
        all_end_beside_it(client, &place_all(client, 12).await?).await?;
        for service in READERS {
            eventually("a dead letter for each record", SOON, async || {
                let letters = letters_that_say(client, service, "schema 777").await?;
                ensure!(letters == CREATED.partitions as usize, "{letters} at {service}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

/// An order that costs more than the rule allows.
async fn place_large(client: &Client) -> Result<Order> {
    client.placed(rich(), &[wish("deck-lantern", 20)]).await
}

/// While the rule is there; answers the order that it refuses.
pub async fn refused_by_a_rule(
    Stage { stack, client }: &Stage,
    meanwhile: impl AsyncFnOnce(&Order) -> Result<()>,
) -> Result<()> {
    sabotage::refuse_large_payments(stack).await?;
    let tested = async {
        let refused = place_large(client).await?;
        ensure!(refused.total_cents > sabotage::LARGE_CENTS, "{refused:?}");
        all_end_beside_it(client, &place_all(client, 12).await?).await?;
        let log = std::fs::read_to_string(stack.log_file("payment")?)?;
        let waits = log.lines().find(|line| line.contains("too large for our rules"));
        let waits = waits.context("no line of the log says that the event waits")?;
        ensure!(waits.contains("orders.created[") && waits.contains("]@"), "{waits}");
        meanwhile(&refused).await
    }
    .await;
    sabotage::take_large_payments(stack).await?;
    tested
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_a_rule_of_the_database_refuses_waits_alone_and_ends_when_the_rule_is_gone()
-> Result<()> {
    alone(async |stage| {
        let mut refused = None;
        refused_by_a_rule(stage, async |order| {
            refused = Some(order.order_id);
            ensure!(letters_that_say(&stage.client, "payment", "too large").await? == 0);
            Ok(())
        })
        .await?;
        let order_id = refused.context("an order was refused")?;
        let ended = stage.client.ended(order_id, SOON).await?;
        ensure!(ended.payment != "waiting", "{ended:?}");
        Ok(())
    })
    .await
}
