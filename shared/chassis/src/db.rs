//! Transactions on the service's own database, and what their failures mean.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, PgTransaction};
use tracing::warn;

use crate::clock;

/// Rows deleted at a time, which is a few milliseconds of locks, and how often to look for old ones.
const PRUNED_MAX: i64 = 1_000;
const PRUNE_EVERY: Duration = Duration::from_secs(60);
const PRUNED_WITHIN: Duration = Duration::from_secs(8);

/// What the planner may not do in a transaction that handles a batch.
///
/// It may not choose a sequential scan or a hash over a whole table. On a young table without
/// statistics it does so for an `update` from arrays, reading the table once a batch: measured, that
/// halved the rate of commands.
/// Nor may it make a plan for each batch anew: that takes longer than a small batch itself, and comes
/// to the same plan. Nor compile a plan to machine code, which it would for what looks as expensive as
/// a scan that it may not choose.
pub(crate) const PLANNER: [(&str, &str); 5] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
];

/// Whether nothing can be written, in a transaction that is open or in one of its own: on a standby too.
pub(crate) const READ_ONLY: &str = "current_setting('transaction_read_only')::bool";

/// Begins a transaction for a batch, on a connection of the pool; loops have a
/// [`crate::session::Session`].
pub async fn begin(db: &PgPool) -> sqlx::Result<PgTransaction<'static>> {
    let planned = PLANNER.map(|(setting, value)| format!("; set local {setting} = {value}"));
    db.begin_with(AssertSqlSafe(format!("begin{}", planned.concat()))).await
}

/// Now, by the database's clock: when the transaction began.
pub async fn now(tx: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar("select transaction_timestamp()").fetch_one(tx).await
}

/// Waits for an answer no longer than this: a database that says nothing at all is as good as away.
pub async fn in_time<T, E: From<sqlx::Error>>(
    within: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |late: tokio::time::error::Elapsed| sqlx::Error::Io(late.into()).into();
    tokio::time::timeout(within, answer).await.map_err(late).flatten()
}

/// What a failed transaction means for the work that was in it. All of it was rolled back, except
/// after a commit that was cut: then nobody knows, and the same work run again finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not the work's fault: wait and try again, for ever if need be.
    Transient,
    /// A statement ran into its time limit: a smaller batch may pass, else wait.
    TooSlow,
    /// Somebody held a lock for longer than is waited: wait, and don't let others wait behind it.
    Locked,
    /// The same key is there already, by another transaction: start again, so that it is found.
    Race,
    /// The database refuses what the work holds, and always will.
    Refused,
    /// The database raises an error by a rule of its own, a trigger's for instance: it may pass once that rule is
    /// changed, and it stops this work and no other.
    Rule,
    /// A statement does not fit the schema or the role has no right to it, as between a migration and its grants:
    /// wait, for ever if need be. It stops what touches the same tables and nothing else.
    Mismatch,
}

impl Failure {
    /// Whether work that was taken for new may meet it only because it was done before.
    pub(crate) fn may_be_a_repeat(self) -> bool {
        matches!(self, Failure::Race | Failure::Refused)
    }
}

/// Classes of SQLSTATE that say nothing of the work: connection (08), a plan of before a migration (0A), the state
/// of the transaction (25, 26, 40), passwords (28), the database and its schemas (3D, 3F), resources (53), locks
/// (55), an operator (57), the system (58), configuration (F0), a foreign server (HV).
const TRANSIENT: [&str; 14] =
    ["08", "0A", "25", "26", "28", "3D", "3F", "40", "53", "55", "57", "58", "F0", "HV"];

/// Tells failures apart by SQLSTATE. Only what can never succeed counts as refused: class 22, bad values, 23,
/// broken constraints, and 54, larger than Postgres can hold. Classes that are not known here are rules of the
/// database's own, as P0001 is, which `raise exception` gives.
pub fn classify(error: &sqlx::Error) -> Failure {
    match error {
        // A value that does not fit its column on the way in or out never will.
        sqlx::Error::Encode(_) => Failure::Refused,
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("23505") => Failure::Race,
            Some("57014") => Failure::TooSlow,
            Some("55P03") => Failure::Locked,
            Some(code) if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => {
                Failure::Refused
            }
            Some(code) if code.starts_with("42") => Failure::Mismatch,
            // Corrupted data. XX000 is what extensions raise that give no code of their own.
            Some("XX001" | "XX002" | "72000") | None => Failure::Transient,
            Some(code) if TRANSIENT.iter().any(|class| code.starts_with(class)) => {
                Failure::Transient
            }
            Some(_) => Failure::Rule,
        },
        _ => Failure::Transient,
    }
}

/// Deletes old rows, a few at a time, for as long as the process runs. `statement` deletes at most
/// `$2` rows whose tick is below `$1`; see [`clock`].
pub(crate) async fn prune(db: PgPool, statement: &'static str, kept: Duration) {
    loop {
        match prune_some(&db, statement, kept).await {
            Ok(pruned) if pruned >= PRUNED_MAX.unsigned_abs() => tokio::task::yield_now().await,
            Ok(_) => tokio::time::sleep(PRUNE_EVERY).await,
            Err(error) => {
                warn!("old rows could not be deleted: {error}");
                tokio::time::sleep(PRUNE_EVERY).await;
            }
        }
    }
}

/// One step of [`prune`]; answers how many rows went.
pub(crate) async fn prune_some(
    db: &PgPool,
    statement: &'static str,
    kept: Duration,
) -> sqlx::Result<u64> {
    let pruned = async {
        let Some(tick) = clock::older_than(db, kept).await? else { return Ok(0) };
        // Planned anew each time: a plan for any age would expect a third of the table to be that old,
        // and read all of it.
        let statement = sqlx::query(statement).persistent(false);
        Ok(statement.bind(tick).bind(PRUNED_MAX).execute(db).await?.rows_affected())
    };
    in_time(PRUNED_WITHIN, pruned).await
}
