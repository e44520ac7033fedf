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

use chrono::{DateTime, Utc};
use metrics::{counter, gauge, histogram};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Message, OwnedMessage};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::consumer::Consumer;
use crate::consumer::deferred::{Deferred, Tries};
use crate::consumer::progress::Progress;
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

/// An event that a rule of the database's own refuses is set aside after so many tries over at least so long, if
/// another event of its topic had its effect meanwhile: what refuses every event is no matter of one.
const REFUSED_TRIES_MIN: u32 = if cfg!(test) { 4 } else { 10 };
pub(crate) const REFUSED_FOR_MIN: Duration = match cfg!(test) {
    false => Duration::from_secs(300),
    true => Duration::from_secs(5),
};

/// How long an unknown schema id is asked for at least, also of an old record.
const UNKNOWN_FOR_MIN: Duration = Duration::from_secs(2);

/// How long one try of a single event waits for a row that another transaction holds.
const LONE_LOCK_WAIT: &str = "100ms";

/// How often deferred events are logged.
const DEFERRED_LOG_INTERVAL: Duration = Duration::from_secs(60);

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
    progress: Progress,
    deferred: Deferred<R>,
    deferred_logged_at: Instant,
    /// By topic: when an event had its effect last.
    succeeded: HashMap<&'static str, Instant>,
    /// Whether there are dead letters that were not there at the last look at how many there are.
    has_new_letters: bool,
}

/// A piece of a batch that shares a transaction.
struct Part<R: Rows> {
    items: Vec<Item<R>>,
    /// How often its events were tried, as parts of larger pieces too.
    tries: Tries,
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
    /// It has to wait here, and what was deferred goes first.
    Waiting(Part<R>, String),
}

/// What becomes of a single event that could not be handled.
enum Wait {
    /// Its schema is not known yet.
    Schema,
    /// A rule of the database's own refuses it.
    Rule,
    /// Something that concerns it alone has to pass.
    Alone,
    /// Something that concerns all has to pass.
    All,
}

