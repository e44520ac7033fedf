//! The consumer brings other services' events in.
//!
//! Promises: every event that Kafka holds is handled or set aside, none is dropped; an event's
//! effect, its inbox row and what it publishes are one transaction; a partition's offset advances
//! only over what was committed, without a gap. They are broken by storing an offset before the
//! commit, by handling a later part of a batch while an earlier one waits, and by taking a failure
//! that would pass for one that never will.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use metrics::{counter, gauge, histogram};
use opentelemetry::trace::{SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use sqlx::PgPool;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use uuid::Uuid;

use crate::avro::{Codec, Undecodable, unframe};
use crate::config::Kafka;
use crate::db::{self, Failure};
use crate::dead_letter::{self, Cause, Kind};
use crate::event::{Answer, At, Event, Impossible, Outcome, Outgoing, Retention, Topic};
use crate::group::{self, Ahead, Group, Reports};
use crate::inbox;
use crate::kafka;
use crate::outbox::{self, Envelope};
use crate::probes::Heartbeat;
use crate::registry::{Known, Registry};
use crate::rows::{Rows, Touches, guarded};
use crate::telemetry;

/// Events in one transaction, and read ahead, at most.
const BATCH_MAX: usize = 500;
const AHEAD_MAX: usize = 1_000;

/// Between two tries: at first, and at most.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long one try of a part may take. Far more than its statements may, so that it only ends what
/// hangs on a connection whose other end is gone.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(20);

/// So many events in a row that can't be handled are a bad deployment, not bad events.
const STRIKES_MAX: u32 = 20;

/// How often to look whether the consumer is paused.
const PAUSED_LOOK_EVERY: Duration = Duration::from_secs(3);

/// How long leaving the group may take; correctness does not need it to succeed.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// One of the three loops of a service.
pub struct Consumer<R: Rows> {
    service: &'static str,
    config: Kafka,
    db: PgPool,
    registry: Arc<Registry>,
    wake: Arc<Notify>,
    heartbeat: Heartbeat,
    routes: HashMap<&'static str, Route<R>>,
    group: Group,
}

/// How the events of a topic become work.
struct Route<R: Rows> {
    topic: &'static Topic,
    read: Read<R>,
}

type Decoded<R> = Result<Box<dyn Work<R>>, Undecodable>;
type Read<R> = Box<dyn Fn(&Codec, &[u8]) -> Decoded<R> + Send + Sync>;

/// An event with the function that handles it.
trait Work<R: Rows>: Send + Sync {
    fn touch(&self, keys: &mut R::Keys);
    fn decide(&self, rows: &mut R, at: At) -> Result<Option<Outgoing>, Impossible>;
}

impl<R: Touches<E>, E: Event, O: Outcome> Work<R> for (E, fn(&E, &mut R, At) -> Answer<O>) {
    fn touch(&self, keys: &mut R::Keys) {
        R::touch(&self.0, keys);
    }
    fn decide(&self, rows: &mut R, at: At) -> Result<Option<Outgoing>, Impossible> {
        Ok((self.1)(&self.0, rows, at)?.and_then(Outcome::publish))
    }
}

/// A record on its way through a batch.
struct Item<R: Rows> {
    message: OwnedMessage,
    event_id: Option<Uuid>,
    parent: Context,
    sent_at: Option<DateTime<Utc>>,
    content: Content<R>,
}

enum Content<R: Rows> {
    Event(&'static Topic, Box<dyn Work<R>>),
    Dead(Cause),
}

/// Why a part of a batch did not go through. All of it was rolled back.
enum Trouble {
    Database(sqlx::Error),
    /// The event at this place of the part can't be handled.
    Event(usize, Cause),
    /// Something else that has to pass.
    Waiting(String),
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Trouble {
        Trouble::Database(error)
    }
}

impl<R: Rows> Consumer<R> {
    /// A consumer without handlers; add each with [`Consumer::on`].
    pub fn new(
        service: &'static str,
        config: &Kafka,
        db: PgPool,
        registry: Arc<Registry>,
        wake: Arc<Notify>,
        heartbeat: Heartbeat,
    ) -> Consumer<R> {
        let config = config.clone();
        let (routes, group) = (HashMap::new(), Group::default());
        Consumer { service, config, db, registry, wake, heartbeat, routes, group }
    }

    /// Handles a topic. Which one, with which schema and which rows, is read off the handler's type.
    ///
    /// # Panics
    /// If the topic has a handler already, or does not name this service among its subscribers:
    /// mistakes of wiring, found at the first start.
    pub fn on<E: Event, O: Outcome + 'static>(
        mut self,
        handler: fn(&E, &mut R, At) -> Answer<O>,
    ) -> Self
    where
        R: Touches<E>,
    {
        let topic = E::topic();
        assert!(
            topic.subscribers.contains(&self.service),
            "{} is not declared as a subscriber of {}",
            self.service,
            topic.name
        );
        let read = move |written: &Codec, body: &[u8]| {
            let event: E = topic.codec().decode(written, body)?;
            Ok(Box::new((event, handler)) as Box<dyn Work<R>>)
        };
        let earlier = self.routes.insert(topic.name, Route { topic, read: Box::new(read) });
        assert!(earlier.is_none(), "{} has two handlers", topic.name);
        self
    }

    /// A handle that tells whether this service's group has read everything there is.
    pub fn group(&self) -> Group {
        self.group.clone()
    }

    /// Runs until stopped. Whatever fails and may pass is tried again, for ever.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let topics: Vec<&str> = self.routes.keys().copied().collect();
        let client: StreamConsumer<Reports> =
            kafka::consumer(self.service, &self.config).create_with_context(Reports::default())?;
        let client = Arc::new(client);
        client.subscribe(&topics)?;
        self.group.joined_by(&client);
        let (ahead, mut records) = mpsc::channel(AHEAD_MAX);
        let reading = tokio::spawn(group::read(client.clone(), ahead));
        let pruning = tokio::spawn(inbox::prune(self.db.clone()));

        let mut batches = self.batches(&client, &stop);
        batches.paused_looked_at().await;
        let mut batch: Vec<Ahead> = Vec::with_capacity(BATCH_MAX);
        let mut looked_at = Instant::now();
        while !stop.is_cancelled() {
            self.heartbeat.beat();
            if looked_at.elapsed() > PAUSED_LOOK_EVERY {
                batches.paused_looked_at().await;
                looked_at = Instant::now();
            }
            tokio::select! {
                taken = records.recv_many(&mut batch, BATCH_MAX) => {
                    anyhow::ensure!(taken > 0, "the reading task ended");
                    let (messages, memory): (_, Vec<_>) =
                        batch.drain(..).map(|ahead| (ahead.message, ahead.memory)).unzip();
                    batches.handle(messages).await;
                    drop(memory);
                }
                () = tokio::time::sleep(PAUSED_LOOK_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
        reading.abort();
        pruning.abort();
        let _ = reading.await;
        // The last handle closes the client: it commits what is stored and leaves the group, so that
        // others take over at once. It has been known to hang; then the session ends by itself.
        let leaving = tokio::task::spawn_blocking(move || drop(client));
        if tokio::time::timeout(LEAVE_WITHIN, leaving).await.is_err() {
            warn!("the consumer group could not be left in time");
        }
        Ok(())
    }

    /// The loop's one step, apart from where its batches come from.
    pub(crate) fn batches<'a>(
        &'a self,
        client: &'a Arc<StreamConsumer<Reports>>,
        stop: &'a CancellationToken,
    ) -> Batches<'a, R> {
        Batches { consumer: self, client, stop, strikes: 0 }
    }
}

/// The consumer at work on its batches.
pub(crate) struct Batches<'a, R: Rows> {
    consumer: &'a Consumer<R>,
    client: &'a Arc<StreamConsumer<Reports>>,
    stop: &'a CancellationToken,
    /// Events in a row that could not be handled. Undecodable bytes don't count.
    strikes: u32,
}

