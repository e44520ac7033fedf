//! A consumer that an operator pauses, with the commands in docs/operations.md.

use anyhow::{Result, ensure};
use e2e::admin::dead_letters::DeadLetterCommand;
use e2e::metrics::Metrics;
use launcher::eventually;
use reqwest::Method;

use crate::dead_letters::run_successfully;
use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_an_operator_pauses_handles_nothing_and_its_service_stays_ready()
-> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let until_paused = async || {
            eventually("payment's consumer to pause", TIMEOUT, async || {
                let metrics = Metrics::fetch(stack, client, "payment").await?;
                let both = ["cause=\"operator\"", "cause=\"circuit_breaker\""];
                let both = both.map(|cause| metrics.sum_with_label("consumer_paused", cause));
                ensure!(both == [Some(1.0), Some(0.0)], "{both:?}");
                Ok(())
            })
            .await
        };
        let (service, reason) = ("payment".to_string(), "the provider moves".to_string());
        let pause = DeadLetterCommand::Pause { service: service.clone(), reason };
        let paused = run_successfully(stack, pause).await?;
        ensure!(paused.contains("has been paused by an operator"), "{paused}");
        until_paused().await?;
        let order = client.place_until_accepted(rich_customer(), &basket()).await?;
        let is_waiting = async || {
            let order = client.get_order(order.order_id).await?;
            ensure!(
                (order.leg("payment"), order.leg("stock")) == ("waiting", "reserved"),
                "{order:?}"
            );
            Ok(())
        };
        eventually("stock to reserve it", TIMEOUT, is_waiting).await?;
        let ready = format!("{}/readyz", stack.probe_url("payment")?);
        let ready = client.send(Method::GET, &ready, None, None).await?;
        ensure!(ready.is_success(), "a paused consumer serves clients: {}", ready.status);

        restart(stack, "payment").await?;
        until_paused().await?;
        is_waiting().await?;
        let list = DeadLetterCommand::DeadLetters { service: Some(service.clone()) };
        let listed = run_successfully(stack, list).await?;
        let is_told = listed.contains("the provider moves") && listed.contains("make resume");
        ensure!(is_told, "{listed}");
        run_successfully(stack, DeadLetterCommand::Resume { service }).await?;
        let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
        ensure!(ended.status == "confirmed", "{ended:?}");
        Ok(())
    })
    .await
}
