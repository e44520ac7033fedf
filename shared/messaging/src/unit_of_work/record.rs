//! Records: structs whose fields are the columns of a table. `#[derive(Record)]` lists the fields; the statements
//! that read, insert and update rows are made of that list here, once for each type.

use std::fmt::Debug;

use sqlx::postgres::{PgArguments, PgHasArrayType, PgRow, Postgres};
use sqlx::query::QueryAs;
use sqlx::{AssertSqlSafe, Encode, FromRow, PgPool, Type, TypeInfo};

use crate::unit_of_work::write_batch::{Statement, WriteBatch};

/// A row of a table: each field is the column of its name. Write it as
///
/// ```ignore
/// #[derive(Clone, Debug, PartialEq, sqlx::FromRow, Record)]
/// #[record(table = "reservations", key = "order_id")]
/// pub struct Reservation {
///     pub order_id: Uuid,
///     pub state: State,
///     #[record(immutable)]
///     pub lines: Json<Vec<Line>>,
/// }
/// ```
///
/// The key is the table's primary key, or another that is unique there. An update leaves out the key and the
/// columns that are `immutable`. `#[record(table = "…", key = "…", immutable)]` is a record of an append-only table:
/// its rows never change, and are read without a lock.
pub trait Record: Send + Sync + Sized + 'static {
    /// The type of the key.
    type Key: Value + Clone + Debug + Ord + Sync;
    /// The name of the table.
    const TABLE: &'static str;
    /// The column of the key.
    const KEY: &'static str;

    /// The key of this row.
    fn key(&self) -> &Self::Key;

    /// The columns, with the statements that are made of them.
    fn columns() -> &'static Columns<Self>;

    /// The row of a key as it is now, for an answer. A decision takes it from its [`Table`].
    ///
    /// [`Table`]: crate::unit_of_work::table::Table
    fn find(db: &PgPool, key: Self::Key) -> impl Future<Output = sqlx::Result<Option<Self>>> + Send
    where
        Self: for<'r> FromRow<'r, PgRow> + Unpin,
    {
        sqlx::query_as(Self::columns().select.as_str()).bind(vec![key]).fetch_optional(db)
    }

    /// The rows behind a key, in the order of their keys, `limit` of them at most.
    fn find_after(
        db: &PgPool,
        key: Self::Key,
        limit: i64,
    ) -> impl Future<Output = sqlx::Result<Vec<Self>>> + Send
    where
        Self: for<'r> FromRow<'r, PgRow> + Unpin,
    {
        sqlx::query_as(Self::columns().select_after.as_str()).bind(key).bind(limit).fetch_all(db)
    }

    /// The rows that `condition` selects, which follows the name of the table and whose parameters the caller
    /// binds: `where customer_id = $1 order by order_id`.
    fn select(condition: &'static str) -> QueryAs<'static, Postgres, Self, PgArguments>
    where
        Self: for<'r> FromRow<'r, PgRow>,
    {
        let (names, table) = (&Self::columns().names, Self::TABLE);
        sqlx::query_as(AssertSqlSafe(format!("select {names} from {table} {condition}")))
    }
}

/// What a column can hold.
pub trait Value:
    PgHasArrayType + Type<Postgres> + for<'q> Encode<'q, Postgres> + Send + 'static
{
}

impl<V> Value for V where
    V: PgHasArrayType + Type<Postgres> + for<'q> Encode<'q, Postgres> + Send + 'static
{
}

/// Binds one column of some rows as an array.
type BindArray<R> =
    Box<dyn for<'a, 'tx> Fn(Statement<'a, 'tx>, &[&R]) -> Statement<'a, 'tx> + Send + Sync>;

/// One column of a table.
pub struct Column<R> {
    name: &'static str,
    /// The type of an array of its values, as a cast names it.
    array_type: String,
    is_immutable: bool,
    bind: BindArray<R>,
}

impl<R: 'static> Column<R> {
    /// A column, with the field that holds its value.
    pub fn new<V: Value>(name: &'static str, field: fn(&R) -> &V) -> Column<R> {
        let bind: BindArray<R> = Box::new(move |statement, rows| {
            statement.bind(rows.iter().map(|row| field(row)).collect::<Vec<&V>>())
        });
        // Postgres has two names for this type: sqlx uses the one, the migrations the other.
        let array_type = V::array_type_info().name().to_lowercase().replace("int8", "bigint");
        Column { name, array_type, is_immutable: false, bind }
    }

    /// The same column, left out of updates.
    pub fn immutable(mut self) -> Column<R> {
        self.is_immutable = true;
        self
    }
}

/// The columns of a table, with the statements that are made of them.
pub struct Columns<R> {
    columns: Vec<Column<R>>,
    /// The list of their names.
    names: String,
    pub(super) select: String,
    pub(super) select_for_update: String,
    select_after: String,
    insert: String,
    replace: String,
    /// None if no column may change.
    update: Option<String>,
}

