//! Republishes the events of each service through its admin port, page by page. After a broker lost
//! its disk one command restores the topics: it starts Kafka, creates the topics, and republishes
//! all events. In Kubernetes the first two steps are those of kubectl.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use checker::group_digits;
use chrono::{DateTime, Utc};
use events::TOPICS;
use launcher::directories::programs_directory;
use launcher::{Stack, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::http_client::Client;
use crate::stack_description::SERVICES;

/// The longest time without a response of a service: its database may be restarting.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// What to republish: everything by default.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RepublishOptions {
    /// Only this service
    #[arg(long)]
    pub service: Option<String>,
    /// Only events with this key: an order's id, an item's SKU
    #[arg(long)]
    pub key: Option<String>,
    /// Only events decided at this time or later, as in 2026-11-20T09:00:00Z
    #[arg(long)]
    pub since: Option<DateTime<Utc>>,
}

/// Starts Kafka and the registry if they are down, applies the contracts unless another system
/// does, and republishes. Returns the number of events of each service.
pub async fn run(stack: &Stack, options: &RepublishOptions) -> Result<Vec<(&'static str, u64)>> {
    let of = |service: &&str| options.service.as_deref().is_none_or(|name| name == *service);
    let publishes = |service: &&str| TOPICS.iter().any(|topic| topic.publisher == *service);
    let services: Vec<&'static str> = SERVICES.into_iter().filter(of).filter(publishes).collect();
    let named = options.service.as_deref().unwrap_or_default();
    let known = SERVICES.into_iter().filter(publishes).collect::<Vec<_>>().join(" or ");
    ensure!(!services.is_empty(), "no service `{named}` publishes events: set SERVICE={known}");
    if !stack.is_external() {
        tokio::try_join!(stack.start("kafka"), stack.start("registry"))?;
        stack.apply_contracts(&programs_directory()?).await?;
    }
    let client = Client::for_stack(stack)?;
    let mut republished = Vec::new();
    for service in services {
        ensure!(
            stack.is_external() || stack.is_running(service).await?,
            "{service} does not run, and only it can rebuild its events: `make start SERVICE={service}`, then republish again"
        );
        republished.push((service, republish_service(&client, service, options).await?));
    }
    let known = republished.iter().any(|(_, count)| *count > 0) || options.since.is_some();
    ensure!(known || options.key.is_none(), "no event was published with this key");
    Ok(republished)
}

/// Kills Kafka and deletes its log directory. Its next start creates a new cluster.
pub async fn lose_disk(stack: &Stack) -> Result<()> {
    ensure!(stack.is_native(), "only the native stack can lose its disk");
    stack.kill("kafka").await?;
    let data = stack.directory().join("kafka").join("data");
    std::fs::remove_dir_all(&data).with_context(|| format!("cannot delete {}", data.display()))
}

/// Republishes the events of one service. Returns their number.
pub async fn republish_service(
    client: &Client,
    service: &str,
    options: &RepublishOptions,
) -> Result<u64> {
    let url = format!("{}/republish", client.addresses.admins[service]);
    let (mut republished, mut after) = (0, Value::Null);
    let mut reported_at = Instant::now();
    loop {
        let body = json!({ "key": options.key, "since": options.since, "after": after });
        let what = format!("{service} to republish");
        let answer = eventually(&what, RESPONSE_TIMEOUT, async || {
            let body = body.to_string().into_bytes();
            let answer = client.send(Method::POST, &url, None, Some(body)).await?;
            // A page can be requested again without harm.
            ensure!(answer.status < 500, "{answer}");
            Ok(answer)
        })
        .await?;
        if answer.status == 404 && options.key.is_some() {
            return Ok(0);
        }
        let progress: Value = answer.accepted_json()?;
        republished += progress["republished"].as_u64().context("a count of events")?;
        after = progress["next"].clone();
        if after.is_null() {
            return Ok(republished);
        }
        if reported_at.elapsed() > PROGRESS_INTERVAL {
            reported_at = Instant::now();
            let waiting = progress["outbox"].as_i64().unwrap_or_default();
            eprintln!(
                "{service}: {} events republished, {} wait in its outbox …",
                group_digits(republished),
                group_digits(waiting)
            );
        }
    }
}

/// The number of republished events of each service, as lines.
pub fn print(republished: &[(&'static str, u64)]) {
    for (service, count) in republished {
        println!("  {service:<13} {} events republished", group_digits(*count));
    }
}
