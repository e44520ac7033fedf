//! The lease of a loop that one instance of a service runs at a time: an advisory lock on a session.
//!
//! Promise: one session has the lock. A holder that is frozen or cut off loses it within seconds, since its session ends
//! when it is idle. A holder that uses another session for its work has to expect that the next one works already.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::db::{self, login};

/// How long the session may be idle. After that Postgres assumes that its holder is frozen or cut off, and ends the
/// session and with it the lock. A holder uses the session far more often than this.
pub(crate) const SESSION_IDLE_TIMEOUT: &str = "10s";

/// How long a statement of the session may take, and so how long an abandoned one may still hold the lock.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the holder waits for a statement. A session that hangs longer is lost: Postgres has ended it, or will.
const QUERY_TIMEOUT: Duration = Duration::from_secs(8);

/// A session that has the lock, or tries to get it.
pub struct Lease {
    pub session: PgConnection,
    /// The options of the pool at that moment: once it has others, the session is outdated.
    pub(crate) opened_with: Arc<PgConnectOptions>,
    lock_id: i64,
}

impl Lease {
    /// Opens a session with these settings, which has no lock yet.
    ///
    /// # Errors
    /// Those of the database, and that it is read-only: the lock of a standby excludes no other holder.
    pub async fn open(
        db: &PgPool,
        lock_id: i64,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Lease> {
        let statement_timeout = format!("{}s", STATEMENT_TIMEOUT.as_secs());
        let of_every_lease = [
            ("idle_session_timeout", SESSION_IDLE_TIMEOUT),
            ("statement_timeout", statement_timeout.as_str()),
        ];
        let settings = of_every_lease.iter().chain(settings).copied();
        let connect = login::connect(db, |options| options.options(settings.clone()));
        let opened = with_query_timeout(connect).await.context("no session with the database")?;
        let (mut session, opened_with) = opened;
        let read_only = AssertSqlSafe(format!("select {}", db::IS_READ_ONLY_EXPR));
        let read_only = sqlx::query_scalar::<_, bool>(read_only).fetch_one(&mut session);
        ensure!(!with_query_timeout(read_only).await?, "the database is read-only");
        Ok(Lease { session, opened_with, lock_id })
    }

    /// Tries to get the lock. A session that has it gets it once more, which changes nothing when it ends.
    pub async fn try_acquire(&mut self) -> sqlx::Result<bool> {
        let locked = sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(self.lock_id);
        with_query_timeout(locked.fetch_one(&mut self.session)).await
    }

    /// Whether the login of the pool has changed since it was opened.
    pub(crate) fn is_outdated(&self, db: &PgPool) -> bool {
        !Arc::ptr_eq(&self.opened_with, &db.connect_options())
    }

    /// Ends the session and with it the lock. Closing flushes the connection, and the database may have stopped
    /// reading.
    pub async fn close(self) {
        let _ = with_query_timeout(self.session.close()).await;
    }
}

/// Bounds a statement of the session.
pub(crate) async fn with_query_timeout<T>(
    answer: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    db::with_timeout(QUERY_TIMEOUT, answer).await
}
