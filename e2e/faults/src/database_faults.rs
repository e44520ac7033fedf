//! Faults inside a service's database: by its superuser, and by signals to single processes of it.
//! Some concern the tables of the chassis: the outbox, the dead letters and the lock of the relay.
//! Each function takes the name of a service, and fails if the stack has no such service or its database does not respond.

use std::time::Duration;

use anyhow::{Context, Result};
use launcher::Stack;
use launcher::proc_fs::ProcessIdentity;
use launcher::process::{self, Signal};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::sleep;

/// A connection as the superuser of a service's database.
pub async fn connect_as_superuser(stack: &Stack, service: &str) -> Result<PgConnection> {
    let url = stack.database_url(service)?;
    connect(&url).await.with_context(|| format!("the database of {service}"))
}

async fn connect(url: &str) -> Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging().connect().await?)
}

/// Runs statements as the superuser of a service's database.
pub async fn execute(stack: &Stack, service: &str, statements: &[&'static str]) -> Result<()> {
    let mut db = connect_as_superuser(stack, service).await?;
    for statement in statements {
        sqlx::query(*statement).execute(&mut db).await?;
    }
    Ok(())
}

/// Makes the database read-only, or writable again; open sessions are affected as well.
pub async fn set_read_only(stack: &Stack, service: &str, is_read_only: bool) -> Result<()> {
    let set = match is_read_only {
        true => "alter system set default_transaction_read_only = on",
        false => "alter system reset default_transaction_read_only",
    };
    execute(stack, service, &[set, "select pg_reload_conf()"]).await
}

/// Makes every commit wait for a standby that does not exist, or ends that.
pub async fn set_absent_standby(stack: &Stack, service: &str, waits: bool) -> Result<()> {
    let set = match waits {
        true => "alter system set synchronous_standby_names = 'absent'",
        false => "alter system reset synchronous_standby_names",
    };
    execute(stack, service, &[set, "select pg_reload_conf()"]).await
}

/// Sets every sequence back to its start, as after a failover to a standby that had not received
/// them.
pub async fn reset_sequences(stack: &Stack, service: &str) -> Result<()> {
    let back = "select setval(oid::regclass, 1, false) from pg_class where relkind = 'S'";
    execute(stack, service, &[back]).await
}

/// SIGKILL to one backend of the service, or of the database itself if the service is stopped. The
/// postmaster then ends all backends, and recovers.
pub async fn kill_backend(stack: &Stack, service: &str) -> Result<()> {
    let mut db = connect_as_superuser(stack, service).await?;
    let backend: i32 = sqlx::query_scalar(
        "select pid from pg_stat_activity
         where usename = $1 or backend_type = 'walwriter'
         order by backend_type, backend_start limit 1",
    )
    .bind(service)
    .fetch_one(&mut db)
    .await
    .context("a backend of the service")?;
    process::send_signal(Signal::KILL, &[ProcessIdentity::from_pid(u32::try_from(backend)?)])
}

/// Ends every session of the service.
pub async fn terminate_sessions(stack: &Stack, service: &str) -> Result<u64> {
    let ended = "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1";
    let mut db = connect_as_superuser(stack, service).await?;
    Ok(sqlx::query(ended).bind(service).fetch_all(&mut db).await?.len() as u64)
}

/// Ends the session that holds the lock of the active relay.
pub async fn terminate_relay_session(stack: &Stack, service: &str) -> Result<u64> {
    // The lock of the relay has one 64-bit key, shown as two halves; an operator's discard holds
    // another key.
    let ended = "select pg_terminate_backend(pid) from pg_locks
                 where locktype = 'advisory' and granted and (classid, objid) = (0x72, 0x656c6179)
                   and database = (select oid from pg_database where datname = current_database())";
    let mut db = connect_as_superuser(stack, service).await?;
    Ok(sqlx::query(ended).fetch_all(&mut db).await?.len() as u64)
}

/// Locks a table that every transaction writes, as a migration does.
pub async fn lock_outbox(stack: &Stack, service: &str, lasting: Duration) -> Result<()> {
    let lock = ["begin", "lock table chassis.outbox in access exclusive mode"];
    hold_open(stack, service, lock, lasting).await
}

/// Holds a snapshot, so that vacuum cannot remove younger dead rows.
pub async fn hold_snapshot(stack: &Stack, service: &str, lasting: Duration) -> Result<()> {
    let read = ["begin isolation level repeatable read", "select count(*) from chassis.outbox"];
    hold_open(stack, service, read, lasting).await
}

/// Begins a transaction with a statement, and rolls it back after a while.
async fn hold_open(
    stack: &Stack,
    service: &str,
    [begin, statement]: [&'static str; 2],
    lasting: Duration,
) -> Result<()> {
    let mut db = connect_as_superuser(stack, service).await?;
    let mut tx = db.begin_with(begin).await?;
    sqlx::query(statement).execute(&mut *tx).await?;
    sleep(lasting).await;
    tx.rollback().await.context("the transaction was lost before its time")
}

/// The number of sessions of a service that wait for a lock.
pub async fn count_lock_waiters(stack: &Stack, service: &str) -> Result<i64> {
    let waiters =
        "select count(*) from pg_stat_activity where usename = $1 and wait_event_type = 'Lock'";
    count(stack, service, waiters, service).await
}

/// The number of sessions of a service in its database.
pub async fn count_sessions(stack: &Stack, service: &str) -> Result<i64> {
    let sessions = "select count(*) from pg_stat_activity where usename = $1";
    count(stack, service, sessions, service).await
}

/// The number of dead letters of a kind that wait for an operator.
pub async fn count_dead_letters(stack: &Stack, service: &str, kind: &str) -> Result<i64> {
    let waiting = "select count(*) from chassis.dead_letters where kind = $1 and state = 'waiting'";
    count(stack, service, waiting, kind).await
}

/// The number of events in a service's outbox.
pub async fn count_outbox_rows(stack: &Stack, service: &str) -> Result<i64> {
    let mut db = connect_as_superuser(stack, service).await?;
    Ok(sqlx::query_scalar("select count(*) from chassis.outbox").fetch_one(&mut db).await?)
}

async fn count(stack: &Stack, service: &str, query: &'static str, of: &str) -> Result<i64> {
    let mut db = connect_as_superuser(stack, service).await?;
    Ok(sqlx::query_scalar(query).bind(of).fetch_one(&mut db).await?)
}

/// Commits a transaction without changes, in a session of its own.
pub async fn commit_nothing(stack: &Stack, service: &str) -> Result<()> {
    commit_nothing_at(&stack.database_url(service)?).await
}

/// The same, by the address of the database.
pub async fn commit_nothing_at(url: &str) -> Result<()> {
    let message = "select pg_logical_emit_message(true, 'e2e', '')";
    sqlx::query(message).execute(&mut connect(url).await?).await?;
    Ok(())
}
