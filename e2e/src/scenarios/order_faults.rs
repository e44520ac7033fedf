//! Faults that know the services of orders, and that several scenarios inject: a rule of the payment
//! database, a bad migration and its repair, the deadline of orders, the largest events. Faults that
//! know no order are in [`faults::database_faults`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chassis::event::avro::BODY_BYTES_MAX;
use chrono::{DateTime, Utc};
use faults::database_faults::{self, connect_as_superuser, execute, set_read_only};
use launcher::{Stack, eventually};
use sqlx::AssertSqlSafe;

use crate::client::operator::Operator;
use crate::stack_description::SERVICES;

/// The constraint of a bad migration.
pub const BAD_CONSTRAINT: &str = "too_strict";
const DROP_BAD_CONSTRAINT: &str =
    "alter table if exists payments drop constraint if exists too_strict";

pub const DEADLINE_VARIABLE: &str = "ORDER_DEADLINE_SECONDS";

/// A bad migration that accepts six of seven amounts.
pub const A_SEVENTH: &str = "amount_cents % 7 <> 0 or state <> 'verified'";

/// How long until every dead letter of a bad migration is replayed.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes payment's database refuse every payment that does not fulfil a condition. After 20 refusals
/// in a row, the consumer pauses until an operator resumes it.
pub async fn apply_bad_migration(stack: &Stack, condition: &str) -> Result<()> {
    revert_bad_migration(stack).await?;
    let add =
        format!("alter table payments add constraint too_strict check ({condition}) not valid");
    let mut db = connect_as_superuser(stack, "payment").await?;
    sqlx::query(AssertSqlSafe(add)).execute(&mut db).await.map(drop).context("a bad migration")
}

pub async fn revert_bad_migration(stack: &Stack) -> Result<()> {
    execute(stack, "payment", &[DROP_BAD_CONSTRAINT]).await
}

/// What an operator does after the cause is gone: resume a paused consumer and replay every dead
/// letter, until none with `handler_failed` waits.
pub async fn replay_dead_letters(stack: &Stack, service: &str) -> Result<()> {
    eventually("the dead letters of a bad migration to be handled", REPLAY_TIMEOUT, async || {
        let operator = Operator::for_stack(stack)?;
        operator.ask()?.resume(service).await?;
        operator.replay_all(service).await?;
        let failing = database_faults::count_dead_letters(stack, service, "handler_failed").await?;
        ensure!(failing == 0, "{failing} dead letters are left");
        Ok(())
    })
    .await
}

/// A rule of payment's database refuses larger payments, with an error of its own.
pub const LARGE_PAYMENT_CENTS: i64 = 100_000;

/// Adds the rule.
pub async fn reject_large_payments(stack: &Stack) -> Result<()> {
    let function = "create function refuse_large() returns trigger language plpgsql as $$ begin
            if new.amount_cents > 100000 then raise exception 'too large for our rules'; end if;
            return new;
        end $$";
    let trigger = "create trigger refuse_large before insert on payments
                   for each row execute function refuse_large()";
    execute(stack, "payment", &[function, trigger]).await
}

/// Removes the rule.
pub async fn accept_large_payments(stack: &Stack) -> Result<()> {
    let trigger = "drop trigger if exists refuse_large on payments";
    execute(stack, "payment", &[trigger, "drop function if exists refuse_large()"]).await
}

/// Undoes everything that a fault, even an interrupted one, may have left. Services that start
/// afterwards are not affected.
pub async fn repair_all(stack: &Stack) -> Result<()> {
    stack.set_environment("order", DEADLINE_VARIABLE, None)?;
    for service in SERVICES {
        // A frozen component is resumed when it is started.
        stack.start(&format!("{service}-db")).await?;
        repair(stack, service).await?;
    }
    Ok(())
}

async fn repair(stack: &Stack, service: &str) -> Result<()> {
    set_read_only(stack, service, false).await?;
    if service == "payment" {
        revert_bad_migration(stack).await?;
        accept_large_payments(stack).await?;
    }
    Ok(())
}

/// Makes the order service publish this number of events of the largest size, whose schema no
/// reader knows.
pub async fn publish_largest_events(stack: &Stack, count: i64) -> Result<()> {
    let insert =
        "insert into chassis.outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
         select gen_random_uuid(), 'orders.created', 'largest ' || nth, fingerprint,
                decode(repeat(md5(nth::text), $2 / 16), 'hex'), now()
         from generate_series(1, $1) as nth, chassis.outbox_schemas where schema like '%\"OrderCreated\"%'";
    let mut db = connect_as_superuser(stack, "order").await?;
    let largest = i32::try_from(BODY_BYTES_MAX)?;
    let written = sqlx::query(insert).bind(count).bind(largest).execute(&mut db).await?;
    ensure!(written.rows_affected() == count as u64, "{written:?}");
    Ok(())
}

/// The number of orders that the deadline has ended since this time.
pub async fn count_ended_by_deadline(stack: &Stack, since: DateTime<Utc>) -> Result<i64> {
    let count = "select count(*) from orders where reason = 'deadline' and ended_at > $1";
    let mut db = connect_as_superuser(stack, "order").await?;
    Ok(sqlx::query_scalar(count).bind(since).fetch_one(&mut db).await?)
}
