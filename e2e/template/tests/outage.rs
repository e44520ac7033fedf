//! Outages of the service on a real stack: what was published while it was down is recorded once.

use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::Subscriptions;
use chassis::event::topics;
use checker::{System, check, outbox_log};
use chrono::Utc;
use events::purchases::{ConfirmedLine, PurchaseConfirmed};
use launcher::{Stack, eventually};
use serde_json::Value;
use testing::EventProducer;
use uuid::Uuid;

mod stack_description;

const TIMEOUT: Duration = Duration::from_secs(60);

/// The number of purchases that are confirmed before each kill, and again while the service or its database is down.
const PURCHASES: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_shop_loses_no_confirmed_purchase_and_records_none_twice() -> Result<()> {
    let stack = Stack::ephemeral(&stack_description::stack_description())?;
    stack.up().await?;
    let system = System {
        topics: topics(),
        subscriptions: Subscriptions::new([("shop", shop::handlers().topics())]),
        databases: [("shop", stack.database_url("shop")?)].into(),
        kafka: stack.kafka_client()?,
        registry: stack.registry_url()?,
        registry_ca: stack.ca_certificate()?,
    };
    outbox_log::install(&system).await?;
    let publisher = EventProducer::new(&system.kafka, &system.registry)?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut purchases = Vec::new();
    for victim in ["shop", "shop-db", "kafka"] {
        purchases.extend(confirm_purchases(&publisher).await?);
        stack.kill(victim).await?;
        if victim != "kafka" {
            purchases.extend(confirm_purchases(&publisher).await?);
        }
        stack.start(victim).await?;
        for purchase_id in &purchases {
            let url = format!("{}/purchases/{purchase_id}", stack.url("shop")?);
            eventually("the purchase to be recorded", TIMEOUT, async || {
                let shown = client.get(&url).send().await?;
                ensure!(shown.status() == 200, "{purchase_id}: {}", shown.status());
                Ok(())
            })
            .await?;
        }
    }
    let verdict = check(&system, TIMEOUT).await?;
    let lines = verdict.lines().join("\n");
    println!("{lines}");
    ensure!(verdict.holds(), "{lines}");
    let books = client.get(format!("{}/books", stack.admin_url("shop")?)).send().await?;
    let books: Value = books.json().await?;
    ensure!(books["balanced"] == true && books["purchases"] == purchases.len(), "{books}");
    Ok(())
}

/// Publishes confirmations in place of the service that publishes them.
async fn confirm_purchases(publisher: &EventProducer) -> Result<Vec<Uuid>> {
    let mut confirmed = Vec::new();
    for _ in 0..PURCHASES {
        let purchase_id = Uuid::now_v7();
        let line = ConfirmedLine { sku: "pen".into(), quantity: 2, unit_price_cents: 150 };
        let purchase = PurchaseConfirmed {
            purchase_id,
            customer_id: Uuid::max(),
            lines: vec![line],
            total_cents: 300,
            currency: "EUR".into(),
            occurred_at: Utc::now(),
        };
        publisher.publish(&purchase).await?;
        confirmed.push(purchase_id);
    }
    Ok(confirmed)
}
