//! `contracts apply` on topics that are there: it changes what is declared, and nothing else.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::Stack;
use e2e::replays;
use e2e::stack::programs;
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use reqwest::Method;
use serde_json::Value;

use crate::stage::{Stage, alone, together};

const TOPIC: &str = "orders.confirmed";
const IN_SYNC: &str = "min.insync.replicas";
/// Declared by nobody.
const FLUSH: &str = "flush.messages";
/// Declared, and given another value.
const RETENTION: &str = "retention.ms";

/// As on a cluster of three brokers whose operator gives no number, or no longer: two had to have a
/// record before it was acknowledged, and two have to go on having it.
#[tokio::test(flavor = "multi_thread")]
async fn contracts_that_are_applied_again_without_a_number_of_copies_leave_a_topic_its_own()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        let admin = replays::admin(client)?;
        let topic = ResourceSpecifier::Topic(TOPIC);
        let settings = AlterConfig::new(topic).set(IN_SYNC, "2").set(FLUSH, "12345");
        let settings = settings.set(RETENTION, "3600000");
        for altered in admin.alter_configs([&settings], &AdminOptions::new()).await? {
            altered.map_err(|(_, error)| error)?;
        }
        let read = async |name: &str| -> Result<Option<String>> {
            let described = admin.describe_configs([&topic], &AdminOptions::new()).await?;
            let described = described.into_iter().next().context("no description")??;
            Ok(described.get(name).and_then(|entry| entry.value.clone()))
        };
        let unsaid = apply(stack, "");
        let kept = (read(IN_SYNC).await?, read(FLUSH).await?, read(RETENTION).await?);
        // Also puts it in order again for the others.
        apply(stack, "1")?;
        unsaid?;
        ensure!(kept.0.as_deref() == Some("2"), "unsaid, {IN_SYNC} stays: {kept:?}");
        ensure!(kept.1.as_deref() == Some("12345"), "what nobody declares stays: {kept:?}");
        ensure!(kept.2.as_deref() == Some("1209600000"), "what is declared is set: {kept:?}");
        let said = read(IN_SYNC).await?;
        ensure!(
            said.as_deref() == Some("1"),
            "one copy that is asked for is in sync alone: {said:?}"
        );
        Ok(())
    })
    .await
}

fn apply(stack: &Stack, copies: &str) -> Result<()> {
    let done = Command::new(programs()?.join("contracts"))
        .arg("apply")
        .env("KAFKA_BOOTSTRAP_SERVERS", stack.kafka_bootstrap()?)
        .env("SCHEMA_REGISTRY_URL", stack.registry_url()?)
        .env("REPLICATION_FACTOR", copies)
        .output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// What keeps others who write to these topics from registering what our readers can't read.
#[tokio::test(flavor = "multi_thread")]
async fn every_subject_demands_that_all_versions_read_one_another() -> Result<()> {
    together(async |Stage { client, .. }| {
        for topic in events::TOPICS {
            let url = format!("{}/config/{}", client.addresses.registry, topic.subject());
            let told: Value = client.send(Method::GET, &url, None, None).await?.accepted()?;
            ensure!(told["compatibilityLevel"] == "FULL_TRANSITIVE", "{}: {told}", topic.name);
        }
        Ok(())
    })
    .await
}
