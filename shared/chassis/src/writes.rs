//! What a batch writes, as one statement.
//!
//! Each statement is a round trip, and a round trip costs more than the rows of a small batch do. So
//! the inserts and updates of a batch are gathered, and sent as the data-modifying parts of one
//! `with`. All parts see the database as it was before: no part may depend on another one's rows,
//! and no row be written by two.
//!
//! Rows come as one array for each column, unnested in the select list: then each row is inserted as it
//! is made, in the order of the arrays, which identity columns keep. `from unnest(…)` would gather all rows
//! first: a twelfth of the databases' time (eight pairs of runs with 1,024 callers, Postgres 17.11). What
//! is written once in a while need not. Arrays that differ in length are filled up with nulls.

use std::fmt::Write as _;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::{Arguments, AssertSqlSafe, Encode, PgConnection, Type};

/// The writes of a transaction that is open.
pub struct Writes<'tx> {
    tx: &'tx mut PgConnection,
    parts: Vec<String>,
    arguments: PgArguments,
    /// A value that can't be sent.
    unfit: Option<sqlx::Error>,
}

impl<'tx> Writes<'tx> {
    /// Nothing yet.
    pub(crate) fn of(tx: &'tx mut PgConnection) -> Writes<'tx> {
        Writes { tx, parts: Vec::new(), arguments: PgArguments::default(), unfit: None }
    }

    /// Adds a statement that writes to one table. Its parameters are its own: `$1` is the first one
    /// that is bound to it.
    pub fn add(&mut self, statement: &'static str) -> Write<'_, 'tx> {
        self.parts.push(renumbered(statement, self.arguments.len()));
        Write { writes: self }
    }

    /// Sends it all, or where that is nothing, takes a lock, which Postgres notes in its log. So whoever is
    /// told of this transaction's commit is told of one that waited for the disk, and for a standby where
    /// commits wait for one: a repeat has nothing to write, and what it repeats may have been seen before
    /// the standby had it.
    pub(crate) async fn run_durably(self) -> sqlx::Result<()> {
        if self.parts.is_empty() && self.unfit.is_none() {
            // The one row of a table that every service has. This lock hinders no other one of its kind, nor
            // an update of what is no key.
            let locked = sqlx::query("select from consumer for key share").execute(self.tx);
            return locked.await.map(drop);
        }
        self.run().await
    }

    /// Sends it all. Postgres begins with the last statement and runs the others after it, the latest
    /// first: no lock may depend on how they follow one another.
    pub async fn run(self) -> sqlx::Result<()> {
        if let Some(unfit) = self.unfit {
            return Err(unfit);
        }
        let Some((last, others)) = self.parts.split_last() else { return Ok(()) };
        let mut statement = String::new();
        for (nth, part) in others.iter().enumerate() {
            let word = if nth == 0 { "with" } else { "," };
            let _ = writeln!(statement, "{word} write_{nth} as ({part})");
        }
        statement += last;
        let query = sqlx::query_with(AssertSqlSafe(statement), self.arguments);
        query.execute(self.tx).await.map(drop)
    }
}

/// A statement whose parameters are being bound.
pub struct Write<'a, 'tx> {
    writes: &'a mut Writes<'tx>,
}

impl Write<'_, '_> {
    /// The next parameter.
    pub fn bind<'v, T: Encode<'v, Postgres> + Type<Postgres>>(self, value: T) -> Self {
        if let Err(unfit) = self.writes.arguments.add(value) {
            self.writes.unfit = Some(sqlx::Error::Encode(unfit));
        }
        self
    }
}

/// A statement with `by` added to the number of each parameter.
fn renumbered(statement: &str, by: usize) -> String {
    let mut pieces = statement.split('$');
    let mut renumbered = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        let digits = piece.find(|c: char| !c.is_ascii_digit()).unwrap_or(piece.len());
        let _ = match piece[..digits].parse::<usize>() {
            Ok(number) => write!(renumbered, "${}{}", number + by, &piece[digits..]),
            // Of a path into JSON, for instance.
            Err(_) => write!(renumbered, "${piece}"),
        };
    }
    renumbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_anew() {
        assert_eq!(renumbered("a $1, $12::uuid[] b", 3), "a $4, $15::uuid[] b");
        assert_eq!(renumbered("nothing", 3), "nothing");
        assert_eq!(renumbered("$2", 0), "$2");
        assert_eq!(renumbered("a @? '$.b[$ - 1]' and $1", 3), "a @? '$.b[$ - 1]' and $4");
    }
}
