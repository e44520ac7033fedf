//! What the active relay knows between two looks at the outbox: what is in flight, what came back,
//! and what has to wait. [`crate::relay`] says which of its promises rest on this.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use metrics::{Counter, Histogram, counter, gauge, histogram};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sqlx::{AssertSqlSafe, PgConnection};
use tracing::warn;

use crate::avro::frame;
use crate::crash;
use crate::db;
use crate::floor::{Floor, WRITERS};
use crate::look::{Row, headers, look, read};
use crate::news::News;
use crate::producer::{Fate, Flight, Landed, Producer};
use crate::registry::{NoId, Registry};

/// How long one look may take, and the question for the oldest row. Beside a topic that is held a look reads
/// the whole outbox, which may be millions of rows; from zero, both step over all that were deleted since an
/// old snapshot that somebody holds.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// How long any other question may take.
const ASKED_WITHIN: Duration = Duration::from_secs(8);

/// Rows that were acknowledged are deleted once there are so many. A look that deletes is a commit
/// and waits for the disk; one that only looks answers in half the time, and is what an order waits
/// for. Until it is deleted, a row is sent once more by whoever relays next.
pub(crate) const DELETED_AT: usize = 64;

/// Fewer are deleted by the first look that comes so long after the first of them was acknowledged.
pub(crate) const DELETED_WITHIN: Duration = Duration::from_millis(100);

/// Rows taken at a time, at most.
pub(crate) const TAKEN_MAX: usize = 1_000;

/// Records in flight, at most.
const IN_FLIGHT_MAX: usize = 8_000;

/// Records of one topic in flight, at most: one that stalls may not use up what the others need.
const IN_FLIGHT_OF_TOPIC_MAX: usize = 2_000;

/// How long a topic is left alone after the broker or the registry refused it; and, at first, a key
/// whose record was refused itself. Each refusal costs all others a pause: an idempotent producer
/// starts a new epoch after it.
const HELD_FOR: Duration = Duration::from_secs(2);

/// How long such a key is left alone at most: twice as long after each refusal, up to this, and by
/// a random part, up to half, more or less.
const KEY_HELD_FOR_MAX: Duration = Duration::from_secs(60);

/// Keys that are left alone, at most. Where more have been refused, it is no matter of single records: each
/// further one holds its topic, which needs no memory and no part of a look for every key.
const HELD_KEYS_MAX: usize = 1_000;

/// A topic with as many records in flight as it may have is stalled if one of them has been so long:
/// where a single partition has no leader, the records of the others still come back.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// Where records are in flight and nothing at all comes back for so long, a new producer goes on. One
/// may ask the same broken broker for its id for ever (librdkafka's issue 3848), and while Kafka is away
/// a new one costs nothing.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(60);

/// How often the outbox is surveyed: for the gauge `outbox_oldest_seconds`, and for the floor while it is
/// behind.
const SURVEYED_EVERY: Duration = Duration::from_secs(5);
const SURVEYED_BEHIND_EVERY: Duration = Duration::from_secs(1);

/// A session that hangs is as good as lost; by then Postgres has ended it, or will.
pub(crate) async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    db::in_time(ASKED_WITHIN, answer).await
}

/// What the active relay knows between two looks at the outbox.
pub(crate) struct Round<'a> {
    /// `ce_source` of every record.
    source: String,
    pub(crate) producer: Producer,
    registry: &'a Registry,
    /// The keys of what is in flight, one record each.
    keys: HashSet<String>,
    /// When something came back last, or was sent when nothing was in flight.
    pub(crate) heard_at: Instant,
    topics: HashMap<String, OfTopic>,
    /// Topics that are left alone, until when.
    held_topics: HashMap<String, Instant>,
    /// Why topics wait.
    news: News,
    /// Keys that are left alone, until when, and for how long this time.
    held_keys: HashMap<String, (Instant, Duration)>,
    /// Positions of rows that were acknowledged and are not deleted yet.
    acknowledged: Vec<i64>,
    /// When the first of them was acknowledged.
    acknowledged_since: Instant,
    /// Rows that a look asks for, at most: as many as there was memory for, where it was short.
    fit: usize,
    /// Looks so far.
    looks: u64,
    /// Whether the last look left anything behind that may go when something comes back.
    left_behind: bool,
    /// Whether it was cut short at its limit, so that more may be found at once.
    has_more: bool,
    /// Texts of schemas whose ids the registry has not told yet.
    schemas: HashMap<Vec<u8>, String>,
    /// The registry gave no answer lately: it is not asked again before this.
    registry_away: Option<Instant>,
    surveyed_at: Option<Instant>,
    /// By how much the database's clock is ahead of ours: rows bear its time.
    database_is_ahead: TimeDelta,
    /// The position of the oldest row, and since when it is known to be that.
    oldest: Option<(i64, Instant)>,
    floor: Floor,
}

