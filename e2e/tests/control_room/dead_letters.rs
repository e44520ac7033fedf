//! Dead letters in the browser: the fifty of a bad migration are found, understood and replayed, and one is discarded
//! with a write-off that the books then show.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::client::http_client::Client;
use e2e::client::kafka::create_producer;
use e2e::client::order::Order;
use futures::future::try_join_all;
use launcher::{Stack, eventually};
use rdkafka::producer::FutureRecord;
use serde_json::Value;
use tokio::time::sleep;

use super::browser::Browser;
use super::{ensure_clean, show_stuck_order, start_stack, take_screenshot, wait_for_state};
use crate::dead_letters::{REFUSE_PAYMENTS, with_strict_check};
use crate::fixture::{
    TIMEOUT, basket, place_orders, rich_customer, stack_permit, wait_until_confirmed,
};

/// More than twice the number in a row at which a consumer pauses.
const BAD_EVENTS: usize = 50;

/// More than a page of the list has rows, and fewer of another cause.
const POISON_RECORDS: usize = 210;
const ROWS_MAX: usize = 200;
const BAD_ORDERS: usize = 2;

/// How long an operator may need for all of them, from the first look at the overview.
const REPLAY_TIME_MAX: Duration = Duration::from_secs(120);

/// Links and buttons, as CSS selectors.
const HEADLINE: &str = ".figure a[href='/dead-letters']";
const FIRST_ROW: &str = "tbody th a";
const RESUME: &str = "form[action='/repair/payment/resume'] button";
const SHOW_NEW: &str = "#attention a";

/// What the page says while the consumer is paused, and when other dead letters wait than it shows.
const PAUSED: &str = "The consumer of payment is paused";
const NEW: &str = "Show what waits now";

/// A bad migration makes fifty dead letters. Everything but its removal happens in the browser.
pub async fn replay_fifty(
    stack: &Stack,
    client: &Client,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    let begun = Instant::now();
    let orders = with_strict_check(stack, REFUSE_PAYMENTS, async || {
        let orders = place_orders(client, BAD_EVENTS).await?;
        find_and_understand(browser, url).await?;
        resume_until_all_wait(browser).await?;
        take_screenshot(browser, "dead-letters").await?;
        show_stuck_order(browser, url, &orders[0]).await?;
        browser.open(&format!("{url}/dead-letters?service=payment")).await?;
        Ok(orders)
    })
    .await?;
    if browser.text().await?.contains(PAUSED) {
        browser.click(RESUME).await?;
        browser.wait_for("The consumer of payment reads again.", TIMEOUT).await?;
    }
    browser.click("input[name=letter]").await?;
    browser.click("button[value=selected]").await?;
    browser.wait_for("1 replayed, 0 still unprocessable", TIMEOUT).await?;
    browser.click("button[value=all]").await?;
    let all = format!("{} replayed, 0 still unprocessable", BAD_EVENTS - 1);
    browser.wait_for(&all, TIMEOUT).await?;
    browser.wait_for("No dead letter matches.", TIMEOUT).await?;
    take_screenshot(browser, "dead-letters-replayed").await?;
    wait_until_confirmed(client, &orders).await?;
    let took = begun.elapsed();
    println!("{BAD_EVENTS} dead letters found, understood and replayed in {took:.1?}");
    ensure!(took < REPLAY_TIME_MAX, "{took:.1?}");
    browser.open(&format!("{url}/repair")).await?;
    browser.wait_for("Rebuild the items", TIMEOUT).await?;
    take_screenshot(browser, "repair").await?;
    ensure_clean(browser, url).await
}

/// From the overview to the reason of the first one, which a replay does not mend.
async fn find_and_understand(browser: &Browser, url: &str) -> Result<()> {
    browser.open(url).await?;
    browser.wait_for("paused", TIMEOUT).await?;
    browser.click(HEADLINE).await?;
    browser.wait_for(PAUSED, TIMEOUT).await?;
    browser.wait_for("too_strict", TIMEOUT).await?;
    take_screenshot(browser, "dead-letters-paused").await?;
    browser.click(FIRST_ROW).await?;
    browser.wait_for("never answers order", TIMEOUT).await?;
    take_screenshot(browser, "dead-letter").await?;
    browser.click("button.primary").await?;
    browser.wait_for("payment refuses it", TIMEOUT).await?;
    browser.click(".crumbs a").await
}

