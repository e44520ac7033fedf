//! Outages of the service on a real stack: what was published while it was down has its effect once, and is answered.

use std::time::Duration;

use anyhow::{Result, ensure};
use checker::{System, check, outbox_log};
use chrono::Utc;
use events::{RequestCreated, TOPICS};
use launcher::{Stack, eventually};
use testing::EventProducer;
use uuid::Uuid;

#[path = "../src/stack_description.rs"]
mod stack_description;

const TIMEOUT: Duration = Duration::from_secs(60);

/// The number of requests that are created during each outage.
const REQUESTS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_loses_no_request_and_accepts_none_twice() -> Result<()> {
    let stack = Stack::ephemeral(&stack_description::stack_description())?;
    stack.up().await?;
    let system = System {
        topics: &TOPICS,
        databases: [("shop", stack.database_url("shop")?)].into(),
        kafka: stack.kafka_client()?,
        registry: stack.registry_url()?,
        registry_ca: stack.ca_certificate()?,
    };
    outbox_log::install(&system).await?;
    let publisher = EventProducer::new(&system.kafka, &system.registry)?;
    let mut requests = Vec::new();
    for victim in ["shop", "shop-db", "kafka"] {
        requests.extend(create_requests(&publisher).await?);
        stack.kill(victim).await?;
        if victim != "kafka" {
            requests.extend(create_requests(&publisher).await?);
        }
        stack.start(victim).await?;
        for request_id in &requests {
            let url = format!("{}/requests/{request_id}", stack.url("shop")?);
            eventually("the request to be accepted", TIMEOUT, async || {
                let shown = reqwest::get(&url).await?;
                ensure!(shown.status() == 200, "{request_id}: {}", shown.status());
                Ok(())
            })
            .await?;
        }
    }
    let verdict = check(&system, TIMEOUT).await?;
    let lines = verdict.lines().join("\n");
    println!("{lines}");
    ensure!(verdict.holds(), "{lines}");
    Ok(())
}

/// Publishes requests in place of the service that publishes them.
async fn create_requests(publisher: &EventProducer) -> Result<Vec<Uuid>> {
    let mut created = Vec::new();
    for nth in 0..REQUESTS {
        let (request_id, subject) = (Uuid::now_v7(), format!("desk {nth}"));
        publisher.publish(&RequestCreated { request_id, subject, occurred_at: Utc::now() }).await?;
        created.push(request_id);
    }
    Ok(created)
}
