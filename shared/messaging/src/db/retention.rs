//! Retention: deletes or empties rows that are older than a span of time, in small batches.

use std::time::Duration;

use sqlx::PgPool;
use tracing::warn;

use crate::db::{self, clock};

/// Rows deleted at a time, which holds locks for a few milliseconds, and how often to check for old rows.
const PRUNE_BATCH_MAX: i64 = 1_000;
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
const PRUNE_TIMEOUT: Duration = Duration::from_secs(8);

/// Deletes old rows in small batches for as long as the process runs. `statement` deletes or empties at most `$2` rows
/// whose tick is below `$1`; see [`clock`].
pub(crate) async fn prune_forever(db: PgPool, statement: &'static str, retention: Duration) {
    loop {
        let pruned = prune_batch(&db, statement, retention).await.unwrap_or_else(|error| {
            warn!("old rows could not be deleted: {error}");
            0
        });
        if pruned < PRUNE_BATCH_MAX.unsigned_abs() {
            tokio::time::sleep(PRUNE_INTERVAL).await;
        }
    }
}

pub async fn prune_batch(
    db: &PgPool,
    statement: &'static str,
    retention: Duration,
) -> sqlx::Result<u64> {
    let pruned = async {
        let Some(tick) = clock::older_than(db, retention).await? else { return Ok(0) };
        // Postgres plans it each time: a generic plan would expect a third of the table to be that old, and
        // read all of it.
        let statement = sqlx::query(statement).persistent(false);
        Ok(statement.bind(tick).bind(PRUNE_BATCH_MAX).execute(db).await?.rows_affected())
    };
    db::with_timeout(PRUNE_TIMEOUT, pruned).await
}
