//! What can be done to a service's database from within: by its superuser, and by signals to single
//! processes of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::avro::BODY_BYTES_MAX;
use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use tokio::time::sleep;

use crate::Stack;
use crate::process::{self, Identity, Signal};
use crate::readiness::connect;
use crate::topology::{Member, SERVICES};

/// The constraint of a bad migration.
pub const TOO_STRICT: &str = "too_strict";
const DROP: &str = "alter table if exists payments drop constraint if exists too_strict";

pub const DEADLINE: &str = "ORDER_DEADLINE_SECONDS";

async fn superuser(stack: &Stack, service: &str) -> Result<PgConnection> {
    let url = stack.database_url(service)?;
    connect(&url).await.with_context(|| format!("the database of {service}"))
}

async fn say(stack: &Stack, service: &str, statements: &[&'static str]) -> Result<()> {
    let mut db = superuser(stack, service).await?;
    for statement in statements {
        sqlx::query(*statement).execute(&mut db).await?;
    }
    Ok(())
}

/// From now on, or no longer, no new transaction may write; sessions that there are feel it too.
pub async fn read_only(stack: &Stack, service: &str, is_read_only: bool) -> Result<()> {
    let set = match is_read_only {
        true => "alter system set default_transaction_read_only = on",
        false => "alter system reset default_transaction_read_only",
    };
    say(stack, service, &[set, "select pg_reload_conf()"]).await
}

/// From now on, or no longer, every commit waits for a standby that there is not.
pub async fn await_absent_standby(stack: &Stack, service: &str, waits: bool) -> Result<()> {
    let set = match waits {
        true => "alter system set synchronous_standby_names = 'absent'",
        false => "alter system reset synchronous_standby_names",
    };
    say(stack, service, &[set, "select pg_reload_conf()"]).await
}

/// Sets every sequence back to its beginning, as a failover does to a copy that did not get them.
pub async fn set_sequences_back(stack: &Stack, service: &str) -> Result<()> {
    let back = "select setval(oid::regclass, 1, false) from pg_class where relkind = 'S'";
    say(stack, service, &[back]).await
}

/// SIGKILL to one backend that works for the service, or for the database itself where the service
/// is away: the postmaster ends all others, and recovers.
pub async fn kill_backend(stack: &Stack, service: &str) -> Result<()> {
    let mut db = superuser(stack, service).await?;
    let backend: i32 = sqlx::query_scalar(
        "select pid from pg_stat_activity
         where usename = $1 or backend_type = 'walwriter'
         order by backend_type, backend_start limit 1",
    )
    .bind(service)
    .fetch_one(&mut db)
    .await
    .context("a backend of the service")?;
    process::send(Signal::Kill, &[Identity::of(u32::try_from(backend)?)])
}

/// Ends every session of the service.
pub async fn end_sessions(stack: &Stack, service: &str) -> Result<u64> {
    let ended = "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1";
    let mut db = superuser(stack, service).await?;
    Ok(sqlx::query(ended).bind(service).fetch_all(&mut db).await?.len() as u64)
}

/// Ends the session that holds the lock of the active relay.
pub async fn end_relay_session(stack: &Stack, service: &str) -> Result<u64> {
    // Of a lock by one number, its two halves; an operator's discard holds one by another number.
    let ended = "select pg_terminate_backend(pid) from pg_locks
                 where locktype = 'advisory' and granted and (classid, objid) = (0x72, 0x656c6179)
                   and database = (select oid from pg_database where datname = current_database())";
    let mut db = superuser(stack, service).await?;
    Ok(sqlx::query(ended).fetch_all(&mut db).await?.len() as u64)
}

/// Locks a table that everybody writes, as a migration does.
pub async fn lock_table(stack: &Stack, service: &str, lasting: Duration) -> Result<()> {
    let mut db = superuser(stack, service).await?;
    let mut tx = db.begin().await?;
    sqlx::query("lock table outbox in access exclusive mode").execute(&mut *tx).await?;
    sleep(lasting).await;
    tx.rollback().await.context("the lock was lost before its time")
}

/// How many sessions of a service wait for a lock.
pub async fn waiting_for_locks(stack: &Stack, service: &str) -> Result<i64> {
    let count =
        "select count(*) from pg_stat_activity where usename = $1 and wait_event_type = 'Lock'";
    let mut db = superuser(stack, service).await?;
    Ok(sqlx::query_scalar(count).bind(service).fetch_one(&mut db).await?)
}

/// Holds a snapshot, so that no dead row younger than it can be cleaned up.
pub async fn hold_snapshot(stack: &Stack, service: &str, lasting: Duration) -> Result<()> {
    let mut db = superuser(stack, service).await?;
    let mut tx = db.begin_with("begin isolation level repeatable read").await?;
    sqlx::query("select count(*) from outbox").execute(&mut *tx).await?;
    sleep(lasting).await;
    tx.rollback().await.context("the snapshot was lost before its time")
}

/// Payment may not take what a seventh of all orders come to. Should that be 20 in a row, the
/// consumer pauses until an operator resumes it.
pub async fn spoil_payments(stack: &Stack) -> Result<()> {
    let add = "alter table payments add constraint too_strict
               check (amount_cents % 7 <> 0 or state <> 'verified') not valid";
    say(stack, "payment", &[DROP, add]).await
}

pub async fn mend_payments(stack: &Stack) -> Result<()> {
    say(stack, "payment", &[DROP]).await
}

/// Payments above this are refused by a rule of payment's database, with an error of the rule's own.
pub const LARGE_CENTS: i64 = 100_000;

/// Adds that rule.
pub async fn refuse_large_payments(stack: &Stack) -> Result<()> {
    let function = "create function refuse_large() returns trigger language plpgsql as $$ begin
            if new.amount_cents > 100000 then raise exception 'too large for our rules'; end if;
            return new;
        end $$";
    let trigger = "create trigger refuse_large before insert on payments
                   for each row execute function refuse_large()";
    say(stack, "payment", &[function, trigger]).await
}

/// Takes it away.
pub async fn take_large_payments(stack: &Stack) -> Result<()> {
    let trigger = "drop trigger if exists refuse_large on payments";
    say(stack, "payment", &[trigger, "drop function if exists refuse_large()"]).await
}

/// Whatever a fault could have left set, be it one that was broken off, is as it was: services that
/// start then find nothing of it.
pub async fn mend_all(stack: &Stack) -> Result<()> {
    stack.set_environment("order", DEADLINE, None)?;
    for service in SERVICES {
        // Who is frozen is resumed when it is started.
        stack.start(&Member::Database(service.to_string()).to_string()).await?;
        mend(stack, service).await?;
    }
    Ok(())
}

async fn mend(stack: &Stack, service: &str) -> Result<()> {
    read_only(stack, service, false).await?;
    if service == "payment" {
        mend_payments(stack).await?;
        take_large_payments(stack).await?;
    }
    Ok(())
}

/// Events in a service's outbox.
pub async fn unpublished(stack: &Stack, service: &str) -> Result<i64> {
    let mut db = superuser(stack, service).await?;
    Ok(sqlx::query_scalar("select count(*) from outbox").fetch_one(&mut db).await?)
}

/// Has the order service publish so many events of the largest size, which nobody can read.
pub async fn publish_largest(stack: &Stack, count: i64) -> Result<()> {
    let insert = "insert into outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
         select gen_random_uuid(), 'orders.created', 'largest ' || nth, fingerprint,
                decode(repeat(md5(nth::text), $2 / 16), 'hex'), now()
         from generate_series(1, $1) as nth, outbox_schemas where schema like '%\"OrderCreated\"%'";
    let mut db = superuser(stack, "order").await?;
    let largest = i32::try_from(BODY_BYTES_MAX)?;
    let written = sqlx::query(insert).bind(count).bind(largest).execute(&mut db).await?;
    ensure!(written.rows_affected() == count as u64, "{written:?}");
    Ok(())
}

/// Dead letters of a kind that wait for an operator.
pub async fn letters(stack: &Stack, service: &str, kind: &str) -> Result<i64> {
    let count = "select count(*) from dead_letters where kind = $1 and state = 'waiting'";
    let mut db = superuser(stack, service).await?;
    Ok(sqlx::query_scalar(count).bind(kind).fetch_one(&mut db).await?)
}

/// Orders that the deadline has ended since then.
pub async fn ended_by_deadline(stack: &Stack, since: DateTime<Utc>) -> Result<i64> {
    let count = "select count(*) from orders where reason = 'deadline' and ended_at > $1";
    let mut db = superuser(stack, "order").await?;
    Ok(sqlx::query_scalar(count).bind(since).fetch_one(&mut db).await?)
}

/// Commits something that changes nothing, on a session of its own.
pub async fn commit(stack: &Stack, service: &str) -> Result<()> {
    commit_at(&stack.database_url(service)?).await
}

/// The same, where only the database's address is known.
pub async fn commit_at(url: &str) -> Result<()> {
    let message = "select pg_logical_emit_message(true, 'e2e', '')";
    sqlx::query(message).execute(&mut connect(url).await?).await?;
    Ok(())
}

/// How many sessions a service has with its database.
pub async fn sessions(stack: &Stack, service: &str) -> Result<i64> {
    let count = "select count(*) from pg_stat_activity where usename = $1";
    let mut db = superuser(stack, service).await?;
    Ok(sqlx::query_scalar(count).bind(service).fetch_one(&mut db).await?)
}