/// The database's time; position and time of the oldest row; the sequence that positions are drawn from,
/// and the last one that was.
type Surveyed = (DateTime<Utc>, Option<i64>, Option<DateTime<Utc>>, Option<String>, i64);

/// What a look brought.
#[derive(Default)]
struct Taken {
    rows: Vec<Row>,
    /// There may be more.
    cut_short: bool,
}

/// What is known of a topic.
struct OfTopic {
    /// By when it was sent, and the position of its row.
    in_flight: BTreeSet<(Instant, i64)>,
    published: Counter,
    waited: Histogram,
}

impl OfTopic {
    fn new(topic: &str) -> OfTopic {
        OfTopic {
            in_flight: BTreeSet::new(),
            published: counter!("events_published_total", "topic" => topic.to_string()),
            waited: histogram!("outbox_wait_seconds", "topic" => topic.to_string()),
        }
    }

    fn is_full(&self) -> bool {
        self.in_flight.len() >= IN_FLIGHT_OF_TOPIC_MAX
    }

    fn is_stalled(&self) -> bool {
        let oldest = self.in_flight.first();
        self.is_full() && oldest.is_some_and(|(sent_at, _)| sent_at.elapsed() > STALLED_AFTER)
    }
}

impl<'a> Round<'a> {
    pub(crate) fn new(
        service: &'static str,
        producer: Producer,
        registry: &'a Registry,
    ) -> Round<'a> {
        Round {
            source: format!("/{service}"),
            producer,
            registry,
            keys: HashSet::new(),
            heard_at: Instant::now(),
            topics: HashMap::new(),
            held_topics: HashMap::new(),
            news: News::default(),
            held_keys: HashMap::new(),
            acknowledged: Vec::new(),
            acknowledged_since: Instant::now(),
            fit: TAKEN_MAX,
            looks: 0,
            left_behind: false,
            has_more: false,
            schemas: HashMap::new(),
            registry_away: None,
            surveyed_at: None,
            database_is_ahead: TimeDelta::zero(),
            oldest: None,
            floor: Floor::new(),
        }
    }

    /// Deletes what was acknowledged, if it is time to, takes up to `limit` rows that nothing holds up,
    /// sends them. Answers how many were sent.
    pub(crate) async fn turn(
        &mut self,
        db: &mut PgConnection,
        limit: usize,
    ) -> anyhow::Result<usize> {
        while let Some(landed) = self.producer.landed_already() {
            self.landed(landed)?;
        }
        let Taken { rows, cut_short } = self.take(db, limit).await?;
        crash::point!("relay.taken", !rows.is_empty());
        let (taken, mut sent, mut waiting) = (rows.len(), 0, HashSet::new());
        for row in rows {
            crash::point!("relay.sending", sent > 0);
            // An earlier row of this very look may hold it up.
            let held = self.held_topics.contains_key(&row.topic)
                || self.topics.get(&row.topic).is_some_and(OfTopic::is_full)
                || waiting.contains(&row.key);
            if held || self.keys.contains(&row.key) || !self.send(db, &row).await? {
                waiting.insert(row.key);
            } else {
                sent += 1;
            }
        }
        crash::point!("relay.sent", sent > 0);
        self.left_behind |= !waiting.is_empty();
        // Beside something that is held up a look is dear: there it has to be worth it.
        self.has_more = cut_short && sent > 0 && (sent == taken || !self.held_up());
        Ok(sent)
    }

    /// Whether to look again at once: the last look was as long as it may be. Its rows may all be of one key,
    /// of which it sent the first; the next finds what lies behind them, for it passes over a key in flight.
    pub(crate) fn has_more(&self) -> bool {
        self.has_more
    }

    #[cfg(test)]
    pub(crate) fn floor(&mut self) -> &mut Floor {
        &mut self.floor
    }

    /// Whether there is a reason to look, now that something came back. To delete what was acknowledged
    /// is none: that has time until the next look, and one of its own costs as much as any other.
    pub(crate) fn has_to_look(&self) -> bool {
        self.left_behind || self.acknowledged.len() >= TAKEN_MAX
    }

    /// Whether nothing more may be taken until something comes back.
    pub(crate) fn is_full(&self) -> bool {
        self.keys.len() >= IN_FLIGHT_MAX
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        !self.keys.is_empty()
    }

    fn stalled_topics(&self) -> impl Iterator<Item = &String> {
        self.topics.iter().filter(|(_, of)| of.is_stalled()).map(|(topic, _)| topic)
    }

    pub(crate) fn held_up(&self) -> bool {
        !self.held_topics.is_empty() || self.stalled_topics().next().is_some()
    }

    /// Whether what was acknowledged is to be deleted now. When nothing is to be taken, that is all
    /// there is to do.
    fn deletes(&self, limit: usize) -> bool {
        let late = || self.acknowledged_since.elapsed() > DELETED_WITHIN;
        let due = limit == 0 || self.acknowledged.len() >= DELETED_AT || late();
        due && !self.acknowledged.is_empty()
    }

    /// One statement: the delete of what was acknowledged, and the look at what is there.
    async fn take(&mut self, db: &mut PgConnection, limit: usize) -> anyhow::Result<Taken> {
        // What there is no room for may go when something comes back.
        self.left_behind = limit == 0;
        if limit == 0 && self.acknowledged.is_empty() {
            return Ok(Taken::default());
        }
        let limit = limit.min(self.fit);
        self.looks += 1;
        let floor = if limit == 0 { self.floor.below() } else { self.floor.start() };
        let now = Instant::now();
        self.held_topics.retain(|_, until| *until > now);
        let topics: Vec<&String> = self.held_topics.keys().chain(self.stalled_topics()).collect();
        let held = self.held_keys.iter().filter(|(_, (until, _))| *until > now);
        let keys: Vec<&String> = self.keys.iter().chain(held.map(|(key, _)| key)).collect();
        let deletes = self.deletes(limit);
        let look = look(deletes, !topics.is_empty());
        let query = sqlx::query_as(AssertSqlSafe(look)).bind(&self.acknowledged);
        let query = query.bind(floor).bind(keys).bind(limit as i64);
        let query = if topics.is_empty() { query } else { query.bind(topics) };
        let read = db::in_time(LOOK_WITHIN, read(query.fetch(db))).await;
        let (rows, passed_over) = read.context("the outbox could not be read")?;
        let cut_short = passed_over > 0 || (limit > 0 && rows.len() == limit);
        if limit > 0 {
            self.fit = if passed_over > 0 { rows.len() } else { (self.fit * 2).min(TAKEN_MAX) };
        }
        if let Some(first) = rows.first() {
            self.floor.found(first.position);
        }
        if deletes {
            crash::point!("relay.deleted");
            self.floor.deleted(&self.acknowledged);
            self.acknowledged.clear();
        }
        Ok(Taken { rows, cut_short })
    }

    /// Hands a record to the producer; false if its topic has to wait.
    async fn send(&mut self, db: &mut PgConnection, row: &Row) -> anyhow::Result<bool> {
        let Some(schema_id) = self.schema_id(db, row).await? else { return Ok(false) };
        let Row { position, topic, key, occurred_at, .. } = row;
        let flight = Flight {
            position: *position,
            topic: topic.clone(),
            key: key.clone(),
            occurred_at: *occurred_at,
            sent_at: Instant::now(),
            look: self.looks,
        };
        let sent = (flight.sent_at, flight.position);
        let record = frame(schema_id, &row.body);
        match self.producer.send(topic, key, &record, headers(&self.source, row), flight) {
            Ok(()) => {
                if self.keys.is_empty() {
                    self.heard_at = Instant::now();
                }
                self.keys.insert(key.clone());
                if !self.topics.contains_key(topic) {
                    self.topics.insert(topic.clone(), OfTopic::new(topic));
                }
                self.topics.get_mut(topic).expect("it is there now").in_flight.insert(sent);
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
        if let Some(id) = self.registry.known_id_of(topic, fingerprint) {
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
        match self.registry.id_of(topic, fingerprint, &self.schemas[fingerprint]).await {
            Ok(id) => {
                self.schemas.remove(fingerprint);
                Ok(Some(id))
            }
            Err(error) => {
                // A schema that the registry doesn't know, or won't tell of, holds up its own
                // topic, and none whose schema it does.
                if let NoId::Unreachable(_) = error {
                    self.registry_away = Some(Instant::now() + HELD_FOR);
                }
                self.hold_topic(topic, &error.to_string());
                Ok(None)
            }
        }
    }

    /// Notes what became of a record.
    pub(crate) fn landed(&mut self, (flight, fate): Landed) -> anyhow::Result<()> {
        // What a cluster made anew acknowledged to a producer of the old one is sent again by the
        // next. That may be given the same id; were this row gone, another would be the first of
        // its partition, and the broker take it for a repeat of this one.
        if self.producer.cluster_replaced() {
            self.still_of_use()?;
        }
        self.keys.remove(&flight.key);
        self.heard_at = Instant::now();
        // A later look passed over whatever else there is of its key.
        self.left_behind |= flight.look < self.looks;
        let of = self.topics.get_mut(&flight.topic).expect("its topic is noted when it is sent");
        of.in_flight.remove(&(flight.sent_at, flight.position));
        match fate {
            Fate::Acknowledged => {}
            // Sent again by the next look. If it was written after all, whoever reads it knows it again.
            Fate::Supposed => {
                self.left_behind = true;
                counter!("relay_supposed_total").increment(1);
                return Ok(());
            }
            Fate::Refused(error) => return self.refused(&flight, &error),
        }
        let now = Utc::now() + self.database_is_ahead;
        let waited = (now - flight.occurred_at).to_std().unwrap_or_default();
        of.waited.record(waited);
        of.published.increment(1);
        self.held_keys.remove(&flight.key);
        if self.acknowledged.is_empty() {
            self.acknowledged_since = Instant::now();
        }
        self.acknowledged.push(flight.position);
        crash::point!("relay.acknowledged");
        Ok(())
    }

    /// Sees, now and then, for how long the oldest row has been waiting, as what nobody acknowledges shows
    /// nowhere else, and whether the floor can move.
    pub(crate) async fn survey(&mut self, db: &mut PgConnection) -> anyhow::Result<()> {
        let behind = self.floor.is_behind();
        let every = if behind { SURVEYED_BEHIND_EVERY } else { SURVEYED_EVERY };
        if self.surveyed_at.is_some_and(|surveyed_at| surveyed_at.elapsed() < every) {
            return Ok(());
        }
        self.surveyed_at = Some(Instant::now());
        let writers = in_time(sqlx::query_scalar(WRITERS).fetch_all(&mut *db)).await?;
        let surveyed = sqlx::query_as(
            "select clock_timestamp(), oldest.position, oldest.occurred_at,
                    sequence::text, coalesce(pg_sequence_last_value(sequence), 0)
             from cast(pg_get_serial_sequence('outbox', 'position') as regclass) as sequence
             left join (select position, occurred_at from outbox where position > $1
                        order by position limit 1) as oldest on true",
        );
        let surveyed = surveyed.bind(self.floor.below()).fetch_one(&mut *db);
        let surveyed = db::in_time(LOOK_WITHIN, surveyed).await;
        let (now, position, occurred_at, sequence, drawn): Surveyed =
            surveyed.context("the outbox could not be read")?;
        self.database_is_ahead = now - Utc::now();
        self.floor.seen(writers, position);
        if let Some(sequence) = sequence.filter(|_| drawn < self.floor.below()) {
            warn!("{sequence} was set back to {drawn}: it goes on after {}", self.floor.below());
            let ahead = sqlx::query("select setval($1::text::regclass, $2)");
            let ahead = ahead.bind(sequence).bind(self.floor.below()).execute(db);
            if let Err(error) = in_time(ahead).await {
                warn!("the sequence of the outbox could not be set: {error}");
            }
            self.floor.expect_full_look();
        }
        self.oldest = position.map(|position| match self.oldest {
            Some((known, since)) if known == position => (position, since),
            _ => (position, Instant::now()),
        });
        // By the database's clock alone a row that waits may seem to be new, or yet to come.
        let age = occurred_at.map(|at| (now - at).to_std().unwrap_or_default());
        let known_for = self.oldest.map(|(_, since)| since.elapsed());
        let waits = age.max(known_for).unwrap_or_default();
        gauge!("outbox_oldest_seconds").set(waits.as_secs_f64());
        Ok(())
    }

    /// A record came back. It stays in the outbox; its key or its topic is left alone for a while.
    fn refused(&mut self, flight: &Flight, error: &KafkaError) -> anyhow::Result<()> {
        self.still_of_use()?;
        let Flight { topic, key, .. } = flight;
        let room = self.held_keys.len() < HELD_KEYS_MAX || self.held_keys.contains_key(key);
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidMessage
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidMessageSize,
            ) if room => {
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
    pub(crate) fn still_of_use(&self) -> anyhow::Result<()> {
        let silent = self.is_in_flight() && self.heard_at.elapsed() > SILENT_MAX;
        let silent = || silent.then(|| format!("nothing came back for {SILENT_MAX:?}"));
        if let Some(because) = self.producer.beyond_repair().or_else(silent) {
            counter!("relay_producers_rebuilt_total").increment(1);
            anyhow::bail!("the producer is beyond repair: {because}");
        }
        Ok(())
    }

    fn hold_topic(&mut self, topic: &str, because: &str) {
        if self.held_topics.insert(topic.to_string(), Instant::now() + HELD_FOR).is_some() {
            return;
        }
        counter!("relay_topic_held_total", "topic" => topic.to_string()).increment(1);
        if self.news.is_news(topic, because) {
            warn!("{topic} has to wait: {because}");
        }
    }
}
