//! What the overview tells of each incident, and after how many seconds: an operator opens no other page to learn that
//! something is wrong. Measured in a browser, and printed as a table.

use std::fmt::Write as _;

use super::dead_letters::send_poison;
use super::*;
use crate::dead_letters::{REFUSE_PAYMENTS, with_strict_check};

/// Everything but the age of orders is told within this time.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// Orders are late after a minute, and all viewers share an answer for two seconds.
const LATE_WITHIN: Duration = Duration::from_secs(70);

/// The circuit breaker opens after twenty events in a row, and each takes several tries.
const PAUSED_WITHIN: Duration = Duration::from_secs(20);

/// A connection that says nothing is given up after twelve seconds.
const SILENCE_TOLD_WITHIN: Duration = Duration::from_secs(15);

/// How long a page may take while one service is frozen, and an action.
const PAGE_WITHIN: Duration = Duration::from_secs(4);
const ACTION_WITHIN: Duration = Duration::from_secs(14);

/// Enough for a pause.
const BAD_ORDERS: usize = 25;

/// Posts a form that changes nothing here.
const RESUME_STOCK: &str = "const form = document.createElement('form');
    Object.assign(form, {method: 'post', action: '/repair/stock/resume'});
    document.body.append(form);
    form.submit();";

const SUMMARY: &str = "return document.getElementById('summary').innerText";
const LAGS: &str = "return document.getElementById('lag').innerText";
const FIGURES: &str = "return document.getElementById('figures').innerText";

/// A browser on the overview, and what was seen there.
struct Watch<'a> {
    stack: &'a Stack,
    client: &'a Client,
    browser: &'a Browser,
    url: &'a str,
    table: String,
    faults: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes some minutes and needs a browser: make browser"]
async fn the_overview_tells_each_incident_within_seconds() -> Result<()> {
    let _permit = stack_permit().await?;
    let (stack, client) = start_stack().await?;
    let (url, browser) = (stack.console_url()?, Browser::start(1360, 900, false).await?);
    let (table, faults) = (String::new(), Vec::new());
    let (stack, client, browser) = (&stack, &client, &browser);
    let mut watch = Watch { stack, client, browser, url: &url, table, faults };
    browser.open(&url).await?;
    wait_for_state(browser, "live", TIMEOUT).await?;
    watch.wait_until_told("All 3 instances are ready.").await?;
    let seen = watch.see_incidents().await;
    println!("| incident | the page tells | after |\n| --- | --- | --- |\n{}", watch.table);
    ensure!(watch.faults.is_empty(), "{:#?}", watch.faults);
    seen
}

