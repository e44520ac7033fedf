//! The change feed: clients wait for the entries of a subject's log and follow them, on any replica.
//!
//! All subscribers of a process share one poll of the database: one statement per interval, and sooner after a
//! commit of this process. Without subscribers there is no poll. The feed does not use `LISTEN`/`NOTIFY`: a
//! transaction that notifies locks the whole database until its commit is done, so that commits would run
//! one by one.
//!
//! Promise: a subscriber gets an entry within about two intervals of its commit, whichever replica committed it,
//! and subscribers cost the writers nothing. A later commit with a lower position of the same subject breaks that
//! promise.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use messaging::db;
use messaging::flow::wakeups::Wakeups;
use metrics::{counter, gauge};
use parking_lot::Mutex;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgPool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::http::caller_shares::{CallerShares, HeldPlace};
use crate::http::callers::caller::Caller;
use crate::http::problem::Problem;

/// The time between two polls: at most, so that commits of other replicas are found, and at least, however
/// often this process commits.
const FEED_POLL_INTERVAL: Duration = Duration::from_millis(50);
const FEED_POLL_INTERVAL_MIN: Duration = Duration::from_millis(5);

/// The pause after a poll, as a multiple of the time that the poll took: however many subscribers there are,
/// polling takes a fifth of one connection's time at most.
const FEED_POLL_REST_FACTOR: u32 = 4;

/// How long a poll may take. Only a poll on a connection that has lost its peer takes longer.
const FEED_POLL_TIMEOUT: Duration = Duration::from_secs(5);

const FEED_POLL_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Subscriptions at a time, at most. Each holds one of the [`crate::http::limits::Limits::connections_max`];
/// the other half is left to requests that do not wait.
pub(super) const SUBSCRIPTIONS_MAX: usize = 512;

/// Subscriptions of one caller at a time, at most, where the service knows its callers.
const CALLER_SUBSCRIPTIONS_MAX: usize = SUBSCRIPTIONS_MAX / 8;

/// An entry in the log of a subject that clients follow.
pub trait FeedEntry:
    for<'r> FromRow<'r, PgRow> + Serialize + Send + Sync + Unpin + 'static
{
    /// Selects, for each subject in `$1`, the entries after the position at the same index in `$2`. The
    /// entries of one subject come in the order of their positions.
    const QUERY: &'static str;

    /// The subject of the entry.
    fn subject(&self) -> Uuid;
    /// The position in the log. It grows with each entry of a subject, in the order of their commits.
    fn position(&self) -> i64;
    /// The id of the entry, which never changes.
    fn id(&self) -> Uuid;
    /// The name of the event, without blanks.
    fn event(&self) -> &str;
    /// Whether it is the last entry of its subject.
    fn is_final(&self) -> bool;
}

/// The change feed of one kind of entry.
pub struct ChangeFeed<E: FeedEntry> {
    shared: Arc<Shared<E>>,
    caller: Caller,
}

struct Shared<E> {
    db: PgPool,
    wakeups: Arc<Wakeups>,
    poll_interval: Duration,
    stop: CancellationToken,
    permits: Arc<Semaphore>,
    caller_shares: CallerShares,
    subscribers: Mutex<Subscribers<E>>,
    polls: AtomicU64,
}

struct Subscribers<E> {
    next_id: u64,
    by_id: BTreeMap<u64, Subscriber<E>>,
    /// Whether the polling task runs: exactly while there are subscribers.
    is_polled: bool,
}

struct Subscriber<E> {
    subject: Uuid,
    after: i64,
    sender: oneshot::Sender<Vec<Arc<E>>>,
}

impl<E: FeedEntry> Clone for ChangeFeed<E> {
    fn clone(&self) -> Self {
        ChangeFeed { shared: self.shared.clone(), caller: self.caller.clone() }
    }
}

