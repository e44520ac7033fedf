//! Faults of a service's own database.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::http_client::Client;
use e2e::client::order::Order;
use e2e::client::outcome::Outcome;
use e2e::workload::load_summary::DISK_STALL_MIN;
use e2e::workload::{load, seed};
use faults::database_faults;
use launcher::eventually;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::fixture::*;

/// How much longer than a new client a service may take to use its database after a restart, on a
/// machine whose disk other tests share.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The lock timeout of a service; see the chassis's schema.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The pool, five sessions of the loops, one of the probes, and one that is being opened or closed.
const SESSIONS_MAX: i64 = 16 + 5 + 1 + 2;

/// One POST: its status, and whether it has a `Retry-After`.
async fn post_order(Fixture { client, .. }: &Fixture) -> Result<(u16, Option<String>)> {
    let order = json!({ "customer_id": rich_customer(), "lines": basket() });
    let answer = reqwest::Client::new()
        .post(format!("{}/orders", client.addresses.apis["order"]))
        .header("Idempotency-Key", Uuid::now_v7().to_string())
        .timeout(TIMEOUT)
        .json(&order)
        .send()
        .await?;
    let later = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
    Ok((answer.status().as_u16(), later.map(str::to_string)))
}

async fn assert_unavailable(fixture: &Fixture) -> Result<()> {
    let (status, later) = post_order(fixture).await?;
    ensure!(status == 503 && later.is_some(), "answered {status}, Retry-After {later:?}");
    Ok(())
}

async fn wait_until_recovered(fixture: &Fixture) -> Result<()> {
    let began = Instant::now();
    let others = eventually("the database to commit", TIMEOUT, async || {
        database_faults::commit_nothing(&fixture.stack, "order").await?;
        Ok(began.elapsed())
    });
    let ours = eventually("an order to be accepted", TIMEOUT + RECOVERY_TIMEOUT, async || {
        let (status, _) = post_order(fixture).await?;
        ensure!(status == 201, "answered {status}");
        Ok(began.elapsed())
    });
    let (others, ours) = tokio::try_join!(others, ours)?;
    ensure!(ours < others + RECOVERY_TIMEOUT, "it took {ours:?}, and others {others:?}");
    let sessions = database_faults::count_sessions(&fixture.stack, "order").await?;
    ensure!(sessions <= SESSIONS_MAX, "{sessions} sessions");
    Ok(())
}

/// F13.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_clients_get_retry_after_and_it_is_used_again_at_once()
-> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let stack = &fixture.stack;
        stack.stop_immediately("order-db").await?;
        assert_unavailable(fixture).await?;
        stack.start("order-db").await?;
        wait_until_recovered(fixture).await?;

        stack.kill_main_process("order-db").await?;
        assert_unavailable(fixture).await?;
        stack.start("order-db").await?;
        wait_until_recovered(fixture).await?;

        database_faults::kill_backend(stack, "order").await?;
        wait_until_recovered(fixture).await?;

        let sessions = async || database_faults::count_sessions(stack, "order").await;
        wait_for("the relay's session beside another", TIMEOUT, sessions, |it| *it > 1).await?;
        let ended = database_faults::terminate_sessions(stack, "order").await?;
        ensure!(ended > 1, "only {ended} sessions were ended");
        wait_until_recovered(fixture).await?;

        stack.pause("order-db").await?;
        assert_unavailable(fixture).await?;
        stack.resume("order-db").await?;
        wait_until_recovered(fixture).await
    })
    .await
}

/// F13. The purpose of readiness.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_unready_while_its_database_is_away_and_ready_soon_after() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, .. }| {
        let ready = format!("{}/readyz", stack.probe_url("order")?);
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let answers = async |status: u16| {
            let readiness = async || Ok(http.get(&ready).send().await?.status().as_u16());
            let what = format!("readiness to be {status}");
            wait_for(&what, Duration::from_secs(5), readiness, |it| *it == status).await.map(drop)
        };
        stack.kill_main_process("order-db").await?;
        answers(503).await?;
        stack.start("order-db").await?;
        answers(200).await?;
        // The frozen database keeps its connections and does not respond.
        stack.pause("order-db").await?;
        answers(503).await?;
        stack.resume("order-db").await?;
        answers(200).await
    })
    .await
}

