//! Faults of delivery: late, again, from the beginning, or impossible. They leave dead letters, and tests run in order
//! of their names. Their names therefore sort after the tests that count dead letters.

use anyhow::{Result, ensure};
use chassis::event::Event;
use e2e::client::http_client::Client;
use e2e::client::order::Order;
use e2e::scenarios::poison::send_unprocessable;
use e2e::scenarios::redelivery::{self, consumer_lag, reset_offsets, table_hashes};
use e2e::stack_description::{SERVICES, subscribers};
use events::orders::OrderCreated;
use events::payments::PaymentVerified;
use events::saga_topics;
use events::stock::StockReserved;
use futures::future::try_join_all;
use tokio::time::Instant;

use crate::fixture::*;

/// The hash of every table, but for the clock's, to which a running service adds a row each minute.
async fn rows_of_all_services(client: &Client) -> Result<Vec<(String, String)>> {
    let all = try_join_all(SERVICES.map(|service| table_hashes(client, service))).await?;
    Ok(all.into_iter().flatten().filter(|(table, _)| !table.ends_with(".clock_ticks")).collect())
}

/// F19. Payment and stock receive the cancellation long before the order.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_overtakes_its_order_leaves_nothing_to_do_for_the_order() -> Result<()>
{
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let both = ["payment", "stock"];
        try_join_all(both.map(|service| stack.stop(service))).await?;
        let orders = place_orders(client, 20).await?;
        for order in &orders {
            client.cancel_until_accepted(order).await?;
        }
        wait_until_outbox_empty(client, "order").await?;
        let mut held = Vec::new();
        for service in both {
            held.push(redelivery::withhold(client, service, OrderCreated::topic()).await?);
        }
        try_join_all(both.map(|service| stack.start(service))).await?;
        let is_void = |it: &Order| (it.leg("payment"), it.leg("stock")) == ("void", "void");
        wait_until_each(client, &orders, "the orders to end", is_void).await?;
        try_join_all(both.map(|service| stack.stop(service))).await?;
        for held in held {
            redelivery::release(client, held).await?;
        }
        try_join_all(both.map(|service| stack.start(service))).await?;
        for service in both {
            wait_until_all_read(client, service).await?;
        }
        for order in &orders {
            let ended = client.get_order(order.order_id).await?;
            ensure!(is_void(&ended), "{ended:?}");
        }
        Ok(())
    })
    .await
}

/// F19. If one of the two responses comes much later, the order waits for it and ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_waits_for_a_delayed_response_and_ends_with_it() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        for (topic, there, missing) in [
            (PaymentVerified::topic(), "reserved", "waiting"),
            (StockReserved::topic(), "waiting", "verified"),
        ] {
            restart(stack, "order").await?;
            stack.pause("payment").await?;
            stack.pause("stock").await?;
            let orders = place_orders(client, 10).await?;
            wait_until_outbox_empty(client, "order").await?;
            stack.stop("order").await?;
            stack.resume("payment").await?;
            stack.resume("stock").await?;
            for service in ["payment", "stock"] {
                wait_until_all_read(client, service).await?;
            }
            // Their responses are in the topics when their outboxes are empty.
            for service in ["payment", "stock"] {
                wait_until_outbox_empty(client, service).await?;
            }
            let held = redelivery::withhold(client, "order", topic).await?;
            stack.start("order").await?;
            wait_until_all_read(client, "order").await?;
            for order in &orders {
                let order = client.get_order(order.order_id).await?;
                let states = (&*order.status, order.leg("stock"), order.leg("payment"));
                ensure!(states == ("pending", there, missing), "{order:?}");
            }
            stack.stop("order").await?;
            redelivery::release(client, held).await?;
            stack.start("order").await?;
            wait_until_confirmed(client, &orders).await?;
        }
        Ok(())
    })
    .await
}

/// F20.
#[tokio::test(flavor = "multi_thread")]
async fn every_record_written_again_once_to_three_times_changes_no_row() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let Fixture { client, .. } = fixture;
        confirm_orders(client, 40).await?;
        fixture.verify().await?;
        let before = rows_of_all_services(client).await?;
        let written = redelivery::produce_again(client, 2_000, &mut rand::rng()).await?;
        ensure!(written > 200, "only {written}");
        for service in SERVICES {
            wait_until_all_read(client, service).await?;
        }
        let after = rows_of_all_services(client).await?;
        ensure!(before.len() == after.len(), "{after:?}");
        let changed: Vec<_> = before.iter().zip(&after).filter(|(was, is)| was != is).collect();
        ensure!(changed.is_empty(), "{changed:?}");
        Ok(())
    })
    .await
}

/// F25. Unprocessable events become dead letters, and no event behind them waits.
#[tokio::test(flavor = "multi_thread")]
async fn unprocessable_events_become_dead_letters_and_delay_no_valid_ones() -> Result<()> {
    with_exclusive_fixture(async |Fixture { client, .. }| {
        let order = client.place_until_accepted(rich_customer(), &basket()).await?;
        let order = client.wait_until_ended(order.order_id, TIMEOUT).await?;
        for _ in 0..2 {
            confirm_orders(client, 5).await?;
            let positions = send_unprocessable(client, &order).await?;
            let began = Instant::now();
            confirm_orders(client, 5).await?;
            ensure!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
            for topic in saga_topics() {
                for service in subscribers(topic) {
                    for (partition, offset) in positions.get(topic.name).into_iter().flatten() {
                        let position = (topic.name, *partition, *offset);
                        wait_for_dead_letter(client, service, position, "unprocessable", TIMEOUT)
                            .await?;
                    }
                }
            }
        }
        let again = client.get_order(order.order_id).await?;
        ensure!(again == order, "{again:?}");
        Ok(())
    })
    .await
}

/// F29.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_offsets_are_gone_reads_everything_again_and_loses_nothing() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        confirm_orders(client, 25).await?;
        for service in SERVICES {
            stack.stop(service).await?;
            let meanwhile = match service {
                "order" => Vec::new(),
                _ => place_orders(client, 5).await?,
            };
            redelivery::delete_offsets(client, service).await?;
            let behind = redelivery::consumer_lag(client, service).await?;
            ensure!(behind > 20, "{service} has only {behind} records to read");
            stack.start(service).await?;
            wait_until_all_read(client, service).await?;
            wait_until_confirmed(client, &meanwhile).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn replaying_every_topic_from_offset_0_changes_no_row_and_publishes_nothing() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        confirm_orders(client, 20).await?;
        let before = fixture.verify().await?.records;
        for service in SERVICES {
            stack.stop(service).await?;
            let rows = table_hashes(client, service).await?;
            reset_offsets(client, service, i64::MAX).await?;
            let to_read = consumer_lag(client, service).await?;
            ensure!(to_read > 0, "{service} was not rewound");
            stack.start(service).await?;
            wait_until_all_read(client, service).await?;
            assert_eq!(rows, table_hashes(client, service).await?);
        }
        assert_eq!(before, fixture.verify().await?.records);
        Ok(())
    })
    .await
}
