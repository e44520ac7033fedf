//! The erasure of a person: the person's id is replaced by another one in every column that may contain it.
//!
//! Promise: after `erase` and `end`, no table of the service contains the id, and nothing links it to its
//! replacement. A column that may contain the id and that no comment declares as `personal` breaks the promise: then
//! `erase` finds the id there, changes nothing, and names the column.
//!
//! `erase` runs in one service after the other, and `end` when all have replaced the id. In between, no row of the
//! person is added to any of them. An event from before the erasure therefore meets rows from before it, and an event
//! from after it meets rows from after it: the id then belongs to a new person.

mod columns;

use std::time::Duration;

use anyhow::{Context, bail};
use messaging::db::DbErrorClass;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::config::Config;
use crate::db::erasure::columns::{Ids, PersonalColumn};
use crate::db::migrate::{connect_with_retry, is_caused_by, owner_options};

const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// For how long a transaction is retried that others get in the way of.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// Whose id is replaced, and by what. It is read from standard input, so that no list of processes shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErasureRequest {
    /// The id that is erased.
    pub person_id: Uuid,
    /// An id that no service has seen, the same one for all services.
    pub replacement_id: Uuid,
    /// Who asks for it.
    pub actor: Option<String>,
}

/// What was erased in one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// The replacement. It is another one than the requested one, if an earlier run has begun with that.
    pub replacement_id: Uuid,
    /// The number of values that were changed.
    pub replaced: u64,
}

