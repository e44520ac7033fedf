//! The control room in a real browser: each page, each action, no error in the browser, and no request to another host.
//! Screenshots are written to `target/screenshots`.

mod accessibility;
mod authorization_server;
mod browser;
mod dead_letters;
mod incidents;
mod oauth2_proxy;
mod outage;
mod sign_in;
mod demo;
mod tabs;
mod viewers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::http_client::Client;
use e2e::client::order::Order;
use e2e::stack_description::{checkout, with_console};
use e2e::workload::seed;
use launcher::{Stack, eventually};
use openssl::base64::decode_block;
use tokio::time::sleep;

use crate::control_room::browser::Browser;
use crate::fixture::{TIMEOUT, place_orders, stack_permit, wait_until_confirmed};

/// An outage is shown within this time.
const OUTAGE_SHOWN_WITHIN: Duration = Duration::from_secs(3);

/// Whether a page is live.
const STREAM_STATE: &str = "return document.getElementById('stream-state').innerText";

/// Long enough for charts whose bars are ten seconds each.
const LOAD_BEFORE_OUTAGE: Duration = Duration::from_secs(60);
const LOAD_IN_OUTAGE: Duration = Duration::from_secs(15);

/// Takes a picture of the page.
async fn take_screenshot(browser: &Browser, name: &str) -> Result<()> {
    let folder: PathBuf = checkout().join("target/screenshots");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(
        folder.join(format!("{name}.png")),
        decode_block(&browser.screenshot().await?)?,
    )?;
    Ok(())
}

/// Waits until the status beside the title of a page says this.
async fn wait_for_state(browser: &Browser, state: &str, timeout: Duration) -> Result<()> {
    eventually(&format!("the status `{state}`"), timeout, async || {
        let seen = browser.run(STREAM_STATE).await?;
        ensure!(seen == state, "it is {seen}");
        Ok(())
    })
    .await
}

/// The browser had nothing to complain about, and asked no other host.
async fn ensure_clean(browser: &Browser, url: &str) -> Result<()> {
    let complaints = browser.complaints().await?;
    ensure!(complaints.is_empty(), "{complaints:#?}");
    let requested = browser.requested_urls().await?;
    // The browser's own icons are such URLs.
    let is_other = |it: &&String| !it.starts_with(url) && !it.starts_with("data:");
    let others: Vec<_> = requested.iter().filter(is_other).collect();
    ensure!(!requested.is_empty() && others.is_empty(), "{others:#?}");
    Ok(())
}

