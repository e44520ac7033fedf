//! `contracts apply`: creates every declared topic with its partitions and retention, and registers
//! every schema under `FULL_TRANSITIVE`. A difference that cannot be changed under running services
//! is an error.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chassis::config::env::{self, BadConfiguration, parse_switch};
use chassis::config::{KafkaConfig, SchemaRegistryConfig, SecurityConfig};
use chassis::event::Topic;
use clap::ArgAction;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigEntry, ConfigResource, ConfigSource, NewTopic,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use tokio::time::Instant;

use crate::registry::{READY_TIMEOUT, REQUEST_TIMEOUT, RETRY_INTERVAL};
use crate::topic_config::topic_config;
use crate::{Contracts, cluster_owner, registry, users};

const CHANGE_INTERVAL: Duration = Duration::from_millis(50);

/// The default number of replicas, from the brokers.
const BROKER_DEFAULT_REPLICATION: i32 = -1;

/// The environment variables of the command.
#[derive(clap::Parser)]
pub struct Settings {
    #[command(flatten)]
    kafka: KafkaConfig,
    #[command(flatten)]
    registry: SchemaRegistryConfig,
    #[command(flatten)]
    security: SecurityConfig,
    /// The number of replicas of a new topic. With three, a record is acknowledged when two brokers
    /// have it, in existing topics too. Unset: the brokers' default, and existing topics are
    /// unchanged.
    #[arg(long, env, value_parser = clap::value_parser!(i32).range(1..=10))]
    replication_factor: Option<i32>,
    /// The stack that owns the Kafka cluster: a cluster of another stack is refused.
    #[arg(long, env, value_parser = cluster_owner::parse_stack_name)]
    stack_name: Option<String>,
    /// A directory with one file for each Kafka user, which contains its password. If set, the command also makes the
    /// users, their rights and their quotas match the declaration. Unset: another program manages them, such as
    /// Strimzi's user operator.
    #[arg(long, env, value_parser = clap::value_parser!(PathBuf))]
    kafka_users_directory: Option<PathBuf>,
    /// The optional features that this installation runs, comma-separated. The users of other features have neither a
    /// password nor rights.
    #[arg(long, env, value_delimiter = ',', value_parser = clap::builder::NonEmptyStringValueParser::new())]
    features: Vec<String>,
    /// With 1, the schemas are registered in a registry that has none of them, even if topics contain records. The
    /// schema ids in these records may then refer to other schemas.
    #[arg(long, env, default_value = "0", action = ArgAction::Set, value_parser = parse_switch)]
    accept_empty_registry: bool,
}

/// Applies the declarations to Kafka and the registry: first the owner of the cluster, then topics,
/// then schemas.
pub async fn apply(contracts: &Contracts) -> anyhow::Result<()> {
    let settings: Settings = env::read()?;
    settings.kafka.check()?;
    settings.registry.check()?;
    settings.security.check_clients(&settings.kafka, &settings.registry)?;
    if settings.kafka_users_directory.is_some()
        && settings.kafka.kafka_security_protocol.as_deref() != Some("ssl")
    {
        return Err(BadConfiguration::new(
            "KAFKA_USERS_DIRECTORY is set, but KAFKA_SECURITY_PROTOCOL is not ssl: a client certificate must name \
             this program.",
        )
        .into());
    }
    contracts.grants_of_features(&settings.features)?;
    settings.kafka.validate()?;
    let admin: AdminClient<DefaultClientContext> =
        settings.kafka.client_config("contracts").create()?;
    let there = existing_topics(&admin).await?;
    if !there.iter().any(|(name, _)| name == cluster_owner::TOPIC) {
        let (topic, settings_of) = (cluster_owner::TOPIC, cluster_owner::TOPIC_CONFIG);
        create_topic(&admin, topic, 1, settings_of, settings.replication_factor).await?;
    }
    let absent = |name: &str| !there.iter().any(|(existing, _)| existing == name);
    for internal in contracts.internal_topics.iter().filter(|internal| absent(internal.name)) {
        let settings_of = internal.settings.iter().copied();
        create_topic(&admin, internal.name, 1, settings_of, settings.replication_factor).await?;
        println!("{:<20} created, internal", internal.name);
    }
    let stack_name = settings.stack_name.as_deref().unwrap_or(contracts.name);
    cluster_owner::claim(&settings.kafka, stack_name).await?;
    for topic in &contracts.topics {
        match there.iter().find(|(name, _)| name == topic.name) {
            None => create_declared_topic(&admin, topic, settings.replication_factor).await?,
            Some((_, partitions)) => {
                reconcile_topic(&admin, topic, *partitions, settings.replication_factor).await?
            }
        }
    }
    if let Some(directory) = &settings.kafka_users_directory {
        users::apply(contracts, &settings.features, &settings.kafka, directory).await?;
    }
    if !settings.accept_empty_registry {
        registry::refuse_if_emptied(&admin, &settings.registry, &contracts.topics).await?;
    }
    for topic in &contracts.topics {
        registry::register_schema(&settings.registry, topic).await?;
    }
    Ok(())
}

