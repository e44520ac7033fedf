//! What was published goes out again: the same events under the same ids, rebuilt from the rows that
//! record them. It repairs a broker that lost its disk, and whatever else a topic lacks.
//!
//! Promise: an event announced again is the event that was published, and after it the last record
//! of a key is as new as its row. It is broken by reading rows without locking them: a row that
//! changed before the old event reached the outbox would be followed by what it was before. What
//! subscribers handled lately, their inboxes know; what is older, the keys of their rows.
//!
//! Nothing is remembered of an announcement. Each answer says where to go on, so one that was cut
//! off is asked for again, from there or from the beginning.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Json as Answer, Router, routing::post};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use metrics::counter;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Encode, FromRow, PgPool, PgTransaction, Postgres, Type};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use crate::db;
use crate::event::{Event, Outgoing};
use crate::extract::Json;
use crate::outbox::{self, Envelope};
use crate::problem::Problem;
use crate::wake::Wake;
use crate::writes::Writes;

/// Rows locked and announced in one transaction.
const PAGE: i64 = 500;

/// How long one request goes on before it answers with where to go on.
const ASKED_WITHIN: Duration = Duration::from_secs(8);

/// While so many events wait for the relay, no more are added: the outbox is made for what is short.
const OUTBOX_MAX: i64 = 10_000;
const OUTBOX_LOOK_EVERY: Duration = Duration::from_millis(100);

/// A state row that records the ids of the events it published, and with them all that they said.
pub trait Announce: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static {
    /// What tells its rows apart, and puts them in a sequence; the default comes before all of them.
    type Key: Default + FromStr + Display + Clone + Send + Sync + Unpin + 'static;

    /// The table, and the column of the key.
    const TABLE: (&'static str, &'static str);

    /// Its key.
    fn key(&self) -> Self::Key;

    /// What it published, in the order in which that was decided. Of state, only the newest.
    fn published(&self) -> Vec<Published>;
}

/// An event as it was published.
pub struct Published {
    event_id: Uuid,
    occurred_at: DateTime<Utc>,
    event: Outgoing,
}

impl Published {
    /// An event under the id and with the time that its row recorded.
    pub fn new<E: Event>(event_id: Uuid, occurred_at: DateTime<Utc>, event: &E) -> Published {
        Published { event_id, occurred_at, event: Outgoing::of(event) }
    }
}

/// The trace of whatever is announced again under a key. Rows don't record the trace that an event
/// was published in; one made from the key keeps together what it causes, and tells it from a first
/// record, whose trace is drawn at random.
pub fn traceparent(key: &str) -> String {
    let hash = Sha256::digest(key);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("00-{}-{}-01", hex(&hash[..16]), hex(&hash[16..24]))
}

/// The rows of one kind, whatever their type; made by [`of`].
pub struct Source(Box<dyn Pages>);

/// The rows of one kind.
pub fn of<A: Announce>() -> Source
where
    A::Key: for<'q> Encode<'q, Postgres> + Type<Postgres>,
{
    Source(Box::new(Of::<A>(std::marker::PhantomData)))
}

struct Of<A>(std::marker::PhantomData<fn() -> A>);

/// Rows read and locked: the last one's key, and what they published.
struct Page {
    rows: u64,
    last: Option<String>,
    published: Vec<Published>,
}

trait Pages: Send + Sync {
    fn table(&self) -> &'static str;
    fn one<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'_>,
        key: &'a str,
    ) -> BoxFuture<'a, sqlx::Result<Page>>;
    /// The rows that come after a key, so many at a time.
    fn after<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'_>,
        key: &'a str,
    ) -> BoxFuture<'a, sqlx::Result<Page>>;
}

impl<A: Announce> Pages for Of<A>
where
    A::Key: for<'q> Encode<'q, Postgres> + Type<Postgres>,
{
    fn table(&self) -> &'static str {
        A::TABLE.0
    }

    fn one<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'_>,
        key: &'a str,
    ) -> BoxFuture<'a, sqlx::Result<Page>> {
        Box::pin(async move {
            // Another table's keys may be of another type.
            let Ok(key) = key.parse::<A::Key>() else { return Ok(page::<A>(Vec::new())) };
            let (table, column) = A::TABLE;
            let sql = format!("select * from {table} where {column} = $1 for share");
            let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(key).persistent(false);
            Ok(page::<A>(rows.fetch_all(&mut **tx).await?))
        })
    }

    fn after<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'_>,
        key: &'a str,
    ) -> BoxFuture<'a, sqlx::Result<Page>> {
        Box::pin(async move {
            let key = key.parse::<A::Key>().unwrap_or_default();
            let (table, column) = A::TABLE;
            // Locked in the order of their keys, as everywhere.
            let sql = format!(
                "select * from {table} where {column} > $1 order by {column} limit $2 for share"
            );
            let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(key).bind(PAGE).persistent(false);
            Ok(page::<A>(rows.fetch_all(&mut **tx).await?))
        })
    }
}

fn page<A: Announce>(rows: Vec<A>) -> Page {
    Page {
        rows: rows.len() as u64,
        last: rows.last().map(|row| row.key().to_string()),
        published: rows.iter().flat_map(Announce::published).collect(),
    }
}

struct Announcer {
    db: PgPool,
    wake: Arc<Wake>,
    sources: Vec<Source>,
}

/// What operators ask for: `POST /announce`.
pub fn router(db: PgPool, wake: Arc<Wake>, sources: impl IntoIterator<Item = Source>) -> Router {
    let sources = sources.into_iter().collect();
    let announcer = Arc::new(Announcer { db, wake, sources });
    Router::new().route("/announce", post(announce)).with_state(announcer)
}

