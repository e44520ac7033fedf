//! The rows from which events are republished.

use std::fmt::Display;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Encode, FromRow, PgTransaction, Postgres, Type};
use uuid::Uuid;

use crate::event::{Event, Outgoing};

/// Rows that are locked and republished in one transaction.
pub(super) const PAGE_ROWS: i64 = 500;

/// A row that records the ids of the events that it published, and everything that they contained.
pub trait Republish: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static {
    /// The key of its rows, which orders them; the default is less than every key.
    type Key: Default + FromStr + Display + Clone + Send + Sync + Unpin + 'static;

    /// The table, and the column of its key.
    const TABLE: (&'static str, &'static str);

    /// Its key.
    fn key(&self) -> Self::Key;

    /// The events that it published, in the order of their decisions; for a topic of state, the newest only.
    fn published_events(&self) -> Vec<PublishedEvent>;
}

/// An event as it was published.
pub struct PublishedEvent {
    pub(super) event_id: Uuid,
    pub(super) occurred_at: DateTime<Utc>,
    pub(super) event: Outgoing,
}

impl PublishedEvent {
    /// An event under the id and with the time that its row recorded.
    pub fn new<E: Event>(event_id: Uuid, occurred_at: DateTime<Utc>, event: &E) -> PublishedEvent {
        PublishedEvent { event_id, occurred_at, event: Outgoing::from_event(event) }
    }
}

/// The trace of the events that are republished under a key. Rows do not record the trace in which an event was
/// published. A trace id derived from the key keeps together everything that it causes, and distinguishes it
/// from a first record, whose trace id is random.
pub fn traceparent(key: &str) -> String {
    let hash = Sha256::digest(key);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("00-{}-{}-01", hex(&hash[..16]), hex(&hash[16..24]))
}

/// The rows of one kind, whatever their type; made by [`source`].
pub struct RepublishSource(pub(super) Box<dyn SourceRows>);

/// The rows of one kind.
pub fn source<A: Republish>() -> RepublishSource
where
    A::Key: for<'q> Encode<'q, Postgres> + Type<Postgres>,
{
    RepublishSource(Box::new(TableSource::<A>(std::marker::PhantomData)))
}

struct TableSource<A>(std::marker::PhantomData<fn() -> A>);

/// Rows that are read and locked: the last one's key, and the events that they published.
pub(super) struct SourcePage {
    pub rows: u64,
    pub last: Option<String>,
    pub events: Vec<PublishedEvent>,
}

pub(super) trait SourceRows: Send + Sync {
    fn table(&self) -> &'static str;
    fn rows_with_key<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'_>,
        key: &'a str,
    ) -> BoxFuture<'a, sqlx::Result<SourcePage>>;
    /// The next page of rows after a key.
    fn rows_after<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'_>,
        key: &'a str,
    ) -> BoxFuture<'a, sqlx::Result<SourcePage>>;
}

impl<A: Republish> SourceRows for TableSource<A>
where
    A::Key: for<'q> Encode<'q, Postgres> + Type<Postgres>,
{
    fn table(&self) -> &'static str {
        A::TABLE.0
    }

    fn rows_with_key<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'_>,
        key: &'a str,
    ) -> BoxFuture<'a, sqlx::Result<SourcePage>> {
        Box::pin(async move {
            // Another table's keys may be of another type.
            let Ok(key) = key.parse::<A::Key>() else { return Ok(to_page::<A>(Vec::new())) };
            let (table, column) = A::TABLE;
            let sql = format!("select * from {table} where {column} = $1 for share");
            let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(key).persistent(false);
            Ok(to_page::<A>(rows.fetch_all(&mut **tx).await?))
        })
    }

    fn rows_after<'a>(
        &'a self,
        tx: &'a mut PgTransaction<'_>,
        key: &'a str,
    ) -> BoxFuture<'a, sqlx::Result<SourcePage>> {
        Box::pin(async move {
            let key = key.parse::<A::Key>().unwrap_or_default();
            let (table, column) = A::TABLE;
            // Locked in the order of their keys, as everywhere.
            let sql = format!(
                "select * from {table} where {column} > $1 order by {column} limit $2 for share"
            );
            let rows =
                sqlx::query_as(AssertSqlSafe(sql)).bind(key).bind(PAGE_ROWS).persistent(false);
            Ok(to_page::<A>(rows.fetch_all(&mut **tx).await?))
        })
    }
}

fn to_page<A: Republish>(rows: Vec<A>) -> SourcePage {
    SourcePage {
        rows: rows.len() as u64,
        last: rows.last().map(|row| row.key().to_string()),
        events: rows.iter().flat_map(Republish::published_events).collect(),
    }
}
