//! The service's own database: the migrations of the chassis's tables, dedicated connections, time, retention, and what
//! the failures of a transaction mean.
//!
//! Promise: a failed transaction is retried if it may succeed later, and given up only if it never can. Code that
//! decides by the text of an error instead of `classify` breaks that promise.

pub mod clock;
pub mod connection;
pub mod lease;
pub mod login;
pub mod operator_acts;
pub mod retention;
pub mod sequences;
pub(crate) mod trusted_clock;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, PgTransaction};

/// The Postgres schema of the chassis's tables.
pub const CHASSIS_SCHEMA: &str = "chassis";

/// The versions of the migrations of the chassis that were applied.
pub const CHASSIS_VERSIONS: &str = "chassis.migrations";

/// The settings of the planner in a transaction that handles a batch.
///
/// The planner may not choose a sequential scan or a hash over a whole table. On a young table without statistics
/// it does so for an `update` from arrays and reads the table once a batch. It may not make a new plan for each
/// batch: that takes longer than a small batch, and yields the same plan. It may not compile a plan to machine
/// code: a disabled scan makes a plan seem expensive, and Postgres compiles expensive plans.
pub(crate) const PLANNER_SETTINGS: [(&str, &str); 5] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
];

/// Whether the database is read-only here, as on a standby; in an open transaction or outside of one.
pub(crate) const IS_READ_ONLY_EXPR: &str = "current_setting('transaction_read_only')::bool";

/// The migrations of the chassis's tables.
pub fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    migrator.create_schema(CHASSIS_SCHEMA);
    migrator.dangerous_set_table_name(CHASSIS_VERSIONS);
    migrator.set_ignore_missing(true);
    migrator
}

/// Begins a transaction for a batch, on a connection of the pool; loops have a
/// `DedicatedConnection`.
pub async fn begin(db: &PgPool) -> sqlx::Result<PgTransaction<'static>> {
    let planned =
        PLANNER_SETTINGS.map(|(setting, value)| format!("; set local {setting} = {value}"));
    db.begin_with(AssertSqlSafe(format!("begin{}", planned.concat()))).await
}

/// The time at which the transaction began, by the database's clock.
pub async fn now(tx: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar("select transaction_timestamp()").fetch_one(tx).await
}

/// Bounds the wait for an answer: a database that does not answer counts as unreachable.
pub async fn with_timeout<T, E: From<sqlx::Error>>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |late: tokio::time::error::Elapsed| sqlx::Error::Io(late.into()).into();
    tokio::time::timeout(timeout, answer).await.map_err(late).flatten()
}

/// What a failed transaction means for its work. All of it was rolled back, except after a commit whose connection
/// was cut: then the outcome is unknown, and a retry of the same work finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbErrorClass {
    /// The work is not the cause: wait and retry, for ever if necessary.
    Transient,
    /// A statement ran into its time limit: a smaller batch may pass, else wait.
    StatementTimeout,
    /// Another transaction held a lock for longer than the timeout: wait, and do not block other work meanwhile.
    LockTimeout,
    /// Another transaction has inserted the same key: retry, and the retry finds it.
    UniqueRace,
    /// The database refuses what the work holds, and always will.
    Permanent,
    /// The database raises an error by a rule of its own, a trigger's for instance: it may pass once that rule is
    /// changed, and it stops this work and no other.
    DatabaseRule,
    /// A statement does not fit the schema or the role has no right to it, as between a migration and its grants:
    /// wait, for ever if need be. It stops what touches the same tables and nothing else.
    SchemaMismatch,
}

/// Classes of SQLSTATE whose cause is not the work: connection (08), a plan from before a migration (0A), the state
/// of the transaction (25, 26, 40), passwords (28), the database and its schemas (3D, 3F), resources (53), locks
/// (55), an operator (57), the system (58), configuration (F0), a foreign server (HV).
const TRANSIENT_CLASSES: [&str; 14] =
    ["08", "0A", "25", "26", "28", "3D", "3F", "40", "53", "55", "57", "58", "F0", "HV"];

/// Classifies a failure by its SQLSTATE. Only failures that can never succeed are permanent: bad values (class 22),
/// broken constraints (23), and values larger than Postgres can store (54). An unknown class is a rule of the
/// database, like P0001, the code of `raise exception`.
pub fn classify(error: &sqlx::Error) -> DbErrorClass {
    match error {
        // A value that cannot be encoded now can never be.
        sqlx::Error::Encode(_) => DbErrorClass::Permanent,
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("23505") => DbErrorClass::UniqueRace,
            Some("57014") => DbErrorClass::StatementTimeout,
            Some("55P03") => DbErrorClass::LockTimeout,
            Some(code) if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => {
                DbErrorClass::Permanent
            }
            Some(code) if code.starts_with("42") => DbErrorClass::SchemaMismatch,
            // Corrupted data. XX000 is not listed: extensions without codes of their own raise it.
            Some("XX001" | "XX002" | "72000") | None => DbErrorClass::Transient,
            Some(code) if TRANSIENT_CLASSES.iter().any(|class| code.starts_with(class)) => {
                DbErrorClass::Transient
            }
            Some(_) => DbErrorClass::DatabaseRule,
        },
        _ => DbErrorClass::Transient,
    }
}
