//! A client of a real browser: headless Chromium, driven by its own driver over the W3C's WebDriver protocol.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use launcher::{eventually, free_port};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// How long the driver may take to start, and a page to show something.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long an element may take to be there.
const CLICK_TIMEOUT: Duration = Duration::from_secs(3);

/// The field that names an element in WebDriver.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One browser window.
pub struct Browser {
    http: Client,
    session: String,
    // Killed when it is dropped, with the browser.
    _driver: Child,
}

impl Browser {
    /// Starts a browser with an empty profile, which records each request and what the console says.
    pub async fn start(width: u32, height: u32, is_dark: bool) -> Result<Browser> {
        let port = free_port()?;
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("chromedriver cannot be started: `make browser` installs it")?;
        let http = Client::builder().timeout(Duration::from_secs(60)).no_proxy().build()?;
        let driver_url = format!("http://127.0.0.1:{port}");
        eventually("the driver of the browser", TIMEOUT, async || {
            Ok(http.get(format!("{driver_url}/status")).send().await?.error_for_status()?)
        })
        .await?;
        let mut arguments = vec![
            "--headless=new".to_string(),
            // The sandbox of Chromium refuses to run as root.
            "--no-sandbox".to_string(),
            "--disable-dev-shm-usage".to_string(),
            "--disable-gpu".to_string(),
            "--no-first-run".to_string(),
            "--disable-background-networking".to_string(),
            "--disable-component-update".to_string(),
            "--ignore-certificate-errors".to_string(),
            "--hide-scrollbars".to_string(),
            format!("--window-size={width},{height}"),
        ];
        if is_dark {
            arguments.push("--blink-settings=preferredColorScheme=0".to_string());
        }
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "unhandledPromptBehavior": "accept",
        }}});
        let begun = http.post(format!("{driver_url}/session")).json(&capabilities).send().await?;
        let begun: Value = begun.json().await?;
        let id = begun["value"]["sessionId"].as_str().with_context(|| begun.to_string())?;
        let session = format!("{driver_url}/session/{id}");
        Ok(Browser { http, session, _driver: driver })
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.session));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let mut answer: Value = request.send().await?.json().await?;
        if let Some(error) = answer["value"]["error"].as_str() {
            let message = answer["value"]["message"].as_str().unwrap_or_default();
            bail!("{method} {path}: {error}: {}", message.lines().next().unwrap_or_default());
        }
        Ok(answer["value"].take())
    }

    /// Opens a page, and waits until it is loaded.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.send(Method::POST, "/url", Some(json!({ "url": url }))).await.map(drop)
    }

    /// The text of the page as a person sees it.
    pub async fn text(&self) -> Result<String> {
        let text = self.run("return document.body.innerText").await?;
        Ok(text.as_str().unwrap_or_default().to_string())
    }

    /// Runs a script, and returns its result.
    pub async fn run(&self, script: &str) -> Result<Value> {
        let body = json!({"script": script, "args": []});
        self.send(Method::POST, "/execute/sync", Some(body)).await
    }

    async fn element(&self, selector: &str) -> Result<String> {
        let body = json!({"using": "css selector", "value": selector});
        let found = self.send(Method::POST, "/element", Some(body)).await?;
        Ok(found[ELEMENT].as_str().context("no element")?.to_string())
    }

    /// Clicks the first element of a CSS selector, as a person would: it has to be visible. A region that is replaced
    /// at the same moment takes its elements along.
    pub async fn click(&self, selector: &str) -> Result<()> {
        eventually(selector, CLICK_TIMEOUT, async || {
            let id = self.element(selector).await?;
            self.send(Method::POST, &format!("/element/{id}/click"), Some(json!({}))).await
        })
        .await
        .map(drop)
    }

    /// Types into an element.
    pub async fn fill(&self, selector: &str, text: &str) -> Result<()> {
        let id = self.element(selector).await?;
        self.send(Method::POST, &format!("/element/{id}/clear"), Some(json!({}))).await?;
        let body = json!({ "text": text });
        self.send(Method::POST, &format!("/element/{id}/value"), Some(body)).await.map(drop)
    }

    /// Waits until the page shows a text.
    pub async fn wait_for(&self, text: &str, timeout: Duration) -> Result<()> {
        eventually(&format!("`{text}` on the page"), timeout, async || {
            let seen = self.text().await?;
            ensure!(seen.contains(text), "the page shows:\n{seen}");
            Ok(())
        })
        .await
    }

    /// Presses a key a number of times.
    pub async fn press(&self, key: &str, times: usize) -> Result<()> {
        let strokes = (0..times).flat_map(|_| ["keyDown", "keyUp"]);
        let strokes: Vec<_> = strokes.map(|kind| json!({"type": kind, "value": key})).collect();
        let body = json!({"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]});
        self.send(Method::POST, "/actions", Some(body)).await.map(drop)
    }

    /// A command of the browser's own protocol.
    pub async fn command(&self, name: &str, parameters: Value) -> Result<Value> {
        let body = json!({"cmd": name, "params": parameters});
        self.send(Method::POST, "/goog/cdp/execute", Some(body)).await
    }

    /// A picture of the whole page as PNG, in base64.
    pub async fn screenshot(&self) -> Result<String> {
        let whole = json!({"captureBeyondViewport": true});
        let picture = self.command("Page.captureScreenshot", whole).await?;
        Ok(picture["data"].as_str().context("no picture")?.to_string())
    }

    /// What the browser complained about since this was last asked: scripts and styles that were refused, and errors.
    pub async fn complaints(&self) -> Result<Vec<String>> {
        let log = self.send(Method::POST, "/se/log", Some(json!({"type": "browser"}))).await?;
        let lines = log.as_array().into_iter().flatten();
        let lines = lines.filter(|line| line["level"] == "SEVERE" || line["level"] == "WARNING");
        Ok(lines.map(|line| line["message"].to_string()).collect())
    }

    /// The addresses that pages requested since this was last asked.
    pub async fn requested_urls(&self) -> Result<Vec<String>> {
        let log = self.send(Method::POST, "/se/log", Some(json!({"type": "performance"}))).await?;
        let events = log.as_array().into_iter().flatten();
        let events =
            events.filter_map(|event| serde_json::from_str(event["message"].as_str()?).ok());
        let urls = events.filter_map(|event: Value| {
            let message = &event["message"];
            let is_request = message["method"] == "Network.requestWillBeSent";
            is_request.then(|| message["params"]["request"]["url"].as_str().map(str::to_string))?
        });
        Ok(urls.collect())
    }

    /// Opens a tab or a window, and shows it.
    pub async fn new_window(&self, kind: &str) -> Result<String> {
        let opened = self.send(Method::POST, "/window/new", Some(json!({ "type": kind }))).await?;
        let handle = opened["handle"].as_str().context("a handle")?.to_string();
        self.show(&handle).await?;
        Ok(handle)
    }

    /// Uses a tab or a window without showing it.
    pub async fn switch_to(&self, handle: &str) -> Result<()> {
        self.send(Method::POST, "/window", Some(json!({ "handle": handle }))).await.map(drop)
    }

    /// Shows a tab or a window, as a person does who clicks it.
    pub async fn show(&self, handle: &str) -> Result<()> {
        self.switch_to(handle).await?;
        self.command("Page.bringToFront", json!({})).await.map(drop)
    }

    /// The cookies of the page, as the header of a request.
    pub async fn cookies(&self) -> Result<String> {
        let cookies = self.send(Method::GET, "/cookie", None).await?;
        let cookies = cookies.as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let pairs = cookies.map(|it| format!("{}={}", text(&it["name"]), text(&it["value"])));
        Ok(pairs.collect::<Vec<_>>().join("; "))
    }

    /// Ends the browser.
    pub async fn close(self) -> Result<()> {
        self.send(Method::DELETE, "", None).await.map(drop)
    }
}