impl<E: FeedEntry> ChangeFeed<E> {
    /// A feed of the database `db`; `stop` ends every subscription.
    pub fn new(db: PgPool, wakeups: Arc<Wakeups>, stop: CancellationToken) -> ChangeFeed<E> {
        ChangeFeed::with_poll_interval(FEED_POLL_INTERVAL, db, wakeups, stop)
    }

    /// [`ChangeFeed::new`] with a poll interval other than the promised one.
    pub(crate) fn with_poll_interval(
        poll_interval: Duration,
        db: PgPool,
        wakeups: Arc<Wakeups>,
        stop: CancellationToken,
    ) -> ChangeFeed<E> {
        let subscribers = Subscribers { next_id: 0, by_id: BTreeMap::new(), is_polled: false };
        let shared = Arc::new(Shared {
            db,
            wakeups,
            poll_interval,
            stop,
            permits: Arc::new(Semaphore::new(SUBSCRIPTIONS_MAX)),
            caller_shares: CallerShares::default(),
            subscribers: Mutex::new(subscribers),
            polls: AtomicU64::new(0),
        });
        ChangeFeed { shared, caller: Caller::unrestricted() }
    }

    /// The same feed for the request of a caller, who may hold an eighth of all subscriptions.
    pub fn for_caller(&self, caller: &Caller) -> ChangeFeed<E> {
        ChangeFeed { shared: self.shared.clone(), caller: caller.clone() }
    }

    /// Waits for the last entry of a subject, for `wait_max` at most, or until the process stops.
    pub async fn wait_until_final(&self, subject: Uuid, wait_max: Duration) -> Result<(), Problem> {
        let mut subscription = self.subscribe(subject, 0)?;
        let final_entry = async {
            while let Some(entries) = subscription.next().await {
                if entries.iter().any(|entry| entry.is_final()) {
                    return;
                }
            }
        };
        // In time or not: the caller reads the entries that exist by then.
        let _ = timeout(wait_max, final_entry).await;
        Ok(())
    }

    pub(super) fn subscribe(&self, subject: Uuid, after: i64) -> Result<Subscription<E>, Problem> {
        let refused = |detail| {
            counter!("change_feed_refused_total").increment(1);
            Problem::unavailable(detail)
        };
        let place = self.shared.caller_shares.take(&self.caller, CALLER_SUBSCRIPTIONS_MAX);
        let place = place.ok_or_else(|| refused("too many requests of this caller are waiting"))?;
        let permit = self.shared.permits.clone().try_acquire_owned();
        let permit = permit.map_err(|_| refused("too many clients are waiting already"))?;
        gauge!("change_feed_subscribers").increment(1);
        Ok(Subscription { feed: self.clone(), subject, after, _permit: permit, _place: place })
    }

    /// Closes the connections of this feed, so that the database has their statistics.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.shared.db.close().await;
    }

    /// The number of polls so far.
    #[cfg(test)]
    pub(crate) fn polls(&self) -> u64 {
        self.shared.polls.load(Ordering::Relaxed)
    }

    /// The number of subscribers that wait for an entry.
    #[cfg(test)]
    pub(crate) fn subscriber_count(&self) -> usize {
        self.shared.subscribers.lock().by_id.len()
    }
}

pub(super) struct Subscription<E: FeedEntry> {
    feed: ChangeFeed<E>,
    subject: Uuid,
    after: i64,
    _permit: OwnedSemaphorePermit,
    _place: HeldPlace,
}

impl<E: FeedEntry> Drop for Subscription<E> {
    fn drop(&mut self) {
        gauge!("change_feed_subscribers").decrement(1);
    }
}

impl<E: FeedEntry> Subscription<E> {
    /// The entries after those that it returned before; `None` once the process stops.
    pub(super) async fn next(&mut self) -> Option<Vec<Arc<E>>> {
        let shared = &self.feed.shared;
        let (sender, found) = oneshot::channel();
        let _registration =
            shared.register(Subscriber { subject: self.subject, after: self.after, sender });
        let found = tokio::select! {
            found = found => found.ok()?,
            () = shared.stop.cancelled() => return None,
        };
        self.after = found.last().map_or(self.after, |entry| entry.position());
        Some(found)
    }
}