/// The circuit breaker pauses the consumer after twenty in a row. An operator who resumes it on the same page sees
/// without a reload that further ones wait, and that it is paused again.
async fn resume_until_all_wait(browser: &Browser) -> Result<()> {
    let all = format!("{BAD_EVENTS} wait for an operator");
    let (begun, mut resumed) = (Instant::now(), 0);
    loop {
        let text = browser.text().await?;
        if text.contains(&all) {
            ensure!(resumed > 0, "the consumer was never paused");
            return Ok(());
        }
        ensure!(
            begun.elapsed() < REPLAY_TIME_MAX,
            "{resumed} resumptions, and the page shows:\n{text}"
        );
        if text.contains(NEW) {
            browser.click(SHOW_NEW).await?;
        } else if text.contains(PAUSED) {
            browser.click(RESUME).await?;
            browser.wait_for("The consumer of payment reads again.", TIMEOUT).await?;
            resumed += 1;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Payment cannot handle the cancellation of an order, and stock is down, for which another order waits.
pub async fn refuse_refund(stack: &Stack, client: &Client) -> Result<Order> {
    const REFUSE_REFUNDS: (&str, &str, &str) = ("payment", "payments", "state <> 'refunded'");
    stack.stop("stock").await?;
    let order = client.place_until_accepted(rich_customer(), &basket()).await?;
    place_orders(client, 1).await?;
    eventually("payment to verify it", TIMEOUT, async || {
        let order = client.get_order(order.order_id).await?;
        ensure!(order.leg("payment") == "verified", "{order:?}");
        Ok(())
    })
    .await?;
    with_strict_check(stack, REFUSE_REFUNDS, async || {
        client.cancel_until_accepted(&order).await?;
        wait_for_dead_letters(client, "payment", 1).await
    })
    .await?;
    Ok(order)
}

/// The refund is written off, and the books on the overview show it.
pub async fn write_off(client: &Client, browser: &Browser, url: &str, order: &Order) -> Result<()> {
    browser.open(&format!("{url}/dead-letters")).await?;
    browser.click(FIRST_ROW).await?;
    browser.wait_for("Write off", TIMEOUT).await?;
    browser.fill("#reason", "The customer was paid by hand.").await?;
    browser.click("input[name=write_off]").await?;
    take_screenshot(browser, "discard").await?;
    browser.click("button.danger").await?;
    browser.wait_for("Discarded: the event is given up.", TIMEOUT).await?;
    let books: Value =
        client.get_url(&format!("{}/books", client.addresses.admins["payment"])).await?;
    ensure!(books["written_off"][0]["amount"] == order.total_cents, "{books}");
    // The control room reads the books once a minute, and at once after a discard.
    browser.open(url).await?;
    eventually("the write-off in the books", Duration::from_secs(10), async || {
        let shown = browser.run("return document.getElementById('books').textContent").await?;
        let shown = shown.as_str().unwrap_or_default().replace(',', "");
        let expected = format!("written off EUR cents{}", order.total_cents);
        ensure!(shown.contains(&expected), "{shown}");
        Ok(())
    })
    .await?;
    take_screenshot(browser, "overview-write-off").await?;
    ensure_clean(browser, url).await
}

/// Records that no schema fits, which payment and stock read.
pub async fn send_poison(client: &Client, records: usize) -> Result<()> {
    let producer = create_producer(client)?;
    let send = async |nth: usize| {
        let key = format!("poison-{nth}");
        let record = FutureRecord::to("orders.created").key(&key).payload("this is no event");
        producer.send(record, TIMEOUT).await.map_err(|(error, _)| error)
    };
    try_join_all((0..records).map(send)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and needs a browser: make browser"]
async fn the_button_replays_what_the_filter_shows_and_a_region_with_the_focus_stays_live()
-> Result<()> {
    let _permit = stack_permit().await?;
    let (stack, client) = start_stack().await?;
    let (url, browser) = (stack.console_url()?, Browser::start(1360, 900, false).await?);
    browser.open(&url).await?;
    wait_for_state(&browser, "live", TIMEOUT).await?;
    watch_with_focus_and_selection(&client, &browser).await?;
    let orders = with_strict_check(&stack, REFUSE_PAYMENTS, async || {
        let orders = place_orders(&client, BAD_ORDERS).await?;
        wait_for_dead_letters(&client, "payment", POISON_RECORDS + BAD_ORDERS).await?;
        Ok(orders)
    })
    .await?;
    replay_what_is_shown(&browser, &url).await?;
    wait_until_confirmed(&client, &orders).await?;
    wait_for_dead_letters(&client, "payment", POISON_RECORDS).await?;
    ensure_clean(&browser, &url).await?;
    browser.open(&format!("{url}/dead-letters?since=yesterday")).await?;
    browser.wait_for("`yesterday` is no time.", TIMEOUT).await?;
    browser.close().await
}

/// The card of the dead letters has the focus, and then its text is selected, while dead letters arrive.
async fn watch_with_focus_and_selection(client: &Client, browser: &Browser) -> Result<()> {
    const HAS_FOCUS: &str = "return document.activeElement.pathname";
    const FIGURES: &str = "document.getElementById('figures')";
    let value = format!("return document.querySelector(\"{HEADLINE}\").innerText");
    browser.run(&format!("document.querySelector(\"{HEADLINE}\").focus()")).await?;
    send_poison(client, POISON_RECORDS - 1).await?;
    let both = (2 * (POISON_RECORDS - 1)).to_string();
    eventually("the card that has the focus", TIMEOUT, async || {
        let shown = browser.run(&value).await?;
        ensure!(shown == both.as_str(), "it shows {shown}");
        Ok(())
    })
    .await?;
    ensure!(browser.run(HAS_FOCUS).await? == "/dead-letters", "the focus is lost");
    browser.run(&format!("getSelection().selectAllChildren({FIGURES})")).await?;
    send_poison(client, 1).await?;
    browser.wait_for("paused while you select", TIMEOUT).await?;
    ensure!(browser.run(&value).await? == both.as_str(), "the selected text has changed");
    browser.run("getSelection().removeAllRanges()").await?;
    wait_for_state(browser, "live", TIMEOUT).await
}

/// The few that one cause has among many others, which do not fit on the page.
async fn replay_what_is_shown(browser: &Browser, url: &str) -> Result<()> {
    let list = format!("{url}/dead-letters?service=payment");
    for (filter, waiting, shown) in [
        ("", POISON_RECORDS + BAD_ORDERS, ROWS_MAX),
        ("&kind=undecodable", POISON_RECORDS, ROWS_MAX),
        ("&topic=orders.cancelled", 0, 0),
        ("&key=poison-7", 1, 1),
        ("&reason=TOO_STRICT", BAD_ORDERS, BAD_ORDERS),
        ("&until=2026-01-01T00:00", 0, 0),
    ] {
        browser.open(&format!("{list}{filter}")).await?;
        let text = browser.text().await?;
        for expected in [
            format!("{waiting} wait for an operator and match, {shown} shown"),
            format!("Replay the {waiting} that match"),
        ] {
            ensure!(text.contains(&expected), "{filter} lacks `{expected}`:\n{text}");
        }
    }
    browser.open(&list).await?;
    browser.click("#kind option[value=handler_failed]").await?;
    browser.click(".filters button").await?;
    browser.wait_for(&format!("{BAD_ORDERS} shown"), TIMEOUT).await?;
    take_screenshot(browser, "dead-letters-filtered").await?;
    browser.click("button[value=all]").await?;
    browser.wait_for(&format!("{BAD_ORDERS} replayed, 0 still unprocessable"), TIMEOUT).await?;
    browser.wait_for("No dead letter matches.", TIMEOUT).await
}

async fn wait_for_dead_letters(client: &Client, service: &str, count: usize) -> Result<()> {
    let url = format!("{}/dead-letters", client.addresses.admins[service]);
    eventually("the dead letters", TIMEOUT, async || {
        let page: Value = client.get_url(&url).await?;
        ensure!(page["waiting"] == count, "{}", page["waiting"]);
        Ok(())
    })
    .await
}
