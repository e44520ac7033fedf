//! The privileges of the serving role, which the comments in the migrations declare.
//!
//! Promise: the serving role cannot rewrite evidence. It may not update or delete a row of a table whose comment begins
//! with `append-only`. A table of evidence without that comment breaks the promise.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::db::{CHASSIS_SCHEMA, CHASSIS_VERSIONS, SERVICE_VERSIONS};

/// The privileges of role $1 on each append-only table, as statements. They replace the earlier ones. The comments are
/// those of the database: an older version of a service knows no newer table, and must not open it.
const APPEND_ONLY_GRANTS: &str = "
    select format('revoke all on %1$s from %2$s; grant select, insert%3$s%4$s on %1$s to %2$s',
                  oid::regclass, $1,
                  case when description like 'append-only, deletable%' then ', delete' end,
                  (select ', update (' || string_agg(quote_ident(attname), ', ') || ')'
                   from pg_attribute
                   where attrelid = oid and col_description(oid, attnum) like 'mutable%'))
    from pg_class, obj_description(oid, 'pg_class') as description
    where relkind in ('r', 'p') and description like 'append-only%'
      and relnamespace in (current_schema()::regnamespace, 'chassis'::regnamespace)";

/// Grants a role what a service needs to serve: in a table without such a comment, every change of rows.
pub(super) async fn grant_privileges(db: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    let mut tx = db.begin().await?;
    // Two grants at once on one table fail with "tuple concurrently updated".
    sqlx::query("select pg_advisory_xact_lock(hashtext('grants'))").execute(&mut *tx).await?;
    let schema: String =
        sqlx::query_scalar("select quote_ident(current_schema())").fetch_one(&mut *tx).await?;
    let schemas = format!("schema {schema}, {CHASSIS_SCHEMA}");
    let mut grants = vec![
        format!("grant usage on {schemas} to {role}"),
        format!("grant select, insert, update, delete on all tables in {schemas} to {role}"),
        // To draw numbers, and to advance a sequence that a failover left behind its table.
        format!("grant usage, update on all sequences in {schemas} to {role}"),
        format!(
            "revoke insert, update, delete on {SERVICE_VERSIONS}, {CHASSIS_VERSIONS} from {role}"
        ),
    ];
    let append_only: Vec<String> =
        sqlx::query_scalar(APPEND_ONLY_GRANTS).bind(&role).fetch_all(&mut *tx).await?;
    grants.extend(append_only);
    sqlx::raw_sql(AssertSqlSafe(grants.join(";"))).execute(&mut *tx).await?;
    tx.commit().await
}

#[cfg(test)]
#[path = "privileges_tests.rs"]
mod tests;
