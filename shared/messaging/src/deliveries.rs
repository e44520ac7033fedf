//! Deliveries of webhooks: each is a row of the schedule that is due at once.

use opentelemetry::Context;
use serde_json::Value;
use sqlx::PgPool;

use crate::crash_point;
use crate::db::clock::newest_tick;
use crate::db::operator_acts::OperatorActError;
use crate::event::timer::TimerKey;
use crate::event::webhook::delivery_event_id;
use crate::telemetry;

/// A delivery of a webhook that was verified.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// The name of the webhook.
    pub name: &'static str,
    /// Its id, which its sender chose.
    pub id: &'a str,
    /// Its body as it came, a text without NUL.
    pub body: &'a str,
    /// The timer that waits for it.
    pub awaited_by: Option<TimerKey>,
    /// Its trace, if no timer waits for it.
    pub trace: &'a Context,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is stored, now or before. One that was handled before is stored again, and its handler is not called.
    Stored,
    /// So many deliveries of this name are pending that it is not stored.
    TooMany,
}

/// Deliveries of one name that are pending, at most.
pub const DELIVERIES_MAX: i64 = 10_000;

/// Stores a delivery, and commits it.
///
/// # Errors
/// Those of the database. After an error of the commit it may be stored.
pub async fn receive(db: &PgPool, delivery: Delivery<'_>) -> Result<Received, OperatorActError> {
    let Delivery { name, id, body, awaited_by, trace } = delivery;
    let (traceparent, tracestate) = telemetry::trace_headers(trace);
    let (source, key) = awaited_by.map(|TimerKey { source, key }| (source, key)).unzip();
    let insert = concat!(
        "with pending as (
             select count(*) >= $9 as is_full from (select from chassis.scheduled where source = $1 limit $9) as of_name
         ), stored as (
             insert into chassis.scheduled
                 (source, key, event_id, body, due_at, causation_id, traceparent, tracestate, tick)
             select $1, $2, $3, $4, clock_timestamp(), awaited.causation_id,
                    coalesce(awaited.traceparent, $5),
                    case when awaited.traceparent is null then $6 else awaited.tracestate end, ",
        newest_tick!(),
        "    from pending left join chassis.scheduled as awaited on awaited.source = $7 and awaited.key = $8
             where not is_full
             on conflict (source, key) do nothing)
         select is_full and not exists (select from chassis.scheduled where source = $1 and key = $2) from pending"
    );
    let mut tx = db.begin().await?;
    let is_refused: bool = sqlx::query_scalar(insert)
        .bind(name)
        .bind(id)
        .bind(delivery_event_id(name, id))
        .bind(Value::from(body))
        .bind(traceparent)
        .bind(tracestate)
        .bind(source)
        .bind(key)
        .bind(DELIVERIES_MAX)
        .fetch_one(&mut *tx)
        .await?;
    crash_point!("deliveries.prepared", !is_refused);
    tx.commit().await.map_err(OperatorActError::OutcomeUnknown)?;
    crash_point!("deliveries.committed", !is_refused);
    Ok(if is_refused { Received::TooMany } else { Received::Stored })
}
