//! What was published goes out again: asked of each service on its operators' port, page by page.
//! For a broker that lost its disk this is the one command: it starts Kafka, makes the topics, and
//! has everything announced. In Kubernetes the first two are kubectl's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use events::TOPICS;
use reqwest::Method;
use serde_json::{Value, json};

use crate::Stack;
use crate::client::Client;
use crate::figures::grouped;
use crate::stack::programs;
use crate::topology::SERVICES;
use crate::wait::eventually;

/// How long a service may take to answer at all: its database may be coming back.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

const SAY_EVERY: Duration = Duration::from_secs(5);

/// What to announce again: everything, unless it says less.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Announce {
    /// Only this service
    #[arg(long)]
    pub service: Option<String>,
    /// Only what was published under this key: an order's id, an item's SKU
    #[arg(long)]
    pub key: Option<String>,
    /// Only what was decided at this time or later, as in 2026-11-20T09:00:00Z
    #[arg(long)]
    pub since: Option<DateTime<Utc>>,
}

/// Starts Kafka and the registry where they are down and applies the contracts, unless that is
/// somebody else's; then has the services announce. Answers how many events each announced.
pub async fn run(stack: &Stack, wish: &Announce) -> Result<Vec<(&'static str, u64)>> {
    let of = |service: &&str| wish.service.as_deref().is_none_or(|name| name == *service);
    let publishes = |service: &&str| TOPICS.iter().any(|topic| topic.publisher == *service);
    let services: Vec<&'static str> = SERVICES.into_iter().filter(of).filter(publishes).collect();
    let named = wish.service.as_deref().unwrap_or_default();
    let known = SERVICES.into_iter().filter(publishes).collect::<Vec<_>>().join(" or ");
    ensure!(!services.is_empty(), "no service `{named}` publishes anything: say SERVICE={known}");
    if !stack.is_only_reached() {
        tokio::try_join!(stack.start("kafka"), stack.start("registry"))?;
        stack.apply_contracts(&programs()?).await?;
    }
    let client = Client::of(stack)?;
    let mut announced = Vec::new();
    for service in services {
        ensure!(
            stack.is_only_reached() || stack.is_running(service).await?,
            "{service} does not run, and only it knows what it published: `make start SERVICE={service}`, then announce again"
        );
        announced.push((service, of_service(&client, service, wish).await?));
    }
    let known = announced.iter().any(|(_, count)| *count > 0) || wish.since.is_some();
    ensure!(known || wish.key.is_none(), "nothing was published under this key");
    Ok(announced)
}

/// The disaster: SIGKILL to Kafka, and its log directory is gone. Its next start makes a new cluster.
pub async fn lose_the_disk(stack: &Stack) -> Result<()> {
    ensure!(stack.is_native(), "only the native stack can lose its disk");
    stack.kill("kafka").await?;
    let data = stack.directory().join("kafka").join("data");
    std::fs::remove_dir_all(&data).with_context(|| format!("cannot delete {}", data.display()))
}

/// Has one service announce, on a stack where everything runs. Answers how many events.
pub async fn of_service(client: &Client, service: &str, wish: &Announce) -> Result<u64> {
    let url = format!("{}/announce", client.addresses.operators[service]);
    let (mut announced, mut after) = (0, Value::Null);
    let mut said = Instant::now();
    loop {
        let body = json!({ "key": wish.key, "since": wish.since, "after": after });
        let what = format!("{service} to announce");
        let answer = eventually(&what, ANSWERED_WITHIN, async || {
            let body = body.to_string().into_bytes();
            let answer = client.send(Method::POST, &url, None, Some(body)).await?;
            // Nothing is lost by asking twice.
            ensure!(answer.status < 500, "{answer}");
            Ok(answer)
        })
        .await?;
        if answer.status == 404 && wish.key.is_some() {
            return Ok(0);
        }
        let progress: Value = answer.accepted()?;
        announced += progress["announced"].as_u64().context("a progress counts")?;
        after = progress["next"].clone();
        if after.is_null() {
            return Ok(announced);
        }
        if said.elapsed() > SAY_EVERY {
            said = Instant::now();
            let waiting = progress["outbox"].as_i64().unwrap_or_default();
            eprintln!(
                "{service}: {} events announced again, {} wait in its outbox …",
                grouped(announced),
                grouped(waiting)
            );
        }
    }
}

/// For people: how many events each service announced.
pub fn print(announced: &[(&'static str, u64)]) {
    for (service, count) in announced {
        println!("  {service:<13} {} events announced again", grouped(*count));
    }
}