/// What to announce again: everything, unless it says less.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wish {
    /// What was published under this key.
    key: Option<String>,
    /// What was decided at this time or later.
    since: Option<DateTime<Utc>>,
    /// Where an earlier answer said to go on.
    after: Option<String>,
}

/// What was announced by this request.
#[derive(Debug, Default, Serialize)]
struct Progress {
    /// Events written to the outbox.
    announced: u64,
    /// Rows gone through.
    rows: u64,
    /// Events that wait for the relay, counted up to one more than [`OUTBOX_MAX`].
    outbox: i64,
    /// Where to go on: ask again with this as `after`. None: that was all.
    next: Option<Cursor>,
}

/// A row of a table.
#[derive(Clone, Debug, PartialEq)]
struct Cursor {
    table: &'static str,
    key: String,
}

impl Display for Cursor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.table, self.key)
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

async fn announce(
    State(announcer): State<Arc<Announcer>>,
    Json(wish): Json<Wish>,
) -> Result<Answer<Progress>, Problem> {
    let since = wish.since.unwrap_or(DateTime::<Utc>::MIN_UTC);
    let progress = match (&wish.key, &wish.after) {
        (Some(key), None) => announcer.one(key, since).await?,
        (None, None) => announcer.all(announcer.sources.first().map(Source::start), since).await?,
        (None, Some(after)) => announcer.all(Some(announcer.cursor(after)?), since).await?,
        (Some(_), Some(_)) => return Err(Problem::invalid("after", "a key is announced at once")),
    };
    Ok(Answer(progress))
}

impl Announcer {
    async fn one(&self, key: &str, since: DateTime<Utc>) -> Result<Progress, Problem> {
        let mut progress = Progress::default();
        for source in &self.sources {
            let said = async {
                let mut tx = db::begin(&self.db).await?;
                let page = source.0.one(&mut tx, key).await?;
                self.write(tx, page, since, &mut progress).await
            };
            let said: Result<(), Problem> = said.await;
            // What another table had of this key is on its way.
            said.map_err(
                |problem| if progress.rows > 0 { Problem::cut(problem) } else { problem },
            )?;
        }
        if progress.rows == 0 {
            return Err(Problem::not_found("nothing was published under this key"));
        }
        progress.outbox = self.waiting().await.map_err(Problem::cut)?;
        Ok(progress)
    }

    /// Goes on until everything is announced or the request's time is up. Where it fails after some was
    /// announced, the answer is how far it came: to go on from there says the last page again, at worst.
    async fn all(&self, from: Option<Cursor>, since: DateTime<Utc>) -> Result<Progress, Problem> {
        let mut progress = Progress { next: from, ..Progress::default() };
        match self.go_on(since, &mut progress).await {
            Err(problem) if progress.rows == 0 => Err(problem),
            Err(problem) => {
                warn!("not all could be announced: {problem:?}");
                Ok(progress)
            }
            Ok(()) => Ok(progress),
        }
    }

    async fn go_on(&self, since: DateTime<Utc>, progress: &mut Progress) -> Result<(), Problem> {
        let until = Instant::now() + ASKED_WITHIN;
        while let Some(cursor) = progress.next.clone() {
            progress.outbox = self.waiting().await?;
            if Instant::now() > until {
                break;
            }
            if progress.outbox > OUTBOX_MAX {
                tokio::time::sleep(OUTBOX_LOOK_EVERY).await;
                continue;
            }
            let nth = self.nth(cursor.table).unwrap_or(self.sources.len());
            let Some(source) = self.sources.get(nth) else { break };
            let mut tx = db::begin(&self.db).await?;
            let page = source.0.after(&mut tx, &cursor.key).await?;
            let last = page.last.clone().filter(|_| page.rows == PAGE as u64);
            self.write(tx, page, since, progress).await?;
            progress.next = match last {
                Some(key) => Some(Cursor { key, ..cursor }),
                None => self.sources.get(nth + 1).map(Source::start),
            };
        }
        Ok(())
    }

    /// The rows are locked since they were read; whatever changes them waits for the commit, and
    /// what it publishes comes later.
    async fn write(
        &self,
        mut tx: PgTransaction<'static>,
        page: Page,
        since: DateTime<Utc>,
        progress: &mut Progress,
    ) -> Result<(), Problem> {
        let published = page.published.into_iter().filter(|said| said.occurred_at >= since);
        let envelopes: Vec<Envelope> = published
            .map(|Published { event_id, occurred_at, event }| {
                let traceparent = Some(traceparent(&event.key));
                Envelope { event, event_id, traceparent, cause: None, occurred_at }
            })
            .collect();
        let mut writes = Writes::of(&mut tx);
        outbox::publish(&mut writes, &envelopes);
        writes.run().await?;
        tx.commit().await.map_err(Problem::cut)?;
        self.wake.relay.notify_one();
        counter!("events_announced_total").increment(envelopes.len() as u64);
        progress.announced += envelopes.len() as u64;
        progress.rows += page.rows;
        Ok(())
    }

    async fn waiting(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar("select count(*) from (select from outbox limit $1) as waiting")
            .bind(OUTBOX_MAX + 1)
            .fetch_one(&self.db)
            .await
    }

    fn nth(&self, table: &str) -> Option<usize> {
        self.sources.iter().position(|source| source.0.table() == table)
    }

    fn cursor(&self, after: &str) -> Result<Cursor, Problem> {
        let nowhere = || Problem::invalid("after", "is not what an answer said as `next`");
        let (table, key) = after.split_once('/').ok_or_else(nowhere)?;
        let table = self.sources[self.nth(table).ok_or_else(nowhere)?].0.table();
        Ok(Cursor { table, key: key.to_string() })
    }
}

impl Source {
    fn start(&self) -> Cursor {
        Cursor { table: self.0.table(), key: String::new() }
    }
}
