//! The connection pool of the serving role.

use std::sync::Arc;
use std::time::{Duration, Instant};

use messaging::db::{self, login};
use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, Row};

use crate::config::{Config, Secret, address};

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection is kept. A connection keeps some settings for its life: one that was opened while
/// the database was read-only stays read-only afterwards.
const CONNECTION_LIFETIME_MAX: Duration = Duration::from_secs(5 * 60);

/// The pool of the serving role. It connects when first used, so that a service starts without its
/// database.
pub fn connect(service: &str, config: &Config) -> anyhow::Result<PgPool> {
    Ok(RenewablePool::new(service, config)?.pool)
}

/// A pool whose login may change.
#[derive(Clone)]
pub(crate) struct RenewablePool {
    pub pool: PgPool,
    service: String,
    /// When the login changed last. Connections that are older are closed.
    renewed_at: Arc<Mutex<Option<Instant>>>,
}

impl RenewablePool {
    pub(crate) fn new(service: &str, config: &Config) -> anyhow::Result<RenewablePool> {
        let options = serving_options(service, &config.database_url)?;
        let renewed_at = Arc::<Mutex<Option<Instant>>>::default();
        let pool = PgPoolOptions::new()
            .max_connections(config.database_pool_size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .max_lifetime(CONNECTION_LIFETIME_MAX);
        let renewals = renewed_at.clone();
        // The pool itself pings each released connection and waits for the answer for ever: a connection whose
        // other end vanished would keep its place for as long as TCP retries, a quarter of an hour.
        let pool = pool.after_release(move |connection, kept| {
            let renewed_at = *renewals.lock();
            let is_outdated = renewed_at.is_some_and(|renewed_at| renewed_at.elapsed() < kept.age);
            Box::pin(async move {
                Ok(!is_outdated && db::with_timeout(RELEASE_TIMEOUT, is_idle(connection)).await?)
            })
        });
        let pool = pool.connect_lazy_with(options);
        Ok(RenewablePool { pool, service: service.to_owned(), renewed_at })
    }

    /// Changes the login, if one with this URL succeeds: all new connections use it, and older ones are closed,
    /// idle ones at once and others when they are released.
    pub(crate) async fn renew(&self, url: &Secret) -> anyhow::Result<()> {
        let options = serving_options(&self.service, url)?;
        let attempt: sqlx::Result<_> =
            db::with_timeout(login::CONNECT_TIMEOUT, options.connect()).await;
        let _: sqlx::Result<()> = db::with_timeout(RELEASE_TIMEOUT, attempt?.close()).await;
        self.pool.set_connect_options(options);
        *self.renewed_at.lock() = Some(Instant::now());
        let idle = (0..self.pool.num_idle()).map_while(|_| self.pool.try_acquire());
        // All are acquired before the first is released and closed.
        drop(Vec::from_iter(idle));
        Ok(())
    }
}

fn serving_options(service: &str, url: &Secret) -> anyhow::Result<PgConnectOptions> {
    // No statement, lock or forgotten transaction may block others for ever, and a backend whose client vanished
    // must release its locks: Linux alone would wait two hours.
    Ok(connect_options(service, url)?.options([
        ("statement_timeout", "5s"),
        ("lock_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        // If the client vanished while an answer was on its way, no keepalive is sent.
        ("tcp_user_timeout", "10000"),
    ]))
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