/// F13. A failover to a standby, as clients with open sessions experience it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_for_a_while_only_delays_orders() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        database_faults::set_read_only(stack, "order", true).await?;
        let refused = async || assert_unavailable(fixture).await;
        eventually("new transactions to be refused", TIMEOUT, refused).await?;
        database_faults::set_read_only(stack, "order", false).await?;
        wait_until_recovered(fixture).await?;

        for service in ["payment", "stock"] {
            database_faults::set_read_only(stack, service, true).await?;
            wait_until_commands_refused(client, service).await?;
        }
        let orders = place_orders(client, 20).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_unanswered(client, &orders, "a read-only database was written").await?;
        for service in ["payment", "stock"] {
            database_faults::set_read_only(stack, service, false).await?;
        }
        wait_until_confirmed(client, &orders).await
    })
    .await
}

/// Neither a deposit nor a delivery can be stored.
async fn wait_until_commands_refused(client: &Client, service: &str) -> Result<()> {
    let what = format!("{service} to refuse what it cannot store");
    let store = async || Ok(seed::send_any_command(client, service).await);
    let is_refused =
        |outcome: &Option<Outcome>| outcome.as_ref().and_then(Outcome::status) == Some(503);
    wait_for(&what, TIMEOUT, store, is_refused).await.map(drop)
}

/// A slow migration, and a slow report.
#[tokio::test(flavor = "multi_thread")]
async fn locked_tables_and_old_snapshots_delay_orders_and_break_nothing() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let lasting = Duration::from_secs(4);
        let lock = async |service| database_faults::lock_outbox(stack, service, lasting).await;
        let hold = async |service| database_faults::hold_snapshot(stack, service, lasting).await;
        let ordering = async {
            let mut accepted = Vec::new();
            let until = Instant::now() + lasting;
            while Instant::now() < until {
                let key = Uuid::now_v7().to_string();
                let outcome = client.place_order(rich_customer(), &basket(), &key).await;
                if let Outcome::Ok(answer) = &outcome {
                    accepted.push(answer.json::<Order>()?);
                }
            }
            Ok::<_, anyhow::Error>(accepted)
        };
        let [order, payment, stock] = ["order", "payment", "stock"];
        let (done, disk) = load::with_commit_probe(client, async {
            tokio::try_join!(
                ordering,
                hold(order),
                hold(payment),
                hold(stock),
                lock(payment),
                lock(stock)
            )
        })
        .await;
        let (orders, ..) = done?;
        let counted = orders.len();
        ensure!(counted > 20 || disk.slowest_commit > DISK_STALL_MIN, "{counted} orders, {disk:?}");
        wait_until_confirmed(client, &orders).await?;
        let placing = async {
            tokio::time::sleep(lasting / 4).await;
            let (began, key, customer) =
                (Instant::now(), Uuid::now_v7().to_string(), rich_customer());
            let outcome = client.place_order(customer, &basket(), &key).await;
            let took = began.elapsed();
            match outcome {
                // The disk stalled during its commit: a repeated request with the key settles it.
                Outcome::Unknown(_) => (client.place_order(customer, &basket(), &key).await, took),
                outcome => (outcome, took),
            }
        };
        let both = async { tokio::join!(lock(order), placing) };
        let ((locked, (outcome, took)), disk) = load::with_commit_probe(client, both).await;
        locked?;
        ensure!(took > LOCK_TIMEOUT / 2, "the lock delayed nothing: {took:?}, {outcome:?}");
        // Accepted late or refused, in either case not much later than the end of the lock.
        let in_time = took < lasting + LOCK_TIMEOUT || disk.slowest_commit > DISK_STALL_MIN;
        ensure!(in_time, "{took:?} under a lock of {lasting:?}: {outcome:?}, {disk:?}");
        assert_ended_or_refused(client, outcome).await
    })
    .await
}

async fn assert_ended_or_refused(client: &Client, outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Ok(answer) => {
            let order = answer.json::<Order>()?;
            client.wait_until_ended(order.order_id, TIMEOUT).await.map(drop)
        }
        Outcome::Refused(answer) => {
            ensure!(answer.status == 503, "{answer}");
            Ok(())
        }
        Outcome::Unknown(reason) => anyhow::bail!("the outcome is unknown: {reason}"),
        Outcome::Failed(answer) => anyhow::bail!("{answer}"),
    }
}
