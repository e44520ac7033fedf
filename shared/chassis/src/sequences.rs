//! Sequences that are behind their tables, as after a failover to a copy that did not get them: what is
//! stored next would meet a number that is taken, or come before what is older.

use std::time::Duration;

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use tracing::warn;

use crate::db;

/// How long all of it may take: a relay's session is silent meanwhile.
const ASKED_WITHIN: Duration = Duration::from_secs(5);

/// The sequence of a numbered column.
#[derive(FromRow)]
struct Numbered {
    sequence: String,
    /// As SQL writes them.
    table: String,
    column: String,
}

/// Puts each sequence of the service's own schema ahead of the highest number in its column, where an index
/// knows that. What can't be asked, or may not be set, is told and left for the next time.
pub(crate) async fn put_ahead(db: &PgPool) {
    if let Err(error) = db::in_time(ASKED_WITHIN, put_each_ahead(db)).await {
        warn!("whether sequences are behind their tables can't be asked: {error}");
    }
}

async fn put_each_ahead(db: &PgPool) -> sqlx::Result<()> {
    let numbered = sqlx::query_as(
        r#"select sequence.oid::regclass::text as sequence, numbered.oid::regclass::text as "table",
                  quote_ident(attname) as "column"
         from pg_class as sequence
         join pg_depend on classid = 'pg_class'::regclass and objid = sequence.oid
              and refclassid = 'pg_class'::regclass and deptype in ('a', 'i') and refobjsubid > 0
         join pg_class as numbered on numbered.oid = refobjid
         join pg_attribute on attrelid = refobjid and attnum = refobjsubid
         where sequence.relkind = 'S' and sequence.relnamespace = current_schema()::regnamespace
           and exists (select from pg_index
                       where indrelid = refobjid and indkey[0] = refobjsubid and indisvalid
                         and indpred is null)"#,
    );
    let numbered: Vec<Numbered> = numbered.fetch_all(db).await?;
    for numbered in numbered {
        let Numbered { sequence, .. } = &numbered;
        match numbered.put_ahead(db).await {
            Ok(None) => {}
            Ok(Some(highest)) => {
                warn!("{sequence} was behind its table: it goes on after {highest}");
            }
            Err(error) => warn!("{sequence} could not be put ahead of its table: {error}"),
        }
    }
    Ok(())
}

impl Numbered {
    /// Answers the highest number if the sequence was behind it. Only then it is set: a number that another
    /// transaction draws at this very moment may be drawn twice, and the second one is refused by its
    /// table and drawn again.
    async fn put_ahead(&self, db: &PgPool) -> sqlx::Result<Option<i64>> {
        let Numbered { sequence, table, column } = self;
        // Above the last number that was drawn there is nothing, as a rule: what was deleted below is not
        // read again.
        let set = sqlx::query_scalar(AssertSqlSafe(format!(
            "select setval($1::text::regclass, highest)
             from (select max({column})::bigint as highest from {table}
                   where {column} > (select coalesce(pg_sequence_last_value($1::text::regclass), 0)))
             where highest is not null"
        )));
        set.bind(sequence).fetch_optional(db).await
    }
}
