//! The relay carries the outbox to Kafka.
//!
//! Promises: every row of the outbox reaches its topic at least once, and the records of one key are
//! first acknowledged in the order in which they were made. They rest on four rules. One relay a
//! database is active: it holds an advisory lock on the very session that it reads with. At most one
//! record of a key is unacknowledged. It takes what is there, never what comes after the last row
//! it saw: rows become visible in order of commit, not of position. It deletes exactly the rows that
//! the broker acknowledged.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use metrics::{counter, gauge, histogram};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::avro::frame;
use crate::config::Kafka;
use crate::db;
use crate::event::Topic;
use crate::floor::Floor;
use crate::outbox;
use crate::pace::Pace;
use crate::probes::Heartbeat;
use crate::producer::{Flight, Landed, Producer};
use crate::registry::Registry;
use crate::wake::Wake;

/// The advisory lock of the active relay. A lock belongs to a database, and a service has its own,
/// so one number does for all.
const LOCK: i64 = 0x0072_656c_6179;

/// A relay whose session is silent for this long is taken to be frozen or cut off: Postgres ends
/// the session, and with it the lock. The relay itself polls more often than this by far.
const SESSION_IDLE_MAX: &str = "10s";

/// How long one look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(8);

/// Rows taken at a time, and records in flight at most, in all and of one topic: a topic that
/// stalls may not use up what the others need.
const TAKEN_MAX: usize = 1_000;
const IN_FLIGHT_MAX: usize = 4_000;
const IN_FLIGHT_OF_TOPIC_MAX: usize = 1_000;

/// How far apart looks begin, in times that the last one took; see [`crate::pace`].
const APART: f64 = 2.0;

/// How often to look for rows of other replicas, which can't wake us: while there is work, and idle.
const POLL_BUSY: Duration = Duration::from_millis(20);
const POLL_IDLE: Duration = Duration::from_millis(500);
const BUSY_FOR: Duration = Duration::from_secs(2);

/// How long a topic is left alone after the broker or the registry refused it; a key, whose record
/// was refused itself, at first and at most. Each refusal costs all others a pause: an idempotent
/// producer starts a new epoch after it.
const HELD_FOR: Duration = Duration::from_secs(2);
const KEY_HELD_FOR_MAX: Duration = Duration::from_secs(60);

/// While something is held up, looks are longer, and no more frequent than this.
const HELD_LOOK_EVERY: Duration = Duration::from_millis(250);

/// A topic with as many records in flight as it may have is stalled if none came back for so long.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// How long records in flight may take when the process ends.
const LAST_ACKS_WITHIN: Duration = Duration::from_secs(5);

/// One of the three loops of a service.
pub struct Relay {
    service: &'static str,
    config: Kafka,
    db: PgPool,
    published: Vec<&'static Topic>,
    registry: Arc<Registry>,
    wake: Arc<Wake>,
    heartbeat: Heartbeat,
}

/// A row of the outbox.
#[derive(sqlx::FromRow)]
struct Row {
    position: i64,
    event_id: Uuid,
    topic: String,
    key: String,
    schema_fingerprint: Vec<u8>,
    body: Vec<u8>,
    traceparent: Option<String>,
    cause: Option<Uuid>,
    occurred_at: DateTime<Utc>,
}

impl Relay {
    /// A relay of the outbox in `db`, woken by `wake` after each commit here. `published` are the
    /// topics whose schemas it stores beside the outbox.
    pub fn new(
        service: &'static str,
        config: &Kafka,
        db: PgPool,
        published: Vec<&'static Topic>,
        registry: Arc<Registry>,
        wake: Arc<Wake>,
        heartbeat: Heartbeat,
    ) -> Relay {
        Relay { service, config: config.clone(), db, published, registry, wake, heartbeat }
    }