/// Every topic with its number of partitions, as soon as Kafka answers.
async fn existing_topics(
    admin: &AdminClient<DefaultClientContext>,
) -> anyhow::Result<Vec<(String, i32)>> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let within = Duration::from_secs(5);
        match tokio::task::block_in_place(|| admin.inner().fetch_metadata(None, within)) {
            Ok(metadata) => {
                let topics = metadata.topics().iter();
                return Ok(topics
                    .map(|t| (t.name().into(), t.partitions().len() as i32))
                    .collect());
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("Kafka is not reachable");
            }
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

async fn create_declared_topic(
    admin: &AdminClient<DefaultClientContext>,
    topic: &Topic,
    replication: Option<i32>,
) -> anyhow::Result<()> {
    let settings = topic_config(topic, replication);
    let settings = settings.iter().map(|(name, value)| (*name, value.as_str()));
    create_topic(admin, topic.name, topic.partitions, settings, replication).await?;
    println!("{:<20} created, {} partitions", topic.name, topic.partitions);
    Ok(())
}

async fn create_topic<'a>(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
    partitions: i32,
    settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    replication: Option<i32>,
) -> anyhow::Result<()> {
    let copies = TopicReplication::Fixed(replication.unwrap_or(BROKER_DEFAULT_REPLICATION));
    let new = NewTopic::new(name, partitions, copies);
    let new = settings.into_iter().fold(new, |new, (setting, value)| new.set(setting, value));
    let made = admin.create_topics([&new], &admin_options()).await?;
    if let Some(Err((_, error))) = made.into_iter().next() {
        // Another process may be applying the same contracts at this moment.
        ensure!(
            error == rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists,
            "{name} could not be created: {error}"
        );
    }
    Ok(())
}

/// Applies settings as declared. Partitions are never added: that would move keys, so that the
/// records of one key are in two partitions and are read in any order. If an operator added some,
/// that is no error.
async fn reconcile_topic(
    admin: &AdminClient<DefaultClientContext>,
    topic: &Topic,
    partitions: i32,
    replication: Option<i32>,
) -> anyhow::Result<()> {
    if partitions < topic.partitions {
        bail!(
            "{} has {partitions} partitions and is declared with {}; add them, or declare fewer",
            topic.name,
            topic.partitions
        );
    }
    let declared = topic_config(topic, replication);
    let described = describe_topic(admin, topic.name).await?;
    let as_declared = has_settings(&described, &declared);
    if !as_declared {
        let mut altered = AlterConfig::new(ResourceSpecifier::Topic(topic.name));
        for (name, value) in &declared {
            altered = altered.set(name, value);
        }
        // A setting that is not in this request would return to its default, so settings of other
        // origin are repeated.
        let is_declared =
            |entry: &&ConfigEntry| declared.iter().any(|(name, _)| *name == entry.name);
        let set = described.entries.iter().filter(|it| it.source == ConfigSource::DynamicTopic);
        for entry in set.filter(|entry| !is_declared(entry)) {
            altered = altered.set(&entry.name, entry.value.as_deref().unwrap_or_default());
        }
        admin.alter_configs([&altered], &admin_options()).await?;
        wait_for_settings(admin, topic.name, &declared).await?;
    }
    println!("{:<20} {}", topic.name, if as_declared { "as declared" } else { "settings changed" });
    Ok(())
}

/// The settings of a topic. The client library returns none if Kafka refuses to show them.
async fn describe_topic(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
) -> anyhow::Result<ConfigResource> {
    let named = ResourceSpecifier::Topic(name);
    let described = admin.describe_configs([&named], &admin_options()).await?;
    let described = described.into_iter().next().context("no description")??;
    ensure!(!described.entries.is_empty(), "Kafka does not show the settings of {name}");
    Ok(described)
}

fn has_settings(described: &ConfigResource, declared: &[(&str, String)]) -> bool {
    let is_set = |(name, value): &(&str, String)| {
        described.get(name).is_some_and(|entry| entry.value.as_ref() == Some(value))
    };
    declared.iter().all(is_set)
}

/// The client library does not return whether Kafka refused a change, so the settings are read.
async fn wait_for_settings(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
    declared: &[(&str, String)],
) -> anyhow::Result<()> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    while !has_settings(&describe_topic(admin, name).await?, declared) {
        ensure!(Instant::now() < deadline, "Kafka refused to change the settings of {name}");
        tokio::time::sleep(CHANGE_INTERVAL).await;
    }
    Ok(())
}

fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT))
}
