//! A service's books: sums that must balance, read from its rows at each request.
//!
//! A balance proves something only if both sides are stored separately. Counters that a constraint ties together
//! balance in any case, so the books compare them with the rows that they count.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::Mutex;

use crate::http::problem::Problem;

/// Serves `GET /books`: the one row that `sums` selects, as a JSON object with a field for each column, and what
/// the service wrote off with dead letters that were discarded. One of the columns is whether it is `balanced`.
/// One statement sees the database at one moment, so no writer needs to stop for it. The database writes the
/// JSON: a sum of `bigint`s is a `numeric` there, and needs no type here that is large enough.
///
/// It may read every row, which takes seconds with millions of them. So it may take longer than any other request,
/// up to 14 s; beyond that the answer is 503. One request at a time reads the books.
pub fn router(db: PgPool, sums: &'static str) -> Router {
    let in_progress = Arc::new(Mutex::new(()));
    let books = async move |State((db, in_progress)): State<(PgPool, Arc<Mutex<()>>)>| {
        let _guard = in_progress.lock().await;
        let mut tx = db.begin().await?;
        sqlx::query("set local statement_timeout = '14s'").execute(&mut *tx).await?;
        let books = sqlx::query_scalar(AssertSqlSafe(with_write_offs(sums)));
        let books: String = books.fetch_one(&mut *tx).await?;
        tx.rollback().await?;
        Ok::<_, Problem>(([(CONTENT_TYPE, "application/json")], books))
    };
    Router::new().route("/books", get(books)).with_state((db, in_progress))
}

/// The statement that reads the books. Write-offs are summed by unit.
fn with_write_offs(sums: &str) -> String {
    format!(
        "select row_to_json(books)::text from (
             select sums.*, coalesce(
                 (select json_agg(total order by unit)
                  from (select unit, sum(amount) as amount from chassis.write_offs group by unit) as total),
                 '[]') as written_off
             from ({sums}) as sums) as books"
    )
}
