//! Dead letters from outside: made by hand, found, read, replayed and discarded, with the commands
//! in docs/operations.md.

use anyhow::{Result, bail, ensure};
use chassis::event::Event;
use e2e::admin::dead_letters::{self, DeadLetterCommand, DiscardOptions, by_hand};
use e2e::client::operator::Operator;
use e2e::client::order::Order;
use launcher::{Stack, eventually};
use ops_client::{DeadLetterFilter, DeadLetterSummary};

use crate::fixture::{Fixture, TIMEOUT, basket, rich_customer, with_exclusive_fixture};

/// The output of a command or its error, and whether the command had its effect.
async fn run_command(stack: &Stack, command: DeadLetterCommand) -> Result<(bool, String)> {
    let mut out = Vec::new();
    match dead_letters::run(&Operator::for_stack(stack)?, &command, &mut out).await {
        Ok(is_done) => Ok((is_done, String::from_utf8(out)?)),
        Err(error) => Ok((false, error.to_string())),
    }
}

pub async fn run_successfully(stack: &Stack, command: DeadLetterCommand) -> Result<String> {
    let (is_done, output) = run_command(stack, command).await?;
    ensure!(is_done, "{output}");
    Ok(output)
}

async fn sql(stack: &Stack, service: &str, statement: &str) -> Result<()> {
    by_hand::run_sql(stack, service, statement, &mut Vec::new()).await
}

pub fn replay(service: &str, id: impl ToString) -> DeadLetterCommand {
    DeadLetterCommand::Replay { service: service.into(), id: id.to_string() }
}

fn discard(service: &str, id: i64, yes: bool, cancel: bool, write_off: bool) -> DeadLetterCommand {
    let (service, reason) = (service.into(), "a test".into());
    DeadLetterCommand::Discard(DiscardOptions { service, id, reason, yes, cancel, write_off })
}

/// The one dead letter of a service that waits for an operator and belongs to this order.
pub async fn dead_letter_for(stack: &Stack, service: &str, order: &Order) -> Result<i64> {
    let key = Some(order.order_id.to_string());
    the_dead_letter(stack, service, |letter| letter.key == key).await
}

/// The one dead letter of a service that waits for an operator and matches.
async fn the_dead_letter(
    stack: &Stack,
    service: &str,
    matches: impl Fn(&DeadLetterSummary) -> bool,
) -> Result<i64> {
    let operator = Operator::for_stack(stack)?;
    eventually("the dead letter", TIMEOUT, async || {
        let all = DeadLetterFilter::default();
        let page = operator.ask()?.dead_letters(service, &all, 1_000).await?;
        let mut found = page.dead_letters.iter().filter(|letter| matches(letter));
        match (found.next(), found.next()) {
            (Some(letter), None) => Ok(letter.dead_letter_id),
            _ => bail!("{page:?}"),
        }
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
    sql(stack, service, &add).await?;
    let result = meanwhile().await;
    sql(stack, service, &format!("alter table {table} drop constraint too_strict")).await?;
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
            let id = dead_letter_for(stack, "payment", &order).await?;
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
            ensure!(
                waiting.leg("payment") == "waiting" && waiting.leg("stock") == "reserved",
                "{waiting:?}"
            );
            Ok(())
        })
        .await?;

        run_successfully(stack, replay("payment", id)).await?;
        let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
        ensure!(ended.status == "confirmed", "{ended:?}");
        let again = run_successfully(stack, replay("payment", id)).await?;
        ensure!(again.contains("nothing changed"), "{again}");
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
    with_exclusive_fixture(async |Fixture { stack, .. }| {
        let mut out = Vec::new();
        by_hand::produce_poison(stack, events::orders::OrderCreated::topic(), &mut out).await?;
        let poisoned = String::from_utf8(out)?;
        let position = poisoned.trim().rsplit(' ').next().unwrap_or_default().to_string();
        for service in ["payment", "stock"] {
            let id = the_dead_letter(stack, service, |it| it.position() == position).await?;
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
            let (is_done, output) =
                run_command(stack, discard(service, id, false, false, false)).await?;
            ensure!(!is_done && output.contains("YES=1"), "without consent: {output}");
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
            let id = dead_letter_for(stack, "payment", &order).await?;
            run_successfully(stack, discard("payment", id, true, true, false)).await?;
            Ok(order)
        })
        .await?;
        let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
        // Void if the cancellation overtook the order.
        let undone = ["released", "void"].contains(&ended.leg("stock"));
        ensure!(
            (&*ended.status, ended.leg("payment")) == ("cancelled", "void") && undone,
            "{ended:?}"
        );
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
            ensure!(order.leg("payment") == "verified", "{order:?}");
            Ok(())
        })
        .await?;
        let no_refund = ("payment", "payments", "state <> 'refunded'");
        with_strict_check(stack, no_refund, async || {
            client.cancel_until_accepted(&order).await?;
            let dead_letter_id = dead_letter_for(stack, "payment", &order).await?;
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
            ensure!(["released", "void"].contains(&order.leg("stock")), "{order:?}");
            Ok(())
        })
        .await?;
        let verdict = fixture.verify().await?.lines().join("\n");
        ensure!(verdict.contains(&format!("order {id} need not end")), "{verdict}");
        Ok(())
    })
    .await
}
