//! Faults of a service's own database.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::{Client, Order};
use e2e::history::STANDSTILL;
use e2e::outcome::{Outcome, accepted};
use e2e::topology::SERVICES;
use e2e::wait::eventually;
use e2e::{load, sabotage, seed};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::stage::{SOON, Stage, all_end, alone, basket, place_all, rich};

/// How long after its database is back a service may take to use it: so much longer than somebody who
/// comes anew, on a machine whose disk others share.
const RECOVERED_WITHIN: Duration = Duration::from_secs(10);

/// How long a service waits for a lock at a time; see the chassis's schema.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// The pool, the loops' five sessions, the probes' one, and whoever is just coming or going.
const SESSIONS_MAX: i64 = 16 + 5 + 1 + 2;

/// One POST: its answer, and whether it says when to come back.
async fn post(Stage { client, .. }: &Stage) -> Result<(u16, Option<String>)> {
    let order = json!({ "customer_id": rich(), "lines": basket() });
    let answer = reqwest::Client::new()
        .post(format!("{}/orders", client.addresses.apis["order"]))
        .header("Idempotency-Key", Uuid::now_v7().to_string())
        .timeout(SOON)
        .json(&order)
        .send()
        .await?;
    let later = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
    Ok((answer.status().as_u16(), later.map(str::to_string)))
}

async fn refused_for_now(stage: &Stage) -> Result<()> {
    let (status, later) = post(stage).await?;
    ensure!(status == 503 && later.is_some(), "answered {status}, Retry-After {later:?}");
    Ok(())
}

async fn recovered(stage: &Stage) -> Result<()> {
    let began = Instant::now();
    let others = eventually("the database to commit", SOON, async || {
        sabotage::commit(&stage.stack, "order").await?;
        Ok(began.elapsed())
    });
    let ours = eventually("an order to be accepted", SOON + RECOVERED_WITHIN, async || {
        let (status, _) = post(stage).await?;
        ensure!(status == 201, "answered {status}");
        Ok(began.elapsed())
    });
    let (others, ours) = tokio::try_join!(others, ours)?;
    ensure!(ours < others + RECOVERED_WITHIN, "it took {ours:?}, and others {others:?}");
    let sessions = sabotage::sessions(&stage.stack, "order").await?;
    ensure!(sessions <= SESSIONS_MAX, "{sessions} sessions");
    Ok(())
}

/// F13.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_clients_are_told_to_come_back_and_it_is_used_again_at_once()
-> Result<()> {
    alone(async |stage| {
        let stack = &stage.stack;
        stack.stop_at_once("order-db").await?;
        refused_for_now(stage).await?;
        stack.start("order-db").await?;
        recovered(stage).await?;

        stack.kill_first("order-db").await?;
        refused_for_now(stage).await?;
        stack.start("order-db").await?;
        recovered(stage).await?;

        sabotage::kill_backend(stack, "order").await?;
        recovered(stage).await?;

        eventually("the relay's session beside those of the commands", SOON, async || {
            let sessions = sabotage::sessions(stack, "order").await?;
            ensure!(sessions > 1, "{sessions} sessions");
            Ok(())
        })
        .await?;
        let ended = sabotage::end_sessions(stack, "order").await?;
        ensure!(ended > 1, "only {ended} sessions were ended");
        recovered(stage).await?;

        stack.pause("order-db").await?;
        refused_for_now(stage).await?;
        stack.resume("order-db").await?;
        recovered(stage).await
    })
    .await
}

