//! A poll of the outbox: the relay's one statement, the rows that it returns, and the headers and the spans of
//! their records.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures::{Stream, TryStreamExt};
use opentelemetry::trace::{SpanBuilder, SpanKind};
use opentelemetry::{Context, KeyValue};
use rdkafka::message::{Header, OwnedHeaders};
use uuid::Uuid;

use crate::telemetry;

/// How long one poll may take, and the query for the oldest row. While a topic backs off a poll reads the whole
/// outbox, which may be millions of rows; a full scan steps over all dead rows that an old snapshot keeps.
pub(super) const OUTBOX_SCAN_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of the bodies that a poll returns, at most. A thousand rows may have 256 MiB, and a service with less
/// memory than that would never get past them.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

#[derive(Default, sqlx::FromRow)]
pub struct OutboxRow {
    pub position: i64,
    pub event_id: Uuid,
    pub topic: String,
    pub key: String,
    pub schema_fingerprint: Vec<u8>,
    pub body: Vec<u8>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    pub causation_id: Option<Uuid>,
    pub occurred_at: DateTime<Utc>,
}

/// Deletes the acknowledged rows, if `with_delete` is set, and selects the rows that may be sent. It excludes
/// acknowledged rows ($1), rows up to the low watermark ($2), rows of keys that are in flight or back off ($3),
/// and rows that topics block ($5). It returns $4 rows at most.
///
/// It uses `not in` rather than `not exists`: Postgres hashes the list and tests each row in the order of the
/// index, and the poll ends with its last row. A join would read and sort the whole outbox.
pub fn select_statement(with_delete: bool, with_topic_backoff: bool) -> String {
    let mut and_deletes = "";
    if with_delete {
        and_deletes = "with acknowledged as (delete from chassis.outbox where position = any($1))";
    }
    // A row that its topic blocks also blocks its key: a later row of the key must not overtake it. While no
    // topic backs off, which is nearly always, that clause is left out.
    let mut and_not_held = "";
    if with_topic_backoff {
        and_not_held = "and topic <> all($5) and not exists (
                 select from chassis.outbox as earlier
                 where earlier.topic = any($5) and earlier.key = outbox.key
                   and earlier.position <= outbox.position)";
    }
    format!(
        "{and_deletes}
         select position, event_id, topic, key, schema_fingerprint, body, traceparent, tracestate,
                causation_id, occurred_at
         from chassis.outbox
         where position > $2
           and position not in (select unnest($1::bigint[]))
           and key not in (select unnest($3::text[]))
           {and_not_held}
         order by position limit $4"
    )
}

/// Reads rows up to [`BATCH_BYTES_MAX`]; returns them, and how many rows after them were skipped.
pub(crate) async fn read_rows(
    mut stream: impl Stream<Item = sqlx::Result<OutboxRow>> + Unpin,
) -> sqlx::Result<(Vec<OutboxRow>, usize)> {
    let (mut rows, mut skipped, mut bytes) = (Vec::new(), 0, 0);
    while let Some(row) = stream.try_next().await? {
        bytes += row.body.len();
        if bytes <= BATCH_BYTES_MAX {
            rows.push(row);
        } else {
            skipped += 1;
        }
    }
    Ok((rows, skipped))
}

/// The envelope as record headers: CloudEvents' Kafka binding in binary mode, the W3C trace context,
/// and the id of the cause.
pub fn record_headers(source: &str, row: &OutboxRow, dataschema: &str) -> OwnedHeaders {
    let id = row.event_id.to_string();
    let time = row.occurred_at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let causation_id = row.causation_id.map(|id| id.to_string());
    let headers = [
        ("ce_specversion", Some("1.0")),
        ("ce_id", Some(id.as_str())),
        ("ce_type", Some(row.topic.as_str())),
        ("ce_source", Some(source)),
        ("ce_time", Some(time.as_str())),
        ("content-type", Some("application/avro")),
        ("ce_dataschema", Some(dataschema)),
        ("traceparent", row.traceparent.as_deref()),
        ("tracestate", row.tracestate.as_deref()),
        ("ce_causationid", causation_id.as_deref()),
    ];
    let present = headers.into_iter().filter(|(_, value)| value.is_some());
    present.fold(OwnedHeaders::new_with_capacity(9), |headers, (key, value)| {
        headers.insert(Header { key, value })
    })
}

/// The span of sending a record, from the decision of its event, so that it shows the wait in the outbox. `None` if
/// spans go nowhere.
pub(crate) fn send_span(row: &OutboxRow) -> Option<Context> {
    if !telemetry::exports_spans() {
        return None;
    }
    let parent = telemetry::parse_trace(row.traceparent.as_deref(), row.tracestate.as_deref());
    Some(telemetry::start_span(&parent, || {
        SpanBuilder::from_name(format!("send {}", row.topic))
            .with_kind(SpanKind::Producer)
            .with_start_time(row.occurred_at)
            .with_attributes([
                KeyValue::new("messaging.system", "kafka"),
                KeyValue::new("messaging.operation.name", "send"),
                KeyValue::new("messaging.operation.type", "send"),
                KeyValue::new("messaging.destination.name", row.topic.clone()),
                KeyValue::new("messaging.kafka.message.key", row.key.clone()),
                KeyValue::new("messaging.message.id", row.event_id.to_string()),
            ])
    }))
}
