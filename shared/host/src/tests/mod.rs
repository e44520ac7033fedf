//! The promises of the chassis, on a real Postgres, a real Kafka and a real schema registry.
//!
//! Each test creates a [`Fixture`], a small service with its own database, topics and consumer group.
//! Amounts that are counted into a till are added up in its tally, so that a lost or duplicate effect
//! shows in the sums. Loops run as in a service, or step by step on a given batch.

mod admin_client;
pub(crate) mod captured_log;
mod certificate;
mod domain;
mod fixture;
mod proxy;
mod stepped;
mod support;
mod test_server;

mod admin_description;
mod calls;
mod change_feed;
mod clock;
mod commands;
mod connection;
mod connector;
mod consumer;
mod dead_letters;
mod discard;
mod empty_metadata;
mod handled_events;
mod http_connections;
mod http_server;
mod http_shutdown;
mod https;
mod idempotency;
mod ipv6;
mod kafka_transactions;
mod outcomes;
mod pauses;
mod poison_records;
mod positions;
mod private_keys;
mod pool;
mod producer;
mod rebalance;
mod relay;
mod renewed_clients;
mod replaced_registry;
mod retention;
mod schema_evolution;
mod sender;
mod timers;
mod trace_propagation;
mod transient_failures;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::ensure;
use axum::http::StatusCode;
use messaging::commands::command::{Accepted, Command, Decision};
use messaging::consumer::Consumer;
use messaging::consumer::assignment::Assignment;
use messaging::consumer::deferred::rejected_for_min;
use messaging::consumer::handlers::Handlers;
use messaging::consumer::rebalance::GroupContext;
use messaging::db::connection::DedicatedConnection;
use messaging::dead_letter::discard_impact::DiscardImpact;
use messaging::event::avro::frame;
use messaging::event::{Event, HandlerContext, HandlerResult, Isolation, Outcome, Outgoing, Topic};
use messaging::flow::heartbeat::Heartbeats;
use messaging::flow::wakeups::Wakeups;
use messaging::kafka;
use messaging::kafka::schema_registry::SchemaRegistryClient;
use messaging::outbox::relay::Relay;
use messaging::outbox::{self, Envelope};
use messaging::unit_of_work::loader::Loader;
use messaging::unit_of_work::table::Table;
use messaging::unit_of_work::write_batch::WriteBatch;
use messaging::unit_of_work::{Loads, UnitOfWork};
use messaging::unprocessable;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, post_schema};
use schema_registry_converter::schema_registry_common::{SchemaType, SuppliedSchema};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, PgPool, PgTransaction, SqlSafeStr};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::{Config, Secret};
use crate::db::migrate;
use crate::http::commands::{Commands, Reply, command_channel};
use crate::http::idempotent::Idempotent;
use crate::http::problem::Problem;
use crate::testing;
use domain::*;
use fixture::*;
use proxy::{Proxy, ProxyMode};
use stepped::*;
use support::*;
