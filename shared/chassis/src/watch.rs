//! Lets clients wait for a change and follow it, on any replica.
//!
//! Everybody in this process who waits shares one look at the database: one statement at an
//! interval, and sooner when this process itself has committed something; while nobody waits there
//! is none. Not `LISTEN`/`NOTIFY`: a transaction that notifies takes a lock over the whole database
//! until its commit is done, so that commits would go one by one.
//!
//! Promise: whoever waits learns of an entry within about two intervals of its commit, whichever
//! replica committed it, and waiting costs the writers nothing. It is broken by a position that
//! another transaction of the same subject can still undercut.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, stream};
use metrics::{counter, gauge};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgPool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::problem::Problem;
use crate::wake::Wake;

/// Between two looks: at most, so that other replicas' commits are found, and at least, however
/// often this process commits.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_GAP: Duration = Duration::from_millis(5);

/// A look is followed by a rest of so many times its own length: however many wait, looking takes a
/// fifth of one connection's time at most.
const RESTS: u32 = 4;

/// How long a look may take; only what hangs on a connection whose other end is gone takes longer.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks that fail.
const FAILED_LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who may wait at a time. Each holds one of the [`crate::limits::Limits::connections`]; the other
/// half is left to those who don't wait.
const WAITING_MAX: usize = 512;

/// How long one stream may last; its client then goes on in the next one.
const STREAM_MAX: Duration = Duration::from_secs(300);

/// A comment is sent so often where there is nothing to tell, so that a client which is gone is
/// noticed: sooner than [`crate::limits::Limits::unread`], and than the patience of most proxies. A client
/// that has closed its sending half may still read: only its answer to the next comment tells.
const KEPT_ALIVE_EVERY: Duration = Duration::from_secs(10);

/// A proxy that buffers would hold events back until the stream ends: nginx does by default, and this header
/// is how an answer tells it not to. Others buffer what they compress.
const UNBUFFERED: [(HeaderName, &str); 2] = [
    (HeaderName::from_static("x-accel-buffering"), "no"),
    (header::CACHE_CONTROL, "no-cache, no-transform"),
];

/// When a client is to come back after a stream that ended before its subject did.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

/// An entry in the log of something that clients follow.
pub trait Entry: for<'r> FromRow<'r, PgRow> + Serialize + Send + Sync + Unpin + 'static {
    /// Reads the entries of each subject in `$1` after the position of the same place in `$2`, those
    /// of one subject in the order of their positions.
    const READ: &'static str;

    /// What it is about.
    fn subject(&self) -> Uuid;
    /// Where it stands in the log. Grows with each entry of a subject, in the order of their commits.
    fn position(&self) -> i64;
    /// Its id, the same for ever.
    fn id(&self) -> Uuid;
    /// What happened, in one word.
    fn event(&self) -> &str;
    /// Whether the subject is settled by it.
    fn is_last(&self) -> bool;
}

/// An entry as its followers read it, for the description of an API; nothing is ever made of it.
pub struct Told;

impl PartialSchema for Told {
    fn schema() -> RefOr<Schema> {
        let field = |kind: Type, description: &str| {
            ObjectBuilder::new().schema_type(kind).description(Some(description))
        };
        let id = field(Type::String, "The entry's id, which `Last-Event-ID` names to resume.");
        let retry = "Milliseconds after which to come back if the stream breaks; said once.";
        let event = ObjectBuilder::new()
            .description(Some("A server-sent event."))
            .property("id", id.format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))))
            .property("event", field(Type::String, "What happened."))
            .property("data", field(Type::String, "The entry, as JSON."))
            .property("retry", field(Type::Integer, retry).minimum(Some(0)));
        event.required("id").required("event").required("data").into()
    }
}

impl ToSchema for Told {}

/// Where clients wait for entries.
pub struct Watch<E: Entry> {
    shared: Arc<Shared<E>>,
}

struct Shared<E> {
    db: PgPool,
    wake: Arc<Wake>,
    every: Duration,
    stop: CancellationToken,
    seats: Arc<Semaphore>,
    waiting: Mutex<Waiting<E>>,
    looks: AtomicU64,
}

struct Waiting<E> {
    arrived: u64,
    each: BTreeMap<u64, Waiter<E>>,
    /// Whether somebody looks: exactly while somebody waits.
    looked_for: bool,
}

struct Waiter<E> {
    subject: Uuid,
    after: i64,
    found: oneshot::Sender<Vec<Arc<E>>>,
}

impl<E: Entry> Clone for Watch<E> {
    fn clone(&self) -> Self {
        Watch { shared: self.shared.clone() }
    }
}