impl<R: Rows> Batches<'_, R> {
    /// Handles a batch, part by part from left to right. Returns early only when stopped; what was
    /// not committed by then is read again.
    pub(crate) async fn handle(&mut self, messages: Vec<OwnedMessage>) {
        histogram!("consumer_batch_size").record(messages.len() as f64);
        let Some(items) = self.prepare(messages).await else { return };
        let mut parts = vec![items];
        while let Some(part) = parts.pop() {
            match self.settle(part).await {
                Settled::Done => {}
                // Pushed from right to left: the left part is popped, and has to end, first.
                Settled::Split(smaller) => parts.extend(smaller.into_iter().rev()),
                Settled::Stopped => return,
            }
            if self.strikes >= STRIKES_MAX {
                self.give_up().await;
                // Stopped while paused: the rest of the batch is not to slip through.
                if self.stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Tries a part until it is committed, has to be split, or the process stops.
    async fn settle(&mut self, mut part: Vec<Item<R>>) -> Settled<R> {
        let (mut races, mut backoff) = (0, BACKOFF_MIN);
        loop {
            self.consumer.heartbeat.beat();
            let alone = part.len() == 1;
            let attempt = tokio::time::timeout(ATTEMPT_WITHIN, self.attempt(&part)).await;
            let late = || Err(Trouble::Waiting("the database did not answer in time".into()));
            let because = match attempt.unwrap_or_else(|_| late()) {
                Ok(()) => {
                    self.committed(&part);
                    return Settled::Done;
                }
                Err(Trouble::Event(nth, _)) if !alone => return Settled::Split(around(part, nth)),
                Err(Trouble::Event(_, cause)) => {
                    part[0].content = Content::Dead(cause);
                    continue;
                }
                Err(Trouble::Waiting(because)) => because,
                Err(Trouble::Database(error)) => match db::classify(&error) {
                    // A race first: the rows are there now and will be found.
                    Failure::Race if races == 0 => {
                        races += 1;
                        continue;
                    }
                    Failure::Race | Failure::Refused | Failure::TooSlow if !alone => {
                        return Settled::Split(halves(part));
                    }
                    Failure::Race | Failure::Refused => {
                        let reason = format!("the database refuses it: {error}");
                        part[0].content = Content::Dead(Cause { kind: Kind::Failing, reason });
                        continue;
                    }
                    Failure::TooSlow | Failure::Transient => error.to_string(),
                },
            };
            counter!("consumer_retries_total").increment(1);
            warn!("{} events wait and are tried again: {because}", part.len());
            if self.wait(&mut backoff).await.is_err() {
                return Settled::Stopped;
            }
        }
    }

    /// Admit, load, decide, save, publish, set aside, commit: one transaction, all or nothing.
    async fn attempt(&self, part: &[Item<R>]) -> Result<(), Trouble> {
        let cluster = match part.iter().any(|item| matches!(item.content, Content::Dead(_))) {
            true => self.cluster().await?,
            false => String::new(),
        };
        let (mut tx, now) = db::begin(&self.consumer.db).await?;
        let entering: Vec<_> = part.iter().filter_map(Item::entering).collect();
        let mut admitted = match entering.is_empty() {
            true => HashSet::new(),
            false => inbox::admit(&mut tx, &entering).await?,
        };
        let mut keys = R::Keys::default();
        let mut handled = Vec::with_capacity(part.len());
        for (nth, item) in part.iter().enumerate() {
            if let Content::Event(topic, work) = &item.content {
                // Removed from the set, so that a repeat within the batch is a repeat too.
                let state = topic.retention == Retention::Compact;
                if state || item.event_id.is_some_and(|id| admitted.remove(&id)) {
                    work.touch(&mut keys);
                    handled.push((nth, *topic, item, work));
                }
            }
        }
        let mut rows = R::load(&mut tx, keys).await?;
        let mut envelopes = Vec::new();
        let mut spans = Vec::with_capacity(handled.len());
        for (nth, topic, item, work) in &handled {
            let span = item.span(topic);
            let at = At { now, event_id: Uuid::now_v7(), cause: item.event_id };
            let decided = guarded(|| work.decide(&mut rows, at))
                .map_err(|panic| (Kind::Failing, format!("its handler panicked: {panic}")))
                .and_then(|answer| answer.map_err(|Impossible(why)| (Kind::Impossible, why)));
            match decided {
                Ok(event) => envelopes.extend(event.map(|event| Envelope {
                    event,
                    event_id: at.event_id,
                    traceparent: Some(telemetry::traceparent(&span)),
                    cause: item.event_id,
                    occurred_at: now,
                })),
                Err((kind, reason)) => return Err(Trouble::Event(*nth, Cause { kind, reason })),
            }
            spans.push(span);
        }
        if !handled.is_empty() {
            rows.save(&mut tx).await?;
        }
        outbox::publish(&mut tx, &envelopes).await?;
        let letters: Vec<_> = part.iter().filter_map(Item::letter).collect();
        dead_letter::set_aside(&mut tx, &cluster, &letters).await?;
        tx.commit().await?;
        if !envelopes.is_empty() {
            self.consumer.wake.notify_one();
        }
        for (_, topic, item, _) in &handled {
            counter!("events_handled_total", "topic" => topic.name).increment(1);
            let took = item.sent_at.and_then(|sent| (now - sent).to_std().ok()).unwrap_or_default();
            histogram!("event_delivery_seconds", "topic" => topic.name).record(took);
        }
        Ok(())
    }

    /// After the commit, never before: stores the offsets of a part, which is the next contiguous
    /// piece of each of its partitions, and counts the strikes.
    fn committed(&mut self, part: &[Item<R>]) {
        let mut newest: HashMap<(&str, i32), i64> = HashMap::new();
        for item in part {
            let Item { message, content, .. } = item;
            newest.insert((message.topic(), message.partition()), message.offset());
            match content {
                Content::Event(..) => self.strikes = 0,
                Content::Dead(Cause { kind, reason }) => {
                    let place = format!(
                        "{}[{}]@{}",
                        message.topic(),
                        message.partition(),
                        message.offset()
                    );
                    error!(
                        "{place} is a dead letter: {}",
                        reason.chars().take(300).collect::<String>()
                    );
                    counter!("dead_letters_total", "topic" => message.topic().to_string())
                        .increment(1);
                    if *kind != Kind::Undecodable {
                        self.strikes += 1;
                    }
                }
            }
        }
        for ((topic, partition), offset) in newest {
            // Fails where the partition has moved on to another instance, which then reads these
            // records once more and finds them in the inbox.
            let _ = self.client.store_offset(topic, partition, offset);
        }
    }

    /// Decodes a batch. Waits for the registry if it must; `None` if stopped meanwhile.
    async fn prepare(&self, messages: Vec<OwnedMessage>) -> Option<Vec<Item<R>>> {
        let ids: HashSet<u32> =
            messages.iter().filter_map(|m| Some(unframe(m.payload()?).ok()?.0)).collect();
        let mut backoff = BACKOFF_MIN;
        let schemas = loop {
            self.consumer.heartbeat.beat();
            match self.beating(self.consumer.registry.schemas_of(ids.iter().copied())).await {
                Ok(schemas) => break schemas,
                Err(error) => {
                    warn!("{} events wait: {error}", messages.len());
                    self.wait(&mut backoff).await.ok()?;
                }
            }
        };
        Some(messages.into_iter().map(|message| self.item(message, &schemas)).collect())
    }

    fn item(&self, message: OwnedMessage, schemas: &HashMap<u32, Known>) -> Item<R> {
        let (content, event_id) = match self.decode(&message, schemas) {
            Ok((event_id, topic, work)) => (Content::Event(topic, work), Some(event_id)),
            Err(Undecodable(reason)) => {
                let kind = Kind::Undecodable;
                (
                    Content::Dead(Cause { kind, reason }),
                    header(&message, "ce_id").and_then(|id| id.parse().ok()),
                )
            }
        };
        let parent = telemetry::context(header(&message, "traceparent"));
        let sent_at = header(&message, "ce_time").and_then(|time| time.parse().ok());
        Item { event_id, parent, sent_at, content, message }
    }

    #[allow(clippy::type_complexity)]
    fn decode(
        &self,
        message: &OwnedMessage,
        schemas: &HashMap<u32, Known>,
    ) -> Result<(Uuid, &'static Topic, Box<dyn Work<R>>), Undecodable> {
        let route = &self.consumer.routes[message.topic()];
        let record = message.payload().ok_or_else(|| Undecodable("the record is empty".into()))?;
        let (id, body) = unframe(record)?;
        let event_id = header(message, "ce_id")
            .and_then(|id| Uuid::parse_str(id).ok())
            .ok_or_else(|| Undecodable("the header ce_id is missing or no UUID".into()))?;
        match &schemas[&id] {
            Known::Schema(written) => Ok((event_id, route.topic, (route.read)(written, body)?)),
            Known::Unreadable(because, _) => Err(Undecodable(because.clone())),
        }
    }

    /// Where the cluster was made anew, offsets start again; its id tells the places apart.
    async fn cluster(&self) -> Result<String, Trouble> {
        let cluster = self.consumer.group.cluster(self.client).await;
        cluster.ok_or_else(|| Trouble::Waiting("Kafka does not tell its cluster's id".into()))
    }

    /// Pauses the consumer of every instance and waits for an operator. API and relay go on.
    async fn give_up(&mut self) {
        let reason = format!("{STRIKES_MAX} events in a row could not be handled");
        let mut backoff = BACKOFF_MIN;
        while let Err(error) = in_time(dead_letter::pause(&self.consumer.db, &reason)).await {
            warn!("the pause could not be stored: {error}");
            if self.wait(&mut backoff).await.is_err() {
                return;
            }
        }
        self.strikes = 0;
        self.paused_looked_at().await;
    }

    /// Waits while the consumer is paused. It stays in its group meanwhile.
    async fn paused_looked_at(&self) {
        let mut said = false;
        while !self.stop.is_cancelled() {
            match in_time(dead_letter::paused(&self.consumer.db)).await {
                Ok(false) => break,
                Ok(true) if !said => {
                    error!(
                        "the consumer is paused until an operator resumes it: see the dead letters"
                    );
                    said = true;
                }
                Ok(true) => {}
                Err(error) => warn!("whether the consumer is paused can't be read: {error}"),
            }
            gauge!("consumer_paused").set(1);
            let _ = self.wait(&mut PAUSED_LOOK_EVERY.clone()).await;
        }
        gauge!("consumer_paused").set(0);
    }

    /// Waits for something whose every step is bounded, though there may be many.
    async fn beating<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        loop {
            match tokio::time::timeout(BACKOFF_MAX, answer.as_mut()).await {
                Ok(answer) => return answer,
                Err(_) => self.consumer.heartbeat.beat(),
            }
        }
    }

    /// Waits once, longer each time up to a bound, by a random part less so that instances don't
    /// come back in step. An error means: stopped.
    async fn wait(&self, backoff: &mut Duration) -> Result<(), ()> {
        self.consumer.heartbeat.beat();
        let wait = backoff.mul_f64(rand::random_range(0.5..1.0));
        *backoff = (*backoff * 2).min(BACKOFF_MAX);
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.stop.cancelled() => Err(()),
        }
    }
}

