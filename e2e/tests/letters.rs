//! Dead letters from outside: made by hand, found, read, replayed, discarded, with the commands that
//! the README shows.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use e2e::Stack;
use e2e::client::{Client, Order};
use e2e::letters::{self, Command};
use e2e::wait::eventually;
use serde_json::Value;

use crate::stage::{SOON, Stage, alone, basket, rich};

/// What a command says, and whether it was done.
async fn said(stack: &Stack, command: Command) -> Result<(bool, String)> {
    let mut out = Vec::new();
    let code = letters::run(stack, &command, &mut out).await?;
    Ok((format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS), String::from_utf8(out)?))
}

async fn done(stack: &Stack, command: Command) -> Result<String> {
    let (is_done, said) = said(stack, command).await?;
    ensure!(is_done, "{said}");
    Ok(said)
}

fn sql(service: &str, statement: &str) -> Command {
    Command::Sql { service: service.into(), statement: statement.into() }
}

fn replay(service: &str, id: impl ToString) -> Command {
    Command::Replay { service: service.into(), id: id.to_string() }
}

fn discard(service: &str, id: i64, yes: bool, cancel: bool, write_off: bool) -> Command {
    let (service, because) = (service.into(), "a test".into());
    Command::Discard { service, id, because, yes, cancel, write_off }
}

/// The one letter of a service that waits for an operator and is about this order.
async fn letter_about(client: &Client, service: &str, order: &Order) -> Result<i64> {
    let url = format!("{}/dead-letters?limit=1000", client.addresses.operators[service]);
    eventually("the dead letter", SOON, async || {
        let page: Value = client.get(&url).await?;
        let letters = page["dead_letters"].as_array().into_iter().flatten();
        let key = order.order_id.to_string();
        let mut ids =
            letters.filter(|letter| letter["key"] == *key).map(|l| l["letter_id"].as_i64());
        let id = ids.next().flatten();
        ensure!(id.is_some() && ids.next().is_none(), "{page}");
        Ok(id.unwrap_or_default())
    })
    .await
}

/// While a bad migration is in a service's database, as the README has it.
async fn spoilt<T>(
    stack: &Stack,
    (service, table, check): (&str, &str, &str),
    meanwhile: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    let add = format!("alter table {table} add constraint too_strict check ({check}) not valid");
    done(stack, sql(service, &add)).await?;
    let came_to = meanwhile().await;
    done(stack, sql(service, &format!("alter table {table} drop constraint too_strict"))).await?;
    came_to
}

