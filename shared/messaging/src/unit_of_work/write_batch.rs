//! The write batch: all writes of a batch, as one statement.
//!
//! Each statement is a round trip, and a round trip costs more than the rows of a small batch. So the inserts and
//! updates of a batch are collected and sent as the data-modifying parts of one `with`. All parts see the
//! database as it was before: no part may depend on the rows of another, and no two parts may write one row.
//!
//! Rows are passed as one array for each column, unnested in the select list: Postgres then inserts each row as it
//! is made, in the order of the arrays, which identity columns keep. `from unnest(…)` would collect all rows first,
//! which is slower; rare statements may use it. Arrays of different lengths are filled up with nulls.

use std::fmt::Write as _;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::{Arguments, AssertSqlSafe, Encode, PgConnection, Type};

/// The writes of a transaction that is open.
pub struct WriteBatch<'tx> {
    tx: &'tx mut PgConnection,
    statements: Vec<String>,
    arguments: PgArguments,
    encode_error: Option<sqlx::Error>,
}

impl<'tx> WriteBatch<'tx> {
    /// An empty batch. A handler gets one; a repair by hand makes its own.
    pub fn new(tx: &'tx mut PgConnection) -> WriteBatch<'tx> {
        WriteBatch {
            tx,
            statements: Vec::new(),
            arguments: PgArguments::default(),
            encode_error: None,
        }
    }

    /// Adds a statement that writes to one table. Its parameters are its own: `$1` is the first one
    /// that is bound to it.
    pub fn statement(&mut self, statement: &'static str) -> Statement<'_, 'tx> {
        self.statements.push(renumber_parameters(statement, self.arguments.len()));
        Statement { batch: self }
    }

    /// Executes the batch, so that the commit waits for the disk, and for the standby if commits wait for one.
    ///
    /// A batch of duplicates writes nothing, and a commit without a write waits for nothing. But the first
    /// delivery's effect can be read before the standby has it. An answer to a duplicate would then confirm an
    /// effect that a failover loses. So an empty batch takes a row lock, which Postgres writes to its log.
    pub async fn execute_durably(self) -> sqlx::Result<()> {
        if self.statements.is_empty() && self.encode_error.is_none() {
            // The only row of a table that every service has. This lock conflicts with no other lock of its
            // kind, nor with an update of columns that are no key.
            let locked = sqlx::query("select from chassis.consumer for key share").execute(self.tx);
            return locked.await.map(drop);
        }
        self.execute().await
    }

    /// Executes the batch. Postgres begins with the last statement and runs the others after it, the latest
    /// first: no lock may depend on their order.
    pub async fn execute(self) -> sqlx::Result<()> {
        if let Some(error) = self.encode_error {
            return Err(error);
        }
        let Some((last, others)) = self.statements.split_last() else { return Ok(()) };
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
pub struct Statement<'a, 'tx> {
    batch: &'a mut WriteBatch<'tx>,
}

impl Statement<'_, '_> {
    /// The next parameter.
    pub fn bind<'v, T: Encode<'v, Postgres> + Type<Postgres>>(self, value: T) -> Self {
        if let Err(error) = self.batch.arguments.add(value) {
            self.batch.encode_error = Some(sqlx::Error::Encode(error));
        }
        self
    }
}

/// A statement with `by` added to the number of each parameter.
fn renumber_parameters(statement: &str, by: usize) -> String {
    let mut pieces = statement.split('$');
    let mut renumbered = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        let digits = piece.find(|c: char| !c.is_ascii_digit()).unwrap_or(piece.len());
        let _ = match piece[..digits].parse::<usize>() {
            Ok(number) => write!(renumbered, "${}{}", number + by, &piece[digits..]),
            // Part of a JSON path, for example.
            Err(_) => write!(renumbered, "${piece}"),
        };
    }
    renumbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_renumbered() {
        assert_eq!(renumber_parameters("a $1, $12::uuid[] b", 3), "a $4, $15::uuid[] b");
        assert_eq!(renumber_parameters("nothing", 3), "nothing");
        assert_eq!(renumber_parameters("$2", 0), "$2");
        assert_eq!(renumber_parameters("a @? '$.b[$ - 1]' and $1", 3), "a @? '$.b[$ - 1]' and $4");
    }
}