impl<E: Entry> Watch<E> {
    /// Everybody who waits is released on `stop`.
    pub fn new(db: PgPool, wake: Arc<Wake>, stop: CancellationToken) -> Watch<E> {
        Watch::looking_every(LOOK_EVERY, db, wake, stop)
    }

    /// [`Watch::new`] with another interval than is promised.
    pub(crate) fn looking_every(
        every: Duration,
        db: PgPool,
        wake: Arc<Wake>,
        stop: CancellationToken,
    ) -> Watch<E> {
        let waiting = Waiting { arrived: 0, each: BTreeMap::new(), looked_for: false };
        let shared = Shared {
            db,
            wake,
            every,
            stop,
            seats: Arc::new(Semaphore::new(WAITING_MAX)),
            waiting: Mutex::new(waiting),
            looks: AtomicU64::new(0),
        };
        Watch { shared: Arc::new(shared) }
    }

    /// Waits for the last entry of a subject, for as long as `within`, or until the process stops.
    pub async fn settled(&self, subject: Uuid, within: Duration) -> Result<(), Problem> {
        let mut seat = self.seat(subject, 0)?;
        let settled = async {
            while let Some(entries) = seat.next().await {
                if entries.iter().any(|entry| entry.is_last()) {
                    return;
                }
            }
        };
        // Too late or in time: what there is by then is the caller's to read.
        let _ = timeout(within, settled).await;
        Ok(())
    }

    /// Answers with a subject's log as server-sent events: what is there already, `log`, then each
    /// entry as it is committed, up to the one that settles the subject.
    ///
    /// A client that has seen entries names the last one by its id, and gets those after it. One that
    /// has seen them all gets 204, which tells a browser not to come back.
    pub fn stream(&self, log: Vec<E>, seen: Option<Uuid>) -> Result<Response, Problem> {
        let Some(newest) = log.last() else { return Ok(StatusCode::NO_CONTENT.into_response()) };
        let (subject, newest) = (newest.subject(), newest.position());
        let first = seen.and_then(|seen| log.iter().position(|entry| entry.id() == seen));
        let first = first.map_or(0, |nth| nth + 1);
        let last = log.iter().position(E::is_last);
        if last.is_some_and(|last| last < first) {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let seat = match last {
            Some(_) => None,
            None => Some(self.seat(subject, newest)?),
        };
        let ready = log.into_iter().skip(first).map(Arc::new).collect();
        let events = Following { ready, seat, until: Instant::now() + STREAM_MAX }.events();
        let kept_alive = KeepAlive::new().interval(KEPT_ALIVE_EVERY);
        Ok((UNBUFFERED, Sse::new(events).keep_alive(kept_alive)).into_response())
    }

    fn seat(&self, subject: Uuid, after: i64) -> Result<Seat<E>, Problem> {
        let Ok(permit) = self.shared.seats.clone().try_acquire_owned() else {
            counter!("watch_refused_total").increment(1);
            return Err(Problem::unavailable("too many clients are waiting already"));
        };
        gauge!("watch_waiting").increment(1);
        Ok(Seat { watch: self.clone(), subject, after, _permit: permit })
    }

    /// Ends this watch's sessions, so that they tell the database what they did.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.shared.db.close().await;
    }

    /// How many looks there were.
    #[cfg(test)]
    pub(crate) fn looks(&self) -> u64 {
        self.shared.looks.load(Ordering::Relaxed)
    }

    /// How many wait for something to be found.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.shared.waiting().each.len()
    }
}

/// One who waits, from one entry to the next.
struct Seat<E: Entry> {
    watch: Watch<E>,
    subject: Uuid,
    after: i64,
    _permit: OwnedSemaphorePermit,
}

impl<E: Entry> Drop for Seat<E> {
    fn drop(&mut self) {
        gauge!("watch_waiting").decrement(1);
    }
}

impl<E: Entry> Seat<E> {
    /// The entries after those it answered before; `None` once the process stops.
    async fn next(&mut self) -> Option<Vec<Arc<E>>> {
        let shared = &self.watch.shared;
        let (sender, found) = oneshot::channel();
        let _waiter =
            shared.enter(Waiter { subject: self.subject, after: self.after, found: sender });
        let found = tokio::select! {
            found = found => found.ok()?,
            () = shared.stop.cancelled() => return None,
        };
        self.after = found.last().map_or(self.after, |entry| entry.position());
        Some(found)
    }
}

/// Leaves with its waiter: who has gone is not looked for.
struct Entered<'a, E> {
    shared: &'a Shared<E>,
    nth: u64,
}

impl<E> Drop for Entered<'_, E> {
    fn drop(&mut self) {
        self.shared.waiting().each.remove(&self.nth);
    }
}

