//! The loader: it reads the rows of one batch, and counts the changes of all of them.

use std::collections::BTreeSet;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection};

use crate::unit_of_work::record::Record;
use crate::unit_of_work::table::{Changes, Table};

/// Reads the rows of one batch, in its transaction.
pub struct Loader<'tx> {
    tx: &'tx mut PgConnection,
    changes: Changes,
}

impl<'tx> Loader<'tx> {
    /// A loader in a transaction.
    pub fn new(tx: &'tx mut PgConnection) -> Loader<'tx> {
        Loader { tx, changes: Changes::default() }
    }

    /// The changes of all tables that it loads.
    pub(crate) fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Reads the rows of these keys and locks them, in the order of their keys. A decision may change them.
    pub async fn lock<R>(&mut self, keys: BTreeSet<R::Key>) -> sqlx::Result<Table<R>>
    where
        R: Record + for<'r> FromRow<'r, PgRow> + Unpin,
    {
        self.load(keys, &R::columns().select_for_update).await
    }

    /// Reads the rows of these keys as they are at this moment. No decision may depend on their staying so.
    pub async fn read<R>(&mut self, keys: BTreeSet<R::Key>) -> sqlx::Result<Table<R>>
    where
        R: Record + for<'r> FromRow<'r, PgRow> + Unpin,
    {
        self.load(keys, &R::columns().select).await
    }

    async fn load<R>(
        &mut self,
        keys: BTreeSet<R::Key>,
        statement: &'static str,
    ) -> sqlx::Result<Table<R>>
    where
        R: Record + for<'r> FromRow<'r, PgRow> + Unpin,
    {
        let rows = match keys.is_empty() {
            true => Vec::new(),
            false => {
                let wanted = Vec::from_iter(keys.iter().cloned());
                sqlx::query_as(statement).bind(wanted).fetch_all(&mut *self.tx).await?
            }
        };
        Ok(Table::loaded(keys, rows, self.changes()))
    }
}