impl Watch<'_> {
    async fn see_incidents(&mut self) -> Result<()> {
        self.poison().await?;
        self.stock_away().await?;
        self.kafka_away().await?;
        self.databases_away().await?;
        self.registry_away().await?;
        self.bad_migration().await?;
        self.console_away().await
    }

    /// The text that a script returns.
    async fn read(&self, script: &str) -> Result<String> {
        Ok(self.browser.run(script).await?.as_str().unwrap_or_default().to_string())
    }

    /// Waits for what a part of the page tells of an incident, and adds a row to the table.
    async fn expect(
        &mut self,
        incident: &str,
        (part, texts): (&str, &[&str]),
        within: Duration,
    ) -> Result<()> {
        let begun = Instant::now();
        let told = eventually(incident, within, async || {
            let seen = self.read(part).await?;
            ensure!(texts.iter().all(|text| seen.contains(text)), "it tells:\n{seen}");
            Ok(seen)
        });
        match told.await {
            Ok(seen) => {
                let line = seen.lines().find(|line| line.contains(texts[0])).unwrap_or_default();
                let seconds = begun.elapsed().as_secs_f64();
                writeln!(self.table, "| {incident} | {line} | {seconds:.1} s |")?;
            }
            Err(error) => {
                writeln!(self.table, "| {incident} | nothing of {texts:?} | never |")?;
                self.faults.push(format!("{incident}: {error:#}"));
            }
        }
        Ok(())
    }

    fn check(&mut self, holds: bool, what: String) {
        if !holds {
            self.faults.push(what);
        }
    }

    async fn wait_until_told(&self, text: &str) -> Result<()> {
        eventually(text, TIMEOUT * 2, async || {
            let seen = self.read(SUMMARY).await?;
            ensure!(seen.contains(text), "it tells:\n{seen}");
            Ok(())
        })
        .await
    }

    /// Waits until nothing is wrong but the dead letters.
    async fn wait_until_clear(&self) -> Result<()> {
        eventually("the end of the incident", TIMEOUT * 2, async || {
            let seen = self.read(SUMMARY).await?;
            ensure!(seen.lines().all(|line| line.starts_with("Dead letters of")), "{seen}");
            let lags = self.read(LAGS).await?;
            ensure!(lags.matches("caught up").count() == 3, "{lags}");
            Ok(())
        })
        .await
    }

    async fn poison(&mut self) -> Result<()> {
        send_poison(self.client, 1).await?;
        for service in ["payment", "stock"] {
            let sentence = format!("Dead letters of {service} wait for an operator.");
            self.expect("poison record", (SUMMARY, &[&sentence]), TOLD_WITHIN).await?;
        }
        self.expect("poison record", (FIGURES, &["2\nwait for an operator"]), TOLD_WITHIN).await
    }

    async fn stock_away(&mut self) -> Result<()> {
        let order = place_orders(self.client, 1).await?.remove(0);
        wait_until_confirmed(self.client, std::slice::from_ref(&order)).await?;
        let unready = (SUMMARY, &["No instance of stock is ready."][..]);
        self.stack.kill("stock").await?;
        self.expect("stock killed", unready, TOLD_WITHIN).await?;
        let waiting = place_orders(self.client, 3).await?;
        self.expect("stock killed", (FIGURES, &["1, and stock unknown"]), TOLD_WITHIN).await?;
        self.expect("stock killed", (LAGS, &["3 pending orders wait for it."]), TOLD_WITHIN)
            .await?;
        take_screenshot(self.browser, "overview-stock-away").await?;
        self.stack.start("stock").await?;
        wait_until_confirmed(self.client, &waiting).await?;
        self.wait_until_clear().await?;
        self.stack.pause("stock").await?;
        self.expect("stock frozen", unready, TOLD_WITHIN).await?;
        self.expect("stock frozen", (FIGURES, &["1, and stock unknown"]), TOLD_WITHIN).await?;
        self.visit_while_stock_is_frozen(&order).await?;
        self.stack.resume("stock").await?;
        self.browser.open(self.url).await?;
        self.wait_until_clear().await
    }

    /// Each page has what the other services answer, and an action ends in a page.
    async fn visit_while_stock_is_frozen(&mut self, order: &Order) -> Result<()> {
        let order = format!("/orders/{}", order.order_id);
        let silent = "No instance of stock answers";
        for (path, texts) in [
            ("/dead-letters", &["1, and stock unknown wait", "payment 1", silent][..]),
            ("/dead-letters?service=payment", &["1 wait for an operator", "payment 1"]),
            ("/repair", &["reads", silent]),
            (&*order, &["confirmed", "The part of stock is missing in the timeline."]),
        ] {
            let begun = Instant::now();
            self.browser.open(&format!("{}{path}", self.url)).await?;
            let (took, seen) = (begun.elapsed(), self.browser.text().await?);
            let missing = texts.iter().find(|text| !seen.contains(**text));
            self.check(took < PAGE_WITHIN, format!("{path} took {took:.1?}"));
            self.check(missing.is_none(), format!("{path} lacks {missing:?}:\n{seen}"));
            println!("with stock frozen, {path} takes {:.1} s", took.as_secs_f64());
        }
        take_screenshot(self.browser, "order-stock-frozen").await?;
        self.browser.open(&format!("{}/dead-letters", self.url)).await?;
        take_screenshot(self.browser, "dead-letters-stock-frozen").await?;
        let begun = Instant::now();
        self.browser.run(RESUME_STOCK).await?;
        let done = self.browser.wait_for("No instance of stock answers: it does", ACTION_WITHIN);
        let done = done.await.is_ok() && self.browser.text().await?.contains("control room");
        self.check(done, format!("no page after the action for {:.1?}", begun.elapsed()));
        Ok(())
    }

    async fn kafka_away(&mut self) -> Result<()> {
        self.stack.kill("kafka").await?;
        let seconds = Duration::from_secs(3);
        let (placed, ()) = tokio::try_join!(place_for(self.client, seconds), async {
            let sentence =
                ["Events of order have waited for Kafka", "no service reads a partition."];
            self.expect("Kafka killed", (SUMMARY, &sentence), TOLD_WITHIN).await
        })?;
        let lags = self.read(LAGS).await?;
        self.check(!lags.contains("caught up"), format!("the lag without Kafka: {lags}"));
        self.check(lags.matches("unknown").count() >= 3, format!("the lag without Kafka: {lags}"));
        take_screenshot(self.browser, "overview-kafka-away").await?;
        let late = (SUMMARY, &["Orders have been pending for over 1 min."][..]);
        self.expect("Kafka killed", late, LATE_WITHIN).await?;
        let bad =
            self.browser.run("return document.querySelector('.figure.is-bad .name').innerText");
        let bad = bad.await?;
        self.check(bad == "Pending", format!("{bad} is red, and pending orders are not"));
        take_screenshot(self.browser, "overview-orders-late").await?;
        self.browser.open(&format!("{}/orders", self.url)).await?;
        let rows =
            "return [...document.querySelectorAll('#stuck tbody td.why')].map(it => it.innerText)";
        let rows: Vec<String> = serde_json::from_value(self.browser.run(rows).await?)?;
        let nearest = "payment the oldest event of order has waited for Kafka";
        let is_named = !rows.is_empty() && rows.iter().all(|row| row.starts_with(nearest));
        self.check(is_named, format!("the nearest causes: {rows:#?}"));
        take_screenshot(self.browser, "stuck-kafka-away").await?;
        self.stack.start("kafka").await?;
        wait_until_confirmed(self.client, &placed).await?;
        self.browser.open(self.url).await?;
        self.wait_until_clear().await
    }

    async fn databases_away(&mut self) -> Result<()> {
        for service in ["payment", "order"] {
            let database = format!("{service}-db");
            let sentence = format!("No instance of {service} is ready.");
            self.stack.kill(&database).await?;
            let incident = format!("database of {service} killed");
            self.expect(&incident, (SUMMARY, &[&sentence]), TOLD_WITHIN).await?;
            self.stack.start(&database).await?;
            self.wait_until_clear().await?;
        }
        Ok(())
    }

    /// Every schema is known, so nothing waits.
    async fn registry_away(&mut self) -> Result<()> {
        self.stack.kill("registry").await?;
        let orders = place_for(self.client, TOLD_WITHIN).await?;
        wait_until_confirmed(self.client, &orders).await?;
        let seen = self.read(SUMMARY).await?;
        let is_clear = seen.lines().all(|line| line.starts_with("Dead letters of"));
        self.check(is_clear, format!("the registry is away, and orders end: {seen}"));
        writeln!(self.table, "| registry killed | nothing, since orders end | |")?;
        self.stack.start("registry").await
    }

    async fn bad_migration(&mut self) -> Result<()> {
        let (stack, client) = (self.stack, self.client);
        with_strict_check(stack, REFUSE_PAYMENTS, async || {
            place_orders(client, BAD_ORDERS).await?;
            let sentence = ["The consumer of payment is paused by its circuit breaker."];
            self.expect("bad migration", (SUMMARY, &sentence), PAUSED_WITHIN).await
        })
        .await
    }

    async fn console_away(&mut self) -> Result<()> {
        let gone = (STREAM_STATE, &["no connection"][..]);
        self.stack.kill("console").await?;
        self.expect("control room killed", gone, TOLD_WITHIN).await?;
        self.stack.start("console").await?;
        wait_for_state(self.browser, "live", TIMEOUT).await?;
        self.stack.pause("console").await?;
        self.expect("control room frozen", gone, SILENCE_TOLD_WITHIN).await?;
        self.stack.resume("console").await?;
        wait_for_state(self.browser, "live", TIMEOUT).await
    }
}