impl<E> Shared<E> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<E>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Entry> Shared<E> {
    /// Adds one who waits; the first one starts the looking.
    fn enter(self: &Arc<Self>, waiter: Waiter<E>) -> Entered<'_, E> {
        let mut waiting = self.waiting();
        let nth = waiting.arrived;
        waiting.arrived += 1;
        waiting.each.insert(nth, waiter);
        if !waiting.looked_for {
            waiting.looked_for = true;
            tokio::spawn(self.clone().look_while_somebody_waits());
        }
        drop(waiting);
        Entered { shared: self, nth }
    }

    async fn look_while_somebody_waits(self: Arc<Self>) {
        let mut committed = self.wake.watchers.subscribe();
        let mut failing = false;
        while let Some((subjects, positions)) = self.sought() {
            let began = Instant::now();
            // What is committed from here on asks for another look.
            committed.mark_unchanged();
            self.looks.fetch_add(1, Ordering::Relaxed);
            counter!("watch_looks_total").increment(1);
            // Planned anew each time: a plan made while the table was small would read all of it.
            let look = sqlx::query_as(E::READ).persistent(false).bind(subjects).bind(positions);
            match timeout(LOOK_WITHIN, look.fetch_all(&self.db)).await {
                Ok(Ok(entries)) => {
                    failing = false;
                    self.hand_out(entries);
                    let rest = (began.elapsed() * RESTS).min(FAILED_LOOK_EVERY);
                    sleep(LOOK_GAP.max(rest)).await;
                    let rest = self.every.saturating_sub(began.elapsed());
                    let _ = timeout(rest, committed.changed()).await;
                }
                failed => {
                    if !failing {
                        let because = failed.map_or_else(
                            |late| late.to_string(),
                            |error| error.map_or_else(|error| error.to_string(), |_| String::new()),
                        );
                        warn!("those who wait see nothing new just now: {because}");
                    }
                    failing = true;
                    sleep(FAILED_LOOK_EVERY).await;
                }
            }
        }
    }

    /// Each subject that somebody waits for, with the position after which to look; `None` ends the
    /// looking.
    fn sought(&self) -> Option<(Vec<Uuid>, Vec<i64>)> {
        let mut waiting = self.waiting();
        if waiting.each.is_empty() {
            waiting.looked_for = false;
            return None;
        }
        let mut sought = BTreeMap::new();
        for Waiter { subject, after, .. } in waiting.each.values() {
            let first = sought.entry(*subject).or_insert(*after);
            *first = (*first).min(*after);
        }
        Some(sought.into_iter().unzip())
    }

    fn hand_out(&self, entries: Vec<E>) {
        let mut found: HashMap<Uuid, Vec<Arc<E>>> = HashMap::new();
        for entry in entries {
            found.entry(entry.subject()).or_default().push(Arc::new(entry));
        }
        if found.is_empty() {
            return;
        }
        let mut waiting = self.waiting();
        for (nth, waiter) in std::mem::take(&mut waiting.each) {
            let new = found.get(&waiter.subject).into_iter().flatten();
            let new: Vec<_> =
                new.filter(|entry| entry.position() > waiter.after).cloned().collect();
            match new.is_empty() {
                true => drop(waiting.each.insert(nth, waiter)),
                // It may have gone this moment; then nobody misses it.
                false => drop(waiter.found.send(new)),
            }
        }
    }
}

/// A stream on its way: what it can tell at once, and its seat among those who wait, unless the
/// last entry is known.
struct Following<E: Entry> {
    ready: VecDeque<Arc<E>>,
    seat: Option<Seat<E>>,
    until: Instant,
}

impl<E: Entry> Following<E> {
    fn events(self) -> impl Stream<Item = Result<sse::Event, Infallible>> + Send + 'static {
        stream::unfold((self, true), |(mut following, first): (Self, bool)| async move {
            let entry = following.next().await?;
            let event = sse::Event::default().id(entry.id().to_string()).event(entry.event());
            let event = event.json_data(&*entry).expect("entries are plain JSON");
            let event = if first { event.retry(COME_BACK_AFTER) } else { event };
            Some((Ok(event), (following, false)))
        })
    }

    async fn next(&mut self) -> Option<Arc<E>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                if entry.is_last() {
                    (self.seat, self.ready) = (None, VecDeque::new());
                }
                return Some(entry);
            }
            let new = timeout_at(self.until, self.seat.as_mut()?.next()).await;
            self.ready.extend(new.ok()??);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    #[test]
    fn whoever_waits_leaves_room_for_the_others_and_is_noticed_when_gone() {
        let limits = Limits::default();
        assert!(2 * WAITING_MAX <= limits.connections);
        assert!(KEPT_ALIVE_EVERY < limits.unread);
    }
}
