//! The page of the demo and the control server behind it: each action in a browser, an order watched live through an
//! outage, and what the server refuses.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::http_client::Client;
use e2e::stack_description::with_console;
use e2e::workload::seed;
use launcher::{Stack, directories, eventually};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::browser::Browser;
use super::{accessibility, ensure_clean, take_screenshot};
use crate::fixture::{DRAIN_TIMEOUT, TIMEOUT, stack_permit};

/// Buttons, as CSS selectors.
const PLACE: &str = "form[action='/demo/orders'] button";
const KILL_STOCK: &str = "button[aria-label='Kill stock']";
const START_STOCK: &str = "button[aria-label='Start stock']";

/// A stack and the control server of the launcher, as `make up` starts both.
struct DemoStack {
    stack: Stack,
    root: PathBuf,
    control: Option<Child>,
}

impl DemoStack {
    fn new() -> Result<DemoStack> {
        let description = with_console();
        let root = description.own_temp_directory(&format!("demo-{:08x}", rand::random::<u32>()));
        directories::create_public_directory(&root)?;
        // The program finds its stack in this folder.
        let stack = Stack::on_free_ports(&description, root.join("stack"))?;
        Ok(DemoStack { stack, root, control: None })
    }

    async fn start(&mut self) -> Result<()> {
        self.stack.up().await?;
        seed::run(&Client::for_stack(&self.stack)?).await?;
        let control = Command::new(env!("CARGO_BIN_EXE_e2e"))
            .arg("control-server")
            .env("HOLDFAST_STATE", &self.root)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        self.control = Some(control);
        Ok(())
    }

    async fn kill_control_server(&mut self) -> Result<()> {
        Ok(self.control.take().context("it runs")?.kill().await?)
    }
}