    /// Runs until stopped. Whatever fails is tried again, for ever.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            if let Err(error) = self.lead(&stop).await {
                warn!("the relay starts again: {error:#}");
                self.pause(&stop).await;
            }
        }
        Ok(())
    }

    /// Waits to become the active relay, then relays until stopped or until something breaks.
    async fn lead(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        // By every instance, active or not, before its first event: an older relay can then publish
        // what a newer replica writes.
        let stored = outbox::store_schemas(&self.db, &self.published);
        in_time(stored).await.context("no schemas stored")?;
        let session = self.db.connect_options();
        let session = session.as_ref().clone().options([
            ("idle_session_timeout", SESSION_IDLE_MAX),
            // What is in flight is looked up by its hash. To compare each row with each of them,
            // which is what the planner takes for cheaper, takes as long as both are many.
            ("enable_nestloop", "off"),
            ("enable_mergejoin", "off"),
            // In order of the index, which notes what is dead as it goes: a bitmap would fetch every
            // row that was deleted since the last vacuum, again at each look.
            ("enable_bitmapscan", "off"),
            ("enable_seqscan", "off"),
        ]);
        let mut db = in_time(session.connect()).await.context("no session with the database")?;
        let locked = "select pg_try_advisory_lock($1)";
        while !in_time(sqlx::query_scalar(locked).bind(LOCK).fetch_one(&mut db)).await? {
            gauge!("relay_active").set(0);
            self.pause(stop).await;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        gauge!("relay_active").set(1);
        info!("relaying");
        let producer = Producer::new(self.service, &self.config)?;
        let mut round = Round::new(self.service, producer, &self.registry);
        let ended = self.relay(&mut db, &mut round, stop).await;
        // What is still in flight belongs to whoever relays next. Nothing may be sent from here
        // once the lock is gone, so the producer goes before the session is given up.
        drop(round);
        self.wake.relaying.taken(false);
        gauge!("relay_active").set(0);
        let _ = db.close().await;
        ended
    }

    async fn relay(
        &self,
        db: &mut PgConnection,
        round: &mut Round<'_>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut worked_at = Instant::now();
        let mut pace = Pace::of(APART);
        let mut sent = 0;
        while !stop.is_cancelled() {
            self.heartbeat.beat();
            round.still_of_use()?;
            let lap = match sent == TAKEN_MAX {
                true => pace.at_once(),
                false => pace.next().await,
            };
            let full = round.positions.len() >= IN_FLIGHT_MAX;
            sent = round.turn(db, if full { 0 } else { TAKEN_MAX }).await?;
            drop(lap);
            self.wake.relaying.taken(sent == TAKEN_MAX);
            if sent > 0 {
                worked_at = Instant::now();
            }
            if sent == TAKEN_MAX {
                continue;
            }
            let poll = match worked_at.elapsed() < BUSY_FOR {
                _ if round.held_up() => HELD_LOOK_EVERY,
                true => POLL_BUSY,
                false => POLL_IDLE,
            };
            tokio::select! {
                Some(landed) = round.producer.landed() => round.landed(landed)?,
                () = self.wake.relay.notified(), if !round.held_up() => {}
                () = tokio::time::sleep(poll) => {}
                () = stop.cancelled() => {}
            }
        }
        let last = tokio::time::Instant::now() + LAST_ACKS_WITHIN;
        while !round.positions.is_empty() {
            match tokio::time::timeout_at(last, round.producer.landed()).await {
                Ok(Some(landed)) => round.landed(landed)?,
                Ok(None) | Err(_) => break,
            }
        }
        round.turn(db, 0).await.map(drop)
    }

    async fn pause(&self, stop: &CancellationToken) {
        self.heartbeat.beat();
        let a_second = Duration::from_millis(rand::random_range(500..1_500));
        tokio::select! {
            () = tokio::time::sleep(a_second) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// A session that hangs is as good as lost; by then Postgres has ended it, or will.
async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    db::in_time(LOOK_WITHIN, answer).await
}

/// What the active relay knows between two looks at the outbox.
pub(crate) struct Round<'a> {
    service: &'static str,
    producer: Producer,
    registry: &'a Registry,
    /// Rows with a record in flight, their keys, and how many there are of each topic, with the last
    /// time that one of them came back.
    positions: HashSet<i64>,
    keys: HashSet<String>,
    topics: HashMap<String, (usize, Instant)>,
    /// Topics that were refused, until when; keys likewise, with how long it was this time.
    held_topics: HashMap<String, Instant>,
    held_keys: HashMap<String, (Instant, Duration)>,
    /// Acknowledged, not yet deleted.
    acknowledged: Vec<i64>,
    /// Texts of schemas whose ids the registry has not told yet.
    schemas: HashMap<Vec<u8>, String>,
    /// The registry gave no answer lately: it is not asked again before this.
    registry_away: Option<Instant>,
    pub(crate) floor: Floor,
}

impl<'a> Round<'a> {
    pub(crate) fn new(
        service: &'static str,
        producer: Producer,
        registry: &'a Registry,
    ) -> Round<'a> {
        Round {
            service,
            producer,
            registry,
            positions: HashSet::new(),
            keys: HashSet::new(),
            topics: HashMap::new(),
            held_topics: HashMap::new(),
            held_keys: HashMap::new(),
            acknowledged: Vec::new(),
            schemas: HashMap::new(),
            registry_away: None,
            floor: Floor::new(),
        }
    }

    /// Deletes what was acknowledged, takes up to `limit` rows that nothing holds up, sends them.
    /// Answers how many were sent.
    pub(crate) async fn turn(
        &mut self,
        db: &mut PgConnection,
        limit: usize,
    ) -> anyhow::Result<usize> {
        while let Some(landed) = self.producer.landed_already() {
            self.landed(landed)?;
        }
        let rows = self.take(db, limit).await?;
        let (mut sent, mut waiting) = (0, HashSet::new());
        for row in rows {
            // An earlier row of this very look may hold it up.
            let held = self.held_topics.contains_key(&row.topic) || waiting.contains(&row.key);
            let key = row.key.clone();
            if held || self.keys.contains(&key) || !self.send(db, row).await? {
                waiting.insert(key);
            } else {
                sent += 1;
            }
        }
        Ok(sent)
    }

    fn stalled_topics(&self) -> impl Iterator<Item = &String> {
        let stalled = |(in_flight, came_back): &(usize, Instant)| {
            *in_flight >= IN_FLIGHT_OF_TOPIC_MAX && came_back.elapsed() > STALLED_AFTER
        };
        self.topics.iter().filter(move |(_, state)| stalled(state)).map(|(topic, _)| topic)
    }

    fn held_up(&self) -> bool {
        !self.held_topics.is_empty() || self.stalled_topics().next().is_some()
    }

    /// One statement: the delete of what was acknowledged, and the look at what is there.
    async fn take(&mut self, db: &mut PgConnection, limit: usize) -> anyhow::Result<Vec<Row>> {
        let now = Instant::now();
        self.held_topics.retain(|_, until| *until > now);
        let nothing_held = !self.held_up() && self.held_keys.is_empty();
        let floor = self.floor.now(&self.positions, nothing_held);
        let topics: Vec<&String> = self.held_topics.keys().chain(self.stalled_topics()).collect();
        let held = self.held_keys.iter().filter(|(_, (until, _))| *until > now);
        let keys: Vec<&String> = self.keys.iter().chain(held.map(|(key, _)| key)).collect();
        if limit == 0 && self.acknowledged.is_empty() {
            return Ok(Vec::new());
        }
        // A row that its topic holds up holds up its key too: a later row of the key must not
        // overtake it. Without held topics, which is nearly always, that clause is left out.
        let query = if topics.is_empty() {
            sqlx::query_as(
                "with acknowledged as (delete from outbox where position = any($1))
                 select * from outbox
                 where position > $2
                   and not exists (select from unnest($1::bigint[]) as gone (position)
                                   where gone.position = outbox.position)
                   and not exists (select from unnest($3::text[]) as busy (key)
                                   where busy.key = outbox.key)
                 order by position limit $4",
            )
            .bind(&self.acknowledged)
        } else {
            sqlx::query_as(
                "with acknowledged as (delete from outbox where position = any($1))
                 select * from outbox
                 where position > $2
                   and not exists (select from unnest($1::bigint[]) as gone (position)
                                   where gone.position = outbox.position)
                   and not exists (select from unnest($3::text[]) as busy (key)
                                   where busy.key = outbox.key)
                   and topic <> all($5) and not exists (
                       select from outbox as earlier
                       where earlier.topic = any($5) and earlier.key = outbox.key
                         and earlier.position <= outbox.position)
                 order by position limit $4",
            )
            .bind(&self.acknowledged)
        };
        let query = query.bind(floor).bind(keys).bind(limit as i64);
        let query = if topics.is_empty() { query } else { query.bind(topics) };
        let rows = in_time(query.fetch_all(db)).await.context("the outbox could not be read")?;
        self.floor.deleted(&self.acknowledged);
        self.acknowledged.clear();
        Ok(rows)
    }

    /// Hands a record to the producer; false if its topic has to wait.
    async fn send(&mut self, db: &mut PgConnection, row: Row) -> anyhow::Result<bool> {
        let Some(schema_id) = self.schema_id(db, &row).await? else { return Ok(false) };
        let (record, headers) = (frame(schema_id, &row.body), headers(self.service, &row));
        let Row { position, topic, key, occurred_at, .. } = row;
        let flight = Flight { position, topic: topic.clone(), key: key.clone(), occurred_at };
        match self.producer.send(flight, &record, headers) {
            Ok(()) => {
                self.positions.insert(position);
                self.keys.insert(key);
                self.topics.entry(topic).or_insert((0, Instant::now())).0 += 1;
                Ok(true)
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((error, flight)) => {
                self.refused(&flight, &error)?;
                Ok(false)
            }
        }
    }

    /// The id under which the registry knows the schema of a row; `None` if the row has to wait for
    /// that. A registry that does not answer is asked once in a while and not for each topic: the
    /// session may not fall silent meanwhile.
    async fn schema_id(&mut self, db: &mut PgConnection, row: &Row) -> anyhow::Result<Option<u32>> {
        let Row { topic, schema_fingerprint: fingerprint, .. } = row;
        let subject = format!("{topic}-value");
        if let Some(id) = self.registry.known_id_of(&subject, fingerprint) {
            return Ok(Some(id));
        }
        if self.registry_away.is_some_and(|until| until > Instant::now()) {
            self.hold_topic(topic, "the schema registry does not answer");
            return Ok(None);
        }
        if !self.schemas.contains_key(fingerprint) {
            let stored = "select schema from outbox_schemas where fingerprint = $1";
            let stored = sqlx::query_scalar(stored).bind(fingerprint);
            let Some(schema) = in_time(stored.fetch_optional(db)).await? else {
                self.hold_topic(topic, "the schema of a row is not stored yet");
                return Ok(None);
            };
            self.schemas.insert(fingerprint.clone(), schema);
        }
        match self.registry.id_of(&subject, fingerprint, &self.schemas[fingerprint]).await {
            Ok(id) => {
                self.schemas.remove(fingerprint);
                Ok(Some(id))
            }
            Err(error) => {
                self.registry_away = Some(Instant::now() + HELD_FOR);
                self.hold_topic(topic, &error.to_string());
                Ok(None)
            }
        }
    }

    /// Notes what became of a record.
    fn landed(&mut self, (flight, result): Landed) -> anyhow::Result<()> {
        // What a cluster made anew acknowledged to a producer of the old one is sent again by the
        // next. That may be given the same id; were this row gone, another would be the first of
        // its partition, and the broker take it for a repeat of this one.
        if self.producer.cluster_replaced() {
            self.still_of_use()?;
        }
        self.positions.remove(&flight.position);
        self.keys.remove(&flight.key);
        if let Some((in_flight, came_back)) = self.topics.get_mut(&flight.topic) {
            *in_flight -= 1;
            *came_back = Instant::now();
        }
        if let Err(error) = result {
            return self.refused(&flight, &error);
        }
        self.held_keys.remove(&flight.key);
        self.acknowledged.push(flight.position);
        let waited = (Utc::now() - flight.occurred_at).to_std().unwrap_or_default();
        histogram!("outbox_wait_seconds", "topic" => flight.topic.clone()).record(waited);
        counter!("events_published_total", "topic" => flight.topic).increment(1);
        Ok(())
    }

    /// A record came back. It stays in the outbox; its key or its topic is left alone for a while.
    fn refused(&mut self, flight: &Flight, error: &KafkaError) -> anyhow::Result<()> {
        self.still_of_use()?;
        let Flight { topic, key, .. } = flight;
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidMessage
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidMessageSize,
            ) => {
                warn!("a record for {topic} with key {key} was refused and is held: {error}");
                let before = self.held_keys.get(key).map_or(HELD_FOR / 2, |(_, held)| *held);
                // At random: what was refused together is not to come back together.
                let held = (before * 2).min(KEY_HELD_FOR_MAX).mul_f64(rand::random_range(0.5..1.5));
                self.held_keys.insert(key.clone(), (Instant::now() + held, held));
            }
            _ => self.hold_topic(topic, &error.to_string()),
        }
        Ok(())
    }

    /// A producer that can't go on is an error: the relay starts again with a new one.
    fn still_of_use(&self) -> anyhow::Result<()> {
        if let Some(because) = self.producer.beyond_repair() {
            counter!("relay_producers_rebuilt_total").increment(1);
            anyhow::bail!("the producer is beyond repair: {because}");
        }
        Ok(())
    }

    fn hold_topic(&mut self, topic: &str, because: &str) {
        if self.held_topics.insert(topic.to_string(), Instant::now() + HELD_FOR).is_none() {
            warn!("{topic} has to wait: {because}");
            counter!("relay_topic_held_total", "topic" => topic.to_string()).increment(1);
        }
    }
}

/// The envelope as record headers: CloudEvents' Kafka binding in binary mode, the W3C trace context,
/// and the id of the cause.
fn headers(service: &str, row: &Row) -> OwnedHeaders {
    let source = format!("/{service}");
    let (id, time) =
        (row.event_id.to_string(), row.occurred_at.to_rfc3339_opts(SecondsFormat::Micros, true));
    let cause = row.cause.map(|cause| cause.to_string());
    let headers = [
        ("ce_specversion", Some("1.0")),
        ("ce_id", Some(id.as_str())),
        ("ce_type", Some(row.topic.as_str())),
        ("ce_source", Some(source.as_str())),
        ("ce_time", Some(time.as_str())),
        ("content-type", Some("application/avro")),
        ("traceparent", row.traceparent.as_deref()),
        ("ce_causeid", cause.as_deref()),
    ];
    headers
        .into_iter()
        .filter(|(_, value)| value.is_some())
        .fold(OwnedHeaders::new_with_capacity(8), |headers, (key, value)| {
            headers.insert(Header { key, value })
        })
}
