//! The one poller: it asks every instance for its readiness and its metrics, once a second while a page is open and
//! every five seconds otherwise.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures::future::join_all;
use ops_client::describe;
use reqwest::{Client, StatusCode, Url};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use crate::app::App;
use crate::metrics::exposition::Samples;
use crate::metrics::instances::{Instance, InstanceList};
use crate::metrics::snapshot::{InstanceState, Readiness, ServiceState, Snapshot};
use crate::metrics::window::DECISIONS;
use crate::overview::regions;

/// How often the services are asked while a page is open, and otherwise.
const VIEWED_INTERVAL: Duration = Duration::from_secs(1);
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// How often an idle poller checks whether a page was opened.
const VIEWER_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// An instance that does not answer within this time is shown as down.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The metrics that are kept; the others are skipped unread.
const WANTED: [&str; 11] = [
    "build_info",
    "consumer_events_deferred",
    "consumer_lag",
    "consumer_partitions",
    "consumer_paused",
    "dead_letters_waiting",
    "http_server_errors_total",
    "outbox_oldest_seconds",
    "outbox_slot_lag_seconds",
    "process_start_time_seconds",
    "relay_active",
];

/// Starts the poller. It ends with the process.
pub fn start(app: &App) {
    tokio::spawn(run(app.clone()));
}

async fn run(app: App) {
    let http = Client::builder().timeout(PROBE_TIMEOUT).no_proxy().build();
    let http = http.expect("a client of plain HTTP needs nothing that can be missing");
    let mut instances = InstanceList::new(app.settings.probe_urls.clone());
    let mut snapshot = Snapshot::default();
    loop {
        let begun = Instant::now();
        let found = instances.resolve().await;
        let services =
            join_all(found.iter().map(|(name, instances)| probe_service(&http, name, instances)));
        snapshot.services = services.await;
        snapshot.at = Utc::now();
        record(&mut snapshot);
        let seen = Arc::new(snapshot.clone());
        app.snapshot.send_replace(seen.clone());
        if app.rendered.receiver_count() > 0 {
            regions::publish(&app, &seen);
        }
        wait(&app, begun).await;
    }
}

/// Adds the counters of every instance to the window.
fn record(snapshot: &mut Snapshot) {
    snapshot.window.advance(snapshot.at);
    for service in &snapshot.services {
        for instance in &service.instances {
            let key = format!("{} {}", service.name, instance.address);
            snapshot.window.add(&key, &instance.samples, snapshot.at);
        }
    }
}

/// Waits for the next turn, which comes sooner when a page is opened.
async fn wait(app: &App, begun: Instant) {
    loop {
        let interval = match app.rendered.receiver_count() {
            0 => IDLE_INTERVAL,
            _ => VIEWED_INTERVAL,
        };
        let now = Instant::now();
        if now >= begun + interval {
            return;
        }
        sleep_until((now + VIEWER_CHECK_INTERVAL).min(begun + interval)).await;
    }
}

async fn probe_service(http: &Client, name: &str, instances: &[Instance]) -> ServiceState {
    let instances = join_all(instances.iter().map(|instance| probe(http, instance))).await;
    ServiceState { name: name.to_string(), instances }
}

async fn probe(http: &Client, instance: &Instance) -> InstanceState {
    let (readiness, samples) =
        tokio::join!(read_readiness(http, &instance.url), read_metrics(http, &instance.url));
    let port = instance.url.port_or_known_default().unwrap_or_default();
    let host = instance.url.host_str().unwrap_or_default();
    let samples = samples.unwrap_or_default();
    let address = format!("{host}:{port}");
    InstanceState { name: instance.name.clone(), address, readiness, samples }
}

async fn read_readiness(http: &Client, url: &Url) -> Readiness {
    let Ok(url) = url.join("/readyz") else { return Readiness::Down("no address".to_string()) };
    match http.get(url).send().await {
        Ok(response) if response.status() == StatusCode::OK => Readiness::Ready,
        Ok(response) => {
            let status = response.status();
            let problem: Value = response.json().await.unwrap_or_default();
            let detail = problem["detail"].as_str().map(str::to_string);
            Readiness::NotReady(detail.unwrap_or_else(|| status.to_string()))
        }
        Err(error) => Readiness::Down(describe(&error)),
    }
}

async fn read_metrics(http: &Client, url: &Url) -> Option<Samples> {
    let response = http.get(url.join("/metrics").ok()?).send().await.ok()?;
    let text = response.error_for_status().ok()?.text().await.ok()?;
    let is_wanted = |name: &str| {
        WANTED.contains(&name) || name.strip_suffix("_bucket").is_some_and(|it| it == DECISIONS)
    };
    Some(Samples::parse(&text, is_wanted))
}
