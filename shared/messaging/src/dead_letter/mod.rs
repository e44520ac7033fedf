//! Dead letters: records that can never be handled, stored in the service's own database.
//!
//! Promise: no record that was read from Kafka is dropped. A record that cannot be handled is stored with its
//! bytes, its position and the reason, in the transaction that skips it; and the decision of an operator about it is
//! stored as well. A caller that stores a record which only has to wait breaks that promise; so only the
//! consumer's classification of errors leads here. The bytes of a settled dead letter are deleted after a while
//! (`prune`).

pub mod discard_impact;
pub mod query;

use std::time::Duration;

use rdkafka::message::{Message, OwnedMessage};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::retention;
pub use crate::dead_letter::query::{
    DeadLetter, DeadLetterOfEvent, DeadLetterState, count_waiting, find, list, list_by_event, lock,
    lock_event, settle, was_discarded,
};
use crate::event::avro::unframe;
use crate::event::is_scheduled;
use crate::kafka::record;

/// Why a record became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterReason {
    /// What kind of failure it was.
    pub kind: ReasonKind,
    /// In one sentence.
    pub detail: String,
}

/// What kind of failure made a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonKind {
    /// The bytes are no record of the topic's schema.
    Undecodable,
    /// A handler returned that the event is unprocessable.
    Unprocessable,
    /// The handler panicked, or the database refuses what it decided.
    HandlerFailed,
}

impl ReasonKind {
    fn as_str(self) -> &'static str {
        match self {
            ReasonKind::Undecodable => "undecodable",
            ReasonKind::Unprocessable => "unprocessable",
            ReasonKind::HandlerFailed => "handler_failed",
        }
    }
}

impl DeadLetterReason {
    pub fn undecodable(detail: impl Into<String>) -> DeadLetterReason {
        DeadLetterReason { kind: ReasonKind::Undecodable, detail: detail.into() }
    }

    pub(crate) fn unprocessable(detail: impl Into<String>) -> DeadLetterReason {
        DeadLetterReason { kind: ReasonKind::Unprocessable, detail: detail.into() }
    }

    pub(crate) fn handler_failed(detail: impl Into<String>) -> DeadLetterReason {
        DeadLetterReason { kind: ReasonKind::HandlerFailed, detail: detail.into() }
    }

    /// The reason of a record whose effect the database refuses, and will refuse until code or tables change.
    pub fn rejected_by_database(error: &sqlx::Error) -> DeadLetterReason {
        let message = error.as_database_error().map(|error| error.message().to_string());
        let message = message.unwrap_or_else(|| error.to_string());
        DeadLetterReason::handler_failed(format!("the database refuses it: {message}"))
    }
}

/// Bytes that are kept of a record that is no event under any schema, and of the key of any record. The position
/// and the hash still identify the record.
const TRUNCATED_BYTES_MAX: usize = 4 * 1024;

/// Headers that are kept of a record, at most, besides those that describe its event.
const HEADERS_MAX: usize = 100;

/// Waiting dead letters, and their bytes, at which the consumer pauses.
pub(crate) const WAITING_MAX: i64 = 20_000;
pub(crate) const WAITING_BYTES_MAX: i64 = 256 * 1024 * 1024;

/// How long the bytes and the headers of a dead letter are kept after it was settled, at least: they may be about a
/// person. What identifies the record and why it failed is kept for ever.
pub const RECORD_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Empties at most `$2` dead letters that were settled before the tick `$1`.
pub const PRUNE_STATEMENT: &str = "
    update chassis.dead_letters set record = null, headers = '{}' where dead_letter_id in (
        select dead_letter_id from chassis.dead_letters
        where state <> 'waiting' and (record is not null or headers <> '{}')
          and settled_at < (select recorded_at from chassis.clock_ticks where tick = $1)
        order by settled_at limit $2)";

/// Empties dead letters that were settled longer ago than [`RECORD_RETENTION`], for as long as the process runs.
pub(crate) async fn prune(db: PgPool) {
    retention::prune_forever(db, PRUNE_STATEMENT, RECORD_RETENTION).await;
}

