//! The story in one command: an order goes through; stock is killed; orders are accepted and paid
//! all the same; stock comes back and every order ends; the books balance.
//! Each step says what it does, does it, shows it and checks it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::Value;
use uuid::Uuid;

use crate::client::{Client, Order, Wish};
use crate::figures::{grouped, money};
use crate::narration::{as_found, is_up, say, step};
use crate::wait::eventually;
use crate::{Stack, seed, verify};

const SOON: Duration = Duration::from_secs(30);
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
const BATCH: usize = 100;
const MEANWHILE: usize = 200;
const AT_ONCE: usize = 16;

/// Tells the story. The stack is taken down again if it was not up before.
pub async fn run(stack: &Stack) -> Result<()> {
    let began = Instant::now();
    let was_up = is_up(stack).await?;
    as_found(stack, was_up, tell(stack, was_up)).await?;
    say(&format!("\nAll of it was checked. The story took {} s.", began.elapsed().as_secs()));
    next_steps(stack, was_up);
    Ok(())
}

async fn tell(stack: &Stack, was_up: bool) -> Result<()> {
    say("Holdfast: three services, order, payment and stock, each with a PostgreSQL of its own.\n\
         They talk through Kafka only. Let us see what happens when one of them is killed.");
    step(1, "Start everything");
    if was_up {
        say("Something is running already; starting what is missing …");
    } else {
        say("Starting the databases, Kafka, a schema registry and the services …");
    }
    let began = Instant::now();
    stack.up().await?;
    let client = Client::of(stack)?;
    seed::run(&client).await?;
    say(&format!("Everything is ready after {:.1} s.", began.elapsed().as_secs_f64()));

    step(2, "One order goes through");
    one_order(&client).await?;
    step(3, &format!("{BATCH} orders at once"));
    a_batch(&client).await?;
    step(4, "Kill stock");
    let instances = stack.instances_of("stock")?;
    for name in &instances {
        stack.kill(name).await?;
    }
    let gone = client.read::<Value>("stock", "/items").await.is_err();
    ensure!(gone, "stock answers although it was killed");
    say("SIGKILL: no goodbye, nothing saved. Stock no longer answers.");
    step(5, &format!("{MEANWHILE} more orders while stock is dead"));
    let (orders, starts_with) = meanwhile(&client).await?;
    step(6, "Start stock again");
    come_back(stack, &client, &orders, starts_with).await?;
    step(7, "Check everything");
    check(&client).await
}

/// Shows an order from the POST to its end.
async fn one_order(client: &Client) -> Result<()> {
    let (customer, lantern) = (&seed::CUSTOMERS[0], &seed::ITEMS[3]);
    let wishes = [wish(lantern.sku, 1), wish("wool-cap", 2)];
    say("A customer orders a deck lantern and two caps:\n");
    say(&curl_order(client, customer.customer_id, &wishes));
    let placed = client.placed(customer.customer_id, &wishes).await?;
    show("201 Created", &placed);
    say("\nPayment and stock hear of it, each on its own, and answer. A moment later:\n");
    let url = &client.addresses.apis["order"];
    say(&format!("  $ curl {url}/orders/{}", placed.order_id));
    let ended = client.ended(placed.order_id, SOON).await?;
    show("200 OK", &ended);
    ensure!(ended.status == "confirmed", "the order should be confirmed");
    let history: Value =
        client.read("order", &format!("/orders/{}/history", placed.order_id)).await?;
    say("\nIts history, as the order service recorded it:\n");
    for event in history["history"].as_array().into_iter().flatten() {
        let at = event["recorded_at"].as_str().unwrap_or_default();
        let at = at.get(11..23).unwrap_or(at);
        say(&format!("  {at}  {}", event["event"].as_str().unwrap_or_default()));
    }
    Ok(())
}

