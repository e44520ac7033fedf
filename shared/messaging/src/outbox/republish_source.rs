//! The rows from which events are republished.

use std::fmt::Display;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use uuid::Uuid;

use crate::event::{Event, Outgoing};
use crate::unit_of_work::record::Record;

/// Rows that are locked and republished in one transaction.
pub const PAGE_ROWS: usize = 500;

/// A row that records the ids of the events that it published, and everything that they contained. Its key orders
/// the rows; the default is less than every key.
pub trait Republish:
    Record<Key: Default + FromStr + Display> + for<'r> FromRow<'r, PgRow> + Unpin
{
    /// Its events: one type, or a tuple of up to four.
    type Events: EventTypes;

    /// The events that it published, in the order of their decisions; for a topic of state, the newest only.
    fn published_events(&self) -> Vec<PublishedEvent>;

    /// All rows of the table, as a source of events to republish.
    fn source() -> RepublishSource {
        RepublishSource {
            table: Self::TABLE,
            topic_names: Self::Events::topic_names(),
            read: |tx, selection| Box::pin(read_page::<Self>(tx, selection)),
        }
    }
}

/// Types of events.
pub trait EventTypes {
    /// The names of their topics.
    fn topic_names() -> Vec<&'static str>;
}

impl<E: Event> EventTypes for E {
    fn topic_names() -> Vec<&'static str> {
        vec![E::topic().name]
    }
}

macro_rules! tuple_of_events {
    ($($event:ident),+) => {
        impl<$($event: Event),+> EventTypes for ($($event),+) {
            fn topic_names() -> Vec<&'static str> {
                vec![$($event::topic().name),+]
            }
        }
    };
}
tuple_of_events!(A, B);
tuple_of_events!(A, B, C);
tuple_of_events!(A, B, C, D);

/// An event as it was published.
pub struct PublishedEvent {
    pub event_id: Uuid,
    pub occurred_at: DateTime<Utc>,
    pub event: Outgoing,
}

impl PublishedEvent {
    /// An event under the id and with the time that its row recorded.
    pub fn new<E: Event>(event_id: Uuid, occurred_at: DateTime<Utc>, event: &E) -> PublishedEvent {
        PublishedEvent { event_id, occurred_at, event: Outgoing::from_event(event) }
    }
}

/// The rows of one table, whatever their type; made by [`Republish::source`].
pub struct RepublishSource {
    pub table: &'static str,
    pub topic_names: Vec<&'static str>,
    pub read: for<'a> fn(&'a mut PgConnection, Selection<'a>) -> BoxFuture<'a, sqlx::Result<Page>>,
}

impl RepublishSource {
    /// The names of the topics of the events of these rows.
    pub fn topic_names(&self) -> &[&'static str] {
        &self.topic_names
    }

    pub fn start(&self) -> String {
        format!("{}/", self.table)
    }
}

/// Which rows to read, by the text of a key.
#[derive(Clone, Copy)]
pub enum Selection<'a> {
    /// The row of it, locked if it may change.
    Key(&'a str),
    /// The row of it as it is now, for an answer.
    Current(&'a str),
    /// The next page after it, locked like the row of one.
    After(&'a str),
}

/// Rows that are read: the last one's key, and the events that they published.
pub struct Page {
    pub rows: usize,
    pub last: Option<String>,
    pub events: Vec<PublishedEvent>,
}

async fn read_page<R: Republish>(
    tx: &mut PgConnection,
    selection: Selection<'_>,
) -> sqlx::Result<Page> {
    let (condition, key) = match selection {
        Selection::Key(key) | Selection::Current(key) => ("=", key.parse().ok()),
        Selection::After(key) => (">", Some(key.parse().unwrap_or_default())),
    };
    let (table, column) = (R::TABLE, R::KEY);
    // Locked in the order of their keys, as everywhere. A row that never changes needs no lock.
    let is_locked = R::columns().may_change() && !matches!(selection, Selection::Current(_));
    let lock = if is_locked { "for share" } else { "" };
    let sql = format!(
        "select * from {table} where {column} {condition} $1 order by {column} limit {PAGE_ROWS} {lock}"
    );
    let rows: Vec<R> = match key {
        Some(key) => {
            let key: R::Key = key;
            let query = sqlx::query_as(AssertSqlSafe(sql)).bind(key).persistent(false);
            query.fetch_all(tx).await?
        }
        // Another table's keys may be of another type.
        None => Vec::new(),
    };
    Ok(Page {
        rows: rows.len(),
        last: rows.last().map(|row| row.key().to_string()),
        events: rows.iter().flat_map(Republish::published_events).collect(),
    })
}

/// The trace of the events that are republished under a key. Rows do not record the trace in which an event was
/// published. A trace id derived from the key keeps together everything that it causes, and distinguishes it
/// from a first record, whose trace id is random.
pub fn traceparent(key: &str) -> String {
    let hash = Sha256::digest(key);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("00-{}-{}-01", hex(&hash[..16]), hex(&hash[16..24]))
}
