//! Batches of records on their way through the consumer.
//!
//! Promises: every event that Kafka holds is handled or set aside, none is dropped; an event's
//! effect, its inbox row and what it publishes are one transaction; a partition's offset advances
//! only over what was committed, without a gap. They are broken by storing an offset before the
//! commit, by handling a later part of a batch while an earlier one waits, and by taking a failure
//! that would pass for one that never will.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Message, OwnedMessage};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::consumer::Consumer;
use crate::crash;
use crate::db::{self, Failure};
use crate::dead_letter::{self, Cause, Kind, Place};
use crate::effect::{self, Admission, Trouble};
use crate::member::{self, Assigned, Reports};
use crate::pause;
use crate::route::{Content, Item, schema_id};
use crate::rows::Rows;
use crate::session::Session;

/// Between two tries, at first.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Between two tries, at most.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long one try of a part may take. Far more than its statements may, so that it only ends what
/// hangs on a connection whose other end is gone.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(20);

/// So many events of a topic in a row that can't be handled are a bad deployment, not bad events.
const STRIKES_MAX: u32 = 20;

/// How often to look whether the consumer is paused.
pub(crate) const PAUSED_LOOK_EVERY: Duration = Duration::from_secs(3);

/// The consumer at work on its batches.
pub(crate) struct Batches<'a, R: Rows> {
    consumer: &'a Consumer<R>,
    client: &'a Arc<StreamConsumer<Reports>>,
    stop: &'a CancellationToken,
    session: Session,
    /// Whether there may be repeats, and the inbox is to be asked first: to begin with, and as long as
    /// there are some. They come in runs, after a crash or when partitions go from one to another.
    expects_repeats: bool,
    /// By topic, since each has a handler of its own: events in a row that could not be handled.
    /// Undecodable bytes don't count.
    strikes: HashMap<String, u32>,
}

/// A piece of a batch that shares a transaction.
struct Part<R: Rows> {
    items: Vec<Item<R>>,
    /// How often its events were tried, as parts of larger pieces too.
    tries: u32,
}

/// What a part that was committed has changed.
struct Committed {
    /// The topics of events that had their effect now, and not before.
    handled: HashSet<&'static str>,
    /// The places of letters that were not there before.
    letters: HashSet<Place>,
}

enum Settled<R: Rows> {
    Done,
    Split(Vec<Part<R>>),
    Stopped,
}

