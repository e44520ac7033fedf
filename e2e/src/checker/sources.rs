//! What the checker reads: the stack as the checker of messaging sees it, and rows by order id.

use anyhow::Result;
use checker::System;
use declaration::SUBSCRIPTIONS;
use events::saga_topics;
use futures::stream::{BoxStream, StreamExt};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgPool, SqlSafeStr};
use uuid::Uuid;

use crate::client::http_client::Client;
use crate::stack_description::{SERVICES, SHIPPING};

/// The services and topics of this project, at the addresses of a stack.
pub fn system(client: &Client) -> System {
    let addresses = &client.addresses;
    let known = SERVICES.into_iter().chain([SHIPPING]);
    let database = |service| Some((service, addresses.databases.get(service)?.clone()));
    System {
        topics: saga_topics(),
        subscriptions: SUBSCRIPTIONS.clone(),
        databases: known.filter_map(database).collect(),
        kafka: addresses.kafka.clone(),
        registry: addresses.registry.clone(),
        registry_ca: addresses.ca.clone(),
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