/// Payment may not take anything.
const NO_PAYMENT: (&str, &str, &str) = ("payment", "payments", "state <> 'verified'");

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_made_by_hand_is_found_read_and_replayed_to_a_confirmed_order() -> Result<()>
{
    alone(async |Stage { stack, client }| {
        let (order, id) = spoilt(stack, NO_PAYMENT, async || {
            let order = client.placed(rich(), &basket()).await?;
            let id = letter_about(client, "payment", &order).await?;
            let (is_done, kindly) = said(stack, replay("payment", id)).await?;
            ensure!(!is_done && kindly.contains("stays as it is"), "{kindly}");
            Ok((order, id))
        })
        .await?;
        let listed = done(stack, Command::DeadLetters { service: None }).await?;
        ensure!(listed.contains("payment: 1 waiting") && listed.contains("too_strict"), "{listed}");
        ensure!(listed.contains(&format!("make dead-letter SERVICE=payment ID={id}")), "{listed}");
        let read = done(stack, Command::DeadLetter { service: "payment".into(), id }).await?;
        let total = format!("\"total_cents\": {}", order.total_cents);
        for part in [order.order_id.to_string().as_str(), &total, "offered", "of the registry"] {
            ensure!(read.contains(part), "{part} is missing:\n{read}");
        }
        eventually("stock's answer", SOON, async || {
            let waiting = client.order(order.order_id).await?;
            ensure!(waiting.payment == "waiting" && waiting.stock == "reserved", "{waiting:?}");
            Ok(())
        })
        .await?;

        done(stack, replay("payment", id)).await?;
        let ended = client.ended(order.order_id, SOON).await?;
        ensure!(ended.status == "confirmed", "{ended:?}");
        let again = done(stack, replay("payment", id)).await?;
        ensure!(again.contains("nothing was done"), "{again}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_deployment_pauses_the_consumer_and_a_replay_of_all_ends_every_order() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let orders = spoilt(stack, NO_PAYMENT, async || {
            let mut orders = Vec::new();
            for _ in 0..30 {
                orders.push(client.placed(rich(), &basket()).await?);
            }
            eventually("payment's consumer to pause", SOON, async || {
                let listed = done(stack, Command::DeadLetters { service: Some("payment".into()) });
                let listed = listed.await?;
                ensure!(listed.contains("make resume SERVICE=payment"), "{listed}");
                Ok(())
            })
            .await?;
            Ok(orders)
        })
        .await?;
        done(stack, Command::Resume { service: "payment".into() }).await?;
        done(stack, replay("payment", "all")).await?;
        for order in orders {
            let ended = client.ended(order.order_id, SOON).await?;
            ensure!(ended.status == "confirmed", "{ended:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_event_are_refused_kindly_and_can_be_given_up() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let poisoned = done(stack, Command::Poison).await?;
        let place = poisoned.trim().rsplit(' ').next().unwrap_or_default().to_string();
        for service in ["payment", "stock"] {
            let url = format!("{}/dead-letters?limit=1000", client.addresses.operators[service]);
            let id = eventually("the dead letter", SOON, async || {
                let page: Value = client.get(&url).await?;
                let letters = page["dead_letters"].as_array().into_iter().flatten();
                let at = |l: &&Value| {
                    let topic = l["topic"].as_str().unwrap_or_default();
                    format!("{topic}[{}]@{}", l["partition"], l["offset"]) == place
                };
                let id = letters.filter(at).find_map(|letter| letter["letter_id"].as_i64());
                id.ok_or_else(|| anyhow::anyhow!("{page}"))
            })
            .await?;
            let read = done(stack, Command::DeadLetter { service: service.into(), id }).await?;
            ensure!(read.contains("not the magic 0") && read.contains("Nobody can read"), "{read}");
            let (is_done, kindly) = said(stack, replay(service, id)).await?;
            ensure!(!is_done && kindly.contains("not the magic 0"), "{kindly}");
            let unasked = said(stack, discard(service, id, false, false, false)).await;
            ensure!(
                unasked.is_err_and(|e| e.to_string().contains("YES=1")),
                "nobody agreed to that"
            );
            done(stack, discard(service, id, true, false, false)).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_event_is_discarded_can_be_cancelled_and_ends() -> Result<()> {
    alone(async |stage| {
        let Stage { stack, client } = stage;
        let order = spoilt(stack, NO_PAYMENT, async || {
            let order = client.placed(rich(), &basket()).await?;
            let id = letter_about(client, "payment", &order).await?;
            done(stack, discard("payment", id, true, true, false)).await?;
            Ok(order)
        })
        .await?;
        let ended = client.ended(order.order_id, SOON).await?;
        // Void where the cancellation overtook the order.
        let undone = ["released", "void"].contains(&&*ended.stock);
        ensure!((&*ended.status, &*ended.payment) == ("cancelled", "void") && undone, "{ended:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_cancellation_is_written_off_and_the_books_and_the_checker_say_so() -> Result<()>
{
    alone(async |stage| {
        let Stage { stack, client } = stage;
        // One yes and no more, so that there is something to cancel.
        stack.stop("stock").await?;
        let order = client.placed(rich(), &basket()).await?;
        let id = order.order_id;
        eventually("payment's yes", SOON, async || {
            let order = client.order(id).await?;
            ensure!(order.payment == "verified", "{order:?}");
            Ok(())
        })
        .await?;
        let no_refund = ("payment", "payments", "state <> 'refunded'");
        spoilt(stack, no_refund, async || {
            client.cancelled(id).await?;
            let letter_id = letter_about(client, "payment", &order).await?;
            let (is_done, refused) =
                said(stack, discard("payment", letter_id, true, false, false)).await?;
            let due = format!("{} EUR cents", order.total_cents);
            ensure!(
                !is_done && refused.contains(&due) && refused.contains("WRITE_OFF=1"),
                "{refused}"
            );
            done(stack, discard("payment", letter_id, true, false, true)).await?;
            let books = client.books("payment").await?;
            let shown = books["written_off"].as_array().into_iter().flatten();
            let shown =
                shown.filter(|sum| sum["unit"] == "EUR cents").map(|sum| sum["amount"].as_i64());
            ensure!(shown.flatten().sum::<i64>() >= order.total_cents, "{books}");
            Ok(())
        })
        .await?;
        stack.start("stock").await?;
        eventually("stock to let go", SOON, async || {
            let order = client.order(id).await?;
            ensure!(["released", "void"].contains(&&*order.stock), "{order:?}");
            Ok(())
        })
        .await?;
        let verdict = stage.verify().await?.lines().join("\n");
        ensure!(verdict.contains(&format!("order {id} need not end")), "{verdict}");
        Ok(())
    })
    .await
}