/// F13. What readiness is there for.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_unready_while_its_database_is_away_and_ready_soon_after() -> Result<()> {
    alone(async |Stage { stack, .. }| {
        let ready = format!("{}/readyz", stack.probe_url("order")?);
        let http = reqwest::Client::builder().no_proxy().timeout(SOON).build()?;
        let answers = async |status: u16| {
            let what = format!("readiness to be {status}");
            eventually(&what, Duration::from_secs(5), async || {
                let answer = http.get(&ready).send().await?.status();
                ensure!(answer == status, "{answer}");
                Ok(())
            })
            .await
        };
        stack.kill_first("order-db").await?;
        answers(503).await?;
        stack.start("order-db").await?;
        answers(200).await?;
        // It keeps its connections and answers nothing.
        stack.pause("order-db").await?;
        answers(503).await?;
        stack.resume("order-db").await?;
        answers(200).await
    })
    .await
}

/// F13. What a failover to a standby looks like to those who keep their sessions.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_for_a_while_costs_nothing_but_the_while() -> Result<()> {
    alone(async |stage| {
        let Stage { stack, client } = stage;
        sabotage::read_only(stack, "order", true).await?;
        let refused = eventually("new transactions to be refused", SOON, async || {
            refused_for_now(stage).await
        });
        refused.await?;
        sabotage::read_only(stack, "order", false).await?;
        recovered(stage).await?;

        for service in ["payment", "stock"] {
            sabotage::read_only(stack, service, true).await?;
            refuses_commands(client, service).await?;
        }
        let orders = place_all(client, 20).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        for order in &orders {
            let order = client.order(order.order_id).await?;
            let legs = (&*order.payment, &*order.stock);
            ensure!(legs == ("waiting", "waiting"), "somebody could write: {order:?}");
        }
        for service in ["payment", "stock"] {
            sabotage::read_only(stack, service, false).await?;
        }
        all_end(client, &orders).await
    })
    .await
}

/// Neither money nor goods can be brought.
async fn refuses_commands(client: &Client, service: &str) -> Result<()> {
    let what = format!("{service} to refuse what it cannot store");
    eventually(&what, SOON, async || {
        let outcome = seed::anything(client, service).await;
        let status = outcome.as_ref().and_then(Outcome::status);
        ensure!(status == Some(503), "{outcome:?}");
        Ok(())
    })
    .await
}

/// A migration that takes its time, and a report that does.
#[tokio::test(flavor = "multi_thread")]
async fn locked_tables_and_old_snapshots_hold_things_up_and_break_nothing() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let lasting = Duration::from_secs(4);
        let lock = async |service| sabotage::lock_table(stack, service, lasting).await;
        let hold = async |service| sabotage::hold_snapshot(stack, service, lasting).await;
        let ordering = async {
            let mut accepted = Vec::new();
            let until = Instant::now() + lasting;
            while Instant::now() < until {
                let key = Uuid::now_v7().to_string();
                let outcome = client.place(rich(), &basket(), &key).await;
                if let Outcome::Ok(answer) = &outcome {
                    accepted.push(answer.json::<Order>()?);
                }
            }
            Ok::<_, anyhow::Error>(accepted)
        };
        let [order, payment, stock] = ["order", "payment", "stock"];
        let (done, disk) = load::beside_commits(client, async {
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
        ensure!(counted > 20 || disk.slowest_commit > STANDSTILL, "{counted} orders, {disk:?}");
        all_end(client, &orders).await?;
        let placing = async {
            tokio::time::sleep(lasting / 4).await;
            let (began, key, customer) = (Instant::now(), Uuid::now_v7().to_string(), rich());
            let outcome = client.place(customer, &basket(), &key).await;
            let took = began.elapsed();
            match outcome {
                // The disk stood still under its commit: the key tells.
                Outcome::Unknown(_) => (client.place(customer, &basket(), &key).await, took),
                outcome => (outcome, took),
            }
        };
        let both = async { tokio::join!(lock(order), placing) };
        let ((locked, (outcome, took)), disk) = load::beside_commits(client, both).await;
        locked?;
        ensure!(took > LOCK_WAIT / 2, "the lock held up nobody: {took:?}, {outcome:?}");
        // Taken late or refused, and neither much later than the lock is gone.
        let in_time = took < lasting + LOCK_WAIT || disk.slowest_commit > STANDSTILL;
        ensure!(in_time, "{took:?} under a lock of {lasting:?}: {outcome:?}, {disk:?}");
        match outcome {
            Outcome::Ok(answer) => {
                let order = answer.json::<Order>()?;
                client.ended(order.order_id, SOON).await.map(drop)
            }
            Outcome::Refused(answer) => {
                ensure!(answer.status == 503, "{answer}");
                Ok(())
            }
            Outcome::Unknown(because) => anyhow::bail!("nobody knows: {because}"),
            Outcome::Failed(answer) => anyhow::bail!("{answer}"),
        }
    })
    .await
}