impl<'a, R: Rows> Batches<'a, R> {
    pub(crate) fn of(
        consumer: &'a Consumer<R>,
        client: &'a Arc<StreamConsumer<Reports>>,
        stop: &'a CancellationToken,
    ) -> Batches<'a, R> {
        let session = Session::of(&consumer.db);
        Batches { consumer, client, stop, session, expects_repeats: true, strikes: HashMap::new() }
    }

    /// Handles a batch, part by part from left to right. Returns early only when stopped; what was
    /// not committed by then is read again.
    pub(crate) async fn handle(&mut self, messages: Vec<OwnedMessage>, assigned: &Assigned) {
        histogram!("consumer_batch_size").record(messages.len() as f64);
        crash::point!("consumer.polled");
        let Some(items) = self.prepare(messages).await else { return };
        let mut parts = vec![Part { items, tries: 0 }];
        while let Some(part) = parts.pop() {
            match self.settle(part, assigned).await {
                Settled::Done => {}
                // Pushed from right to left: the left part is popped, and has to end, first.
                Settled::Split(smaller) => parts.extend(smaller.into_iter().rev()),
                Settled::Stopped => return,
            }
            if self.strikes.values().any(|strikes| *strikes >= STRIKES_MAX) {
                self.give_up().await;
                // Stopped while paused: the rest of the batch is not to slip through.
                if self.stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Decodes a batch. Waits for the registry if it must; `None` if stopped meanwhile.
    async fn prepare(&self, messages: Vec<OwnedMessage>) -> Option<Vec<Item<R>>> {
        let ids: HashSet<u32> = messages.iter().filter_map(schema_id).collect();
        let mut backoff = BACKOFF_MIN;
        let schemas = loop {
            self.consumer.heartbeat.beat();
            match self.beating(self.consumer.registry.schemas_of(ids.iter().copied())).await {
                Ok(schemas) => break schemas,
                Err(error) => {
                    counter!("consumer_retries_total").increment(1);
                    warn!("{} events wait: {error}", messages.len());
                    self.wait(&mut backoff).await.ok()?;
                }
            }
        };
        let routes = &self.consumer.routes;
        Some(messages.into_iter().map(|message| routes.item(message, &schemas)).collect())
    }

    /// Tries a part until it is committed, has to be split, or the process stops.
    async fn settle(&mut self, mut part: Part<R>, assigned: &Assigned) -> Settled<R> {
        let (mut races, mut backoff) = (0, BACKOFF_MIN);
        loop {
            self.consumer.heartbeat.beat();
            part.tries += 1;
            let alone = part.items.len() == 1;
            let because = match db::in_time(ATTEMPT_WITHIN, self.attempt(&part)).await {
                Ok(committed) => {
                    self.committed(&part, &committed, assigned);
                    return Settled::Done;
                }
                // It may have been handled before, and that be the whole trouble.
                Err(trouble) if !self.expects_repeats && trouble.may_be_a_repeat() => {
                    self.expects_repeats = true;
                    part.tries -= 1;
                    continue;
                }
                Err(Trouble::Event(nth, _)) if !alone => return Settled::Split(part.around(nth)),
                Err(Trouble::Event(_, cause)) => {
                    part.items[0].content = Content::Dead(cause);
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
                        return Settled::Split(part.halves());
                    }
                    Failure::Race | Failure::Refused if part.items[0].letter().is_none() => {
                        part.items[0].content = Content::Dead(Cause::refused(&error));
                        continue;
                    }
                    // A letter that is refused waits like anything else: it is not to be dropped.
                    _ => error.to_string(),
                },
            };
            counter!("consumer_retries_total").increment(1);
            warn!("{} events wait and are tried again: {because}", part.items.len());
            if self.wait(&mut backoff).await.is_err() {
                return Settled::Stopped;
            }
        }
    }

    /// The events' effect and the letters, in one transaction.
    async fn attempt(&mut self, part: &Part<R>) -> Result<Committed, Trouble> {
        let letters: Vec<_> = part.items.iter().filter_map(Item::letter).collect();
        let cluster = match letters.is_empty() {
            true => String::new(),
            false => self.cluster().await?,
        };
        let attempts = i32::try_from(part.tries).unwrap_or(i32::MAX);
        let mut tx = self.session.begin().await?;
        let admission = match self.expects_repeats {
            true => Admission::First,
            false => Admission::WithEffect(tx.now),
        };
        let prepared = async {
            let effect = effect::take(&mut tx, &part.items, admission, attempts).await?;
            let new = dead_letter::set_aside(&mut tx, &cluster, &letters, attempts).await?;
            Ok::<_, Trouble>((effect, new))
        };
        let prepared = prepared.await;
        let (tx, (effect, new)) = tx.having(prepared).await?;
        crash::point!("letters.set_aside", !letters.is_empty());
        crash::point!("consumer.prepared", effect.is_new());
        tx.commit().await?;
        crash::point!("letters.kept", !letters.is_empty());
        crash::point!("consumer.committed", effect.is_new());
        self.expects_repeats = effect.has_repeats();
        let handled = effect.committed(&self.consumer.wake);
        Ok(Committed { handled, letters: new.into_iter().collect() })
    }

    /// After the commit, never before: stores the offsets of a part, which is the next contiguous
    /// piece of each of its partitions, and counts the strikes. A letter that was there before is
    /// no strike, and an event that had its effect before ends no row of them: a topic may be read
    /// again from its beginning.
    fn committed(&mut self, part: &Part<R>, committed: &Committed, assigned: &Assigned) {
        self.strikes.retain(|topic, _| !committed.handled.contains(&**topic));
        let mut newest: HashMap<(&str, i32), i64> = HashMap::new();
        for Item { message, content, .. } in &part.items {
            let (topic, partition, offset) =
                (message.topic(), message.partition(), message.offset());
            newest.insert((topic, partition), offset);
            match content {
                Content::Dead(Cause { kind, reason })
                    if committed.letters.contains(&(topic.to_string(), partition, offset)) =>
                {
                    let reason: String = reason.chars().take(300).collect();
                    error!("{topic}[{partition}]@{offset} is a dead letter: {reason}");
                    counter!("dead_letters_total", "topic" => topic.to_string()).increment(1);
                    if *kind != Kind::Undecodable {
                        *self.strikes.entry(topic.to_string()).or_default() += 1;
                    }
                }
                Content::Event(..) | Content::Dead(_) => {}
            }
        }
        // These are places in a cluster that is gone: stored, they would be taken for places in
        // the one that was made anew, and the records before them never be read.
        if member::was_replaced(self.client) {
            return;
        }
        let now = self.client.context().assigned();
        for ((topic, partition), offset) in newest {
            if now.by(topic, partition) != assigned.by(topic, partition) {
                continue;
            }
            // Fails where the partition has moved on to another instance, which then reads these
            // records once more and finds them in the inbox.
            let _ = self.client.store_offset(topic, partition, offset);
        }
        crash::point!("consumer.stored");
    }

    /// Where the cluster was made anew, offsets start again; its id tells the places apart.
    async fn cluster(&self) -> Result<String, Trouble> {
        let cluster = member::cluster(self.client).await;
        cluster.ok_or_else(|| Trouble::Waiting("Kafka does not tell its cluster's id".into()))
    }

    /// Pauses the consumer of every instance and waits for an operator. API and relay go on.
    async fn give_up(&mut self) {
        let reason = format!("{STRIKES_MAX} events of a topic in a row could not be handled");
        let mut backoff = BACKOFF_MIN;
        while let Err(error) = in_time(pause::pause(&self.consumer.db, &reason)).await {
            warn!("the pause could not be stored: {error}");
            if self.wait(&mut backoff).await.is_err() {
                return;
            }
        }
        self.strikes.clear();
        self.paused_looked_at().await;
    }

    /// Waits while the consumer is paused. It stays in its group meanwhile.
    pub(crate) async fn paused_looked_at(&self) {
        let mut said = false;
        while !self.stop.is_cancelled() {
            match in_time(pause::paused(&self.consumer.db)).await {
                Ok((paused, letters)) => {
                    gauge!("dead_letters_waiting").set(letters as f64);
                    if !paused {
                        break;
                    }
                    gauge!("consumer_paused").set(1);
                    if !said {
                        error!(
                            "the consumer is paused until an operator resumes it: see the dead \
                             letters"
                        );
                        said = true;
                    }
                }
                Err(error) => warn!("whether the consumer is paused can't be read: {error}"),
            }
            let _ = self.rest(PAUSED_LOOK_EVERY).await;
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
        let wait = backoff.mul_f64(rand::random_range(0.5..1.0));
        *backoff = (*backoff * 2).min(BACKOFF_MAX);
        self.rest(wait).await
    }

    /// Waits for so long. An error means: stopped.
    async fn rest(&self, how_long: Duration) -> Result<(), ()> {
        self.consumer.heartbeat.beat();
        // Whoever waits for something else is not behind: commands need not go slowly for that.
        self.consumer.wake.consuming.taken(false);
        tokio::select! {
            () = tokio::time::sleep(how_long) => Ok(()),
            () = self.stop.cancelled() => Err(()),
        }
    }
}

/// A database that says nothing at all is as good as away.
async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    db::in_time(ATTEMPT_WITHIN, answer).await
}

impl<R: Rows> Part<R> {
    fn halves(mut self) -> Vec<Part<R>> {
        let right = self.items.split_off(self.items.len() / 2);
        self.pieces([right])
    }

    /// What is left of a bad event, the event alone, what is right of it.
    fn around(mut self, nth: usize) -> Vec<Part<R>> {
        let right = self.items.split_off(nth + 1);
        let bad = self.items.split_off(nth);
        self.pieces([bad, right])
    }

    fn pieces<const N: usize>(self, others: [Vec<Item<R>>; N]) -> Vec<Part<R>> {
        let Part { items, tries } = self;
        let pieces = std::iter::once(items).chain(others).filter(|items| !items.is_empty());
        pieces.map(|items| Part { items, tries }).collect()
    }
}