/// A stack of its own with the control room, and demo items and accounts.
async fn start_stack() -> Result<(Stack, Client)> {
    let stack = Stack::ephemeral(&with_console())?;
    stack.up().await?;
    let client = Client::for_stack(&stack)?;
    seed::run(&client).await?;
    Ok((stack, client))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes more than a minute and needs a browser: make browser"]
async fn the_overview_shows_an_outage_live() -> Result<()> {
    let _permit = stack_permit().await?;
    let (stack, client) = start_stack().await?;
    let browser = Browser::start(1360, 900, false).await?;
    show_an_outage(&stack, &client, &browser, &stack.console_url()?).await?;
    browser.close().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes more than a minute and needs a browser: make browser"]
async fn fifty_dead_letters_of_a_bad_migration_are_replayed_and_one_is_written_off() -> Result<()> {
    let _permit = stack_permit().await?;
    let (stack, client) = start_stack().await?;
    let url = stack.console_url()?;
    let browser = Browser::start(1360, 900, false).await?;
    dead_letters::replay_fifty(&stack, &client, &browser, &url).await?;
    pause_and_resume(&client, &browser, &url).await?;
    let order = dead_letters::refuse_refund(&stack, &client).await?;
    inspect_pages(&browser, &url, &order).await?;
    stack.start("stock").await?;
    dead_letters::write_off(&client, &browser, &url, &order).await?;
    browser.close().await
}

/// Every page, while there is something to see on it.
async fn inspect_pages(browser: &Browser, url: &str, order: &Order) -> Result<()> {
    browser.open(&format!("{url}/dead-letters")).await?;
    let link = browser.run("return document.querySelector('tbody th a').pathname").await?;
    let (letter, id) = (link.as_str().context("a path")?, order.order_id);
    let customer = format!("/orders?id={}", order.customer_id);
    let pages = [
        ("/", "overview"),
        ("/orders", "orders"),
        (&*format!("/orders/{id}"), "order"),
        (&*customer, "customer"),
        ("/dead-letters", "dead-letters-list"),
        (letter, "dead-letter-detail"),
        ("/waiting", "waiting-page"),
        ("/repair", "repair-page"),
    ];
    accessibility::inspect(browser, url, &pages).await?;
    ensure_clean(browser, url).await
}

/// Places some orders four times a second.
async fn place_for(client: &Client, duration: Duration) -> Result<Vec<Order>> {
    let (begun, mut placed) = (Instant::now(), Vec::new());
    while begun.elapsed() < duration {
        placed.extend(place_orders(client, rand::random_range(1..5)).await?);
        sleep(Duration::from_millis(250)).await;
    }
    Ok(placed)
}

/// Stock is killed while the overview is open, and started again.
async fn show_an_outage(
    stack: &Stack,
    client: &Client,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    browser.open(url).await?;
    browser.wait_for("live", TIMEOUT).await?;
    let placed = place_for(client, LOAD_BEFORE_OUTAGE).await?;
    wait_until_confirmed(client, &placed).await?;
    browser.wait_for("balanced", TIMEOUT).await?;
    stack.kill("stock").await?;
    browser.wait_for("down", OUTAGE_SHOWN_WITHIN).await?;
    let waiting = place_for(client, LOAD_IN_OUTAGE).await?;
    browser.wait_for("Connection refused", TIMEOUT).await?;
    browser.wait_for(&format!("Pending\n{}\n", waiting.len()), TIMEOUT).await?;
    eventually("the pending orders by age", TIMEOUT, async || {
        let ages = "return [...document.querySelectorAll('#pending dd')].map((it) => Number(it.innerText))";
        let ages: Vec<usize> = serde_json::from_value(browser.run(ages).await?)?;
        let is_shown = ages.iter().sum::<usize>() == waiting.len() && ages.get(1) > Some(&0);
        ensure!(is_shown, "{ages:?} of {}", waiting.len());
        Ok(())
    })
    .await?;
    take_screenshot(browser, "overview-outage").await?;
    stack.start("stock").await?;
    wait_until_confirmed(client, &waiting).await?;
    eventually("all instances to be ready", TIMEOUT, async || {
        let text = browser.text().await?;
        ensure!(!text.contains("down") && !text.contains("not ready"), "{text}");
        Ok(())
    })
    .await?;
    take_screenshot(browser, "overview").await?;
    ensure_clean(browser, url).await
}

/// The list of what is stuck names the cause, and the order's page shows the event that payment refused.
async fn show_stuck_order(browser: &Browser, url: &str, order: &Order) -> Result<()> {
    browser.open(&format!("{url}/orders")).await?;
    browser.wait_for("dead letters of payment wait for an operator", TIMEOUT).await?;
    take_screenshot(browser, "stuck").await?;
    browser.open(&format!("{url}/orders/{}", order.order_id)).await?;
    browser.wait_for("orders.created is dead letter", TIMEOUT).await?;
    take_screenshot(browser, "stuck-order").await
}

/// Payment's consumer is paused: the list of what is stuck names the pause, and the resume ends it.
async fn pause_and_resume(client: &Client, browser: &Browser, url: &str) -> Result<()> {
    browser.open(&format!("{url}/repair")).await?;
    browser.wait_for("Rebuild the items", TIMEOUT).await?;
    browser.click("#paused-service option[value=payment]").await?;
    browser.fill("#pause-reason", "The payment provider moves.").await?;
    browser.click("form[action='/repair/pause'] button").await?;
    browser.wait_for("The consumer of payment is paused by an operator since", TIMEOUT).await?;
    take_screenshot(browser, "repair").await?;
    browser.open(url).await?;
    browser.wait_for("paused by an operator", TIMEOUT).await?;
    let orders = place_orders(client, 3).await?;
    browser.open(&format!("{url}/orders")).await?;
    browser.wait_for("the consumer of payment is paused by an operator", TIMEOUT).await?;
    take_screenshot(browser, "orders-stuck").await?;
    browser.open(&format!("{url}/repair")).await?;
    browser.click("form[action='/repair/payment/resume'] button").await?;
    browser.wait_for("The consumer of payment reads again.", TIMEOUT).await?;
    wait_until_confirmed(client, &orders).await?;
    ensure_clean(browser, url).await
}
