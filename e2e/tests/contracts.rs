//! `contracts apply` on existing topics: it changes what is declared, and nothing else. And what
//! the AsyncAPI document states of records is true of real ones.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::event::{Event, Topic};
use checker::{kafka, read_topic};
use e2e::client::kafka::admin_client;
use e2e::stack_description::checkout;
use launcher::Stack;
use launcher::directories::programs_directory;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Message};
use reqwest::Method;
use serde_json::Value;

use crate::fixture::*;

type Admin = AdminClient<DefaultClientContext>;

const TOPIC: &str = "orders.confirmed";
const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";
/// A setting that is not declared.
const FLUSH_MESSAGES: &str = "flush.messages";
/// A declared setting, with another value here.
const RETENTION_MS: &str = "retention.ms";

/// As on a cluster of three brokers whose operator sets no replication factor, or no longer: two
/// replicas had to have a record before it was acknowledged, and that must stay so.
#[tokio::test(flavor = "multi_thread")]
async fn contracts_applied_again_without_a_replication_factor_keep_the_one_of_a_topic() -> Result<()>
{
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let admin = admin_client(client)?;
        let changed =
            [(MIN_INSYNC_REPLICAS, "2"), (FLUSH_MESSAGES, "12345"), (RETENTION_MS, "3600000")];
        change_topic(&admin, &changed).await?;
        let read = async |name: &str| read_setting(&admin, name).await;
        let unset = apply(stack, "");
        let kept = (
            read(MIN_INSYNC_REPLICAS).await?,
            read(FLUSH_MESSAGES).await?,
            read(RETENTION_MS).await?,
        );
        // This also restores the topic for other tests.
        apply(stack, "1")?;
        unset?;
        ensure!(kept.0.as_deref() == Some("2"), "unsaid, {MIN_INSYNC_REPLICAS} stays: {kept:?}");
        ensure!(kept.1.as_deref() == Some("12345"), "an undeclared setting is kept: {kept:?}");
        ensure!(kept.2.as_deref() == Some("1209600000"), "a declared setting is applied: {kept:?}");
        let one_copy = read(MIN_INSYNC_REPLICAS).await?;
        ensure!(
            one_copy.as_deref() == Some("1"),
            "with one replica, one in-sync replica is enough: {one_copy:?}"
        );
        Ok(())
    })
    .await
}

async fn change_topic(admin: &Admin, settings: &[(&str, &str)]) -> Result<()> {
    let topic = AlterConfig::new(ResourceSpecifier::Topic(TOPIC));
    let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
    for altered in admin.alter_configs([&topic], &AdminOptions::new()).await? {
        altered.map_err(|(_, error)| error)?;
    }
    Ok(())
}

async fn read_setting(admin: &Admin, name: &str) -> Result<Option<String>> {
    let topic = ResourceSpecifier::Topic(TOPIC);
    let described = admin.describe_configs([&topic], &AdminOptions::new()).await?;
    let described = described.into_iter().next().context("no description")??;
    Ok(described.get(name).and_then(|entry| entry.value.clone()))
}

fn apply(stack: &Stack, replication_factor: &str) -> Result<()> {
    let done = contracts_command(stack, &stack.name()?)?
        .env("REPLICATION_FACTOR", replication_factor)
        .output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// `contracts apply` for a stack with this name, with the addresses of another stack.
fn contracts_command(stack: &Stack, name: &str) -> Result<Command> {
    let mut contracts = Command::new(programs_directory()?.join("contracts"));
    contracts
        .arg("apply")
        .env("KAFKA_BOOTSTRAP_SERVERS", stack.kafka_bootstrap()?)
        .env("SCHEMA_REGISTRY_URL", stack.registry_url()?)
        .env("STACK_NAME", name);
    Ok(contracts)
}

/// Checks the message of a refusal, which names both stacks.
fn assert_refused(done: &Output, refused: &str, owner: &str) -> Result<()> {
    let output = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(64), "{:?}: {output}", done.status);
    ensure!(output.contains(&format!("STACK_NAME is `{refused}`")), "{output}");
    ensure!(output.contains(&format!("the stack `{owner}`")), "{output}");
    Ok(())
}