impl<R: Record> Columns<R> {
    /// Makes the statements. Rows are written in one array for each column: one statement, whatever their number.
    pub fn new<const N: usize>(columns: [Column<R>; N]) -> Columns<R> {
        let (table, key) = (R::TABLE, R::KEY);
        let names = join(&columns, |column, _| column.name.to_string());
        let arrays = join(&columns, Column::unnest);
        let sent = columns.iter().filter(|column| column.is_key() || column.may_change());
        let changed =
            join(sent, |column, nth| format!("{} as {}", column.unnest(nth), column.name));
        let assigned = columns.iter().filter(|column| column.may_change());
        let assignments =
            join(assigned, |Column { name, .. }, _| format!("{name} = changed.{name}"));
        let insert = format!("insert into {table} ({names}) select {arrays}");
        let excluded = join(&columns, |Column { name, .. }, _| format!("{name} = excluded.{name}"));
        let select = format!("select {names} from {table} where {key} = any($1)");
        // A lock needs the privilege to update, which the serving role lacks in an append-only table.
        let lock = if assignments.is_empty() { "" } else { " for update" };
        Columns {
            select_after: format!(
                "select {names} from {table} where {key} > $1 order by {key} limit $2"
            ),
            select_for_update: format!("{select} order by {key}{lock}"),
            select,
            replace: format!("{insert} on conflict ({key}) do update set {excluded}"),
            insert,
            update: (!assignments.is_empty()).then(|| {
                format!(
                    "update {table} set {assignments} from (select {changed}) as changed \
                     where {table}.{key} = changed.{key}"
                )
            }),
            columns: columns.into(),
            names,
        }
    }
}

impl<R> Columns<R> {
    /// Whether a row may be updated.
    pub fn may_change(&self) -> bool {
        self.update.is_some()
    }
}

impl<R: Record> Column<R> {
    fn is_key(&self) -> bool {
        self.name == R::KEY
    }

    fn may_change(&self) -> bool {
        !self.is_key() && !self.is_immutable
    }

    /// The values of the parameter with this index, counted from 0.
    fn unnest(&self, nth: usize) -> String {
        format!("unnest(${}::{})", nth + 1, self.array_type)
    }
}

/// A list as SQL has it, with a part for each column.
fn join<'a, R: 'a>(
    columns: impl IntoIterator<Item = &'a Column<R>>,
    part: impl Fn(&Column<R>, usize) -> String,
) -> String {
    let parts = columns.into_iter().enumerate().map(|(nth, column)| part(column, nth));
    parts.collect::<Vec<_>>().join(", ")
}

impl WriteBatch<'_> {
    /// Inserts rows.
    pub fn insert_all<'r, R: Record>(
        &mut self,
        rows: impl IntoIterator<Item = &'r R>,
    ) -> &mut Self {
        let rows = Vec::from_iter(rows);
        if !rows.is_empty() {
            self.statement(&R::columns().insert).bind_rows(&rows);
        }
        self
    }

    /// Writes a whole row, whether it is in the table or not: for a repair.
    pub fn replace<R: Record>(&mut self, row: &R) -> &mut Self {
        self.statement(&R::columns().replace).bind_rows(&[row]);
        self
    }

    /// Updates rows that are in the table. Their keys are what they were.
    pub(super) fn update_all<R: Record>(&mut self, rows: &[&R]) {
        let Columns { columns, update: Some(update), .. } = R::columns() else { return };
        if !rows.is_empty() {
            let sent = columns.iter().filter(|column| column.is_key() || column.may_change());
            sent.fold(self.statement(update), |statement, it| (it.bind)(statement, rows));
        }
    }
}

impl Statement<'_, '_> {
    /// The next parameters: each column of these rows as an array, in the order of the fields.
    pub fn bind_rows<R: Record>(self, rows: &[&R]) -> Self {
        R::columns().columns.iter().fold(self, |statement, it| (it.bind)(statement, rows))
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use sqlx::types::Json;
    use uuid::Uuid;

    use super::*;

    #[derive(derive::Record)]
    #[record(table = "tallies", key = "till")]
    struct Tally {
        till: Uuid,
        total: i64,
        #[record(immutable)]
        notes: Option<Json<Vec<String>>>,
        at: DateTime<Utc>,
    }

    /// A row that has only a key.
    #[derive(derive::Record)]
    #[record(table = "closed", key = "till")]
    struct Closed {
        till: &'static str,
    }

    #[test]
    fn the_statements_name_every_column_and_update_those_that_may_change() {
        let columns = Tally::columns();
        assert_eq!(
            columns.select_for_update,
            "select till, total, notes, at from tallies where till = any($1) order by till for update"
        );
        assert_eq!(
            columns.select_after,
            "select till, total, notes, at from tallies where till > $1 order by till limit $2"
        );
        assert_eq!(
            columns.insert,
            "insert into tallies (till, total, notes, at) select unnest($1::uuid[]), \
             unnest($2::bigint[]), unnest($3::jsonb[]), unnest($4::timestamptz[])"
        );
        assert_eq!(
            columns.update.as_deref(),
            Some(
                "update tallies set total = changed.total, at = changed.at from (select \
                 unnest($1::uuid[]) as till, unnest($2::bigint[]) as total, \
                 unnest($3::timestamptz[]) as at) as changed where tallies.till = changed.till"
            )
        );
    }

    #[test]
    fn a_table_of_keys_is_read_and_inserted_and_never_locked_or_updated() {
        let columns = Closed::columns();
        assert_eq!(columns.select, "select till from closed where till = any($1)");
        assert_eq!(columns.select_for_update, format!("{} order by till", columns.select));
        assert_eq!(columns.insert, "insert into closed (till) select unnest($1::text[])");
        assert_eq!(columns.update, None);
        assert_eq!(Closed { till: "a" }.key(), &"a");
    }
}
