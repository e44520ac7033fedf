//! The demo: an order is confirmed; stock is killed; orders are still accepted and paid; stock
//! comes back and every order ends; the books balance. Each step prints what it does, does it and
//! checks the result.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use checker::group_digits;
use futures::stream::{self, StreamExt, TryStreamExt};
use launcher::{Stack, eventually};
use serde_json::Value;
use uuid::Uuid;

use crate::checker::run;
use crate::client::http_client::Client;
use crate::client::order::{LineRequest, Order};
use crate::console::print_line;
use crate::console::print_step;
use crate::format::format_hundredths;
use crate::scenarios::runner::{is_stack_up, with_stack_restored};
use crate::workload::seed;

const STEP_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const BATCH_ORDERS: usize = 100;
const OUTAGE_ORDERS: usize = 200;
const CONCURRENCY: usize = 16;

/// Runs the demo. The stack is stopped again if it was not up before.
pub async fn run(stack: &Stack) -> Result<()> {
    let began = Instant::now();
    let was_up = is_stack_up(stack).await?;
    with_stack_restored(stack, was_up, run_steps(stack, was_up)).await?;
    print_line(&format!(
        "\nEvery step was checked. The demo took {} s.",
        began.elapsed().as_secs()
    ));
    next_steps(stack, was_up);
    Ok(())
}

async fn run_steps(stack: &Stack, was_up: bool) -> Result<()> {
    print_line(
        "Holdfast: three services, order, payment and stock, each with a PostgreSQL of its own.\n\
         They communicate only through Kafka. This demo kills one of them.",
    );
    print_step(1, "Start everything");
    if was_up {
        print_line("Parts of the stack run already; starting the others …");
    } else {
        print_line("Starting the databases, Kafka, a schema registry and the services …");
    }
    let began = Instant::now();
    let client = seed::start(stack).await?;
    print_line(&format!("Everything is ready after {:.1} s.", began.elapsed().as_secs_f64()));
    if let Ok(url) = stack.console_url() {
        print_line(&format!("Watch it in a browser: {url}"));
    }

    print_step(2, "One order goes through");
    place_one_order(&client).await?;
    print_step(3, &format!("{BATCH_ORDERS} orders at once"));
    place_batch(&client).await?;
    print_step(4, "Kill stock");
    let instances = stack.instances_of("stock")?;
    for name in &instances {
        stack.kill(name).await?;
    }
    let gone = client.get::<Value>("stock", "/items").await.is_err();
    ensure!(gone, "stock answers although it was killed");
    print_line("SIGKILL: stock could not save anything, and no longer responds.");
    print_step(5, &format!("{OUTAGE_ORDERS} more orders while stock is down"));
    let (orders, starts_with) = place_during_outage(&client).await?;
    print_step(6, "Start stock again");
    recover_stock(stack, &client, &orders, starts_with).await?;
    print_step(7, "Check everything");
    check_everything(&client).await
}

/// Shows an order from the POST to its end.
async fn place_one_order(client: &Client) -> Result<()> {
    let (customer, lantern) = (&seed::CUSTOMERS[0], &seed::ITEMS[3]);
    let lines = [line(lantern.sku, 1), line("wool-cap", 2)];
    print_line("A customer orders a deck lantern and two caps:\n");
    print_line(&curl_order(client, customer.customer_id, &lines));
    let placed = client.place_until_accepted(customer.customer_id, &lines).await?;
    print_order("201 Created", &placed);
    print_line("\nPayment and stock each receive its event and respond. A moment later:\n");
    let curl = client.addresses.curl_as(customer.customer_id, "orders:read");
    let url = &client.addresses.apis["order"];
    print_line(&format!("  $ {curl} {url}/orders/{}", placed.order_id));
    let ended = client.wait_until_ended(placed.order_id, STEP_TIMEOUT).await?;
    print_order("200 OK", &ended);
    ensure!(ended.status == "confirmed", "the order should be confirmed");
    let history: Value =
        client.get("order", &format!("/orders/{}/history", placed.order_id)).await?;
    print_line("\nIts history, as the order service recorded it:\n");
    for event in history["history"].as_array().into_iter().flatten() {
        let at = event["recorded_at"].as_str().unwrap_or_default();
        let at = at.get(11..23).unwrap_or(at);
        print_line(&format!("  {at}  {}", event["event"].as_str().unwrap_or_default()));
    }
    Ok(())
}

