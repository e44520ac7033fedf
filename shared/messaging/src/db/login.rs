//! Logging in to the database while its password may change.
//!
//! Promise: a change of the password makes no request fail. A login is tried again for as long as a connection may
//! take, and meanwhile the password is read again. A connection that is opened without [`connect`] breaks the promise.
//! The pool is the exception: the host repeats the reads that fail.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use crate::db;
use crate::flow::reload;

/// How long it may take to connect, with all attempts.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether the database refused the user or the password.
pub fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("28"))
}

/// Opens a connection beside the pool, as the pool would at this moment, with settings of its own. Returns the
/// options of the pool as well: once the pool has others, the connection is outdated.
pub async fn connect(
    db: &PgPool,
    with_settings: impl Fn(PgConnectOptions) -> PgConnectOptions,
) -> sqlx::Result<(PgConnection, Arc<PgConnectOptions>)> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        let of_pool = db.connect_options();
        let options = with_settings(of_pool.as_ref().clone());
        let left = deadline.saturating_duration_since(Instant::now());
        let connected: sqlx::Result<_> = db::with_timeout(left, options.connect()).await;
        match connected {
            Err(error)
                if is_refused(&error)
                    && Instant::now() + reload::LOGIN_RETRY_INTERVAL < deadline =>
            {
                reload::request();
                sleep(reload::LOGIN_RETRY_INTERVAL).await;
            }
            ended => return ended.map(|connection| (connection, of_pool)),
        }
    }
}
