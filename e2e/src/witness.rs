//! The databases as witnesses: in a run that asks for it, each writes down every change of what the
//! saga decides and of the books, in a schema of its own, `audit`, which no service knows of. What
//! was wrong for a moment and right again in the end is seen there and nowhere else.
//!
//! A trigger runs once a statement and not once a row, and writes what the rows became; what they
//! were is what was written of them before. So a batch costs one more insert a table.

use std::collections::HashMap;

use anyhow::{Context, Result};
use futures::stream::StreamExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::changes::{Change, Changes};
use crate::client::Client;
use crate::findings::Findings;

/// Of which table of whose what is written down: its name, its key, and the columns as text.
const WATCHED: [(&str, &str, &str, &str); 5] = [
    ("order", "orders", "order_id", "status, payment, stock"),
    ("payment", "payments", "order_id", "state, customer_id::text, amount_cents::text"),
    ("payment", "accounts", "customer_id", "balance_cents::text, taken_cents::text"),
    ("stock", "reservations", "order_id", "state, lines::text"),
    ("stock", "items", "sku", "available::text, reserved::text"),
];

const WATCHING: [&str; 3] = ["order", "payment", "stock"];

/// `tx` is 0 for what was there before.
const LOG: &str = "
    create schema if not exists audit;
    create table if not exists audit.changes (
        nth    bigint generated always as identity,
        tx     bigint not null default pg_current_xact_id()::text::bigint,
        what   text not null,
        key    text not null,
        became text[]
    );";

/// Has the databases of a stack write down their changes from now on. Safe to ask for again.
pub async fn install(client: &Client) -> Result<()> {
    for (service, table, key, columns) in WATCHED {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        // With the rights of its owner, so that the services need none; and with a planner of its
        // own, whatever the session that it runs in has switched off.
        let function = |name: &str, from: &str, became: &str| {
            format!(
                "create or replace function audit.{table}_{name}() returns trigger
                 language plpgsql security definer set search_path = public, pg_temp as $$
                 begin
                     insert into audit.changes (what, key, became)
                     select '{table}', {key}::text, {became} from {from};
                     return null;
                 end $$;"
            )
        };
        let trigger = |name: &str, event: &str, referencing: &str| {
            format!(
                "create or replace trigger audit_{event} after {event} on {table}
                 referencing {referencing} for each statement
                 execute function audit.{table}_{name}();"
            )
        };
        let row = format!("array[{columns}]");
        let installed = format!(
            "begin;
             select pg_advisory_xact_lock(hashtext('audit'));
             {LOG}
             lock table {table} in share row exclusive mode;
             insert into audit.changes (tx, what, key, became)
             select 0, '{table}', {key}::text, {row} from {table}
             where not exists (select from pg_trigger
                               where tgname = 'audit_insert' and tgrelid = '{table}'::regclass);
             {}{}{}{}{}
             commit",
            function("written", "fresh", &row),
            function("deleted", "stale", "null"),
            trigger("written", "insert", "new table as fresh"),
            trigger("written", "update", "new table as fresh"),
            trigger("deleted", "delete", "old table as stale"),
        );
        let installed = sqlx::raw_sql(AssertSqlSafe(installed)).execute(&mut db).await;
        installed.with_context(|| format!("{service} cannot watch its {table}"))?;
        db.close().await?;
    }
    Ok(())
}

/// Has them forget all of it, and write down nothing more.
pub async fn remove(client: &Client) -> Result<()> {
    for service in WATCHING {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        sqlx::raw_sql("drop schema if exists audit cascade").execute(&mut db).await?;
        db.close().await?;
    }
    Ok(())
}

/// Goes through what was written down, if anything was. Answers how many changes there were, where
/// every database watches.
pub async fn check(
    databases: &HashMap<&'static str, PgPool>,
    findings: &mut Findings,
) -> Result<Option<u64>> {
    let (mut seen, mut all_watch) = (0, true);
    for service in WATCHING {
        let Some(db) = databases.get(service) else { continue };
        let watched = "select to_regclass('audit.changes') is not null";
        if !sqlx::query_scalar(watched).fetch_one(db).await? {
            all_watch = false;
            continue;
        }
        let mut changes = Changes::default();
        let mut rows = sqlx::query_as::<_, Change>(
            "select tx, what, key, became from audit.changes order by nth",
        )
        .fetch(db);
        while let Some(row) = rows.next().await {
            changes.next(&row?, findings);
        }
        seen += changes.end(findings);
    }
    Ok(all_watch.then_some(seen))
}
