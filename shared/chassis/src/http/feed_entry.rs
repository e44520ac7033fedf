//! The trait that a service implements for the entries of a log that its clients follow.

use serde::Serialize;
use sqlx::FromRow;
use sqlx::postgres::PgRow;
use uuid::Uuid;

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
