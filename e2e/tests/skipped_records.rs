//! Records that a service would have missed: another program commits its offsets, or they are deleted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::admin::republish::{self, RepublishOptions};
use e2e::metrics::Metrics;
use faults::group_offsets::{Stranger, delete_records, reset_to_end};
use launcher::eventually;
use tokio::time::sleep;

use crate::fixture::*;

const TOPIC: &str = "orders.created";

/// How often records were missed for a cause, according to payment.
async fn gaps(fixture: &Fixture, cause: &str) -> Result<f64> {
    let metrics = Metrics::fetch(&fixture.stack, &fixture.client, "payment").await?;
    let cause = format!("cause=\"{cause}\"");
    Ok(metrics.sum_with_label("consumer_gaps_total", &cause).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_another_program_read_in_the_group_of_payment_end_by_themselves() -> Result<()>
{
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        let kafka = stack.kafka_client()?;
        let before = gaps(fixture, "skipped").await?;
        let stranger = Stranger::join(&kafka, "payment", TOPIC)?;
        let placing = async {
            let mut placed = Vec::new();
            for _ in 0..40 {
                placed.extend(place_orders(client, 1).await?);
                sleep(Duration::from_millis(250)).await;
            }
            Ok(placed)
        };
        let (stranger, placed) = tokio::try_join!(stranger.read(5, TIMEOUT), placing)?;
        tokio::task::spawn_blocking(move || drop(stranger)).await?;
        wait_until_confirmed(client, &placed).await.context("it has left")?;
        ensure!(gaps(fixture, "skipped").await? > before, "no gap was counted");

        stack.stop("payment").await?;
        let placed = place_orders(client, 9).await?;
        eventually("the group is empty", TIMEOUT, async || {
            reset_to_end(&kafka, "payment", TOPIC).await
        })
        .await?;
        stack.start("payment").await?;
        wait_until_confirmed(client, &placed).await.context("it was reset")?;
        ensure!(gaps(fixture, "skipped").await? > 0.0, "no gap was counted after the reset");
        let log = std::fs::read_to_string(stack.log_file("payment")?)?;
        let told = log.lines().filter(|line| line.contains("had not been handled"));
        ensure!(told.filter(|line| line.contains("ERROR")).count() > 1, "it is not in the log");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn records_that_were_deleted_unread_are_reported_and_their_orders_end_after_a_republication()
-> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        stack.stop("payment").await?;
        let placed = place_orders(client, 12).await?;
        crate::fixture::wait_until_outbox_empty(client, "order").await?;
        delete_records(&stack.kafka_client()?, TOPIC).await?;
        stack.start("payment").await?;
        let deleted = async || gaps(fixture, "deleted").await;
        wait_for("the gap is counted", TIMEOUT, deleted, |count| *count > 0.0).await?;
        let log = std::fs::read_to_string(stack.log_file("payment")?)?;
        let told = |line: &&str| line.contains("ERROR") && line.contains("were deleted before");
        ensure!(log.lines().any(|line| told(&line)), "it is not in the log");
        let age = async || {
            let metrics = Metrics::fetch(stack, client, "order").await?;
            let waits = "waits_for=\"payment\"";
            Ok(metrics.sum_with_label("pending_order_oldest_seconds", waits))
        };
        wait_for("the oldest order to be measured", TIMEOUT, age, |age| *age > Some(5.0)).await?;
        let order = RepublishOptions { service: Some("order".to_string()), ..Default::default() };
        republish::run(stack, &order).await?;
        wait_until_confirmed(client, &placed).await
    })
    .await
}
