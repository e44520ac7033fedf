//! Advances sequences that are behind their tables, as after a failover to a replica that did not receive them.
//! The next row would otherwise get a number that is taken, or one below the numbers of older rows.

use std::time::Duration;

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use tracing::warn;

use crate::db;

/// How long all of it may take: the session of the relay is idle meanwhile.
const ADVANCE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(FromRow)]
struct NumberedColumn {
    sequence: String,
    /// As SQL writes them.
    table: String,
    column: String,
}

/// Advances each sequence of the service and of the chassis to the highest number in its column, if the column has an
/// index. A sequence that cannot be read or set is logged and left for the next time.
pub async fn advance_all(db: &PgPool) {
    if let Err(error) = db::with_timeout(ADVANCE_TIMEOUT, advance_each(db)).await {
        warn!("the sequences could not be checked: {error}");
    }
}

async fn advance_each(db: &PgPool) -> sqlx::Result<()> {
    let numbered = sqlx::query_as(
        r#"select sequence.oid::regclass::text as sequence, numbered.oid::regclass::text as "table",
                  quote_ident(attname) as "column"
         from pg_class as sequence
         join pg_depend on classid = 'pg_class'::regclass and objid = sequence.oid
              and refclassid = 'pg_class'::regclass and deptype in ('a', 'i') and refobjsubid > 0
         join pg_class as numbered on numbered.oid = refobjid
         join pg_attribute on attrelid = refobjid and attnum = refobjsubid
         where sequence.relkind = 'S' and sequence.relnamespace in (current_schema()::regnamespace, 'chassis'::regnamespace)
           and exists (select from pg_index
                       where indrelid = refobjid and indkey[0] = refobjsubid and indisvalid
                         and indpred is null)"#,
    );
    let numbered: Vec<NumberedColumn> = numbered.fetch_all(db).await?;
    for numbered in numbered {
        let sequence = &numbered.sequence;
        match numbered.advance(db).await {
            Ok(None) => {}
            Ok(Some(highest)) => {
                warn!("{sequence} was behind its table: it continues after {highest}");
            }
            Err(error) => warn!("{sequence} could not be advanced: {error}"),
        }
    }
    Ok(())
}

impl NumberedColumn {
    /// Returns the highest number if the sequence was behind it. Only then the sequence is set: a number that
    /// another transaction draws at this moment may be drawn twice; its table refuses the second one, which is
    /// then drawn again.
    async fn advance(&self, db: &PgPool) -> sqlx::Result<Option<i64>> {
        let NumberedColumn { sequence, table, column } = self;
        // There is usually no row above the last number that was drawn, and dead rows below it are not read.
        let set = sqlx::query_scalar(AssertSqlSafe(format!(
            "select setval($1::text::regclass, highest)
             from (select max({column})::bigint as highest from {table}
                   where {column} > (select coalesce(pg_sequence_last_value($1::text::regclass), 0)))
             where highest is not null"
        )));
        set.bind(sequence).fetch_optional(db).await
    }
}
