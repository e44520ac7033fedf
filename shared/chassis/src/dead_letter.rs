//! Dead letters: events that can never be handled, set aside in the service's own database.
//!
//! Promise: nothing that was read from Kafka is dropped. What can't be handled is kept with its
//! bytes, its place and the reason, in the transaction that passes over it; and what an operator did
//! about it is kept as well. It is broken by counting as dead what only has to wait; so only the
//! consumer's classification leads here.

use chrono::{DateTime, Utc};
use rdkafka::Timestamp;
use rdkafka::message::{Header, Message, OwnedHeaders, OwnedMessage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool, PgTransaction};
use uuid::Uuid;

use crate::avro::unframe;
use crate::route;

/// Why an event is dead.
#[derive(Clone, Debug)]
pub struct Cause {
    /// What kind of failure it was.
    pub kind: Kind,
    /// In one sentence.
    pub reason: String,
}

/// What kind of failure made a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bytes are no record of the topic's schema.
    Undecodable,
    /// A handler said that the event can't be.
    Impossible,
    /// The handler panicked, or the database refuses what it decided.
    Failing,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Undecodable => "undecodable",
            Kind::Impossible => "impossible",
            Kind::Failing => "failing",
        }
    }
}

impl Cause {
    /// What the database refuses now it always will, as long as neither code nor tables change.
    pub(crate) fn refused(error: &sqlx::Error) -> Cause {
        let said = error.as_database_error().map(|error| error.message().to_string());
        let said = said.unwrap_or_else(|| error.to_string());
        Cause { kind: Kind::Failing, reason: format!("the database refuses it: {said}") }
    }
}

/// What is kept of a record that can't be an event whatever the registry has, and of any record's key. Its
/// place and its hash tell which one it was.
const CUT_BYTES: usize = 4 * 1024;

/// What is kept of a record's headers: so many, and those that say what its event is.
const HEADERS_MAX: usize = 100;

/// Letters that may wait, and bytes of them, before the consumer pauses.
pub(crate) const WAITING_MAX: i64 = 20_000;
pub(crate) const WAITING_BYTES_MAX: i64 = 256 * 1024 * 1024;

/// Topic, partition and offset of a record.
pub(crate) type Place = (String, i32, i64);

/// Sets records aside, after so many `attempts`; one that lies there already is left as it is, so
/// that what was settled stays settled when its topic is read again. Answers those that are new.
///
/// They are sorted, so that two batches with the same records wait for each other in one direction only.
pub(crate) async fn set_aside(
    tx: &mut PgConnection,
    cluster: &str,
    letters: &[(&OwnedMessage, Option<Uuid>, &Cause)],
    attempts: i32,
) -> sqlx::Result<Vec<Place>> {
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let mut letters = letters.to_vec();
    letters.sort_unstable_by_key(|(m, ..)| (m.topic(), m.partition(), m.offset()));
    let hash = |m: &OwnedMessage| Sha256::digest(m.payload().unwrap_or_default()).to_vec();
    sqlx::query_as(
        "insert into dead_letters
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
    .bind(letters.iter().map(|(m, ..)| m.key().map(cut)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| headers(m)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| m.payload().map(kept)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, _, cause)| cause.kind.name()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, _, cause)| stored(&cause.reason)).collect::<Vec<_>>())
    .fetch_all(tx)
    .await
}

/// What is kept of a record: all of it, if a registry could ever make an event of it.
fn kept(record: &[u8]) -> &[u8] {
    if unframe(record).is_ok() { record } else { cut(record) }
}

fn cut(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(CUT_BYTES)]
}

/// Why the consumer has to pause, if more letters wait, or more bytes of them, than the database is to hold.
pub(crate) async fn too_many(db: &PgPool) -> sqlx::Result<Option<String>> {
    let waiting = "select count(*), coalesce(sum(coalesce(octet_length(record), 0)
                              + pg_column_size(headers) + coalesce(octet_length(key), 0)), 0)::bigint
                   from dead_letters where state = 'waiting'";
    let (letters, bytes): (i64, i64) = sqlx::query_as(waiting).fetch_one(db).await?;
    let too_many = letters >= WAITING_MAX || bytes >= WAITING_BYTES_MAX;
    Ok(too_many.then(|| {
        let (most, mebibytes) = (WAITING_MAX, WAITING_BYTES_MAX >> 20);
        format!("{letters} dead letters of {bytes} bytes wait; {most} and {mebibytes} MiB may")
    }))
}

/// Postgres text holds no NUL; Avro's errors can be pages long.
pub(crate) fn stored(reason: &str) -> String {
    reason.chars().filter(|c| *c != '\0').take(1_000).collect()
}

/// Of a header that comes twice, the first counts; where one's name is no text, none is kept.
fn headers(message: &OwnedMessage) -> Value {
    let mut headers = Map::new();
    for header in route::headers(message).unwrap_or_default() {
        let is_ours = header.key.starts_with("ce_") || header.key == "traceparent";
        if headers.len() >= if is_ours { 2 * HEADERS_MAX } else { HEADERS_MAX } {
            continue;
        }
        let value = header.value.map(|value| stored(&String::from_utf8_lossy(value)));
        let value = value.map_or(Value::Null, Value::String);
        headers.entry(stored(header.key)).or_insert(value);
    }
    Value::Object(headers)
}

