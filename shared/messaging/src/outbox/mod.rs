//! The outbox: a transaction that decides an event writes it to the outbox, and the [relay] carries
//! it to Kafka.
//!
//! Promise: an event exists if and only if its cause was committed. Code that publishes to Kafka directly, or
//! that writes to the outbox in a separate transaction, breaks that promise; so [`insert`] accepts only the
//! write batch of an open transaction.

mod backoff;
pub mod cdc;
pub mod in_flight;
mod lag;
pub mod low_watermark;
pub mod producer;
pub mod query;
pub mod relay;
pub mod republish_source;
mod schema_ids;
pub mod sender;
pub mod session;

use chrono::{DateTime, Utc};
use opentelemetry::Context;
use sqlx::PgPool;
use uuid::Uuid;

use crate::event::{Effects, HandlerContext, Outgoing, Topic};
use crate::telemetry;
use crate::unit_of_work::write_batch::WriteBatch;

/// What carries events from the outbox to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The relay of the service.
    Service,
    /// A connector that reads the log of the database (change data capture).
    Cdc,
}

/// An event with the metadata of its record.
#[derive(Debug)]
pub struct Envelope {
    /// Topic, key and body.
    pub event: Outgoing,
    /// Its identity, by which the inbox of every subscriber detects duplicates.
    pub event_id: Uuid,
    /// The W3C trace context of what caused it.
    pub traceparent: Option<String>,
    /// What the vendors of tracing systems have added to it.
    pub tracestate: Option<String>,
    /// The event that caused it, if one did.
    pub causation_id: Option<Uuid>,
    /// When it was decided.
    pub occurred_at: DateTime<Utc>,
}

impl Envelope {
    /// The events of a decision, in the trace of its cause.
    pub(crate) fn of_decision(
        effects: Effects,
        context: HandlerContext,
        trace: &Context,
    ) -> Vec<Envelope> {
        if effects.has_no_event() {
            return Vec::new();
        }
        let HandlerContext { causation_id, now: occurred_at, .. } = context;
        let (traceparent, tracestate) = telemetry::trace_headers(trace);
        let envelope = |(event_id, event)| {
            let (traceparent, tracestate) = (Some(traceparent.clone()), tracestate.clone());
            Envelope { event, event_id, traceparent, tracestate, causation_id, occurred_at }
        };
        effects.with_ids(context).map(envelope).collect()
    }
}

/// Writes events into the outbox: one statement, in the order given.
pub fn insert(writes: &mut WriteBatch<'_>, events: &[Envelope]) {
    if events.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into chassis.outbox
             (event_id, topic, key, schema_fingerprint, body, traceparent, tracestate, causation_id,
              occurred_at)
         select unnest($1::uuid[]), unnest($2::text[]), unnest($3::text[]), unnest($4::bytea[]),
                unnest($5::bytea[]), unnest($6::text[]), unnest($7::text[]), unnest($8::uuid[]),
                unnest($9::timestamptz[])",
        )
        .bind(events.iter().map(|e| e.event_id).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.event.topic.name).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.event.key.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| &e.event.topic.codec().fingerprint[..]).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.event.body.as_slice()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.traceparent.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.tracestate.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.causation_id).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.occurred_at).collect::<Vec<_>>());
}

/// Stores the schemas of the topics that a service publishes, before it publishes anything.
pub async fn store_schemas(db: &PgPool, topics: &[&'static Topic]) -> sqlx::Result<()> {
    sqlx::query(
        "insert into chassis.outbox_schemas (fingerprint, schema)
         select * from unnest($1::bytea[], $2::text[])
         on conflict do nothing",
    )
    .bind(topics.iter().map(|t| t.codec().fingerprint.as_slice()).collect::<Vec<_>>())
    .bind(topics.iter().map(|t| t.schema).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}
