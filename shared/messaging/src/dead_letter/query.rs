//! Dead letters as operators see and settle them: lists, single ones, locks, and their states.

use chrono::{DateTime, Utc};
use rdkafka::Timestamp;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::{AssertSqlSafe, FromRow, PgPool, PgTransaction, Postgres};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::dead_letter::{RECORD_RETENTION, ReasonKind, TRUNCATED_BYTES_MAX, storable_text};
use crate::event::avro::unframe;
use crate::event::is_scheduled;
use crate::integer::deserialize_integer;

/// The state of a dead letter. It changes once, from `Waiting` to one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum DeadLetterState {
    /// No operator has settled it yet.
    Waiting,
    /// Its event has had its effect.
    Replayed,
    /// An operator has discarded it.
    Discarded,
}

/// A dead letter in a list: without its bytes.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
pub struct DeadLetterSummary {
    pub dead_letter_id: i64,
    topic: String,
    partition: i32,
    offset: i64,
    #[schema(required)]
    event_id: Option<Uuid>,
    #[schema(required)]
    key: Option<String>,
    kind: String,
    reason: String,
    state: DeadLetterState,
    received_at: DateTime<Utc>,
    #[schema(required)]
    settled_at: Option<DateTime<Utc>>,
    /// Who settled it, if the service knows its callers.
    #[schema(required)]
    actor: Option<String>,
}

// Which dead letters are meant. It is also the body of a request to replay them, and the API describes its fields.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReplayAllRequest)]
pub struct DeadLetterFilter {
    /// Only dead letters of this topic.
    pub topic: Option<String>,
    /// Only dead letters of this kind: `undecodable`, `unprocessable` or `handler_failed`.
    #[schema(value_type = Option<String>)]
    pub kind: Option<ReasonKind>,
    /// Only dead letters whose record has this key.
    pub key: Option<String>,
    /// Only dead letters whose reason contains this text, in upper or lower case.
    pub reason: Option<String>,
    /// Only dead letters that were stored at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Only dead letters that were stored before this time.
    pub until: Option<DateTime<Utc>>,
    /// Only dead letters after this one: `next` of the request before.
    #[serde(default, deserialize_with = "deserialize_integer")]
    pub after: i64,
}

/// What a [`DeadLetterFilter`] means. The parameters are those of [`select`].
const MATCHES: &str = "
    dead_letter_id > $1 and ($2::text is null or state = $2) and ($3::text is null or topic = $3)
    and ($4::text is null or kind = $4) and ($5::text is null or key = convert_to($5, 'UTF8'))
    and ($6::text is null or position(lower($6) in lower(reason)) > 0)
    and ($7::timestamptz is null or received_at >= $7) and ($8::timestamptz is null or received_at < $8)";

/// Selects these columns of the dead letters that match, in any state or in one. A further parameter is `$9`.
fn select<'q, R>(
    columns: &str,
    rest: &str,
    state: Option<DeadLetterState>,
    filter: &'q DeadLetterFilter,
) -> QueryAs<'q, Postgres, R, PgArguments>
where
    R: for<'r> FromRow<'r, PgRow>,
{
    let query = format!("select {columns} from chassis.dead_letters where {MATCHES} {rest}");
    sqlx::query_as(AssertSqlSafe(query))
        .bind(filter.after)
        .bind(state)
        .bind(filter.topic.as_deref())
        .bind(filter.kind.map(ReasonKind::as_str))
        .bind(filter.key.as_deref())
        .bind(filter.reason.as_deref())
        .bind(filter.since)
        .bind(filter.until)
}

pub async fn list(
    db: &PgPool,
    state: Option<DeadLetterState>,
    filter: &DeadLetterFilter,
    limit: i64,
) -> sqlx::Result<Vec<DeadLetterSummary>> {
    let columns = "dead_letter_id, topic, partition, \"offset\", event_id,
        encode(substring(key for 256), 'escape') as key,
        kind, reason, state, received_at, settled_at, actor";
    let page = select(columns, "order by dead_letter_id limit $9", state, filter);
    page.bind(limit).fetch_all(db).await
}

/// A dead letter as the answer about its event shows it.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
pub struct DeadLetterOfEvent {
    dead_letter_id: i64,
    #[serde(skip)]
    pub event_id: Uuid,
    state: DeadLetterState,
    kind: String,
    reason: String,
}

/// The newest dead letters of each of these events, at most `limit` of each.
pub async fn list_by_event(
    db: &PgPool,
    event_ids: &[Uuid],
    limit: i64,
) -> sqlx::Result<Vec<DeadLetterOfEvent>> {
    sqlx::query_as(
        "select letter.dead_letter_id, letter.event_id, letter.state, letter.kind, letter.reason
         from unnest($1::uuid[]) as requested (event_id)
         cross join lateral (
             select dead_letter_id, event_id, state, kind, reason from chassis.dead_letters
             where dead_letters.event_id = requested.event_id
             order by dead_letter_id desc limit $2) as letter",
    )
    .bind(event_ids)
    .bind(limit)
    .fetch_all(db)
    .await
}

