//! Dead letters: events that can never be handled, set aside in the service's own database.
//!
//! Promise: nothing that was read from Kafka is dropped. What can't be handled is kept with its
//! bytes, its place and the reason, in the transaction that passes over it. It is broken by counting
//! as dead what only has to wait; so only the consumer's classification leads here.

use axum::extract::State;
use axum::{Json, Router, routing::get, routing::post};
use chrono::{DateTime, Utc};
use rdkafka::message::{Headers, Message, OwnedMessage};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sqlx::{PgPool, PgTransaction};
use uuid::Uuid;

use crate::problem::Problem;

/// Letters listed at a time.
const LISTED_MAX: i64 = 200;

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

/// Sets records aside; one that lies there already is left as it is.
pub async fn set_aside(
    tx: &mut PgTransaction<'_>,
    cluster: &str,
    letters: &[(&OwnedMessage, Option<Uuid>, &Cause)],
) -> sqlx::Result<()> {
    if letters.is_empty() {
        return Ok(());
    }
    let hash = |m: &OwnedMessage| Sha256::digest(m.payload().unwrap_or_default()).to_vec();
    sqlx::query(
        "insert into dead_letters
             (cluster, topic, partition, \"offset\", hash, event_id, key, headers, record, kind, reason)
         select $1, * from unnest($2::text[], $3::int[], $4::bigint[], $5::bytea[], $6::uuid[],
                                  $7::bytea[], $8::jsonb[], $9::bytea[], $10::text[], $11::text[])
         on conflict do nothing",
    )
    .bind(cluster)
    .bind(letters.iter().map(|(m, ..)| m.topic()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| m.partition()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| m.offset()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| hash(m)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, event_id, _)| *event_id).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| m.key()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| headers(m)).collect::<Vec<_>>())
    .bind(letters.iter().map(|(m, ..)| m.payload()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, _, cause)| cause.kind.name()).collect::<Vec<_>>())
    .bind(letters.iter().map(|(_, _, cause)| stored(&cause.reason)).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Postgres text holds no NUL; Avro's errors can be pages long.
fn stored(reason: &str) -> String {
    reason.chars().filter(|c| *c != '\0').take(1_000).collect()
}

fn headers(message: &OwnedMessage) -> Value {
    let mut headers = Map::new();
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        let value = header.value.map(|value| stored(&String::from_utf8_lossy(value)));
        headers.insert(stored(header.key), value.map_or(Value::Null, Value::String));
    }
    Value::Object(headers)
}

/// A dead letter as operators see it.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct Letter {
    letter_id: i64,
    topic: String,
    partition: i32,
    offset: i64,
    event_id: Option<Uuid>,
    kind: String,
    reason: String,
    state: String,
    headers: Value,
    /// Base64: the record may be anything.
    record: Option<String>,
    received_at: DateTime<Utc>,
}

/// What operators do about dead letters, on a port of their own.
pub fn router(db: PgPool) -> Router {
    Router::new()
        .route("/dead-letters", get(list))
        .route("/consumer", get(consumer))
        .route("/consumer/resume", post(resume))
        .with_state(db)
}

/// The letters that nobody has settled yet, oldest first.
async fn list(State(db): State<PgPool>) -> Result<Json<Value>, Problem> {
    let waiting: i64 =
        sqlx::query_scalar("select count(*) from dead_letters where state = 'waiting'")
            .fetch_one(&db)
            .await?;
    let letters: Vec<Letter> = sqlx::query_as(
        "select letter_id, topic, partition, \"offset\", event_id, kind, reason, state, headers,
                encode(record, 'base64') as record, received_at
         from dead_letters where state = 'waiting' order by letter_id limit $1",
    )
    .bind(LISTED_MAX)
    .fetch_all(&db)
    .await?;
    Ok(Json(serde_json::json!({ "waiting": waiting, "dead_letters": letters })))
}

#[derive(Serialize, sqlx::FromRow)]
struct ConsumerState {
    paused_at: Option<DateTime<Utc>>,
    reason: Option<String>,
}

async fn consumer(State(db): State<PgPool>) -> Result<Json<ConsumerState>, Problem> {
    Ok(Json(sqlx::query_as("select paused_at, reason from consumer").fetch_one(&db).await?))
}

async fn resume(State(db): State<PgPool>) -> Result<Json<ConsumerState>, Problem> {
    sqlx::query("update consumer set paused_at = null, reason = null").execute(&db).await?;
    consumer(State(db)).await
}

/// Whether an operator has yet to resume the consumer.
pub async fn paused(db: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar("select paused_at is not null from consumer").fetch_one(db).await
}

/// Pauses the consumer of every instance, until an operator resumes it.
pub async fn pause(db: &PgPool, reason: &str) -> sqlx::Result<()> {
    sqlx::query("update consumer set paused_at = now(), reason = $1")
        .bind(stored(reason))
        .execute(db)
        .await?;
    Ok(())
}