impl Drop for DemoStack {
    fn drop(&mut self) {
        let _ = self.stack.kill_all();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// The control server, as any program on this machine reaches it.
struct ControlServer {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl ControlServer {
    fn of(demo: &DemoStack) -> Result<ControlServer> {
        let port = demo.stack.ports()?.get("console-control")?;
        let secret = demo.stack.directory().join("secrets/control.token");
        Ok(ControlServer {
            http: reqwest::Client::builder().no_proxy().build()?,
            url: format!("http://127.0.0.1:{port}"),
            token: std::fs::read_to_string(secret)?.trim().to_string(),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: &str,
        host: Option<&str>,
    ) -> Result<(StatusCode, String)> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = request.send().await?;
        Ok((answer.status(), answer.text().await?))
    }

    /// The components with their states.
    async fn components(&self) -> Result<Vec<Value>> {
        let (status, body) = self.send(Method::GET, "/", &self.token, None).await?;
        ensure!(status == StatusCode::OK, "{status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }
}

/// What it refuses changes nothing.
async fn ensure_refusals(server: &ControlServer) -> Result<()> {
    let before = eventually("the control server", TIMEOUT, || server.components()).await?;
    let (token, wrong) = (&*server.token, "0".repeat(server.token.len()));
    let (get, post, foreign) = (Method::GET, Method::POST, Some("rebound.example.com"));
    for (method, path, token, host, status) in [
        (&get, "/", "", None, 401),
        (&get, "/", &*wrong, None, 401),
        (&post, "/kill/stock", "", None, 401),
        (&post, "/kill/stock", &*wrong, None, 401),
        (&post, "/kill/stock", &token[..token.len() - 1], None, 401),
        (&post, "/kill/stock", token, foreign, 403),
        (&get, "/", token, foreign, 403),
        (&get, "/kill/stock", token, None, 405),
        (&get, "/start/stock", token, None, 405),
        (&post, "/stop/stock", token, None, 404),
        (&post, "/kill/nothing", token, None, 404),
        (&post, "/start/..%2fstock", token, None, 404),
        (&post, "/kill/console", token, None, 409),
    ] {
        let (answered, body) = server.send(method.clone(), path, token, host).await?;
        ensure!(answered == status, "{method} {path}: {answered} {body}");
        ensure!(!body.contains(&server.token), "{method} {path}: {body}");
    }
    let after = server.components().await?;
    ensure!(before == after && after.len() == 8, "{before:?}\n{after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes more than a minute and needs a browser: make browser"]
async fn the_demo_places_orders_makes_an_outage_and_shows_an_order_live_through_it() -> Result<()> {
    let _permit = stack_permit().await?;
    let mut demo = DemoStack::new()?;
    demo.start().await?;
    ensure_refusals(&ControlServer::of(&demo)?).await?;
    let page = format!("{}/demo", demo.stack.console_url()?);
    let browser = Browser::start(1360, 900, false).await?;
    let watching = Browser::start(1360, 900, true).await?;
    for browser in [&browser, &watching] {
        browser.open(&page).await?;
        browser.wait_for("None yet.", TIMEOUT).await?;
    }
    // A page that is loaded again loses this.
    watching.run("window.isFirstLoad = true").await?;
    place_orders_of_each_kind(&browser, &watching).await?;
    watch_an_outage(&browser, &watching, &demo).await?;
    ensure!(watching.run("return window.isFirstLoad").await? == true, "the page was loaded again");
    take_screenshot(&browser, "demo").await?;
    accessibility::inspect(&browser, &demo.stack.console_url()?, &[("/demo", "demo")]).await?;

    demo.kill_control_server().await?;
    browser.open(&page).await?;
    browser.wait_for("The launcher does not answer", TIMEOUT).await?;
    browser.wait_for("make kill SERVICE=stock", TIMEOUT).await?;
    for browser in [browser, watching] {
        ensure_clean(&browser, &demo.stack.console_url()?).await?;
        browser.close().await?;
    }
    Ok(())
}

/// The number of rows that say something, in the table of the orders.
async fn rows(browser: &Browser, text: &str) -> Result<u64> {
    let script = format!(
        "return [...document.querySelectorAll('#recent tbody tr')].filter(it => it.innerText.includes('{text}')).length"
    );
    browser.run(&script).await?.as_u64().context("a number")
}

async fn wait_for_rows(browser: &Browser, text: &str, count: u64) -> Result<()> {
    eventually(&format!("{count} orders to be {text}"), DRAIN_TIMEOUT, async || {
        let found = rows(browser, text).await?;
        ensure!(found == count, "{found}:\n{}", browser.text().await?);
        Ok(())
    })
    .await
}

/// One order, three at once, and one of a customer who cannot pay.
async fn place_orders_of_each_kind(browser: &Browser, watching: &Browser) -> Result<()> {
    browser.click(PLACE).await?;
    browser.wait_for("1 accepted.", TIMEOUT).await?;
    wait_for_rows(watching, "confirmed", 1).await?;
    browser.fill("#orders", "3").await?;
    browser.click(PLACE).await?;
    browser.wait_for("3 accepted.", TIMEOUT).await?;
    wait_for_rows(watching, "confirmed", 4).await?;
    browser.click("#customer option:last-child").await?;
    browser.click(PLACE).await?;
    browser.wait_for("1 accepted.", TIMEOUT).await?;
    wait_for_rows(watching, "payment declined", 1).await
}

/// Stock is killed and started on the page; the other window is never loaded again.
async fn watch_an_outage(browser: &Browser, watching: &Browser, demo: &DemoStack) -> Result<()> {
    browser.click(KILL_STOCK).await?;
    browser.wait_for("stock is killed.", TIMEOUT).await?;
    ensure!(!demo.stack.is_running("stock").await?, "stock runs");
    browser.click(PLACE).await?;
    browser.wait_for("1 accepted.", TIMEOUT).await?;
    wait_for_rows(watching, "pending\tverified\twaiting", 1).await?;
    take_screenshot(watching, "demo-outage-dark").await?;
    let orders = demo.stack.console_url()? + "/orders";
    browser.open(&orders).await?;
    browser.wait_for("no instance of stock is ready", Duration::from_secs(10)).await?;
    take_screenshot(browser, "stuck").await?;
    browser.click("#stuck tbody th a").await?;
    browser.wait_for("The part of stock is missing", TIMEOUT).await?;
    take_screenshot(browser, "order-waits").await?;
    browser.open(&(demo.stack.console_url()? + "/demo")).await?;
    browser.click(START_STOCK).await?;
    browser.wait_for("stock runs again.", TIMEOUT).await?;
    wait_for_rows(watching, "confirmed", 5).await?;
    ensure!(rows(watching, "pending").await? == 0, "{}", watching.text().await?);
    ensure!(demo.stack.is_running("stock").await?, "stock does not run");
    Ok(())
}