pub async fn count_waiting(db: &PgPool, filter: &DeadLetterFilter) -> sqlx::Result<i64> {
    let waiting = Some(DeadLetterState::Waiting);
    let (count,) = select("count(*)", "", waiting, filter).fetch_one(db).await?;
    Ok(count)
}

/// A dead letter with all its columns. Only its state changes, with how, when and by whom it was settled; later its
/// record and its headers are emptied.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
pub struct DeadLetter {
    pub dead_letter_id: i64,
    pub cluster: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    #[schema(required)]
    pub event_id: Option<Uuid>,
    #[serde(serialize_with = "serialize_lossy")]
    #[schema(required, value_type = Option<String>)]
    pub key: Option<Vec<u8>>,
    /// By their names.
    #[schema(value_type = Object)]
    pub headers: Value,
    #[serde(skip)]
    pub record: Option<Vec<u8>>,
    #[serde(skip)]
    pub hash: Vec<u8>,
    /// The record in base64.
    #[serde(rename = "record")]
    #[schema(required)]
    pub base64: Option<String>,
    pub kind: String,
    pub reason: String,
    pub attempts: i32,
    pub state: DeadLetterState,
    #[schema(required)]
    pub discard_reason: Option<String>,
    pub received_at: DateTime<Utc>,
    #[schema(required)]
    pub settled_at: Option<DateTime<Utc>>,
    #[schema(required)]
    pub actor: Option<String>,
}

fn serialize_lossy<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    bytes.as_deref().map(String::from_utf8_lossy).serialize(to)
}

impl DeadLetter {
    /// Why it cannot be decoded, if its record was not kept or only a part of it.
    pub fn truncation_reason(&self) -> Option<String> {
        let record = self.record.as_deref().unwrap_or_default();
        let is_changed = Sha256::digest(record)[..] != self.hash[..];
        // A record that may be an event is kept whole, and so is a timer. An erasure replaces ids in it, and keeps the hash, by which the
        // record in Kafka is recognised.
        let is_scheduled = is_scheduled(&self.topic) && self.record.is_some();
        let is_truncated = is_changed && !is_scheduled && unframe(record).is_err();
        is_truncated.then(|| match self.record {
            None => {
                let days = RECORD_RETENTION.as_secs() / 86_400;
                format!("its bytes and headers were deleted {days} days after it was settled")
            }
            Some(_) => format!("only the first {TRUNCATED_BYTES_MAX} bytes of it were kept"),
        })
    }

    /// The record as it came from Kafka.
    pub fn to_message(&self) -> OwnedMessage {
        let headers = self.headers.as_object().into_iter().flatten();
        let headers = headers.fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_str() })
        });
        OwnedMessage::new(
            self.record.clone(),
            self.key.clone(),
            self.topic.clone(),
            Timestamp::NotAvailable,
            self.partition,
            self.offset,
            Some(headers),
        )
    }
}

pub async fn find(db: &PgPool, dead_letter_id: i64) -> sqlx::Result<Option<DeadLetter>> {
    sqlx::query_as(
        "select *, translate(encode(record, 'base64'), E'\\n', '') as base64
         from chassis.dead_letters where dead_letter_id = $1",
    )
    .bind(dead_letter_id)
    .persistent(false)
    .fetch_optional(db)
    .await
}

/// Locks a dead letter until the transaction ends, and returns its state. Serialises concurrent operators.
pub async fn lock(
    tx: &mut PgTransaction<'_>,
    dead_letter_id: i64,
) -> sqlx::Result<DeadLetterState> {
    let state = "select state from chassis.dead_letters where dead_letter_id = $1 for update";
    sqlx::query_scalar(state).bind(dead_letter_id).fetch_one(&mut **tx).await
}

/// Serialises concurrent discards of dead letters with the same event id.
pub async fn lock_event(tx: &mut PgTransaction<'_>, event_id: Uuid) -> sqlx::Result<()> {
    let lock = "select pg_advisory_xact_lock(hashtextextended($1::text, 0))";
    sqlx::query(lock).bind(event_id).execute(&mut **tx).await.map(drop)
}

/// Whether an operator has discarded any dead letter of this event and topic.
pub async fn was_discarded(
    tx: &mut PgTransaction<'_>,
    event_id: Uuid,
    topic: &str,
) -> sqlx::Result<bool> {
    let discarded = "select exists (select from chassis.dead_letters
                                    where event_id = $1 and topic = $2 and state = 'discarded')";
    sqlx::query_scalar(discarded).bind(event_id).bind(topic).fetch_one(&mut **tx).await
}

pub async fn settle(
    tx: &mut PgTransaction<'_>,
    dead_letter_id: i64,
    state: DeadLetterState,
    discard_reason: Option<&str>,
    actor: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query(
        "update chassis.dead_letters set state = $2, discard_reason = $3, actor = $4, settled_at = now()
         where dead_letter_id = $1 and state = 'waiting'",
    )
    .bind(dead_letter_id)
    .bind(state)
    .bind(discard_reason.map(storable_text))
    .bind(actor)
    .execute(&mut **tx)
    .await
    .map(drop)
}
