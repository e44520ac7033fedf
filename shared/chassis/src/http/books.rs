//! A service's books: sums that must balance, read from its rows at each request.
//!
//! A balance proves something only if both sides are stored separately. Counters that a constraint ties together
//! balance in any case, so the books compare them with the rows that they count.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgRow, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, FromRow, PgPool, Type};
use tokio::sync::Mutex;

use crate::http::problem::Problem;

/// The sums of a service, and what it wrote off with dead letters that were discarded.
#[derive(Serialize)]
struct Books<B> {
    #[serde(flatten)]
    sums: B,
    written_off: Vec<WriteOffTotal>,
}

/// A sum of `bigint`s without overflow: a column of type `text`, as in `sum(cents)::text`. If a sum did not fit,
/// the books could not be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sum(i128);

impl Type<Postgres> for Sum {
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for Sum {
    fn decode(value: PgValueRef<'r>) -> Result<Sum, BoxDynError> {
        Ok(Sum(<&str as Decode<Postgres>>::decode(value)?.parse()?))
    }
}

/// Serves `GET /books`: the one row that `sums` selects, with whether it is `balanced` among its
/// columns. One statement sees the database at one moment, so no writer needs to stop for it.
///
/// It may read every row, which takes seconds with millions of them. So it may take longer than any other request,
/// up to 14 s; beyond that the answer is 503. One request at a time reads the books.
pub fn router<B>(db: PgPool, sums: &'static str) -> Router
where
    B: for<'r> FromRow<'r, PgRow> + Serialize + Send + Unpin + 'static,
{
    let in_progress = Arc::new(Mutex::new(()));
    let books = async move |State((db, in_progress)): State<(PgPool, Arc<Mutex<()>>)>| {
        let _guard = in_progress.lock().await;
        let mut tx = db.begin().await?;
        sqlx::query("set local statement_timeout = '14s'").execute(&mut *tx).await?;
        let sums: B = sqlx::query_as(sums).fetch_one(&mut *tx).await?;
        tx.rollback().await?;
        let written_off = write_off_totals(&db).await?;
        Ok::<_, Problem>(Json(Books { sums, written_off }))
    };
    Router::new().route("/books", get(books)).with_state((db, in_progress))
}

/// What was written off of one unit, as the books show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub(crate) struct WriteOffTotal {
    /// What the amount counts.
    pub unit: String,
    /// The sum.
    pub amount: Sum,
}

/// All that this service has written off, by unit.
pub(crate) async fn write_off_totals(db: &PgPool) -> sqlx::Result<Vec<WriteOffTotal>> {
    let sums =
        "select unit, sum(amount)::text as amount from write_offs group by unit order by unit";
    sqlx::query_as(sums).fetch_all(db).await
}
