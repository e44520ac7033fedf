//! Dead letters from outside: made by hand, found, read, replayed and discarded, with the commands
//! in docs/operations.md.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use e2e::admin::dead_letters::{self, DeadLetterCommand};
use e2e::client::http_client::Client;
use e2e::client::order::Order;
use launcher::{Stack, eventually};
use serde_json::Value;

use crate::fixture::{Fixture, TIMEOUT, basket, rich_customer, with_exclusive_fixture};

/// The output of a command, and whether the command had its effect.
async fn run_command(stack: &Stack, command: DeadLetterCommand) -> Result<(bool, String)> {
    let mut out = Vec::new();
    let code = dead_letters::run(stack, &command, &mut out).await?;
    Ok((format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS), String::from_utf8(out)?))
}

pub async fn run_successfully(stack: &Stack, command: DeadLetterCommand) -> Result<String> {
    let (is_done, output) = run_command(stack, command).await?;
    ensure!(is_done, "{output}");
    Ok(output)
}

fn sql(service: &str, statement: &str) -> DeadLetterCommand {
    DeadLetterCommand::Sql { service: service.into(), statement: statement.into() }
}

pub fn replay(service: &str, id: impl ToString) -> DeadLetterCommand {
    DeadLetterCommand::Replay { service: service.into(), id: id.to_string() }
}

fn discard(service: &str, id: i64, yes: bool, cancel: bool, write_off: bool) -> DeadLetterCommand {
    let (service, reason) = (service.into(), "a test".into());
    DeadLetterCommand::Discard { service, id, reason, yes, cancel, write_off }
}

/// The one dead letter of a service that waits for an operator and belongs to this order.
pub async fn dead_letter_for(client: &Client, service: &str, order: &Order) -> Result<i64> {
    let url = format!("{}/dead-letters?limit=1000", client.addresses.admins[service]);
    eventually("the dead letter", TIMEOUT, async || {
        let page: Value = client.get_url(&url).await?;
        let letters = page["dead_letters"].as_array().into_iter().flatten();
        let key = order.order_id.to_string();
        let mut ids =
            letters.filter(|letter| letter["key"] == *key).map(|l| l["dead_letter_id"].as_i64());
        let id = ids.next().flatten();
        ensure!(id.is_some() && ids.next().is_none(), "{page}");
        Ok(id.unwrap_or_default())
    })
    .await
}

/// Runs `meanwhile` while a bad migration is in a service's database, as in docs/operations.md.
pub async fn with_strict_check<T>(
    stack: &Stack,
    (service, table, check): (&str, &str, &str),
    meanwhile: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    let add = format!("alter table {table} add constraint too_strict check ({check}) not valid");
    run_successfully(stack, sql(service, &add)).await?;
    let result = meanwhile().await;
    run_successfully(
        stack,
        sql(service, &format!("alter table {table} drop constraint too_strict")),
    )
    .await?;
    result
}

