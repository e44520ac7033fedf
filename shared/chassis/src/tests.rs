//! The promises of the chassis, on a real Postgres, a real Kafka and a real schema registry.
//!
//! Each test opens a [`Till`], a small service of its own: database, topics and consumer group. What
//! is counted into a till is added up in its tally, so that an effect that is lost or comes twice
//! shows in the sums. Loops are run as a service runs them, or step by step on a given batch.

mod drawer;
mod till;
mod consumer;
mod transactions;
mod bad_events;
mod clock;
mod transient;
mod letters;
mod discards;
mod relay;
mod round;
mod producer;
mod commands;
mod keys;
mod session;
mod trace;
mod evolution;
mod waiting;
mod http;
mod proxy;
mod lone_broker;
mod ipv6;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use anyhow::ensure;
use axum::http::StatusCode;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, post_schema};
use schema_registry_converter::schema_registry_common::{SchemaType, SuppliedSchema};
use serde::{Deserialize, Serialize};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, PgPool, PgTransaction, SqlSafeStr};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::avro::frame;
use crate::batches::REFUSED_FOR_MIN;
use crate::commands::{Commands, commands};
use crate::config::{Config, Secret};
use crate::consumer::Consumer;
use crate::event::{Answer, At, Event, Isolation, Outgoing, Retention, Topic};
use crate::loss::Loss;
use crate::member::{Assigned, Reports};
use crate::outbox::{self, Envelope};
use crate::probes::Heartbeats;
use crate::problem::Problem;
use crate::registry::Registry;
use crate::relay::Relay;
use crate::reply::Reply;
use crate::rows::{Rows, Table, Touches};
use crate::session::Session;
use crate::wake::Wake;
use crate::writes::Writes;
use crate::{impossible, kafka, schema, testing};
use drawer::*;
use proxy::{Proxy, Way};
use till::*;

/// How long anything may take that has to happen.
const WITHIN: Duration = Duration::from_secs(60);

/// How long something that must not happen is waited for.
const MEANWHILE: Duration = Duration::from_millis(1500);

fn event_id_header(id: &str) -> OwnedHeaders {
    OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(id) })
}

fn header<'a>(record: &'a OwnedMessage, key: &str) -> Option<&'a str> {
    let header = record.headers()?.iter().find(|header| header.key == key)?;
    Some(std::str::from_utf8(header.value?).unwrap())
}

fn read(client: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<OwnedMessage>> {
    let mut partitions = TopicPartitionList::new();
    let (mut records, mut held) = (Vec::new(), 0);
    let metadata = client.fetch_metadata(Some(topic), WITHIN)?;
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = client.fetch_watermarks(topic, partition.id(), WITHIN)?;
        partitions.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        held += (high - low) as usize;
    }
    client.assign(&partitions)?;
    let deadline = Instant::now() + WITHIN;
    while records.len() < held {
        ensure!(Instant::now() < deadline, "a record is missing");
        match client.poll(Duration::from_secs(1)) {
            Some(Ok(record)) => records.push(record.detach()),
            // The client connects anew by itself.
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown))) | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
    Ok(records)
}

/// The one way to wait: looks until it is so, up to a deadline.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {WITHIN:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A loop that runs as in a service, until it is stopped or dropped.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub fn start<F>(run: impl FnOnce(CancellationToken) -> F) -> Running
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        Running { task: tokio::spawn(run(stop.clone())), stop }
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn status(answer: &Result<Reply, Problem>) -> StatusCode {
    use axum::response::IntoResponse;
    match answer {
        Ok(_) => StatusCode::CREATED,
        Err(problem) => problem.clone().into_response().status(),
    }
}
