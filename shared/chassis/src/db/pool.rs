//! The connection pool of the serving role.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool, Row};

use crate::config::{Config, Secret, address};
use crate::db;

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection is kept. A connection keeps some settings for its life: one that was opened while
/// the database was read-only stays read-only afterwards.
const CONNECTION_LIFETIME_MAX: Duration = Duration::from_secs(5 * 60);

/// The pool of the serving role. It connects when first used, so that a service starts without its
/// database.
pub fn connect(service: &str, config: &Config) -> anyhow::Result<PgPool> {
    // No statement, lock or forgotten transaction may block others for ever, and a backend whose client vanished
    // must release its locks: Linux alone would wait two hours.
    let options = connect_options(service, &config.database_url)?.options([
        ("statement_timeout", "5s"),
        ("lock_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        // If the client vanished while an answer was on its way, no keepalive is sent.
        ("tcp_user_timeout", "10000"),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(config.database_pool_size)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .max_lifetime(CONNECTION_LIFETIME_MAX)
        // The pool itself pings each released connection and waits for the answer for ever: a connection whose
        // other end vanished would keep its place for as long as TCP retries, a quarter of an hour.
        .after_release(|connection, _| {
            Box::pin(async { db::with_timeout(RELEASE_TIMEOUT, is_idle(connection)).await })
        })
        .connect_lazy_with(options))
}

/// Whether no transaction is open on a connection. If a caller stops waiting for the answer to `begin`, the pool
/// assumes that the connection is idle although a transaction may be open on it, and the next caller would work in
/// that old transaction.
async fn is_idle(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // As one message, which is a transaction of its own if there is none.
    let query = sqlx::raw_sql("select transaction_timestamp() = statement_timestamp()");
    query.fetch_one(connection).await?.try_get(0)
}

/// The options of a connection to `url`, under the name of the service.
pub(super) fn connect_options(service: &str, url: &Secret) -> anyhow::Result<PgConnectOptions> {
    let options = address::postgres_options(url.expose()).map_err(anyhow::Error::msg)?;
    Ok(options.application_name(service))
}
