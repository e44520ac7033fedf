//! The change log: on request, each database records every change of orders, of the parts of
//! participants, of accounts and items in a schema of its own, `audit`. The services do not use it. It
//! shows a state that was wrong for a moment and correct at the end.
//!
//! A trigger runs once a statement, not once a row, and stores the new values. The old values are
//! those stored by the change before. So a batch costs one more insert a table.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use events::participants::participants;
use futures::stream::StreamExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::checker::findings::Findings;
use crate::checker::rows::TABLES;
use crate::checker::transitions::{RowChange, TransitionCheck};
use crate::client::http_client::Client;

/// The services whose databases have logged tables.
fn logged_services() -> BTreeSet<&'static str> {
    TABLES.iter().map(|(service, ..)| *service).chain(["order"]).collect()
}

/// `tx` is 0 for rows that existed before the log was installed.
const CHANGE_TABLE: &str = "
    create schema if not exists audit;
    create table if not exists audit.changes (
        nth    bigint generated always as identity,
        tx     bigint not null default pg_current_xact_id()::text::bigint,
        table_name text not null,
        key    text not null,
        new_values text[]
    );";

/// Installs the change log in the databases of a stack. It can be repeated.
pub async fn install(client: &Client) -> Result<()> {
    let legs = participants().map(|it| it.service).join(", ");
    let orders = ("order", "orders", "order_id", &*format!("status, {legs}"));
    for (service, table, key, columns) in TABLES.iter().chain([&orders]) {
        let mut db = PgConnection::connect(&client.addresses.databases[*service]).await?;
        // The function runs with the rights of its owner, so the services need none, and with
        // default planner settings, whatever the session has switched off.
        let function = |name: &str, from: &str, became: &str| {
            format!(
                "create or replace function audit.{table}_{name}() returns trigger
                 language plpgsql security definer set search_path = public, pg_temp as $$
                 begin
                     insert into audit.changes (table_name, key, new_values)
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
             {CHANGE_TABLE}
             lock table {table} in share row exclusive mode;
             insert into audit.changes (tx, table_name, key, new_values)
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
        installed.with_context(|| format!("cannot log the changes of {table} of {service}"))?;
        db.close().await?;
    }
    Ok(())
}

/// Removes the change log from the databases of a stack.
pub async fn remove(client: &Client) -> Result<()> {
    for service in logged_services() {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        sqlx::raw_sql("drop schema if exists audit cascade").execute(&mut db).await?;
        db.close().await?;
    }
    Ok(())
}

/// Checks the logged changes. Returns their number, or `None` unless every database has the change
/// log.
pub async fn check(
    databases: &BTreeMap<&'static str, PgPool>,
    findings: &mut Findings,
) -> Result<Option<u64>> {
    let (mut count, mut all_installed) = (0, true);
    for service in logged_services() {
        let Some(db) = databases.get(service) else { continue };
        let watched = "select to_regclass('audit.changes') is not null";
        if !sqlx::query_scalar(watched).fetch_one(db).await? {
            all_installed = false;
            continue;
        }
        let replacements = "select replacement_id::text from chassis.erasures";
        let replacements: Vec<String> = sqlx::query_scalar(replacements).fetch_all(db).await?;
        let mut changes = TransitionCheck::new(replacements.into_iter().collect());
        let mut rows = sqlx::query_as::<_, RowChange>(
            "select tx, table_name, key, new_values from audit.changes order by nth",
        )
        .fetch(db);
        while let Some(row) = rows.next().await {
            changes.check_change(&row?, findings);
        }
        count += changes.finish(findings);
    }
    Ok(all_installed.then_some(count))
}
