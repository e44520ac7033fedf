//! A dedicated connection, which a loop keeps for itself.
//!
//! A loop uses its database all the time. The pool would check a connection when it is acquired, check it twice
//! when it is released, and set the planner each time: a large part of the round trips of a small batch.
//!
//! Promise: a transaction begins on a connection without an open transaction. Keeping a connection whose last
//! transaction did not end breaks that promise; such a connection is closed, and its transaction with it.
//!
//! A commit that gets no answer, as while it waits for a standby that is gone, keeps its session in the database after
//! its connection is closed here. So the number of such sessions is bounded: see `HUNG_COMMITS_MAX`.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row};

use crate::db::{self, login};

/// How long it may take to begin a transaction.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take to close a connection whose login is outdated.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// After so many commits of the service without an answer, its loops begin no further one until some have ended. Each
/// loop may have found one fewer.
const HUNG_COMMITS_MAX: i64 = 4;

/// The commits of all sessions of this role that have had no answer for a second, whatever instance began them.
const COUNT_HUNG_COMMITS: &str = "select count(*) from pg_stat_activity \
     where datname = current_database() and usename = current_user \
     and state = 'active' and query = 'COMMIT' and state_change < clock_timestamp() - interval '1 second'";

/// The connection of one loop, open or not.
pub struct DedicatedConnection {
    db: PgPool,
    lock_timeout: Option<&'static str>,
    /// The options of the pool with which the kept connection was opened.
    opened_with: Arc<PgConnectOptions>,
    idle: Option<PgConnection>,
    /// Whether a commit got no answer, so that it may wait in the database still.
    had_hung_commit: bool,
}

/// A transaction on a dedicated connection. If it is dropped without an end, as when its future is cancelled, its
/// connection is closed.
pub struct DedicatedTransaction<'a> {
    /// When it began, by the database's clock.
    pub now: DateTime<Utc>,
    connection: PgConnection,
    idle: &'a mut Option<PgConnection>,
    had_hung_commit: &'a mut bool,
}

impl DedicatedConnection {
    /// A connection to the database of the pool. It connects when first used.
    pub fn new(db: &PgPool) -> DedicatedConnection {
        let (db, opened_with) = (db.clone(), db.connect_options());
        DedicatedConnection {
            db,
            lock_timeout: None,
            opened_with,
            idle: None,
            had_hung_commit: false,
        }
    }

    /// The same, with a limit on the wait for a lock, in the form of Postgres: `500ms`.
    pub(crate) fn with_lock_timeout(self, timeout: &'static str) -> DedicatedConnection {
        DedicatedConnection { lock_timeout: Some(timeout), ..self }
    }

    /// Closes the kept connection if the login of the pool has changed since it was opened.
    pub(crate) async fn close_if_outdated(&mut self) {
        if !Arc::ptr_eq(&self.opened_with, &self.db.connect_options())
            && let Some(outdated) = self.idle.take()
        {
            let _ = db::with_timeout(CLOSE_TIMEOUT, outdated.close()).await;
        }
    }

    async fn connect(&mut self) -> sqlx::Result<PgConnection> {
        let lock_timeout = self.lock_timeout.map(|timeout| ("lock_timeout", timeout));
        let with_settings =
            |options: PgConnectOptions| options.options(db::PLANNER_SETTINGS).options(lock_timeout);
        let (connection, opened_with) = login::connect(&self.db, with_settings).await?;
        self.opened_with = opened_with;
        Ok(connection)
    }

