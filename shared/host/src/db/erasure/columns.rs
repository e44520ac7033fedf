//! The columns that may contain the id of a person, and the statements that replace it there.

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

/// An id and its replacement, in every form in which a value may contain them. A form and its replacement are of one
/// length, so bytes are replaced in place and every other byte of an encoded event stays where it was.
pub(super) struct Ids {
    old: Uuid,
    new: Uuid,
    bytes: [(Vec<u8>, Vec<u8>); 5],
}

impl Ids {
    pub fn new(old: Uuid, new: Uuid) -> Ids {
        let form = |write: fn(Uuid) -> Vec<u8>| (write(old), write(new));
        let bytes = [
            form(|id| id.as_bytes().to_vec()),
            form(|id| id.hyphenated().to_string().into_bytes()),
            form(|id| id.hyphenated().to_string().to_uppercase().into_bytes()),
            form(|id| id.simple().to_string().into_bytes()),
            form(|id| id.simple().to_string().to_uppercase().into_bytes()),
        ];
        Ids { old, new, bytes }
    }
}

/// The columns that a comment declares as personal. Those of a partitioned table include its partitions.
const DECLARED: &str = "
    select attrelid::regclass::text as table, quote_ident(attname) as column,
           format_type(atttypid, null) as type
    from pg_attribute join pg_class on pg_class.oid = attrelid,
         col_description(attrelid, attnum) as description
    where relkind in ('r', 'p') and not relispartition
      and relnamespace in (current_schema()::regnamespace, 'chassis'::regnamespace)
      and attnum > 0 and not attisdropped
      and (description like 'personal%' or description like 'mutable, personal%')
    order by 1, 2";

/// A column that a comment declares as personal.
#[derive(sqlx::FromRow)]
pub(super) struct PersonalColumn {
    pub table: String,
    pub column: String,
    #[sqlx(rename = "type")]
    pub type_name: String,
}

impl PersonalColumn {
    /// All of them, of the chassis and of the service.
    pub async fn all(tx: &mut PgConnection) -> sqlx::Result<Vec<PersonalColumn>> {
        sqlx::query_as(DECLARED).fetch_all(tx).await
    }

    /// Replaces an id. Returns the number of changes.
    pub async fn replace(&self, tx: &mut PgConnection, ids: &Ids) -> anyhow::Result<u64> {
        let PersonalColumn { table, column, type_name } = self;
        match type_name.as_str() {
            "uuid" => {
                let sql = format!("update {table} set {column} = $2 where {column} = $1");
                let update = sqlx::query(AssertSqlSafe(sql)).bind(ids.old).bind(ids.new);
                Ok(update.persistent(false).execute(tx).await?.rows_affected())
            }
            "bytea" => Ok(self.replace_bytes(tx, ids).await?),
            "text" | "character varying" | "json" | "jsonb" => {
                let sql = format!(
                    "update {table}
                     set {column} = regexp_replace(regexp_replace({column}::text, $1, $2, 'gi'),
                                                   $3, $4, 'gi')::{type_name}
                     where {column}::text ~* ($1 || '|' || $3)"
                );
                let update = sqlx::query(AssertSqlSafe(sql))
                    .bind(ids.old.hyphenated().to_string())
                    .bind(ids.new.hyphenated().to_string())
                    .bind(ids.old.simple().to_string())
                    .bind(ids.new.simple().to_string());
                Ok(update.persistent(false).execute(tx).await?.rows_affected())
            }
            other => anyhow::bail!("a column of the type {other} cannot be personal"),
        }
    }

    /// Each statement replaces the first occurrence in each value.
    async fn replace_bytes(&self, tx: &mut PgConnection, ids: &Ids) -> sqlx::Result<u64> {
        let PersonalColumn { table, column, .. } = self;
        let sql = format!(
            "update {table} set {column} = overlay({column} placing $2 from position($1 in {column}))
             where position($1 in {column}) > 0"
        );
        let mut replaced = 0;
        for (old, new) in &ids.bytes {
            loop {
                let update = sqlx::query(AssertSqlSafe(sql.clone()));
                let update = update.bind(old.as_slice()).bind(new.as_slice());
                match update.persistent(false).execute(&mut *tx).await?.rows_affected() {
                    0 => break,
                    changed => replaced += changed,
                }
            }
        }
        Ok(replaced)
    }
}

/// Every column whose type can contain an id, declared or not, less those of the erasures themselves.
const SEARCHED: &str = "
    select attrelid::regclass::text, quote_ident(attname), format_type(atttypid, null)
    from pg_attribute join pg_class on pg_class.oid = attrelid join pg_type on pg_type.oid = atttypid
    where relkind in ('r', 'p') and not relispartition
      and relnamespace in (current_schema()::regnamespace, 'chassis'::regnamespace)
      and attnum > 0 and not attisdropped and typcategory not in ('N', 'B', 'D', 'T')
      and attrelid <> 'chassis.unfinished_erasures'::regclass
    order by 1, 2";

/// The first column that contains the id.
pub(super) async fn find_remaining(
    tx: &mut PgConnection,
    ids: &Ids,
) -> sqlx::Result<Option<String>> {
    let columns: Vec<(String, String, String)> =
        sqlx::query_as(SEARCHED).fetch_all(&mut *tx).await?;
    for (table, column, type_name) in columns {
        let search =
            |condition: &str| format!("select exists (select from {table} where {condition})");
        let sql = match type_name.as_str() {
            "uuid" => search(&format!("{column} = $1")),
            "bytea" => {
                let form = |nth: usize| format!("position(${nth} in {column}) > 0");
                search(&(1..=ids.bytes.len()).map(form).collect::<Vec<_>>().join(" or "))
            }
            _ => search(&format!("{column}::text ~* ($1 || '|' || $2)")),
        };
        let query = sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql)).persistent(false);
        let query = match type_name.as_str() {
            "uuid" => query.bind(ids.old),
            "bytea" => ids.bytes.iter().fold(query, |query, (old, _)| query.bind(old.as_slice())),
            _ => query.bind(ids.old.hyphenated().to_string()).bind(ids.old.simple().to_string()),
        };
        if query.fetch_one(&mut *tx).await? {
            return Ok(Some(format!("{table}.{column}")));
        }
    }
    Ok(None)
}
