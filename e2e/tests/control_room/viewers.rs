//! A hundred viewers load the services no more than one: what they cost is counted at the services. Without a viewer
//! the control room takes next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::client::http_client::Client;
use e2e::metrics::Metrics;
use e2e::workload::seed;
use launcher::Stack;
use launcher::proc_fs::{ProcessIdentity, processes_in};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::browser::Browser;
use super::{ensure_clean, start_stack};
use crate::fixture::{TIMEOUT, stack_permit};

/// The streams of all live pages.
const STREAMS: [&str; 4] = [
    "/overview/events",
    "/orders/stuck/events",
    "/demo/events",
    "/dead-letters/events?service=&waiting=0",
];

const VIEWERS: usize = 100;

/// How long requests and processor time are counted.
const WINDOW: Duration = Duration::from_secs(12);

/// Timers that are a little earlier or later within the window: a tenth, and some requests.
const NOISE: (f64, f64) = (1.1, 8.0);

/// The services that answer: stock is down, so that orders wait and every page has something to ask.
const SERVICES: [&str; 2] = ["order", "payment"];

/// What the control room may take without a viewer: 1 % of a core, and 40 MB.
const IDLE_CPU_SHARE_MAX: f64 = 0.01;
const MEMORY_BYTES_MAX: u64 = 40_000_000;

/// Streams that a plain client reads until this is dropped.
#[derive(Default)]
struct Viewers {
    /// The chunks that each got.
    received: Vec<Arc<AtomicUsize>>,
    tasks: JoinSet<Result<()>>,
}

impl Viewers {
    /// Opens streams until there are this many, of all pages in turn and not all at one moment.
    async fn open(&mut self, url: &str, count: usize) -> Result<()> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        for nth in self.received.len()..count {
            let path = STREAMS[nth % STREAMS.len()];
            let answer = http.get(format!("{url}{path}")).send().await?;
            let mut answer = answer.error_for_status()?;
            let received = Arc::<AtomicUsize>::default();
            self.received.push(received.clone());
            self.tasks.spawn(async move {
                while answer.chunk().await?.is_some() {
                    received.fetch_add(1, Ordering::Relaxed);
                }
                bail!("the stream of {path} ended")
            });
            sleep(Duration::from_millis(17)).await;
        }
        Ok(())
    }

    /// Every stream is open, and each has sent something.
    fn ensure_served(&mut self) -> Result<()> {
        if let Some(ended) = self.tasks.try_join_next() {
            ended??;
        }
        let silent = self.received.iter().filter(|it| it.load(Ordering::Relaxed) == 0).count();
        ensure!(silent == 0, "{silent} streams sent nothing");
        Ok(())
    }
}

/// The requests that the services answered during the window, and the processor time of the control room.
async fn count(
    stack: &Stack,
    client: &Client,
    console: &ProcessIdentity,
) -> Result<(f64, Duration)> {
    let answered = async || {
        let mut all = 0.0;
        for service in SERVICES {
            let metrics = Metrics::fetch(stack, client, service).await?;
            all += metrics.sum("http_requests_total").context("requests are counted")?;
        }
        anyhow::Ok(all)
    };
    let (requests, cpu_time) = (answered().await?, console.cpu_time());
    sleep(WINDOW).await;
    Ok((answered().await? - requests, console.cpu_time() - cpu_time))
}

/// Places orders as the page of the demo does, so that it follows them.
async fn place_on_demo_page(url: &str) -> Result<()> {
    let customer = seed::CUSTOMERS[0].customer_id;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let form = format!("customer={customer}&sku=wool-cap&quantity=1&orders=2");
    let answer = http
        .post(format!("{url}/demo/orders"))
        .header("sec-fetch-site", "same-origin")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form)
        .send();
    let page = answer.await?.error_for_status()?.text().await?;
    ensure!(page.contains("pending"), "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes more than a minute and needs a browser: make browser"]
async fn a_hundred_viewers_load_the_services_no_more_than_one() -> Result<()> {
    let _permit = stack_permit().await?;
    let (stack, client) = start_stack().await?;
    let url = stack.console_url()?;
    let console = processes_in(&stack.directory().join("console"), &["console"]);
    let console = console.into_iter().next().context("the control room runs")?;

    let (of_none, idle_cpu) = count(&stack, &client, &console).await?;
    stack.stop("stock").await?;
    place_on_demo_page(&url).await?;
    let mut viewers = Viewers::default();
    viewers.open(&url, STREAMS.len()).await?;
    sleep(Duration::from_secs(2)).await;
    let (of_one, cpu_of_one) = count(&stack, &client, &console).await?;

    viewers.open(&url, VIEWERS).await?;
    let browsers =
        [Browser::start(1360, 900, false).await?, Browser::start(1360, 900, false).await?];
    for (browser, path) in browsers.iter().zip(["/", "/orders"]) {
        browser.open(&format!("{url}{path}")).await?;
        browser.wait_for("live", TIMEOUT).await?;
    }
    let (of_hundred, cpu_of_hundred) = count(&stack, &client, &console).await?;
    viewers.ensure_served()?;
    let memory_of_hundred = console.memory_bytes();
    for browser in browsers {
        ensure_clean(&browser, &url).await?;
        browser.close().await?;
    }
    drop(viewers);

    let memory = console.memory_bytes();
    let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / WINDOW.as_secs_f64();
    println!(
        "requests in {WINDOW:?}: {of_one} of a viewer of each page, {of_hundred} of {VIEWERS}, {of_none} idle"
    );
    println!(
        "processor: {:.2} %, {:.2} %, {:.2} % of a core; memory: {} kB of {VIEWERS}, {} kB after them",
        share(cpu_of_one),
        share(cpu_of_hundred),
        share(idle_cpu),
        memory_of_hundred / 1000,
        memory / 1000,
    );
    ensure!(of_one > 0.0 && of_hundred <= of_one * NOISE.0 + NOISE.1, "{of_one} and {of_hundred}");
    ensure!(share(idle_cpu) < 100.0 * IDLE_CPU_SHARE_MAX, "{idle_cpu:?} in {WINDOW:?}");
    ensure!(memory < MEMORY_BYTES_MAX && memory_of_hundred < MEMORY_BYTES_MAX, "{memory}");
    Ok(())
}
