//! Connections to everything that the checker reads: a database of each service and a Kafka client of
//! each consumer group. It only reads, and no client joins its group.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result};
use events::TOPICS;
use futures::stream::{BoxStream, StreamExt};
use rdkafka::consumer::BaseConsumer;
use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::{FromRow, PgPool, SqlSafeStr};
use uuid::Uuid;

use crate::checker::dead_letters::DeadLetter;
use crate::checker::record::{RecordPosition, topic_index};
use crate::client::http_client::Client;
use crate::client::kafka;
use crate::stack_description::SERVICES;

/// The open connections.
pub(crate) struct Sources {
    pub(crate) databases: HashMap<&'static str, PgPool>,
    /// A client for each consumer group. It never joins the group.
    pub(crate) groups: HashMap<&'static str, BaseConsumer>,
}

impl Sources {
    pub(crate) async fn connect(client: &Client) -> Result<Sources> {
        let (mut databases, mut groups) = (HashMap::new(), HashMap::new());
        for service in SERVICES {
            let pool = PgPoolOptions::new()
                .max_connections(4)
                .acquire_timeout(Duration::from_secs(10))
                .connect(&client.addresses.databases[service])
                .await
                .with_context(|| format!("the database of {service} cannot be read"))?;
            databases.insert(service, pool);
            groups.insert(service, kafka::create_consumer(&client.addresses.kafka, service)?);
        }
        Ok(Sources { databases, groups })
    }

    pub(crate) fn db(&self, service: &str) -> &PgPool {
        &self.databases[service]
    }

    /// The end offsets of all topics. They change if anything is written.
    pub(crate) async fn end_offsets(&self) -> Result<Vec<(i64, i64)>> {
        tokio::task::block_in_place(|| {
            let mut marks = Vec::new();
            for topic in TOPICS {
                let all = kafka::watermarks(&self.groups[topic.publisher], topic.name)?;
                marks.extend(all.into_iter().map(|(_, high)| (0, high)));
            }
            Ok(marks)
        })
    }

    /// The dead letters of this cluster, of all services.
    pub(crate) async fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        let cluster = tokio::task::block_in_place(|| kafka::cluster_id(&self.groups["order"]))?;
        let mut dead_letters = Vec::new();
        for service in SERVICES {
            let mut rows = sqlx::query_as::<_, (String, i32, i64, Vec<u8>, String, String)>(
                "select topic, partition, \"offset\", hash, state, reason
                 from chassis.dead_letters where cluster = $1",
            )
            .bind(&cluster)
            .fetch(self.db(service));
            while let Some(row) = rows.next().await {
                let (topic, partition, offset, hash, state, reason) = row?;
                let Some(topic) = TOPICS.iter().find(|declared| declared.name == topic) else {
                    continue;
                };
                let position = RecordPosition { topic: topic_index(topic), partition, offset };
                let hash = hash.try_into().unwrap_or_default();
                dead_letters.push(DeadLetter { position, service, hash, state, reason });
            }
        }
        Ok(dead_letters)
    }

    /// The events that an operator discarded, of this cluster and of earlier ones.
    pub(crate) async fn discarded_events(&self) -> Result<HashSet<(&'static str, Uuid)>> {
        let mut discarded = HashSet::new();
        for service in SERVICES {
            let events: Vec<Uuid> = sqlx::query_scalar(
                "select event_id from chassis.dead_letters where state = 'discarded' and event_id is not null",
            )
            .fetch_all(self.db(service))
            .await?;
            discarded.extend(events.into_iter().map(|event_id| (service, event_id)));
        }
        Ok(discarded)
    }

    pub(crate) fn clock_skew_ms(&self) -> Result<i64> {
        let apart = tokio::task::block_in_place(|| kafka::clock_skew(&self.groups["order"]))?;
        Ok(i64::try_from(apart.as_millis())?)
    }
}

/// Rows in order of their order id, with one row of lookahead.
pub(crate) struct OrderedRows<'a, T> {
    stream: BoxStream<'a, sqlx::Result<T>>,
    peeked: Option<T>,
    order_id: fn(&T) -> Uuid,
}

impl<'a, T: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'a> OrderedRows<'a, T> {
    pub(crate) fn new(
        db: &'a PgPool,
        sql: impl SqlSafeStr,
        id: fn(&T) -> Uuid,
    ) -> OrderedRows<'a, T> {
        OrderedRows { stream: sqlx::query_as(sql).fetch(db), peeked: None, order_id: id }
    }

    pub(crate) async fn peek_id(&mut self) -> Result<Option<Uuid>> {
        if self.peeked.is_none() {
            self.peeked = self.stream.next().await.transpose()?;
        }
        Ok(self.peeked.as_ref().map(self.order_id))
    }

    /// The next row, if it belongs to this order.
    pub(crate) async fn next_if(&mut self, order_id: Uuid) -> Result<Option<T>> {
        let is_next = self.peek_id().await? == Some(order_id);
        Ok(if is_next { self.peeked.take() } else { None })
    }
}