async fn place_batch(client: &Client) -> Result<()> {
    let began = Instant::now();
    let orders = place_orders(client, BATCH_ORDERS).await?;
    let accepted = began.elapsed();
    for order_id in &orders {
        let order = client.wait_until_ended(*order_id, STEP_TIMEOUT).await?;
        ensure!(order.status == "confirmed", "order {order_id} should be confirmed");
    }
    print_line(&format!(
        "{BATCH_ORDERS} accepted in {:.2} s; all confirmed {:.2} s after the first POST.",
        accepted.as_secs_f64(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Places orders while stock is dead. Returns them and the number of those that wait.
async fn place_during_outage(client: &Client) -> Result<(Vec<Uuid>, u64)> {
    let began = Instant::now();
    let orders = place_orders(client, OUTAGE_ORDERS).await?;
    print_line(&format!(
        "All {OUTAGE_ORDERS} accepted, in {:.2} s.",
        began.elapsed().as_secs_f64()
    ));
    for order_id in &orders {
        eventually("payment to be verified", STEP_TIMEOUT, async || {
            let order = client.get_order(*order_id).await?;
            ensure!(order.leg("payment") == "verified", "order {order_id}: {}", order.legs);
            ensure!(order.status == "pending" && order.leg("stock") == "waiting", "{order:?}");
            Ok(())
        })
        .await?;
    }
    print_line(&format!(
        "Payment continues as well: all {OUTAGE_ORDERS} are paid. Each order shows what it waits for:\n"
    ));
    let first = client.get_order(orders[0]).await?;
    let (addresses, url) = (&client.addresses, &client.addresses.apis["order"]);
    let curl = addresses.curl_as(first.customer_id, "orders:read");
    print_line(&format!("  $ {curl} {url}/orders/{}", orders[0]));
    print_order("200 OK", &first);
    let prices = client.items("order").await?.len();
    ensure!(prices >= seed::ITEMS.len(), "the order service should still have the prices");
    print_line(&format!(
        "\nPrices are served too, from the order service's own copy: {prices} items.\n"
    ));
    print_line(&format!("  $ {} {url}/items", addresses.curl()));
    Ok((orders, pending_orders(client).await?))
}

/// Starts stock and shows the orders end.
async fn recover_stock(
    stack: &Stack,
    client: &Client,
    orders: &[Uuid],
    starts_with: u64,
) -> Result<()> {
    print_line(&format!("{} orders wait. Starting stock …", group_digits(starts_with)));
    let began = Instant::now();
    for name in stack.instances_of("stock")? {
        stack.start(&name).await?;
    }
    print_line(&format!("  {:>5.1} s  stock is up", began.elapsed().as_secs_f64()));
    print_line(
        "         Kafka assigns it the partitions when the killed instance's session has expired (10 s) …",
    );
    let mut shown = starts_with;
    eventually("every order to end", DRAIN_TIMEOUT, async || {
        let left = pending_orders(client).await?;
        if left < shown {
            shown = left;
            print_line(&format!(
                "  {:>5.1} s  {} orders wait",
                began.elapsed().as_secs_f64(),
                group_digits(left)
            ));
        }
        ensure!(left == 0, "{left} orders are pending");
        Ok(())
    })
    .await?;
    for order_id in orders {
        let order = client.wait_until_ended(*order_id, STEP_TIMEOUT).await?;
        ensure!(order.status == "confirmed", "order {order_id} should be confirmed");
    }
    print_line(&format!(
        "It handled the events of the outage. All {} orders ended, {:.1} s after the start.",
        orders.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn check_everything(client: &Client) -> Result<()> {
    print_line(
        "Reading the databases and every record in Kafka, and comparing them order by order …\n",
    );
    let verdict = run::run(client, &run::CheckOptions::default()).await?;
    verdict.lines().iter().for_each(|line| print_line(line));
    ensure!(verdict.holds(), "the checker found violations");
    print_line("\nEach service serves its own books at any time:\n");
    let curl = client.addresses.curl();
    for service in crate::stack_description::SERVICES {
        let books = client.books(service).await?;
        print_line(&format!("  $ {curl} {}/books", client.addresses.admins[service]));
        print_line(&format!("  {books}"));
        ensure!(books["balanced"] == true, "the books of {service} do not balance");
    }
    Ok(())
}

fn next_steps(stack: &Stack, is_up: bool) {
    let on_containers =
        if stack.is_native() { "" } else { ", with STACK=compose behind each line" };
    print_line(&format!("\nTry it yourself{on_containers}:"));
    if !is_up {
        print_line("  make up                    the same stack, which keeps running");
    }
    for line in [
        "  make outage SERVICE=kafka  orders, SIGKILL to a component of your choice, and the proof",
        "  make kill SERVICE=payment  or any other: make status lists them",
        "  make start SERVICE=payment",
        "  make status                what runs, where, with how much memory",
        "  make verify                the check of step 7, at any time",
        "  make down                  stop it and keep all data",
    ] {
        print_line(line);
    }
    print_line("\nAnd place orders with curl, as in step 2.");
}

/// Places this number of orders, by customers in turn. Each must be accepted.
async fn place_orders(client: &Client, count: usize) -> Result<Vec<Uuid>> {
    stream::iter(0..count)
        .map(async |nth| {
            let customer = &seed::CUSTOMERS[nth % seed::CUSTOMERS.len()];
            let sku = |nth: usize| seed::ITEMS[nth % seed::ITEMS.len()].sku;
            let lines = [line(sku(nth), 1), line(sku(nth + 1), 2)];
            Ok(client.place_until_accepted(customer.customer_id, &lines).await?.order_id)
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await
}

async fn pending_orders(client: &Client) -> Result<u64> {
    client.books("order").await?["orders"]["pending"].as_u64().context("the books count orders")
}

fn line(sku: &str, quantity: i64) -> LineRequest {
    LineRequest { sku: sku.to_string(), quantity }
}

fn curl_order(client: &Client, customer_id: Uuid, lines: &[LineRequest]) -> String {
    let lines: Vec<String> = lines
        .iter()
        .map(|wish| format!(r#"{{"sku": "{}", "quantity": {}}}"#, wish.sku, wish.quantity))
        .collect();
    format!(
        "  $ {} {}/orders -H 'content-type: application/json' \\\n         \
         -d '{{\"customer_id\": \"{customer_id}\",\n              \"lines\": [{}]}}'",
        client.addresses.curl_as(customer_id, "orders:write"),
        client.addresses.apis["order"],
        lines.join(", ")
    )
}

/// The state of an order as the demo prints it.
fn print_order(status: &str, order: &Order) {
    print_line(&format!(
        "  {status}\n  order {}: status {}, {}, total {} {}",
        order.order_id,
        order.status,
        order.legs,
        format_hundredths(order.total_cents),
        order.currency
    ));
}