/// Removes its subscriber when it is dropped, so that the entries of a client that has gone are not polled.
struct Registration<'a, E> {
    shared: &'a Shared<E>,
    id: u64,
}

impl<E> Drop for Registration<'_, E> {
    fn drop(&mut self) {
        self.shared.subscribers.lock().by_id.remove(&self.id);
    }
}

impl<E: FeedEntry> Shared<E> {
    /// Adds a subscriber; the first one starts the polling task.
    fn register(self: &Arc<Self>, subscriber: Subscriber<E>) -> Registration<'_, E> {
        let mut subscribers = self.subscribers.lock();
        let id = subscribers.next_id;
        subscribers.next_id += 1;
        subscribers.by_id.insert(id, subscriber);
        if !subscribers.is_polled {
            subscribers.is_polled = true;
            tokio::spawn(self.clone().poll_while_subscribed());
        }
        drop(subscribers);
        Registration { shared: self, id }
    }

    async fn poll_while_subscribed(self: Arc<Self>) {
        let mut committed = self.wakeups.change_feed.subscribe();
        let mut failing = false;
        while let Some((subjects, positions)) = self.wanted() {
            let began = Instant::now();
            // A commit from here on needs another poll.
            committed.mark_unchanged();
            self.polls.fetch_add(1, Ordering::Relaxed);
            counter!("change_feed_polls_total").increment(1);
            // Postgres plans it each time: a plan made while the table was small would read all of it.
            let query = sqlx::query_as(E::QUERY).persistent(false).bind(subjects).bind(positions);
            match db::with_timeout(FEED_POLL_TIMEOUT, query.fetch_all(&self.db)).await {
                Ok(entries) => {
                    failing = false;
                    self.deliver(entries);
                    let rest =
                        (began.elapsed() * FEED_POLL_REST_FACTOR).min(FEED_POLL_RETRY_INTERVAL);
                    sleep(FEED_POLL_INTERVAL_MIN.max(rest)).await;
                    let rest = self.poll_interval.saturating_sub(began.elapsed());
                    let _ = timeout(rest, committed.changed()).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!("the change feed could not be polled: {error}");
                    }
                    sleep(FEED_POLL_RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Each subject that has a subscriber, with the position after which to read; `None` ends the polling task.
    fn wanted(&self) -> Option<(Vec<Uuid>, Vec<i64>)> {
        let mut subscribers = self.subscribers.lock();
        if subscribers.by_id.is_empty() {
            subscribers.is_polled = false;
            return None;
        }
        let mut wanted = BTreeMap::new();
        for Subscriber { subject, after, .. } in subscribers.by_id.values() {
            let first = wanted.entry(*subject).or_insert(*after);
            *first = (*first).min(*after);
        }
        Some(wanted.into_iter().unzip())
    }

    fn deliver(&self, entries: Vec<E>) {
        let mut found: HashMap<Uuid, Vec<Arc<E>>> = HashMap::new();
        for entry in entries {
            found.entry(entry.subject()).or_default().push(Arc::new(entry));
        }
        if found.is_empty() {
            return;
        }
        let mut subscribers = self.subscribers.lock();
        for (id, subscriber) in std::mem::take(&mut subscribers.by_id) {
            let entries = found.get(&subscriber.subject).into_iter().flatten();
            let new = entries.filter(|entry| entry.position() > subscriber.after);
            let new = Vec::from_iter(new.cloned());
            if new.is_empty() {
                subscribers.by_id.insert(id, subscriber);
            } else {
                // If the subscriber has gone at this moment, its entries are not needed.
                let _ = subscriber.sender.send(new);
            }
        }
    }
}