/// Replaces the id in all declared columns of the chassis and of the service, in one transaction. From then on and until
/// [`end`], no row of the person is added. Safe to run twice: the second run finds nothing.
///
/// # Errors
/// If the service's function `erasure_obstacle` names an obstacle, or the id is in a column that is not declared. Then
/// nothing was changed.
pub(crate) async fn erase(
    service: &str,
    config: &Config,
    request: &ErasureRequest,
) -> anyhow::Result<Erasure> {
    let is_replaced = request.person_id != request.replacement_id;
    anyhow::ensure!(is_replaced, "the replacement is the id itself");
    let owner = owner_options(service, config)?;
    let replacement_id = retry(async || hold(&owner, request).await).await?;
    let request = ErasureRequest { replacement_id, ..request.clone() };
    match retry(async || replace(&owner, &request).await).await {
        Ok(replaced) => Ok(Erasure { replacement_id, replaced }),
        Err(error) if error.is::<Refused>() => {
            end(service, config, &request).await?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Ends an erasure: rows with the id may be added again, as those of a new person. Safe to run twice.
///
/// # Errors
/// If the database cannot be reached, or a table is in use for a minute.
pub(crate) async fn end(
    service: &str,
    config: &Config,
    request: &ErasureRequest,
) -> anyhow::Result<()> {
    let owner = owner_options(service, config)?;
    retry(async || release(&owner, request.person_id).await).await
}

/// Why nothing was erased.
#[derive(Debug, thiserror::Error)]
#[error("nothing was erased: {0}")]
struct Refused(String);

/// Retries a transaction that failed because of another one.
async fn retry<T>(mut attempt: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + RETRY_TIMEOUT;
    let passing = [DbErrorClass::Transient, DbErrorClass::LockTimeout];
    loop {
        match attempt().await {
            Err(error) if is_caused_by(&error, &passing) && Instant::now() < deadline => {
                sleep(RETRY_INTERVAL).await;
            }
            ended => return ended,
        }
    }
}

/// The triggers that keep rows of the person from being added, as statements.
const HOLD_STATEMENTS: &str = "
    select format('create or replace trigger %I before insert on %s for each row
                   execute function chassis.wait_for_erasure(%L)',
                  'erasure_' || attname, attrelid::regclass, attname)
    from pg_attribute join pg_class on pg_class.oid = attrelid
    where relkind in ('r', 'p') and not relispartition and relnamespace = current_schema()::regnamespace
      and atttypid = 'uuid'::regtype and col_description(attrelid, attnum) like 'personal%'";

const RELEASE_STATEMENTS: &str = "
    select format('drop trigger %I on %s', tgname, tgrelid::regclass)
    from pg_trigger where tgfoid = 'chassis.wait_for_erasure'::regproc and tgparentid = 0";

/// Records that the erasure has begun. Returns its replacement, which is that of an unfinished earlier run, if there
/// is one. A transaction that adds rows of the person has ended or fails from then on.
async fn hold(owner: &PgConnectOptions, request: &ErasureRequest) -> anyhow::Result<Uuid> {
    let mut db = connect_with_retry(owner).await?;
    let mut tx = db.begin().await?;
    serialize(&mut tx).await?;
    sqlx::query(
        "insert into chassis.unfinished_erasures (person_id, replacement_id) values ($1, $2)
         on conflict do nothing",
    )
    .bind(request.person_id)
    .bind(request.replacement_id)
    .execute(&mut *tx)
    .await?;
    let replacement_id = sqlx::query_scalar(
        "select replacement_id from chassis.unfinished_erasures where person_id = $1",
    )
    .bind(request.person_id)
    .fetch_one(&mut *tx)
    .await?;
    execute_all(&mut tx, HOLD_STATEMENTS).await?;
    tx.commit().await?;
    Ok(replacement_id)
}

/// The last erasure that ends removes the triggers.
async fn release(owner: &PgConnectOptions, person_id: Uuid) -> anyhow::Result<()> {
    let mut db = connect_with_retry(owner).await?;
    let mut tx = db.begin().await?;
    serialize(&mut tx).await?;
    sqlx::query("delete from chassis.unfinished_erasures where person_id = $1")
        .bind(person_id)
        .execute(&mut *tx)
        .await?;
    let others = "select count(*) from chassis.unfinished_erasures";
    if sqlx::query_scalar::<_, i64>(others).fetch_one(&mut *tx).await? == 0 {
        execute_all(&mut tx, RELEASE_STATEMENTS).await?;
    }
    Ok(tx.commit().await?)
}

/// Erasures of one service begin and end one after the other.
async fn serialize(tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtext('erasures'))").execute(tx).await?;
    Ok(())
}

/// Executes the statements that a query returns.
async fn execute_all(tx: &mut PgConnection, query: &'static str) -> sqlx::Result<()> {
    let statements: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut *tx).await?;
    sqlx::raw_sql(AssertSqlSafe(statements.join(";"))).execute(tx).await?;
    Ok(())
}

/// One transaction with one snapshot: it sees a row in every table or in none, whatever the service writes meanwhile. A
/// row that changes meanwhile fails it, and it is retried.
async fn replace(owner: &PgConnectOptions, request: &ErasureRequest) -> anyhow::Result<u64> {
    let mut db = connect_with_retry(owner).await?;
    let mut tx = db.begin_with("begin isolation level repeatable read").await?;
    sqlx::query("set constraints all deferred").execute(&mut *tx).await?;
    let is_replacement = "select exists (select from chassis.erasures where replacement_id = $1)";
    if sqlx::query_scalar(is_replacement).bind(request.person_id).fetch_one(&mut *tx).await? {
        bail!(Refused("the id is a replacement itself".into()));
    }
    if let Some(obstacle) = find_obstacle(&mut tx, request.person_id).await? {
        bail!(Refused(obstacle));
    }
    let ids = Ids::new(request.person_id, request.replacement_id);
    let mut replaced = 0;
    for column in PersonalColumn::all(&mut tx).await? {
        let PersonalColumn { table, column: name, .. } = &column;
        let changed = column.replace(&mut tx, &ids).await;
        replaced += changed.with_context(|| format!("{table}.{name} cannot be changed"))?;
    }
    if let Some(column) = columns::find_remaining(&mut tx, &ids).await? {
        bail!(Refused(format!(
            "the id is in {column} as well, which no comment declares as personal"
        )));
    }
    if replaced > 0 {
        close_keys(&mut tx, request.replacement_id).await?;
        sqlx::query(
            "insert into chassis.erasures (replacement_id, actor) values ($1, $2)
             on conflict (replacement_id) do nothing",
        )
        .bind(request.replacement_id)
        .bind(&request.actor)
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(replaced)
}

/// What the service says against the erasure, if it has the function for it.
async fn find_obstacle(tx: &mut PgConnection, person_id: Uuid) -> sqlx::Result<Option<String>> {
    let is_declared = "select to_regprocedure('erasure_obstacle(uuid)') is not null";
    if !sqlx::query_scalar::<_, bool>(is_declared).fetch_one(&mut *tx).await? {
        return Ok(None);
    }
    let obstacle = "select erasure_obstacle($1)";
    sqlx::query_scalar(obstacle).bind(person_id).fetch_one(tx).await
}

/// A repeated request of before the erasure is refused: its answer would show the replacement to a client that knows
/// the person. No request has an empty hash.
async fn close_keys(tx: &mut PgConnection, replacement_id: Uuid) -> sqlx::Result<()> {
    sqlx::query(
        "update chassis.idempotency_keys set request_hash = ''
         where position($1 in path) > 0 or position($1 in location) > 0
            or position(convert_to($1, 'UTF8') in body) > 0",
    )
    .bind(replacement_id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