async fn a_batch(client: &Client) -> Result<()> {
    let began = Instant::now();
    let orders = place(client, BATCH).await?;
    let accepted = began.elapsed();
    for order_id in &orders {
        let order = client.ended(*order_id, SOON).await?;
        ensure!(order.status == "confirmed", "order {order_id} should be confirmed");
    }
    say(&format!(
        "{BATCH} accepted in {:.2} s; all confirmed {:.2} s after the first POST.",
        accepted.as_secs_f64(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Orders while stock is dead. Answers them and how many wait.
async fn meanwhile(client: &Client) -> Result<(Vec<Uuid>, u64)> {
    let began = Instant::now();
    let orders = place(client, MEANWHILE).await?;
    say(&format!("All {MEANWHILE} accepted, in {:.2} s.", began.elapsed().as_secs_f64()));
    for order_id in &orders {
        eventually("payment to be verified", SOON, async || {
            let order = client.order(*order_id).await?;
            ensure!(order.payment == "verified", "order {order_id}: payment is {}", order.payment);
            ensure!(order.status == "pending" && order.stock == "waiting", "{order:?}");
            Ok(())
        })
        .await?;
    }
    say(&format!(
        "Payment went on as well: all {MEANWHILE} are paid. Each order says what it waits for:\n"
    ));
    let url = &client.addresses.apis["order"];
    say(&format!("  $ curl {url}/orders/{}", orders[0]));
    show("200 OK", &client.order(orders[0]).await?);
    let prices = client.items("order").await?.len();
    ensure!(prices >= seed::ITEMS.len(), "the order service should still know the prices");
    say(&format!("\nPrices are served too, from the order service's own copy: {prices} items.\n"));
    say(&format!("  $ curl {url}/items"));
    Ok((orders, pending(client).await?))
}

/// Starts stock and watches the orders end.
async fn come_back(
    stack: &Stack,
    client: &Client,
    orders: &[Uuid],
    starts_with: u64,
) -> Result<()> {
    say(&format!("{} orders wait. Starting stock …", grouped(starts_with)));
    let began = Instant::now();
    for name in stack.instances_of("stock")? {
        stack.start(&name).await?;
    }
    say(&format!("  {:>5.1} s  stock is up", began.elapsed().as_secs_f64()));
    say(
        "         Kafka gives it the dead one's work when the dead one's session has run out (10 s) …",
    );
    let mut shown = starts_with;
    eventually("every order to end", DRAINED_WITHIN, async || {
        let left = pending(client).await?;
        if left < shown {
            shown = left;
            say(&format!(
                "  {:>5.1} s  {} orders wait",
                began.elapsed().as_secs_f64(),
                grouped(left)
            ));
        }
        ensure!(left == 0, "{left} orders are pending");
        Ok(())
    })
    .await?;
    for order_id in orders {
        let order = client.ended(*order_id, SOON).await?;
        ensure!(order.status == "confirmed", "order {order_id} should be confirmed");
    }
    say(&format!(
        "It read what it had missed. All {} orders ended, {:.1} s after the start.",
        orders.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn check(client: &Client) -> Result<()> {
    say("Reading the databases and every record in Kafka, and comparing them order by order …\n");
    let verdict = verify::run(client, &verify::Options::default()).await?;
    verdict.lines().iter().for_each(|line| say(line));
    ensure!(verdict.holds(), "the check found something");
    say("\nEach service keeps books of its own, to be asked at any time:\n");
    for service in crate::topology::SERVICES {
        let books = client.books(service).await?;
        say(&format!("  $ curl {}/books", client.addresses.probes[service]));
        say(&format!("  {books}"));
        ensure!(books["balanced"] == true, "the books of {service} do not balance");
    }
    Ok(())
}

fn next_steps(stack: &Stack, is_up: bool) {
    let on_containers =
        if stack.is_native() { "" } else { ", with STACK=compose behind each line" };
    say(&format!("\nTry it yourself{on_containers}:"));
    if !is_up {
        say("  make up                    the same stack, to stay");
    }
    for line in [
        "  make outage SERVICE=kafka  a load, a victim of your choice, and the proof",
        "  make kill SERVICE=payment  or any other: make status lists them",
        "  make start SERVICE=payment",
        "  make status                what runs, where, with how much memory",
        "  make verify                the check of step 7, at any time",
        "  make down                  stop it and keep all data",
    ] {
        say(line);
    }
    say("\nAnd place orders with curl, as in step 2.");
}

/// Places so many orders the customers taking turns, each accepted.
async fn place(client: &Client, count: usize) -> Result<Vec<Uuid>> {
    stream::iter(0..count)
        .map(async |nth| {
            let customer = &seed::CUSTOMERS[nth % seed::CUSTOMERS.len()];
            let sku = |nth: usize| seed::ITEMS[nth % seed::ITEMS.len()].sku;
            let wishes = [wish(sku(nth), 1), wish(sku(nth + 1), 2)];
            Ok(client.placed(customer.customer_id, &wishes).await?.order_id)
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

async fn pending(client: &Client) -> Result<u64> {
    client.books("order").await?["orders"]["pending"].as_u64().context("the books count orders")
}

fn wish(sku: &str, quantity: i64) -> Wish {
    Wish { sku: sku.to_string(), quantity }
}

fn curl_order(client: &Client, customer_id: Uuid, wishes: &[Wish]) -> String {
    let lines: Vec<String> = wishes
        .iter()
        .map(|wish| format!(r#"{{"sku": "{}", "quantity": {}}}"#, wish.sku, wish.quantity))
        .collect();
    format!(
        "  $ curl {}/orders -H 'content-type: application/json' \\\n         \
         -d '{{\"customer_id\": \"{customer_id}\",\n              \"lines\": [{}]}}'",
        client.addresses.apis["order"],
        lines.join(", ")
    )
}

/// The parts of an order that the story is about.
fn show(status: &str, order: &Order) {
    say(&format!(
        "  {status}\n  order {}: status {}, payment {}, stock {}, total {} {}",
        order.order_id,
        order.status,
        order.payment,
        order.stock,
        money(order.total_cents),
        order.currency
    ));
}
