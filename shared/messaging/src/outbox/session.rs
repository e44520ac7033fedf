//! The session of the relay: it holds the lock and reads the outbox.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::PgConnectOptions;
use sqlx::{PgConnection, PgPool};

use crate::db::login;
use crate::outbox::query::with_query_timeout;

/// How long the session of the relay may be idle. After that Postgres assumes that the relay is frozen or cut off,
/// and ends the session and with it the lock. The relay polls far more often than this.
pub(super) const SESSION_IDLE_TIMEOUT: &str = "10s";

/// How long a statement of the session may take, and so how long an abandoned one may still hold the lock.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn open(db: &PgPool) -> anyhow::Result<(PgConnection, Arc<PgConnectOptions>)> {
    let statement_timeout = format!("{}s", STATEMENT_TIMEOUT.as_secs());
    let settings = [
        ("idle_session_timeout", SESSION_IDLE_TIMEOUT),
        // Polls may take longer than other statements of the service.
        ("statement_timeout", statement_timeout.as_str()),
        // A poll has one plan. Postgres would plan each poll if it estimated that to be cheaper, and planning
        // is a large part of a poll for a single event.
        ("plan_cache_mode", "force_generic_plan"),
        ("jit", "off"),
        // While a topic backs off, rows are joined by a hash of their keys. A nested loop, which the planner
        // estimates to be cheaper, needs time in proportion to the product of both sides.
        ("enable_nestloop", "off"),
        ("enable_mergejoin", "off"),
        // An index scan marks dead rows as it reads. A bitmap scan would fetch every row that was deleted since
        // the last vacuum, at each poll.
        ("enable_bitmapscan", "off"),
        ("enable_seqscan", "off"),
    ];
    with_query_timeout(login::connect(db, |options| options.options(settings)))
        .await
        .context("no session with the database")
}