/// Payment's database refuses every verified payment.
pub const REFUSE_PAYMENTS: (&str, &str, &str) = ("payment", "payments", "state <> 'verified'");

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_made_by_hand_is_found_read_and_replayed_to_a_confirmed_order() -> Result<()>
{
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let (order, id) = with_strict_check(stack, REFUSE_PAYMENTS, async || {
            let order = client.place_until_accepted(rich_customer(), &basket()).await?;
            let id = dead_letter_for(client, "payment", &order).await?;
            let (is_done, output) = run_command(stack, replay("payment", id)).await?;
            ensure!(!is_done && output.contains("still unprocessable"), "{output}");
            Ok((order, id))
        })
        .await?;
        let listed =
            run_successfully(stack, DeadLetterCommand::DeadLetters { service: None }).await?;
        ensure!(listed.contains("payment: 1 waiting") && listed.contains("too_strict"), "{listed}");
        ensure!(listed.contains(&format!("make dead-letter SERVICE=payment ID={id}")), "{listed}");
        let read = run_successfully(
            stack,
            DeadLetterCommand::DeadLetter { service: "payment".into(), id },
        )
        .await?;
        let total = format!("\"total_cents\": {}", order.total_cents);
        for part in [order.order_id.to_string().as_str(), &total, "remedy", "of the registry"] {
            ensure!(read.contains(part), "{part} is missing:\n{read}");
        }
        eventually("stock's answer", TIMEOUT, async || {
            let waiting = client.get_order(order.order_id).await?;
            ensure!(waiting.payment == "waiting" && waiting.stock == "reserved", "{waiting:?}");
            Ok(())
        })
        .await?;

        run_successfully(stack, replay("payment", id)).await?;
        let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
        ensure!(ended.status == "confirmed", "{ended:?}");
        let again = run_successfully(stack, replay("payment", id)).await?;
        ensure!(again.contains("nothing was done"), "{again}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_deployment_pauses_the_consumer_and_a_replay_of_all_ends_every_order() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let orders = with_strict_check(stack, REFUSE_PAYMENTS, async || {
            let mut orders = Vec::new();
            for _ in 0..30 {
                orders.push(client.place_until_accepted(rich_customer(), &basket()).await?);
            }
            eventually("payment's consumer to pause", TIMEOUT, async || {
                let listed = run_successfully(
                    stack,
                    DeadLetterCommand::DeadLetters { service: Some("payment".into()) },
                );
                let listed = listed.await?;
                ensure!(listed.contains("make resume SERVICE=payment"), "{listed}");
                Ok(())
            })
            .await?;
            Ok(orders)
        })
        .await?;
        run_successfully(stack, DeadLetterCommand::Resume { service: "payment".into() }).await?;
        run_successfully(stack, replay("payment", "all")).await?;
        for order in orders {
            let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
            ensure!(ended.status == "confirmed", "{ended:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_undecodable_bytes_is_refused_and_they_can_be_discarded() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let poisoned = run_successfully(stack, DeadLetterCommand::Poison).await?;
        let position = poisoned.trim().rsplit(' ').next().unwrap_or_default().to_string();
        for service in ["payment", "stock"] {
            let url = format!("{}/dead-letters?limit=1000", client.addresses.admins[service]);
            let id = eventually("the dead letter", TIMEOUT, async || {
                let page: Value = client.get_url(&url).await?;
                let letters = page["dead_letters"].as_array().into_iter().flatten();
                let at = |l: &&Value| {
                    let topic = l["topic"].as_str().unwrap_or_default();
                    format!("{topic}[{}]@{}", l["partition"], l["offset"]) == position
                };
                let id = letters.filter(at).find_map(|letter| letter["dead_letter_id"].as_i64());
                id.ok_or_else(|| anyhow::anyhow!("{page}"))
            })
            .await?;
            let read = run_successfully(
                stack,
                DeadLetterCommand::DeadLetter { service: service.into(), id },
            )
            .await?;
            ensure!(
                read.contains("not the magic 0") && read.contains("cannot be decoded"),
                "{read}"
            );
            let (is_done, output) = run_command(stack, replay(service, id)).await?;
            ensure!(!is_done && output.contains("not the magic 0"), "{output}");
            let unconfirmed = run_command(stack, discard(service, id, false, false, false)).await;
            ensure!(
                unconfirmed.is_err_and(|e| e.to_string().contains("YES=1")),
                "it was discarded without consent"
            );
            run_successfully(stack, discard(service, id, true, false, false)).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_event_is_discarded_can_be_cancelled_and_ends() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        let order = with_strict_check(stack, REFUSE_PAYMENTS, async || {
            let order = client.place_until_accepted(rich_customer(), &basket()).await?;
            let id = dead_letter_for(client, "payment", &order).await?;
            run_successfully(stack, discard("payment", id, true, true, false)).await?;
            Ok(order)
        })
        .await?;
        let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
        // Void if the cancellation overtook the order.
        let undone = ["released", "void"].contains(&&*ended.stock);
        ensure!((&*ended.status, &*ended.payment) == ("cancelled", "void") && undone, "{ended:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_cancellation_is_written_off_and_the_books_and_the_checker_show_it()
-> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        // Exactly one approval, so that there is something to compensate.
        stack.stop("stock").await?;
        let order = client.place_until_accepted(rich_customer(), &basket()).await?;
        let id = order.order_id;
        eventually("payment's approval", TIMEOUT, async || {
            let order = client.get_order(id).await?;
            ensure!(order.payment == "verified", "{order:?}");
            Ok(())
        })
        .await?;
        let no_refund = ("payment", "payments", "state <> 'refunded'");
        with_strict_check(stack, no_refund, async || {
            client.cancel_until_accepted(&order).await?;
            let dead_letter_id = dead_letter_for(client, "payment", &order).await?;
            let (is_done, refused) =
                run_command(stack, discard("payment", dead_letter_id, true, false, false)).await?;
            let due = format!("{} EUR cents", order.total_cents);
            ensure!(
                !is_done && refused.contains(&due) && refused.contains("WRITE_OFF=1"),
                "{refused}"
            );
            run_successfully(stack, discard("payment", dead_letter_id, true, false, true)).await?;
            let books = client.books("payment").await?;
            let shown = books["written_off"].as_array().into_iter().flatten();
            let shown =
                shown.filter(|sum| sum["unit"] == "EUR cents").map(|sum| sum["amount"].as_i64());
            ensure!(shown.flatten().sum::<i64>() >= order.total_cents, "{books}");
            Ok(())
        })
        .await?;
        stack.start("stock").await?;
        eventually("stock to release its lines", TIMEOUT, async || {
            let order = client.get_order(id).await?;
            ensure!(["released", "void"].contains(&&*order.stock), "{order:?}");
            Ok(())
        })
        .await?;
        let verdict = fixture.verify().await?.lines().join("\n");
        ensure!(verdict.contains(&format!("order {id} need not end")), "{verdict}");
        Ok(())
    })
    .await
}
