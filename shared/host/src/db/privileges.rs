//! The privileges of the serving role, which the comments in the migrations declare.
//!
//! Promise: the serving role cannot rewrite evidence. It may not update a row of a table whose comment begins with
//! `append-only`, nor add one to a table whose comment begins with `read-only`, and it deletes rows only where a
//! comment says `deletable`. It makes no table, and no temporary one either. A table of evidence without the first
//! comment breaks the promise: its rows can be changed. A table without any comment keeps its rows, because a missing
//! right fails the first test of a service, and a needless right fails none.

use messaging::db::{CHASSIS_SCHEMA, CHASSIS_VERSIONS};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::db::SERVICE_VERSIONS;

/// The privileges of role $1 on each table with such a comment, as statements. They replace the earlier ones. The
/// comments are those of the database: an older version of a service knows no newer table, and must not open it.
const DECLARED_GRANTS: &str = "
    select format('revoke all on %1$s from %2$s; grant select%3$s%4$s%5$s on %1$s to %2$s',
                  oid::regclass, $1,
                  case when description not like 'read-only%' then ', insert' end,
                  case when description ~ '^(append-only, )?deletable' then ', delete' end,
                  case when description like 'deletable%' then ', update' else
                      (select ', update (' || string_agg(quote_ident(attname), ', ') || ')'
                       from pg_attribute
                       where attrelid = oid and col_description(oid, attnum) like 'mutable%')
                  end)
    from pg_class, obj_description(oid, 'pg_class') as description
    where relkind in ('r', 'p') and description ~ '^(append-only|deletable|read-only)'
      and relnamespace in (current_schema()::regnamespace, 'chassis'::regnamespace)";

/// Grants a role what a service needs to serve: in a table without such a comment, to read, to add and to change rows.
pub(super) async fn grant_privileges(db: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    let mut tx = db.begin().await?;
    // Two grants at once on one table fail with "tuple concurrently updated".
    sqlx::query("select pg_advisory_xact_lock(hashtext('grants'))").execute(&mut *tx).await?;
    let schema: String =
        sqlx::query_scalar("select quote_ident(current_schema())").fetch_one(&mut *tx).await?;
    let schemas = format!("schema {schema}, {CHASSIS_SCHEMA}");
    let database: String =
        sqlx::query_scalar("select quote_ident(current_database())").fetch_one(&mut *tx).await?;
    let mut grants = vec![
        // Everybody has this right in a new database.
        format!("revoke temporary on database {database} from public, {role}"),
        format!("grant usage on {schemas} to {role}"),
        format!("grant select, insert, update on all tables in {schemas} to {role}"),
        format!("revoke delete on all tables in {schemas} from {role}"),
        // To draw numbers, and to advance a sequence that a failover left behind its table.
        format!("grant usage, update on all sequences in {schemas} to {role}"),
        format!("grant execute on all functions in schema {CHASSIS_SCHEMA} to {role}"),
        format!("revoke insert, update on {SERVICE_VERSIONS}, {CHASSIS_VERSIONS} from {role}"),
    ];
    let declared: Vec<String> =
        sqlx::query_scalar(DECLARED_GRANTS).bind(&role).fetch_all(&mut *tx).await?;
    grants.extend(declared);
    sqlx::raw_sql(AssertSqlSafe(grants.join(";"))).execute(&mut *tx).await?;
    tx.commit().await
}

/// Grants a role what a connector needs that carries the outbox: to read the tables that it captures.
pub(super) async fn grant_capture(db: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    let grants = format!(
        "grant usage on schema {CHASSIS_SCHEMA} to {role};
         grant select on chassis.captured_events, chassis.captured_answers to {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(grants)).execute(db).await.map(drop)
}

#[cfg(test)]
#[path = "privileges_tests.rs"]
mod tests;