    /// Begins a transaction; see [`db::PLANNER_SETTINGS`] for how its statements are planned.
    pub async fn begin(&mut self) -> sqlx::Result<DedicatedTransaction<'_>> {
        self.begin_with_settings("").await
    }

    /// Begins a transaction with a limit on the wait for a lock.
    pub(crate) async fn begin_with_lock_timeout(
        &mut self,
        timeout: &'static str,
    ) -> sqlx::Result<DedicatedTransaction<'_>> {
        self.begin_with_settings(&format!("SET LOCAL lock_timeout = '{timeout}'; ")).await
    }

    async fn begin_with_settings(
        &mut self,
        settings: &str,
    ) -> sqlx::Result<DedicatedTransaction<'_>> {
        self.close_if_outdated().await;
        let kept = match self.idle.take() {
            // If the database was restarted meanwhile, this fails before any work is done.
            Some(kept) => begin_on(kept, settings).await.ok(),
            None => None,
        };
        let (connection, now) = match kept {
            Some(kept) => kept,
            None => {
                let connection = self.connect().await?;
                begin_on(connection, settings).await?
            }
        };
        let (idle, had_hung_commit) = (&mut self.idle, &mut self.had_hung_commit);
        Ok(DedicatedTransaction { now, connection, idle, had_hung_commit })
    }

    /// Whether a commit got no answer on this connection, since the last check found none.
    pub(crate) fn had_hung_commit(&self) -> bool {
        self.had_hung_commit
    }

    /// Whether commits of the service wait in the database now. A database that cannot tell has none.
    pub(crate) async fn has_hung_commits(&mut self) -> bool {
        let count = async {
            let mut tx = self.begin().await?;
            let count = count_hung_commits(&mut tx).await;
            let (tx, count) = tx.keep_or_rollback(count).await?;
            tx.rollback().await.map(|()| count)
        };
        let count: sqlx::Result<i64> = db::with_timeout(BEGIN_TIMEOUT, count).await;
        count.is_ok_and(|count| count > 0)
    }
}

/// Begins a transaction; the same round trip reads the time, and whether the transaction may write. It may not on
/// a standby, on a primary that was taken out of service, or on a connection that was opened while the database
/// was read-only, since that setting applies to new connections only. A loop could begin there for ever and
/// write nothing. So this connection is closed, and the next one finds the primary and its setting.
async fn begin_on(
    mut connection: PgConnection,
    settings: &str,
) -> sqlx::Result<(PgConnection, DateTime<Utc>)> {
    let begin =
        format!("BEGIN; {settings}SELECT transaction_timestamp(), {}", db::IS_READ_ONLY_EXPR);
    let row =
        db::with_timeout(BEGIN_TIMEOUT, connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(begin))))
            .await?;
    if row.try_get(1)? {
        return Err(sqlx::Error::Io(io::Error::other(
            "the database is read-only, or was read-only when the connection was opened",
        )));
    }
    let now = row.try_get(0)?;
    Ok((connection, now))
}

async fn count_hung_commits(tx: &mut PgConnection) -> sqlx::Result<i64> {
    tx.fetch_one(sqlx::raw_sql(COUNT_HUNG_COMMITS)).await?.try_get(0)
}

impl<'a> DedicatedTransaction<'a> {
    /// Returns the transaction with the result that was prepared in it. After an error it rolls the transaction
    /// back, so that the connection can be kept, and returns the error.
    pub(crate) async fn keep_or_rollback<T, E>(
        self,
        prepared: Result<T, E>,
    ) -> Result<(Self, T), E> {
        match prepared {
            Ok(prepared) => Ok((self, prepared)),
            Err(error) => {
                let _ = self.rollback().await;
                Err(error)
            }
        }
    }

    /// Fails while so many commits of the service wait in the database that it may begin no further one.
    pub(crate) async fn check_hung_commits(&mut self) -> sqlx::Result<()> {
        if !*self.had_hung_commit {
            return Ok(());
        }
        let hung = count_hung_commits(self).await?;
        *self.had_hung_commit = hung > 0;
        if hung < HUNG_COMMITS_MAX {
            return Ok(());
        }
        let reason = "commits got no answer from the database, which may be waiting for a standby";
        Err(sqlx::Error::Io(io::Error::other(format!("{hung} {reason}"))))
    }

    pub async fn commit(self) -> sqlx::Result<()> {
        // It stays so if the commit fails, or the caller stops waiting for its answer.
        let had_hung_commit = std::mem::replace(self.had_hung_commit, true);
        *self.finish("COMMIT").await? = had_hung_commit;
        Ok(())
    }

    pub async fn rollback(self) -> sqlx::Result<()> {
        self.finish("ROLLBACK").await.map(drop)
    }

    async fn finish(mut self, statement: &'static str) -> sqlx::Result<&'a mut bool> {
        self.connection.execute(statement).await?;
        *self.idle = Some(self.connection);
        Ok(self.had_hung_commit)
    }
}

impl Deref for DedicatedTransaction<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for DedicatedTransaction<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}