/// A database that says nothing at all is as good as away.
async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = |late: tokio::time::error::Elapsed| sqlx::Error::Io(late.into());
    tokio::time::timeout(ATTEMPT_WITHIN, answer).await.map_err(late).flatten()
}

enum Settled<R: Rows> {
    Done,
    Split(Vec<Vec<Item<R>>>),
    Stopped,
}

fn halves<R: Rows>(mut part: Vec<Item<R>>) -> Vec<Vec<Item<R>>> {
    let right = part.split_off(part.len() / 2);
    vec![part, right]
}

/// What is left of a bad event, the event alone, what is right of it.
fn around<R: Rows>(mut part: Vec<Item<R>>, nth: usize) -> Vec<Vec<Item<R>>> {
    let right = part.split_off(nth + 1);
    let bad = part.split_off(nth);
    [part, bad, right].into_iter().filter(|part| !part.is_empty()).collect()
}

impl<R: Rows> Item<R> {
    /// What goes through the inbox: facts. State is guarded by its version.
    fn entering(&self) -> Option<(Uuid, &'static str)> {
        match &self.content {
            Content::Event(topic, _) if topic.retention != Retention::Compact => {
                Some((self.event_id?, topic.name))
            }
            _ => None,
        }
    }

    fn letter(&self) -> Option<(&OwnedMessage, Option<Uuid>, &Cause)> {
        match &self.content {
            Content::Dead(cause) => Some((&self.message, self.event_id, cause)),
            Content::Event(..) => None,
        }
    }

    /// The span of handling this event: a child of the one that published it.
    fn span(&self, topic: &Topic) -> Context {
        let tracer = global::tracer("chassis");
        let span = tracer
            .span_builder(format!("process {}", topic.name))
            .with_kind(SpanKind::Consumer)
            .with_attributes([
                KeyValue::new("messaging.system", "kafka"),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.destination.name", topic.name),
                KeyValue::new(
                    "messaging.destination.partition.id",
                    self.message.partition().to_string(),
                ),
                KeyValue::new("messaging.kafka.offset", self.message.offset()),
                KeyValue::new(
                    "messaging.message.id",
                    self.event_id.map(|id| id.to_string()).unwrap_or_default(),
                ),
            ])
            .start_with_context(&tracer, &self.parent);
        self.parent.with_span(span)
    }
}

fn header<'a>(message: &'a OwnedMessage, key: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == key)?;
    std::str::from_utf8(header.value?).ok()
}