/// What waits for a standby and is cut is seen before the standby has it: a repeat that reads it is told no
/// sooner than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_is_acknowledged_only_as_durably_as_its_first() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let (customer, key) = (rich(), Uuid::now_v7().to_string());
        let place = async |key: &str| client.place(customer, &basket(), key).await;
        let first = accepted(async || place(&key).await).await?;
        let cancelled = client.placed(customer, &basket()).await?;
        let cancelled = client.cancelled(cancelled.order_id).await?;
        sabotage::await_absent_standby(stack, "order", true).await?;
        let asked = async {
            eventually("commits to wait", SOON, async || {
                match place(&Uuid::now_v7().to_string()).await {
                    Outcome::Unknown(_) => Ok(()),
                    outcome => anyhow::bail!("{outcome}"),
                }
            })
            .await?;
            for outcome in [place(&key).await, client.cancel(cancelled.order_id).await] {
                // Or refused, where another commit that waits holds its row.
                ensure!(!matches!(outcome, Outcome::Ok(_)), "no standby has it: {outcome}");
            }
            Ok(())
        };
        let asked = asked.await;
        sabotage::await_absent_standby(stack, "order", false).await?;
        asked?;
        let again = accepted(async || place(&key).await).await?;
        ensure!((again.status, &again.body) == (201, &first.body), "{first}, and then {again}");
        // Its legs may have moved meanwhile.
        let again = client.cancelled(cancelled.order_id).await?;
        ensure!(
            (&again.status, &again.reason) == (&cancelled.status, &cancelled.reason),
            "{again:?}"
        );
        all_end(client, &[first.json()?]).await
    })
    .await
}

/// As after a failover to a copy that did not get them; and while orders are under way.
#[tokio::test(flavor = "multi_thread")]
async fn sequences_that_are_set_back_mislead_no_follower_and_hold_up_no_order() -> Result<()> {
    alone(async |Stage { stack, client }| {
        stack.stop("stock").await?;
        let orders = place_all(client, 10).await?;
        let order = client.order(orders[0].order_id).await?;
        let api = &client.addresses.apis["order"];
        let followed = reqwest::get(format!("{api}/orders/{}/events", order.order_id));
        let followed = followed.await?.error_for_status()?;
        eventually("payment's answer", SOON, async || {
            let order = client.order(order.order_id).await?;
            ensure!(order.payment == "verified", "{order:?}");
            Ok(())
        })
        .await?;
        for service in SERVICES {
            sabotage::set_sequences_back(stack, service).await?;
        }
        stack.start("stock").await?;
        all_end(client, &orders).await?;
        let began = Instant::now();
        let followed = tokio::time::timeout(SOON, followed.text()).await??;
        ensure!(followed.contains("event: orders.confirmed"), "{followed}");
        ensure!(began.elapsed() < Duration::from_secs(2), "it was told {:?} late", began.elapsed());
        let path = format!("/orders/{}/history", order.order_id);
        let history: serde_json::Value = client.read("order", &path).await?;
        let events: Vec<_> = history["history"].as_array().into_iter().flatten().collect();
        ensure!(events[0]["event"] == "orders.created", "{history}");
        ensure!(events[events.len() - 1]["event"] == "orders.confirmed", "{history}");
        all_end(client, &place_all(client, 10).await?).await
    })
    .await
}