impl<'a, R: Rows> Batches<'a, R> {
    pub(crate) fn of(
        consumer: &'a Consumer<R>,
        client: &'a Arc<StreamConsumer<Reports>>,
        stop: &'a CancellationToken,
    ) -> Batches<'a, R> {
        Batches {
            consumer,
            client,
            stop,
            session: Session::of(&consumer.db),
            expects_repeats: true,
            strikes: HashMap::new(),
            progress: Progress::default(),
            deferred: Deferred::new(),
            deferred_logged_at: Instant::now(),
            succeeded: HashMap::new(),
            has_new_letters: false,
        }
    }

    /// Handles a batch, part by part from left to right. Returns early only when stopped; what was
    /// not committed by then is read again.
    pub(crate) async fn handle(&mut self, messages: Vec<OwnedMessage>, assigned: &Assigned) {
        histogram!("consumer_batch_size").record(messages.len() as f64);
        crash::point!("consumer.polled");
        let items = self.read(messages).await;
        let is_unread = |item: &Item<R>| matches!(item.content, Content::Unread(_));
        let (unread, items): (Vec<_>, Vec<_>) = items.into_iter().partition(is_unread);
        let tries = Tries::new(0);
        // They are deferred first, before the offset of anything behind them is stored.
        let mut parts = Part { items: unread, tries }.singles();
        parts.extend((!items.is_empty()).then_some(Part { items, tries }));
        self.run(parts, assigned).await;
    }

    /// Tries the deferred events that are due.
    pub(crate) async fn retry_deferred(&mut self) {
        let assigned = self.client.context().assigned();
        let due = self.due(&assigned).await;
        self.run(due, &assigned).await;
    }

    /// When [`Batches::retry_deferred`] has something to do.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.deferred.next_due()
    }

    /// The deferred events that are due, each by itself.
    async fn due(&mut self, assigned: &Assigned) -> Vec<Part<R>> {
        let due = self.deferred.take_due(assigned);
        if due.is_empty() {
            return Vec::new();
        }
        let (messages, tries): (Vec<_>, Vec<_>) =
            due.into_iter().map(|event| (event.item.message, event.tries)).unzip();
        let items = self.read(messages).await;
        items
            .into_iter()
            .zip(tries)
            .map(|(item, tries)| Part { items: vec![item], tries })
            .collect()
    }

    async fn run(&mut self, parts: Vec<Part<R>>, assigned: &Assigned) {
        let (mut parts, mut backoff) = (parts, BACKOFF_MIN);
        parts.reverse();
        while let Some(part) = parts.pop() {
            match self.settle(part, assigned).await {
                Settled::Done => backoff = BACKOFF_MIN,
                // Pushed from right to left: the left part is popped, and has to end, first.
                Settled::Split(smaller) => parts.extend(smaller.into_iter().rev()),
                Settled::Waiting(part, because) => {
                    counter!("consumer_retries_total").increment(1);
                    let (count, first) = (part.items.len(), place(&part.items[0]));
                    warn!(
                        "{count} events wait and are tried again, the first of them {first}: {because}"
                    );
                    parts.push(part);
                    if self.wait(&mut backoff).await.is_err() {
                        return;
                    }
                    parts.extend(self.due(assigned).await);
                }
            }
            if let Some(reason) = self.reason_to_pause().await {
                self.give_up(&reason).await;
                // Stopped while paused: the rest of the batch is not to slip through.
                if self.stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Why the consumer has to pause until an operator has seen to its dead letters.
    async fn reason_to_pause(&mut self) -> Option<String> {
        if self.strikes.values().any(|strikes| *strikes >= STRIKES_MAX) {
            return Some(format!("{STRIKES_MAX} events of a topic in a row could not be handled"));
        }
        if !std::mem::take(&mut self.has_new_letters) {
            return None;
        }
        // They may not fill the database.
        match in_time(dead_letter::too_many(&self.consumer.db)).await {
            Ok(reason) => reason,
            Err(error) => {
                // The next letter asks again.
                warn!("how many dead letters there are can't be read: {error}");
                None
            }
        }
    }

    /// Decodes records. One whose schema is not known yet is an item that waits.
    async fn read(&self, messages: Vec<OwnedMessage>) -> Vec<Item<R>> {
        let ids: HashSet<u32> = messages.iter().filter_map(schema_id).collect();
        let schemas = self.consumer.registry.schemas_of(ids).await;
        let routes = &self.consumer.routes;
        messages.into_iter().map(|message| routes.item(message, &schemas)).collect()
    }

    /// Tries a part until it is committed, deferred, or has to be split.
    async fn settle(&mut self, mut part: Part<R>, assigned: &Assigned) -> Settled<R> {
        let mut races = 0;
        loop {
            self.consumer.heartbeat.beat();
            let alone = part.items.len() == 1;
            let (wait, because) = if let Content::Unread(unread) = &part.items[0].content {
                (Wait::Schema, unread.because.clone())
            } else {
                part.tries.count += 1;
                match db::in_time(ATTEMPT_WITHIN, self.attempt(&part)).await {
                    Ok(committed) => {
                        self.committed(&part, &committed, assigned);
                        return Settled::Done;
                    }
                    // It may have been handled before, and that be the whole trouble.
                    Err(trouble) if !self.expects_repeats && trouble.may_be_a_repeat() => {
                        self.expects_repeats = true;
                        part.tries.count -= 1;
                        continue;
                    }
                    Err(Trouble::Event(nth, _)) if !alone => {
                        return Settled::Split(part.around(nth));
                    }
                    Err(Trouble::Event(_, cause)) => {
                        part.items[0].content = Content::Dead(cause);
                        continue;
                    }
                    Err(Trouble::Waiting(because)) => (Wait::All, because),
                    Err(Trouble::Database(error)) => match db::classify(&error) {
                        // A race first: the rows are there now and will be found.
                        Failure::Race if races == 0 => {
                            races += 1;
                            continue;
                        }
                        Failure::Transient => (Wait::All, error.to_string()),
                        Failure::Locked if !alone => return Settled::Split(part.singles()),
                        _ if !alone => return Settled::Split(part.halves()),
                        // A letter that is refused waits like anything else: it is not to be dropped.
                        _ if part.items[0].letter().is_some() => (Wait::All, error.to_string()),
                        Failure::Race | Failure::Refused => {
                            part.items[0].content = Content::Dead(Cause::refused(&error));
                            continue;
                        }
                        Failure::Rule => (Wait::Rule, refusal(&error)),
                        Failure::TooSlow | Failure::Locked | Failure::Mismatch => {
                            (Wait::Alone, error.to_string())
                        }
                    },
                }
            };
            if let Some(cause) = self.gives_up(&part, &wait, &because) {
                part.items[0].content = Content::Dead(cause);
                continue;
            }
            if !alone || matches!(wait, Wait::All) || !self.deferred.has_room_for(&part.items[0]) {
                return Settled::Waiting(part, because);
            }
            let Part { items, tries } = part;
            items.into_iter().for_each(|item| self.defer(item, tries, assigned, &because));
            return Settled::Done;
        }
    }

    /// Why a single event is set aside that has waited, if it is time.
    fn gives_up(&self, part: &Part<R>, wait: &Wait, because: &str) -> Option<Cause> {
        let waited = part.tries.since.elapsed();
        match (wait, &part.items[0].content) {
            (Wait::Schema, Content::Unread(unread)) if unread.is_unknown => {
                let lag_max = self.consumer.registry.lag_max;
                let is_old = waited > lag_max
                    || waited > UNKNOWN_FOR_MIN && age(&part.items[0]) > Some(lag_max)
                    || !self.deferred.has_room_for(&part.items[0]);
                is_old.then(|| Cause { kind: Kind::Undecodable, reason: because.to_string() })
            }
            (Wait::Rule, Content::Event(topic, _)) => {
                let succeeded = self.succeeded.get(topic.name);
                let others_go_on = succeeded.is_some_and(|at| *at > part.tries.since);
                let tried = part.tries.count >= REFUSED_TRIES_MIN && waited >= REFUSED_FOR_MIN;
                (others_go_on && tried)
                    .then(|| Cause { kind: Kind::Failing, reason: because.to_string() })
            }
            _ => None,
        }
    }

    /// Has an event wait by itself. Its partition's offset stays below it.
    fn defer(&mut self, item: Item<R>, tries: Tries, assigned: &Assigned, because: &str) {
        let message = &item.message;
        self.progress.defer(message.topic(), message.partition(), message.offset(), assigned);
        counter!("consumer_retries_total").increment(1);
        if tries.is_first() {
            warn!("{} waits, and others go on: {because}", place(&item));
        }
        self.deferred.defer(item, tries, assigned);
        if !tries.is_first() && self.deferred_logged_at.elapsed() > DEFERRED_LOG_INTERVAL {
            self.deferred_logged_at = Instant::now();
            if let Some(oldest) = self.deferred.oldest() {
                let (count, first) = (self.deferred.len(), place(&oldest.item));
                let waited = oldest.tries.since.elapsed();
                warn!("{count} events wait, and others go on; {first} for {waited:.0?}: {because}");
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
        let attempts = i32::try_from(part.tries.count).unwrap_or(i32::MAX);
        let mut tx = match part.items.len() {
            1 => self.session.begin_waiting(LONE_LOCK_WAIT).await?,
            _ => self.session.begin().await?,
        };
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

    /// After the commit, never before: notes up to where everything in a part's partitions was handled, which is to
    /// be stored, and counts the strikes. A letter that was there before is no strike, and an event that had its
    /// effect before ends no row of them: a topic may be read again from its beginning.
    fn committed(&mut self, part: &Part<R>, committed: &Committed, assigned: &Assigned) {
        self.strikes.retain(|topic, _| !committed.handled.contains(&**topic));
        let now = Instant::now();
        self.succeeded.extend(committed.handled.iter().map(|topic| (*topic, now)));
        let mut handled: HashMap<(&str, i32), Option<i64>> = HashMap::new();
        for Item { message, content, .. } in &part.items {
            let (topic, partition, offset) =
                (message.topic(), message.partition(), message.offset());
            let up_to = self.progress.handle(topic, partition, offset, assigned);
            handled.insert((topic, partition), up_to);
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
                Content::Event(..) | Content::Dead(_) | Content::Unread(_) => {}
            }
        }
        self.has_new_letters |= !committed.letters.is_empty();
        let offsets = &self.client.context().offsets;
        for ((topic, partition), up_to) in handled {
            let next = up_to.map(|offset| offset + 1);
            let by = assigned.by(topic, partition);
            next.into_iter().for_each(|next| offsets.handled(topic, partition, next, by));
        }
    }

    /// Where the cluster was made anew, offsets start again; its id tells the places apart.
    async fn cluster(&self) -> Result<String, Trouble> {
        let cluster = member::cluster(self.client).await;
        cluster.ok_or_else(|| Trouble::Waiting("Kafka does not tell its cluster's id".into()))
    }

    /// Pauses the consumer of every instance and waits for an operator. API and relay go on.
    async fn give_up(&mut self, reason: &str) {
        let mut backoff = BACKOFF_MIN;
        while let Err(error) = in_time(pause::pause(&self.consumer.db, reason)).await {
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

/// Which record an item is, for the log.
fn place<R: Rows>(item: &Item<R>) -> String {
    let Item { message, event_id, .. } = item;
    let event = event_id.map_or("no event id".to_string(), |id| format!("event {id}"));
    format!("{}[{}]@{} ({event})", message.topic(), message.partition(), message.offset())
}

/// How long ago a record was written, as far as its broker's clock and ours agree.
fn age<R: Rows>(item: &Item<R>) -> Option<Duration> {
    let written_at = DateTime::from_timestamp_millis(item.message.timestamp().to_millis()?)?;
    (Utc::now() - written_at).to_std().ok()
}

fn refusal(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    let Cause { reason, .. } = Cause::refused(error);
    format!("{reason} (SQLSTATE {})", code.as_deref().unwrap_or("unknown"))
}

impl<R: Rows> Part<R> {
    /// Each event by itself.
    fn singles(self) -> Vec<Part<R>> {
        let Part { items, tries } = self;
        items.into_iter().map(|item| Part { items: vec![item], tries }).collect()
    }

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
