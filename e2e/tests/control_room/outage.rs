//! What an operator sees of an outage: the overview, the list of stuck orders and an alert show it, and all of it clears.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use e2e::monitoring::rule_file_with_tenths;
use e2e::monitoring::server::{self, Prometheus};
use e2e::workload::load;
use e2e::workload::options::Load;
use serde_json::Value;
use uuid::Uuid;

use super::*;
use crate::fixture::{DRAIN_TIMEOUT, all_stack_permits, skip_or_fail};

/// Fewer than the list shows, for as long as the outage lasts.
const RATE: u32 = 5;

/// Longer than the test.
const LOAD_DURATION: Duration = Duration::from_secs(180);

/// Orders that are placed while stock is down, beside the load.
const WATCHED_ORDERS: usize = 3;

/// A tenth of the minute after which the alert fires, and what it takes to notice the outage.
const ALERT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long after the start of stock everything shows that it is over.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(60);

const ALERT: &str = "ServiceDown";
const NOTHING_STUCK: &str = "No order has been pending for longer than";

/// A row of the list of stuck orders, by the id of its order.
const STUCK_ROWS: &str = "return [...document.querySelectorAll('#stuck tbody tr')]
    .map(row => [row.querySelector('code').innerText, row.innerText])";

/// What shows the outage.
struct Views {
    overview: Browser,
    stuck: Browser,
    prometheus: Prometheus,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and needs a browser and Prometheus: make browser"]
async fn stock_killed_under_load_is_on_the_overview_in_the_stuck_list_and_an_alert_until_it_is_back()
-> Result<()> {
    let program = tokio::task::spawn_blocking(|| server::program("prometheus")).await?;
    if let Err(reason) = program {
        return skip_or_fail(&format!("{reason:#}"));
    }
    let _permits = all_stack_permits().await?;
    let (stack, client) = start_stack().await?;
    let url = stack.console_url()?;
    let views = Views {
        overview: Browser::start(1360, 900, false).await?,
        stuck: Browser::start(1360, 900, false).await?,
        prometheus: Prometheus::start(&stack, &rule_file_with_tenths()?).await?,
    };
    views.overview.open(&url).await?;
    views.stuck.open(&format!("{url}/orders")).await?;
    for browser in [&views.overview, &views.stuck] {
        browser.wait_for("live", TIMEOUT).await?;
    }
    let load = Load {
        rate: RATE,
        duration: LOAD_DURATION,
        drain_timeout: DRAIN_TIMEOUT,
        ..Load::default()
    };
    let outage = views.see_outage(&stack, &client);
    let (summary, orders) = load::run_while(&client, &load, outage).await?;
    ensure!(summary.holds() && summary.answered_all(), "{}", summary.lines().join("\n"));
    wait_until_confirmed(&client, &orders).await?;
    for browser in [views.overview, views.stuck] {
        ensure_clean(&browser, &url).await?;
        browser.close().await?;
    }
    Ok(())
}

impl Views {
    /// Stock is killed and started again. Returns the watched orders.
    async fn see_outage(&self, stack: &Stack, client: &Client) -> Result<Vec<Order>> {
        sleep(Duration::from_secs(5)).await;
        self.wait_until_clear().await.context("before the outage")?;

        let killed = Instant::now();
        stack.kill("stock").await?;
        self.overview.wait_for("stock\tdown", OUTAGE_SHOWN_WITHIN).await?;
        print_time("the overview shows it", killed);
        let orders = place_orders(client, WATCHED_ORDERS).await?;
        self.wait_for_stuck(client, &orders).await?;
        print_time("the list of stuck orders names the orders that were placed since", killed);
        eventually("the alert", ALERT_TIMEOUT, async || {
            let firing = self.prometheus.firing().await?;
            ensure!(is_alerted(&firing), "{firing:?}");
            Ok(())
        })
        .await?;
        print_time("the alert fires", killed);
        take_screenshot(&self.stuck, "orders-stuck").await?;

        let started = Instant::now();
        stack.start("stock").await?;
        self.wait_until_clear().await.context("after the outage")?;
        print_time("after the start, all of it is clear", started);
        Ok(orders)
    }

    /// Waits until the list has each of these orders with the service that it waits for and the cause, and has no order
    /// that is not stuck.
    async fn wait_for_stuck(&self, client: &Client, orders: &[Order]) -> Result<()> {
        let rows = eventually("the orders in the list", TIMEOUT, async || {
            let rows: BTreeMap<Uuid, String> =
                serde_json::from_value(to_object(&self.stuck.run(STUCK_ROWS).await?))?;
            for order in orders {
                let row = rows.get(&order.order_id).with_context(|| format!("{rows:#?}"))?;
                ensure!(row.contains("stock no instance of stock is ready"), "{row}");
                ensure!(row.contains("verified\twaiting"), "{row}");
            }
            Ok(rows)
        })
        .await?;
        for id in rows.keys() {
            let order = client.get_order(*id).await?;
            // Its customer may have cancelled it since.
            ensure!(order.leg("stock") == "waiting" && order.status != "confirmed", "{order:?}");
        }
        Ok(())
    }

    /// Waits until nothing shows the outage: neither a page nor its alert. A bundle of certificates that the environment
    /// names may contain one that has expired, and that alert stays.
    async fn wait_until_clear(&self) -> Result<()> {
        eventually("everything to be clear", CLEAR_TIMEOUT, async || {
            let overview = self.overview.text().await?;
            ensure!(overview.contains("stock\tready"), "{overview}");
            let stuck = self.stuck.text().await?;
            ensure!(stuck.contains(NOTHING_STUCK), "{stuck}");
            let firing = self.prometheus.firing().await?;
            ensure!(!is_alerted(&firing), "{firing:?}");
            Ok(())
        })
        .await
    }
}

fn is_alerted(firing: &BTreeSet<(String, String)>) -> bool {
    firing.contains(&(ALERT.to_string(), "stock".to_string()))
}

/// The rows as an object with their first column as its keys.
fn to_object(rows: &Value) -> Value {
    let rows = rows.as_array().into_iter().flatten();
    rows.map(|row| (row[0].as_str().unwrap_or_default().to_string(), row[1].clone())).collect()
}

fn print_time(what: &str, since: Instant) {
    eprintln!("{what} after {:.1} s", since.elapsed().as_secs_f64());
}