/// What became of a letter. `Waiting` is left once, for one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// Nobody has settled it yet.
    Waiting,
    /// Its event has had its effect.
    Replayed,
    /// It was given up.
    Discarded,
}

/// A dead letter in a list: without its bytes.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub(crate) struct Short {
    pub letter_id: i64,
    topic: String,
    partition: i32,
    offset: i64,
    event_id: Option<Uuid>,
    key: Option<String>,
    kind: String,
    reason: String,
    state: State,
    received_at: DateTime<Utc>,
    settled_at: Option<DateTime<Utc>>,
}

/// Which letters are wanted; `None` is all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub state: Option<State>,
    pub topic: Option<String>,
    /// Only those after this one.
    pub after: i64,
}

/// A page of letters, oldest first.
pub(crate) async fn page(db: &PgPool, wanted: &Wanted, limit: i64) -> sqlx::Result<Vec<Short>> {
    sqlx::query_as(
        "select letter_id, topic, partition, \"offset\", event_id,
                encode(substring(key for 256), 'escape') as key,
                kind, reason, state, received_at, settled_at
         from dead_letters
         where letter_id > $1 and ($2::text is null or state = $2) and ($3::text is null or topic = $3)
         order by letter_id limit $4",
    )
    .bind(wanted.after)
    .bind(wanted.state)
    .bind(wanted.topic.as_deref())
    .bind(limit)
    .fetch_all(db)
    .await
}

/// How many there are.
pub(crate) async fn count(db: &PgPool, wanted: &Wanted) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from dead_letters
         where letter_id > $1 and ($2::text is null or state = $2) and ($3::text is null or topic = $3)",
    )
    .bind(wanted.after)
    .bind(wanted.state)
    .bind(wanted.topic.as_deref())
    .fetch_one(db)
    .await
}

/// A dead letter, whole. All but its end never changes.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Letter {
    pub letter_id: i64,
    pub cluster: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub event_id: Option<Uuid>,
    pub key: Option<Vec<u8>>,
    pub headers: Value,
    pub record: Option<Vec<u8>>,
    pub hash: Vec<u8>,
    /// The record in base64.
    pub base64: Option<String>,
    pub kind: String,
    pub reason: String,
    pub attempts: i32,
    pub state: State,
    pub because: Option<String>,
    pub received_at: DateTime<Utc>,
    pub settled_at: Option<DateTime<Utc>>,
}

impl Letter {
    /// Why it can't be read, if its record was not kept whole.
    pub fn is_cut(&self) -> Option<String> {
        let record = self.record.as_deref().unwrap_or_default();
        let is_cut = Sha256::digest(record)[..] != self.hash[..];
        is_cut.then(|| format!("only the first {CUT_BYTES} bytes of it were kept"))
    }

    /// The record as it came from Kafka.
    pub fn message(&self) -> OwnedMessage {
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

/// A letter, if there is one.
pub(crate) async fn find(db: &PgPool, letter_id: i64) -> sqlx::Result<Option<Letter>> {
    sqlx::query_as(
        "select *, translate(encode(record, 'base64'), E'\\n', '') as base64
         from dead_letters where letter_id = $1",
    )
    .bind(letter_id)
    .persistent(false)
    .fetch_optional(db)
    .await
}

/// Where a letter stands. It stays there until the transaction ends: of two operators, one waits.
pub(crate) async fn lock(tx: &mut PgTransaction<'_>, letter_id: i64) -> sqlx::Result<State> {
    sqlx::query_scalar("select state from dead_letters where letter_id = $1 for update")
        .bind(letter_id)
        .fetch_one(&mut **tx)
        .await
}

/// Of operators who give up different letters of one event, one waits for the other to end.
pub(crate) async fn lock_event(tx: &mut PgTransaction<'_>, event_id: Uuid) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1::text, 0))")
        .bind(event_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Whether an operator gave up this event of a topic, in whichever letter.
pub(crate) async fn was_discarded(
    tx: &mut PgTransaction<'_>,
    event_id: Uuid,
    topic: &str,
) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select from dead_letters
                        where event_id = $1 and topic = $2 and state = 'discarded')",
    )
    .bind(event_id)
    .bind(topic)
    .fetch_one(&mut **tx)
    .await
}

/// Ends a letter.
pub(crate) async fn settle(
    tx: &mut PgTransaction<'_>,
    letter_id: i64,
    state: State,
    because: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query(
        "update dead_letters set state = $2, because = $3, settled_at = now()
         where letter_id = $1 and state = 'waiting'",
    )
    .bind(letter_id)
    .bind(state)
    .bind(because.map(stored))
    .execute(&mut **tx)
    .await?;
    Ok(())
}
