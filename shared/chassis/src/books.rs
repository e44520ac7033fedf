//! A service's books: sums that must balance, read from its rows whenever they are asked for.
//!
//! What is compared has to be written down twice. Counters that one constraint ties together balance
//! whatever happened to them; so they are held against the rows that they count.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json as Answer, Router};
use serde::Serialize;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgRow, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, FromRow, PgPool, Type};
use tokio::sync::Mutex;

use crate::loss::{self, WrittenOff};
use crate::problem::Problem;

/// The sums of a service, and what it wrote off with dead letters that were discarded.
#[derive(Serialize)]
struct Books<B> {
    #[serde(flatten)]
    sums: B,
    written_off: Vec<WrittenOff>,
}

/// A sum of `bigint`s, whatever it comes to: a column of type `text`, as in `sum(cents)::text`. A sum that
/// did not fit would leave no books at all from then on.
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
/// columns. One statement sees the database at one moment, so nobody needs to be stopped for it.
///
/// It may read every row, which takes seconds where there are millions of them. So it may take longer
/// than whatever else is asked, up to 14 s, almost as long as a request; beyond that the answer is
/// 503. It is done once at a time.
pub fn router<B>(db: PgPool, sums: &'static str) -> Router
where
    B: for<'r> FromRow<'r, PgRow> + Serialize + Send + Unpin + 'static,
{
    let one = Arc::new(Mutex::new(()));
    let books = async move |State((db, one)): State<(PgPool, Arc<Mutex<()>>)>| {
        let _one = one.lock().await;
        let mut tx = db.begin().await?;
        sqlx::query("set local statement_timeout = '14s'").execute(&mut *tx).await?;
        let sums: B = sqlx::query_as(sums).fetch_one(&mut *tx).await?;
        tx.rollback().await?;
        let written_off = loss::written_off(&db).await?;
        Ok::<_, Problem>(Answer(Books { sums, written_off }))
    };
    Router::new().route("/books", get(books)).with_state((db, one))
}
