//! Faults of what is delivered: late, again, from the beginning, or impossible. They leave dead letters
//! behind, so they run after those that count letters: tests run in order of their names.

use anyhow::{Result, ensure};
use e2e::client::Client;
use e2e::replays::{self, known};
use e2e::strangers::send_impossible;
use e2e::topology::SERVICES;
use e2e::wait::eventually;
use events::{TOPICS, orders, payments, stock as stocks};
use futures::future::try_join_all;
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::faults::read_all;
use crate::records::set_aside;
use crate::stage::{SOON, Stage, all_end, alone, basket, place_all, rich};

async fn known_to_all(client: &Client) -> Result<Vec<(String, String)>> {
    let all = try_join_all(SERVICES.map(|service| known(client, service))).await?;
    Ok(all.into_iter().flatten().collect())
}

/// F19. Payment and stock hear of the cancellation long before they hear of the order.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_overtakes_its_order_leaves_nothing_to_do_for_the_order() -> Result<()>
{
    alone(async |Stage { stack, client }| {
        let both = ["payment", "stock"];
        try_join_all(both.map(|service| stack.stop(service))).await?;
        let orders = place_all(client, 20).await?;
        for order in &orders {
            client.cancelled(order.order_id).await?;
        }
        outbox_is_empty(client, "order").await?;
        let mut held = Vec::new();
        for service in both {
            held.push(replays::hold(client, service, &orders::CREATED).await?);
        }
        try_join_all(both.map(|service| stack.start(service))).await?;
        for order in &orders {
            let ended = client.ended(order.order_id, SOON).await?;
            ensure!((&*ended.payment, &*ended.stock) == ("void", "void"), "{ended:?}");
        }
        try_join_all(both.map(|service| stack.stop(service))).await?;
        for held in held {
            replays::release(client, held).await?;
        }
        try_join_all(both.map(|service| stack.start(service))).await?;
        for service in both {
            read_all(client, service).await?;
        }
        for order in &orders {
            let ended = client.order(order.order_id).await?;
            ensure!((&*ended.payment, &*ended.stock) == ("void", "void"), "{ended:?}");
        }
        Ok(())
    })
    .await
}

/// F19. Whichever of the two answers comes much later, the order waits for it and ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_waits_for_the_answer_that_is_held_up_and_ends_with_it() -> Result<()> {
    alone(async |Stage { stack, client }| {
        for (topic, there, missing) in [
            (&payments::VERIFIED, "reserved", "waiting"),
            (&stocks::RESERVED, "waiting", "verified"),
        ] {
            stack.stop("order").await?;
            stack.start("order").await?;
            stack.pause("payment").await?;
            stack.pause("stock").await?;
            let orders = place_all(client, 10).await?;
            outbox_is_empty(client, "order").await?;
            stack.stop("order").await?;
            stack.resume("payment").await?;
            stack.resume("stock").await?;
            for service in ["payment", "stock"] {
                read_all(client, service).await?;
            }
            // Their answers are in the topics once nothing waits in their outboxes.
            for service in ["payment", "stock"] {
                outbox_is_empty(client, service).await?;
            }
            let held = replays::hold(client, "order", topic).await?;
            stack.start("order").await?;
            read_all(client, "order").await?;
            for order in &orders {
                let order = client.order(order.order_id).await?;
                ensure!(
                    (&*order.status, &*order.stock, &*order.payment) == ("pending", there, missing),
                    "{order:?}"
                );
            }
            stack.stop("order").await?;
            replays::release(client, held).await?;
            stack.start("order").await?;
            all_end(client, &orders).await?;
        }
        Ok(())
    })
    .await
}

/// Everything that a service had to publish lies in its topics.
pub async fn outbox_is_empty(client: &Client, service: &str) -> Result<()> {
    eventually("everything to be published", SOON, async || {
        let url = &client.addresses.databases[service];
        let mut db = PgConnection::connect(url).await?;
        let left: i64 =
            sqlx::query_scalar("select count(*) from outbox").fetch_one(&mut db).await?;
        ensure!(left == 0, "{left} events wait");
        Ok(())
    })
    .await
}

/// F20.
#[tokio::test(flavor = "multi_thread")]
async fn every_record_written_again_once_to_three_times_changes_no_row() -> Result<()> {
    alone(async |stage| {
        let Stage { client, .. } = stage;
        all_end(client, &place_all(client, 40).await?).await?;
        stage.verify().await?;
        let before = known_to_all(client).await?;
        let written = replays::reproduce(client, 2_000).await?;
        ensure!(written > 200, "only {written}");
        for service in SERVICES {
            read_all(client, service).await?;
        }
        let after = known_to_all(client).await?;
        ensure!(before.len() == after.len(), "{after:?}");
        let changed: Vec<_> = before.iter().zip(&after).filter(|(was, is)| was != is).collect();
        ensure!(changed.is_empty(), "{changed:?}");
        Ok(())
    })
    .await
}

/// F25. Those that cannot be are set aside, and nobody behind them waits.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_cannot_be_become_dead_letters_and_hold_up_no_good_ones() -> Result<()> {
    alone(async |Stage { client, .. }| {
        let order = client.placed(rich(), &basket()).await?;
        let order = client.ended(order.order_id, SOON).await?;
        for _ in 0..2 {
            all_end(client, &place_all(client, 5).await?).await?;
            let places = send_impossible(client, &order).await?;
            let began = Instant::now();
            all_end(client, &place_all(client, 5).await?).await?;
            ensure!(began.elapsed() < SOON, "{:?}", began.elapsed());
            for topic in TOPICS {
                for service in topic.subscribers {
                    for (partition, offset) in places.get(topic.name).into_iter().flatten() {
                        set_aside(
                            client,
                            service,
                            (topic.name, *partition, *offset),
                            "impossible",
                            SOON,
                        )
                        .await?;
                    }
                }
            }
        }
        let again = client.order(order.order_id).await?;
        ensure!(again == order, "{again:?}");
        Ok(())
    })
    .await
}

/// F29.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_offsets_are_gone_reads_everything_again_and_loses_nothing() -> Result<()> {
    alone(async |Stage { stack, client }| {
        all_end(client, &place_all(client, 25).await?).await?;
        for service in SERVICES {
            stack.stop(service).await?;
            let meanwhile = match service {
                "order" => Vec::new(),
                _ => place_all(client, 5).await?,
            };
            replays::forget(client, service).await?;
            let behind = replays::behind(client, service).await?;
            ensure!(behind > 20, "{service} has only {behind} records to read");
            stack.start(service).await?;
            read_all(client, service).await?;
            all_end(client, &meanwhile).await?;
        }
        Ok(())
    })
    .await
}
