//! A participant that `make participant` wrote joins a running system under load, survives its outage and leaves.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::client::http_client::Client;
use e2e::client::order::{LineRequest, Order};
use e2e::mutants::worktree::Worktree;
use e2e::stack_description::stack_description;
use events::participants::{ASKED_BY_EVERY_ORDER, Answers, WAITING, leg_state, participants};
use launcher::directories::programs_directory;
use launcher::{Stack, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::evolution::client_of_second_order;
use crate::fixture::*;

/// Names the folder of programs that know payment and stock alone. If it is set, this checkout has a further participant.
const OLDER_PROGRAMS: &str = "OLDER_PROGRAMS";

/// The setting of the order service, and its value for none.
const ASKS: &str = "ORDER_ALSO_ASKS";
const NONE: Option<&str> = Some("none");

const INSTANCES: [&str; 2] = ["order", "order-2"];

/// The number of orders that each client places at a time, and of the kills of the participant.
const ORDERS: usize = 5;
const KILLS: usize = 3;

/// In this checkout it writes a participant into a copy, builds the copy, runs the tests of all that knows participants,
/// and then runs itself there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles for minutes: make faults"]
async fn a_participant_joins_under_load_survives_its_outage_and_leaves() -> Result<()> {
    without_fixture(async || match std::env::var(OLDER_PROGRAMS) {
        Ok(older) => join_and_leave(Path::new(&older)).await,
        Err(_) => in_a_copy().await,
    })
    .await
}

async fn in_a_copy() -> Result<()> {
    let scratch = Worktree::create("participant").await?;
    scratch.run("make", &["participant", "NAME=fraud"]).await?;
    let built = scratch.cargo(&["build"]).await?;
    ensure!(!built.contains("warning:"), "{built}");
    let cargo = "cargo test --workspace --profile ci --locked";
    let this = "a_participant_joins_under_load_survives_its_outage_and_leaves";
    let older = programs_directory()?;
    for tests in [
        "cargo test --package fraud --package order --lib --profile ci --locked",
        &format!("{cargo} --test model -- --include-ignored"),
        &format!("{cargo} --test main -- structure:: manifests:: saga:: checker:: timeline::"),
        &format!("{OLDER_PROGRAMS}={} {cargo} --test main -- --ignored {this}", older.display()),
    ] {
        let program = scratch.programs_directory().join("e2e");
        let ran = scratch.run(program, &["with-infrastructure", "--", "sh", "-c", tests]).await?;
        ensure!(!ran.contains(" 0 passed"), "{ran}");
    }
    Ok(())
}

/// Sets whom the orders of every instance ask, from its next start on.
fn set_asked(stack: &Stack, participants: Option<&str>) -> Result<()> {
    INSTANCES.iter().try_for_each(|it| stack.set_environment(it, ASKS, participants))
}

/// A stack with two instances of order, and the participant that joins it.
struct Joining {
    stack: Stack,
    clients: [Client; 2],
    participant: Answers,
}

impl Joining {
    /// Starts the stack. The first instance of order does not know the participant, and the orders of the second one do
    /// not ask it.
    async fn start(older: &Path) -> Result<Joining> {
        let participant = participants().into_iter().nth(ASKED_BY_EVERY_ORDER);
        let stack = Stack::ephemeral(&stack_description())?;
        let client = start_and_seed(&stack).await?;
        set_asked(&stack, NONE)?;
        stack.set_programs("order", older)?;
        restart(&stack, "order").await?;
        stack.start("order-2").await?;
        let clients = [client.clone(), client_of_second_order(&stack, &client)?];
        Ok(Joining { stack, clients, participant: participant.context("a participant")? })
    }

    /// Places orders at both instances.
    async fn place(&self) -> Result<Vec<Order>> {
        let [first, second] = &self.clients;
        let placed = tokio::try_join!(place_orders(first, ORDERS), place_orders(second, ORDERS))?;
        Ok([placed.0, placed.1].concat())
    }

    /// Waits until all of them are confirmed, and have this leg.
    async fn assert_confirmed(&self, orders: &[Order], leg: &str) -> Result<()> {
        wait_until_confirmed(&self.clients[0], orders).await?;
        let order = self.clients[0].get_order(orders[0].order_id).await?;
        ensure!(order.leg(self.participant.service) == leg, "{order:?}");
        Ok(())
    }

    /// Replaces one instance after the other, while orders are placed at both and wait for stock.
    async fn replace_instances(&self) -> Result<()> {
        for instance in INSTANCES {
            self.stack.stop("stock").await?;
            let mut pending = self.place().await?;
            let replacing = restart(&self.stack, instance);
            tokio::pin!(replacing);
            loop {
                tokio::select! {
                    replaced = &mut replacing => break replaced?,
                    placed = self.place() => pending.extend(placed?),
                }
            }
            pending.extend(self.place().await?);
            self.stack.start("stock").await?;
            wait_until_confirmed(&self.clients[0], &pending).await?;
        }
        Ok(())
    }

    /// Kills the participant. Orders wait for it alone, and are confirmed when it is back.
    async fn kill_participant(&self) -> Result<()> {
        let Answers { service: name, accepted, .. } = self.participant;
        self.stack.kill(name).await?;
        let orders = self.place().await?;
        wait_until_each(&self.clients[0], &orders, "the others to accept", |order| {
            let others = participants().into_iter().take(ASKED_BY_EVERY_ORDER);
            let mut others = others.map(|it| order.leg(it.service) == leg_state(it.accepted));
            order.leg(name) == WAITING && others.all(|has_accepted| has_accepted)
        })
        .await?;
        self.stack.start(name).await?;
        self.assert_confirmed(&orders, leg_state(accepted)).await
    }

    /// Cancels two orders that the participant cannot undo. They stand in the books until an operator settles them, which
    /// happens for one.
    async fn refuse_to_undo(&self) -> Result<()> {
        let Answers { service: name, accepted, undone, undo_refused, .. } = self.participant;
        let kept = leg_state(undo_refused.context("an undo that may fail")?);
        let client = &self.clients[0];
        client.put_item("safe", "Safe", 6_000_000).await?;
        client.deliver("safe", 2, "safes").await?;
        let customer = Uuid::now_v7();
        client.deposit(customer, 12_000_000, "safes").await?;
        eventually("order to know the item", TIMEOUT, async || {
            let items = client.items("order").await?;
            ensure!(items.iter().any(|item| item["sku"] == "safe"));
            Ok(())
        })
        .await?;
        self.stack.stop("stock").await?;
        let safe = [LineRequest { sku: "safe".into(), quantity: 1 }];
        let place = async || client.place_until_accepted(customer, &safe).await;
        let orders = [place().await?, place().await?];
        wait_until_each(client, &orders, "a yes", |it| it.leg(name) == leg_state(accepted)).await?;
        for order in &orders {
            client.cancel_until_accepted(order).await?;
        }
        self.stack.start("stock").await?;
        wait_until_each(client, &orders, "a refusal to undo", |it| {
            (it.leg(name), it.has_ended()) == (kept, true)
        })
        .await?;
        let ids = orders.each_ref().map(|order| order.order_id);
        let owed =
            async || -> Result<Value> { Ok(client.books("order").await?["owed_orders"].take()) };
        ensure!(owed().await? == json!(ids), "{}", owed().await?);

        let [settled, left] = ids;
        let url = format!("{}/responses/{settled}/settle", client.addresses.admins[name]);
        ensure!(client.send(Method::POST, &url, None, None).await?.status == 200, "{url}");
        wait_until_each(client, &orders[..1], "its undoing", |it| {
            it.leg(name) == leg_state(undone)
        })
        .await?;
        ensure!(owed().await? == json!([left]), "{}", owed().await?);
        Ok(())
    }
}

async fn join_and_leave(older: &Path) -> Result<()> {
    let joining = Joining::start(older).await?;
    let (stack, name) = (&joining.stack, joining.participant.service);
    joining.assert_confirmed(&joining.place().await?, "").await?;
    stack.set_programs("order", &programs_directory()?)?;
    joining.replace_instances().await?;
    joining.assert_confirmed(&joining.place().await?, "").await?;

    set_asked(stack, None)?;
    joining.replace_instances().await?;
    for _ in 0..KILLS {
        joining.kill_participant().await?;
    }
    joining.refuse_to_undo().await?;

    set_asked(stack, NONE)?;
    joining.replace_instances().await?;
    stack.kill(name).await?;
    joining.assert_confirmed(&joining.place().await?, "").await?;
    stack.start(name).await?;
    verify_within(&joining.clients[0], DRAIN_TIMEOUT).await?;
    stack.clean().await
}