/// R23. The services of two stacks would each handle half of the other's events.
#[tokio::test(flavor = "multi_thread")]
async fn the_contracts_of_a_second_stack_are_refused_and_change_nothing() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let admin = admin_client(client)?;
        change_topic(&admin, &[(RETENTION_MS, "3600000")]).await?;
        let topics = || -> Result<Vec<String>> {
            let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(10))?;
            let mut names: Vec<_> = metadata.topics().iter().map(|it| it.name().into()).collect();
            names.sort_unstable();
            Ok(names)
        };
        let before = topics()?;
        let refused = contracts_command(stack, "another-stack")?.output()?;
        let retention = read_setting(&admin, RETENTION_MS).await?;
        // With its own name it can be repeated; this also restores the topic.
        apply(stack, "")?;
        apply(stack, "")?;
        assert_refused(&refused, "another-stack", &stack.name()?)?;
        ensure!(retention.as_deref() == Some("3600000"), "{retention:?} was changed");
        ensure!(topics()? == before, "{before:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_stacks_that_claim_a_fresh_cluster_at_once_one_gets_it() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    tokio::try_join!(stack.start("kafka"), stack.start("registry"))?;
    let names = ["one-stack", "other-stack"];
    let start = |name| -> Result<_> {
        let mut contracts = contracts_command(&stack, name)?;
        Ok(contracts.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
    };
    let running = [start(names[0])?, start(names[1])?];
    let [one, other] = running.map(|it| it.wait_with_output());
    let (one, other) = (one?, other?);
    let (owner, loser, refused) = match one.status.success() {
        true => (names[0], names[1], &other),
        false => (names[1], names[0], &one),
    };
    assert_refused(refused, loser, owner)?;
    ensure!(one.status.success() || other.status.success(), "{one:?} {other:?}");
    assert_refused(&contracts_command(&stack, loser)?.output()?, loser, owner)?;
    let again = contracts_command(&stack, owner)?.output()?;
    ensure!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    Ok(())
}

/// This prevents other publishers to these topics from registering a schema that our readers cannot
/// read.
#[tokio::test(flavor = "multi_thread")]
async fn every_subject_requires_full_transitive_compatibility() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        for topic in events::topics() {
            let url = format!("{}/config/{}", client.addresses.registry, topic.subject());
            let config: Value =
                client.send(Method::GET, &url, None, None).await?.accepted_json()?;
            ensure!(config["compatibilityLevel"] == "FULL_TRANSITIVE", "{}: {config}", topic.name);
        }
        Ok(())
    })
    .await
}

/// A command caused the first event of an order, and that event caused the second one.
#[tokio::test(flavor = "multi_thread")]
async fn the_headers_of_real_records_are_those_of_the_asyncapi_document() -> Result<()> {
    let text = std::fs::read_to_string(checkout().join("docs/asyncapi.json"))?;
    let document: Value = serde_json::from_str(&text)?;
    with_shared_fixture(async |Fixture { client, .. }| {
        let orders = place_orders(client, 1).await?;
        wait_until_confirmed(client, &orders).await?;
        let key = orders[0].order_id.to_string();
        for (topic, is_caused) in [
            (events::orders::OrderCreated::topic(), false),
            (events::payments::PaymentVerified::topic(), true),
        ] {
            let kafka = &client.addresses.kafka;
            let headers = tokio::task::block_in_place(|| headers_of_key(kafka, topic, &key))?;
            assert_described(&document, topic, &headers)?;
            ensure!(headers.contains_key("ce_causationid") == is_caused, "{headers:?}");
        }
        Ok(())
    })
    .await
}

/// The headers of a topic's first record with a key.
fn headers_of_key(
    kafka: &ClientConfig,
    topic: &'static Topic,
    key: &str,
) -> Result<BTreeMap<String, String>> {
    let mut found = None;
    read_topic(kafka, topic, |_, record| {
        if record.key() == Some(key.as_bytes()) && found.is_none() {
            let headers = kafka::headers(record).context("the name of a header is not text")?;
            let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap_or_default().into());
            let headers = headers.iter().map(|it| Ok((it.key.to_string(), text(it.value)?)));
            found = Some(headers.collect::<Result<_>>()?);
        }
        Ok(())
    })?;
    found.context("there is no such record")
}

/// Each header of a record is in the document, and has the value that is constant there. No
/// required header is missing.
fn assert_described(
    document: &Value,
    topic: &Topic,
    headers: &BTreeMap<String, String>,
) -> Result<()> {
    let own = &document["channels"][topic.name]["messages"];
    let own = own.as_object().and_then(|messages| messages.values().next()).context("a message")?;
    let common = &document["components"]["messageTraits"]["event"]["headers"];
    let required = common["required"].as_array().context("required headers")?;
    let required: BTreeSet<&str> = required.iter().filter_map(Value::as_str).collect();
    let missing: Vec<_> = required.iter().filter(|name| !headers.contains_key(**name)).collect();
    ensure!(required.len() == 6 && missing.is_empty(), "{topic:?} lacks {missing:?}: {headers:?}");
    for (name, value) in headers {
        let described = &common["properties"][name];
        ensure!(described.is_object(), "{topic:?} has the header {name}");
        let constants = [described, &own["headers"]["properties"][name]].map(|it| &it["const"]);
        let differs = constants.iter().find(|it| it.as_str().is_some_and(|it| it != value));
        ensure!(differs.is_none(), "{topic:?}: {name} is {value} and not {differs:?}");
    }
    Ok(())
}
