//! Republishes the events of each service through its admin port, page by page. After a broker lost
//! its disk one command restores the topics: it starts Kafka, creates the topics, and republishes
//! all events. In Kubernetes the first two steps are those of kubectl.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use checker::group_digits;
use chrono::{DateTime, Utc};
use events::saga_topics;
use launcher::directories::programs_directory;
use launcher::{Stack, eventually};
use ops_client::RepublishRequest;
use reqwest::StatusCode;

use crate::client::operator::Operator;

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
pub async fn run(stack: &Stack, options: &RepublishOptions) -> Result<Vec<(String, u64)>> {
    let of = |service: &&str| options.service.as_deref().is_none_or(|name| name == *service);
    let all = || stack.description().services.iter().map(String::as_str);
    let publishes = |service: &&str| saga_topics().iter().any(|topic| topic.publisher == *service);
    let services: Vec<&str> = all().filter(of).filter(publishes).collect();
    let named = options.service.as_deref().unwrap_or_default();
    let known = all().filter(publishes).collect::<Vec<_>>().join(" or ");
    ensure!(!services.is_empty(), "no service `{named}` publishes events: set SERVICE={known}");
    if !stack.is_external() {
        tokio::try_join!(stack.start("kafka"), stack.start("registry"))?;
        stack.apply_contracts(&programs_directory()?).await?;
    }
    let operator = Operator::for_stack(stack)?;
    let mut republished = Vec::new();
    for service in services {
        ensure!(
            stack.is_external() || stack.is_running(service).await?,
            "{service} does not run, and only it can rebuild its events: `make start SERVICE={service}`, then republish again"
        );
        republished
            .push((service.to_string(), republish_service(&operator, service, options).await?));
    }
    let known = republished.iter().any(|(_, count)| *count > 0) || options.since.is_some();
    ensure!(known || options.key.is_none(), "no event was published with this key");
    Ok(republished)
}

/// Kills Kafka and deletes its log directory. Its next start creates a new cluster.
pub async fn lose_disk(stack: &Stack) -> Result<()> {
    stack.wipe("kafka").await
}

/// Republishes the events of one service. Returns their number.
pub async fn republish_service(
    operator: &Operator,
    service: &str,
    options: &RepublishOptions,
) -> Result<u64> {
    let (key, since) = (options.key.clone(), options.since);
    let mut request = RepublishRequest { key, since, after: None };
    let (mut republished, mut reported_at) = (0, Instant::now());
    loop {
        let what = format!("{service} to republish");
        let answer = eventually(&what, RESPONSE_TIMEOUT, async || {
            match operator.ask()?.republish(service, &request).await {
                // A page can be requested again without harm.
                Err(error) if error.status().is_none_or(|it| it.is_server_error()) => {
                    Err(error.into())
                }
                answer => Ok(answer),
            }
        });
        let progress = match answer.await? {
            Err(error)
                if error.status() == Some(StatusCode::NOT_FOUND) && request.key.is_some() =>
            {
                return Ok(0);
            }
            answer => answer?,
        };
        republished += progress.republished;
        if progress.next.is_none() {
            return Ok(republished);
        }
        request.after = progress.next;
        if reported_at.elapsed() > PROGRESS_INTERVAL {
            reported_at = Instant::now();
            eprintln!(
                "{service}: {} events republished, {} wait in its outbox …",
                group_digits(republished),
                group_digits(progress.outbox)
            );
        }
    }
}

/// The number of republished events of each service, as lines.
pub fn print(republished: &[(String, u64)]) {
    for (service, count) in republished {
        println!("  {service:<13} {} events republished", group_digits(*count));
    }
}
