//! A connection that a loop keeps for itself.
//!
//! A loop is at its database all the time. From the pool, its connection would be asked whether it
//! lives when it is taken, and again, and whether it is at rest, when it is given back: three of nine
//! round trips of a small batch. And each time it would be told how to plan.
//!
//! Promise: a transaction begins on a connection that has none open. It is broken by keeping one whose
//! last transaction did not end, for whatever reason: such a connection is closed, and with it the
//! transaction.

use std::io;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, PgPool, Row};

use crate::db;

/// How long it may take to connect.
const CONNECTED_WITHIN: Duration = Duration::from_secs(3);

/// How long it may take to begin a transaction.
const BEGUN_WITHIN: Duration = Duration::from_secs(2);

/// The connection of one loop, open or not.
pub(crate) struct Session {
    options: PgConnectOptions,
    at_rest: Option<PgConnection>,
}

/// A transaction of a session. Dropped without an end, as when nobody waits for it any longer, it
/// takes its connection with it.
pub(crate) struct Begun<'a> {
    /// When it began, by the database's clock.
    pub now: DateTime<Utc>,
    open: PgConnection,
    at_rest: &'a mut Option<PgConnection>,
}

impl Session {
    /// To the same database as the pool's; it connects when first used.
    pub(crate) fn of(db: &PgPool) -> Session {
        let options = db.connect_options().as_ref().clone().options(db::PLANNER);
        Session { options, at_rest: None }
    }

    /// One that waits no longer than this for a lock, as Postgres writes it: `500ms`.
    pub(crate) fn waiting_for_locks(self, wait: &'static str) -> Session {
        let options = self.options.options([("lock_timeout", wait)]);
        Session { options, ..self }
    }

    /// Begins a transaction; see [`db::PLANNER`] for how its statements are planned.
    pub(crate) async fn begin(&mut self) -> sqlx::Result<Begun<'_>> {
        self.begin_with("").await
    }

    /// Begins one that waits no longer than this for a lock.
    pub(crate) async fn begin_waiting(&mut self, wait: &'static str) -> sqlx::Result<Begun<'_>> {
        self.begin_with(&format!("SET LOCAL lock_timeout = '{wait}'; ")).await
    }

    async fn begin_with(&mut self, settings: &str) -> sqlx::Result<Begun<'_>> {
        let kept = match self.at_rest.take() {
            // A database that was started again meanwhile is found out before anything was done.
            Some(kept) => begun(kept, settings).await.ok(),
            None => None,
        };
        let (open, now) = match kept {
            Some(kept) => kept,
            None => {
                let connect = db::in_time(CONNECTED_WITHIN, self.options.connect());
                begun(connect.await?, settings).await?
            }
        };
        Ok(Begun { now, open, at_rest: &mut self.at_rest })
    }
}

/// Begins, and asks for the time in the same round trip; and whether it may write at all. On a standby it
/// may not, nor on a primary that was taken out of service, nor where the database was read-only when the
/// connection was made: for as long as that lives, as that setting counts for new ones only. There a loop
/// could begin for ever and write nothing, so that connection is given up, and the next one finds who is
/// the primary, and how it is set by then.
async fn begun(
    mut connection: PgConnection,
    settings: &str,
) -> sqlx::Result<(PgConnection, DateTime<Utc>)> {
    let begin = format!("BEGIN; {settings}SELECT transaction_timestamp(), {}", db::READ_ONLY);
    let row = db::in_time(BEGUN_WITHIN, connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(begin))))
        .await?;
    if row.try_get(1)? {
        return Err(sqlx::Error::Io(io::Error::other(
            "the database is read-only, or was when it was connected to",
        )));
    }
    let now = row.try_get(0)?;
    Ok((connection, now))
}

impl Begun<'_> {
    /// Where what was prepared in the transaction succeeded, hands both on. Otherwise rolls it
    /// back, so that its connection can be kept, and answers the error.
    pub(crate) async fn having<T, E>(self, prepared: Result<T, E>) -> Result<(Self, T), E> {
        match prepared {
            Ok(prepared) => Ok((self, prepared)),
            Err(because) => {
                let _ = self.rollback().await;
                Err(because)
            }
        }
    }

    pub(crate) async fn commit(self) -> sqlx::Result<()> {
        self.end("COMMIT").await
    }

    pub(crate) async fn rollback(self) -> sqlx::Result<()> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &'static str) -> sqlx::Result<()> {
        self.open.execute(how).await?;
        *self.at_rest = Some(self.open);
        Ok(())
    }
}

impl Deref for Begun<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.open
    }
}

impl DerefMut for Begun<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.open
    }
}
