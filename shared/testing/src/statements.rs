//! The statements by which a service loads and saves its rows, as Postgres got them.

use std::fmt::Debug;

use chassis::{Loader, UnitOfWork, WriteBatch};
use sqlx::{Connection, PgConnection};

use crate::TestService;

/// A statement of the session, if it is kept prepared.
const PREPARED: &str = "select statement from pg_prepared_statements order by prepare_time";

impl<R: UnitOfWork> TestService<R> {
    /// Loads the rows of `keys`, lets `change` change them and add to them, and saves them: what is loaded
    /// afterwards has to be equal. Then compares the statements that Postgres got with `statements.sql` in the
    /// service's folder; rewrites that file where `REWRITE_STATEMENTS` is set. Nothing is committed.
    ///
    /// # Panics
    /// If other rows are loaded than were saved, or the file has other statements.
    pub async fn compare_statements<S: PartialEq + Debug>(
        &self,
        folder: &str,
        keys: impl Fn() -> R::Keys,
        change: impl FnOnce(&mut R),
        saved_rows: impl Fn(&R) -> S,
    ) {
        // A connection of its own has prepared nothing else.
        let connection = PgConnection::connect_with(&self.db.connect_options()).await;
        let mut connection = connection.expect("the cluster runs");
        let mut tx = connection.begin().await.expect("a transaction");
        let mut rows =
            R::load(&mut Loader::new(&mut tx), keys()).await.expect("the rows are loaded");
        change(&mut rows);
        let mut writes = WriteBatch::new(&mut tx);
        rows.save(&mut writes);
        writes.execute().await.expect("the rows are saved");
        let loaded = R::load(&mut Loader::new(&mut tx), keys()).await.expect("the rows are loaded");
        assert_eq!(saved_rows(&loaded), saved_rows(&rows), "what is loaded is what was saved");
        let prepared = sqlx::query_scalar(PREPARED).persistent(false).fetch_all(&mut *tx).await;
        let prepared: Vec<String> = prepared.expect("the statements");
        let sent: String = prepared.iter().map(|statement| to_lines(statement) + ";\n").collect();
        let path = format!("{folder}/statements.sql");
        if std::env::var_os("REWRITE_STATEMENTS").is_some() {
            std::fs::write(&path, sent).expect("the file can be written");
            return;
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(committed, sent, "{path} (REWRITE_STATEMENTS=1 rewrites it)");
    }
}

/// A statement in one line, or each part of a `with` in one: whitespace means nothing.
fn to_lines(statement: &str) -> String {
    let words = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines = words.replace(" , write_", ",\nwrite_").replace("( ", "(").replace(" )", ")");
    // The last one stands behind those of the `with`.
    ["insert", "update"]
        .iter()
        .fold(lines, |lines, verb| lines.replace(&format!(") {verb} "), &format!(")\n{verb} ")))
}
