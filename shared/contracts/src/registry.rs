//! The registry's part of `contracts apply`: it registers the schemas, unless the registry has lost its data.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use chassis::config::env::BadConfiguration;
use chassis::config::{SchemaRegistryConfig, Secret};
use chassis::event::Topic;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, post_schema};
use schema_registry_converter::schema_registry_common::{SchemaType, SuppliedSchema};
use tokio::time::Instant;

/// How long Kafka and the registry may take to start.
pub const READY_TIMEOUT: Duration = Duration::from_secs(120);
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
pub const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// How long Kafka may take to tell the ends of a partition, and how often it is asked: a new topic has no leader for a
/// moment.
const ENDS_TIMEOUT: Duration = Duration::from_secs(5);
const ENDS_ATTEMPTS: u32 = 6;

/// Refuses a registry that has none of the declared subjects, not even a deleted one, while topics hold records. It
/// would give other ids than those in the records.
///
/// # Errors
/// [`BadConfiguration`] if it is so; any other error if Kafka or the registry does not answer.
pub async fn refuse_if_emptied(
    admin: &AdminClient<DefaultClientContext>,
    registry: &SchemaRegistryConfig,
    topics: &[&Topic],
) -> anyhow::Result<()> {
    let subjects = when_ready(|| request(registry, Method::GET, "subjects?deleted=true")).await?;
    let subjects: BTreeSet<String> = subjects.json().await?;
    if topics.iter().any(|topic| subjects.contains(&topic.subject())) {
        return Ok(());
    }
    for topic in topics {
        let records = tokio::task::block_in_place(|| count_records(admin, topic))?;
        if records > 0 {
            return Err(BadConfiguration::new(format!(
                "the registry has none of the declared schemas, but {} holds {records} records. It has lost its data \
                 or is another registry, and would give schemas other ids than those in the records. Restore the \
                 registry first (docs/how-to/restore.md), or set ACCEPT_EMPTY_REGISTRY=1 to register the schemas \
                 under new ids.",
                topic.name
            ))
            .into());
        }
    }
    Ok(())
}

/// How many records a topic holds, or a little more: offsets of a compacted topic have gaps.
fn count_records(admin: &AdminClient<DefaultClientContext>, topic: &Topic) -> anyhow::Result<i64> {
    let metadata = admin.inner().fetch_metadata(Some(topic.name), ENDS_TIMEOUT)?;
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    let mut records = 0;
    for partition in partitions.map(|partition| partition.id()) {
        let mut attempts = 0;
        records += loop {
            match admin.inner().fetch_watermarks(topic.name, partition, ENDS_TIMEOUT) {
                Ok((first, end)) => break end - first,
                Err(error) if attempts == ENDS_ATTEMPTS => {
                    return Err(error).with_context(|| format!("the ends of {}", topic.name));
                }
                Err(_) => std::thread::sleep(RETRY_INTERVAL),
            }
            attempts += 1;
        };
    }
    Ok(records)
}

/// Sends a request until the registry answers it.
async fn when_ready(
    request: impl Fn() -> anyhow::Result<RequestBuilder>,
) -> anyhow::Result<Response> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let answer = request()?.send().await;
        if let Ok(answer) = &answer
            && [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&answer.status())
        {
            bail!("the registry refuses access: {}", answer.status());
        }
        match answer.and_then(Response::error_for_status) {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => return Err(error).context("no registry"),
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

/// A request with the credentials of the configuration. A proxy that the environment names leads to the public network,
/// where this registry is not.
fn request(
    registry: &SchemaRegistryConfig,
    method: Method,
    path: &str,
) -> anyhow::Result<RequestBuilder> {
    let http = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?;
    let request = http.request(method, format!("{}/{path}", registry.schema_registry_url));
    let request = match &registry.schema_registry_username {
        Some(username) => {
            let password = registry.schema_registry_password.as_ref().map(Secret::expose);
            request.basic_auth(username, password)
        }
        None => request,
    };
    Ok(match &registry.schema_registry_token {
        Some(token) => request.bearer_auth(token.expose()),
        None => request,
    })
}

/// Registers a schema under the strictest compatibility, so that every reader can read every
/// writer, older or newer.
pub async fn register_schema(registry: &SchemaRegistryConfig, topic: &Topic) -> anyhow::Result<()> {
    let subject = topic.subject();
    let level = serde_json::json!({ "compatibility": "FULL_TRANSITIVE" });
    let of_subject = format!("config/{subject}");
    when_ready(|| Ok(request(registry, Method::PUT, &of_subject)?.json(&level))).await?;
    let mut settings = SrSettings::new_builder(registry.schema_registry_url.clone());
    settings.no_proxy().set_timeout(REQUEST_TIMEOUT);
    if let Some(username) = &registry.schema_registry_username {
        let password = registry.schema_registry_password.as_ref().map(Secret::expose);
        settings.set_basic_authorization(username, password);
    }
    if let Some(token) = &registry.schema_registry_token {
        settings.set_token_authorization(token.expose());
    }
    let schema = SuppliedSchema::new(None, SchemaType::Avro, topic.schema.to_string());
    let registered = post_schema(&settings.build()?, subject.clone(), schema)
        .await
        .with_context(|| format!("the registry rejected {subject}"))?;
    println!("{subject:<26} schema {}", registered.id);
    Ok(())
}
