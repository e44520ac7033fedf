//! The session of the relay: it holds the lock and reads the outbox.

use sqlx::PgPool;

use crate::db::lease::Lease;

/// The advisory lock of the active relay. A lock belongs to a database, and each service has its own, so all
/// services use the same number.
const RELAY_LOCK_ID: i64 = 0x0072_656c_6179;

const SETTINGS: [(&str, &str); 6] = [
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

/// Opens the session, which has no lock yet.
///
/// # Errors
/// Those of [`Lease::open`].
pub async fn open(db: &PgPool) -> anyhow::Result<Lease> {
    Lease::open(db, RELAY_LOCK_ID, &SETTINGS).await
}