pub(crate) type RecordPosition = (String, i32, i64);

/// Stores records as dead letters, after so many `attempts`. An existing dead letter is not changed, so that a
/// settled one stays settled when its topic is read again. Returns the positions of the new ones.
///
/// The records are sorted, so that two batches with the same records wait for each other in one direction only.
pub(crate) async fn store(
    tx: &mut PgConnection,
    cluster: &str,
    letters: &[(&OwnedMessage, Option<Uuid>, &DeadLetterReason)],
    attempts: i32,
) -> sqlx::Result<Vec<RecordPosition>> {
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let mut letters = letters.to_vec();
    letters.sort_unstable_by_key(|(m, ..)| (m.topic(), m.partition(), m.offset()));
    let hash = |m: &OwnedMessage| Sha256::digest(m.payload().unwrap_or_default()).to_vec();
    sqlx::query_as(
        "insert into chassis.dead_letters
             (cluster, attempts,
              topic, partition, \"offset\", hash, event_id, key, headers, record, kind, reason)
         select $1, $2, * from unnest($3::text[], $4::int[], $5::bigint[], $6::bytea[], $7::uuid[],
                                      $8::bytea[], $9::jsonb[], $10::bytea[], $11::text[], $12::text[])
         on conflict (cluster, topic, partition, \"offset\", hash) do nothing
         returning topic, partition, \"offset\"",
    )
    .bind(cluster)
    .bind(attempts)
    .bind(letters.iter().map(|(m, ..)| m.topic()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| m.partition()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| m.offset()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| hash(m)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, event_id, _)| *event_id).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| m.key().map(truncate)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| headers_json(m)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| retained_bytes(m)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, _, cause)| cause.kind.as_str()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, _, cause)| storable_text(&cause.detail)).collect::<Vec<_>>())
    .fetch_all(tx)
    .await
}

/// The bytes that are kept of a record: all of them, if it may be an event under some schema or is a timer.
fn retained_bytes(message: &OwnedMessage) -> Option<&[u8]> {
    let record = message.payload()?;
    let is_whole = is_scheduled(message.topic()) || unframe(record).is_ok();
    Some(if is_whole { record } else { truncate(record) })
}

fn truncate(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(TRUNCATED_BYTES_MAX)]
}

/// Why the consumer must pause, if [`WAITING_MAX`] or [`WAITING_BYTES_MAX`] is reached.
pub(crate) async fn full_reason(db: &PgPool) -> sqlx::Result<Option<String>> {
    let waiting = "select count(*), coalesce(sum(coalesce(octet_length(record), 0)
                              + pg_column_size(headers) + coalesce(octet_length(key), 0)), 0)::bigint
                   from chassis.dead_letters where state = 'waiting'";
    let (letters, bytes): (i64, i64) = sqlx::query_as(waiting).fetch_one(db).await?;
    let is_full = letters >= WAITING_MAX || bytes >= WAITING_BYTES_MAX;
    Ok(is_full.then(|| {
        let (most, mebibytes) = (WAITING_MAX, WAITING_BYTES_MAX >> 20);
        format!("{letters} dead letters with {bytes} bytes wait; the limits are {most} and {mebibytes} MiB")
    }))
}

/// Postgres text holds no NUL; Avro's errors can be pages long.
pub(crate) fn storable_text(reason: &str) -> String {
    reason.chars().filter(|c| *c != '\0').take(1_000).collect()
}

/// The headers of a record as JSON. If a header occurs twice, the first one counts; if the name of one is not
/// UTF-8, none is kept.
fn headers_json(message: &OwnedMessage) -> Value {
    let mut headers = Map::new();
    for header in record::raw_headers(message).unwrap_or_default() {
        let is_ours = header.key.starts_with("ce_") || header.key == "traceparent";
        if headers.len() >= if is_ours { 2 * HEADERS_MAX } else { HEADERS_MAX } {
            continue;
        }
        let value = header.value.map(|value| storable_text(&String::from_utf8_lossy(value)));
        let value = value.map_or(Value::Null, Value::String);
        headers.entry(storable_text(header.key)).or_insert(value);
    }
    Value::Object(headers)
}
