//! A service's books: sums that must balance, read from its rows at each request unless the caller accepts older ones.
//!
//! A balance proves something only if both sides are stored separately. Counters that a constraint ties together
//! balance in any case, so the books compare them with the rows that they count.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use sqlx::{AssertSqlSafe, PgPool};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::cached_answer::CachedAnswer;
use crate::http::problem::Problem;

/// Serves `GET /books`: the one row that `sums` selects, as a JSON object with a field for each column, what the
/// service wrote off with dead letters that were discarded, and what is pending. One of the columns is whether it is
/// `balanced`.
/// One statement sees the database at one moment, so no writer needs to stop for it. The database writes the
/// JSON: a sum of `bigint`s is a `numeric` there, and needs no type here that is large enough.
///
/// It may read every row, which takes seconds with millions of them. So it may take longer than any other request,
/// up to 14 s; beyond that the answer is 503. One request at a time reads the books. A request with
/// `Cache-Control: max-age=60` accepts books of this process that are up to 60 s old; the header `Age` of the answer
/// is their age in seconds.
pub fn router(db: PgPool, sums: &'static str) -> Router {
    let cached = Arc::default();
    Router::from(routes().with_state(Source { db, sums, cached }))
}

pub(crate) fn routes() -> OpenApiRouter<Source> {
    OpenApiRouter::new().routes(routes!(show))
}

#[derive(Clone)]
pub(crate) struct Source {
    db: PgPool,
    sums: &'static str,
    cached: Arc<CachedAnswer<String>>,
}

/// The sums that must balance. Each service has further fields.
#[derive(ToSchema)]
#[allow(dead_code)] // The database writes the JSON.
struct Books {
    /// Whether the sums agree with the rows that they count.
    balanced: bool,
    /// What was given up with dead letters that were discarded, by unit.
    written_off: Vec<WrittenOff>,
    /// The timers, calls, tasks and deliveries that are pending, by name. Absent while there is none.
    pending: Option<Vec<Pending>>,
}

#[derive(ToSchema)]
#[allow(dead_code)]
struct Pending {
    name: String,
    count: i64,
}

#[derive(ToSchema)]
#[allow(dead_code)]
struct WrittenOff {
    unit: String,
    amount: i64,
}

/// Shows the sums that must balance.
///
/// It may read every row, so it may take up to 14 s, and longer than that is a 503.
#[utoipa::path(get, path = "/books",
    params(("Cache-Control" = Option<String>, Header, example = "max-age=60",
        description = "With `max-age`, the answer may be so many seconds old.")),
    responses((status = 200, description = "The sums.", body = Books,
        headers(("Age" = u64, description = "How many seconds old the sums are.")))))]
async fn show(
    State(Source { db, sums, cached }): State<Source>,
    headers: HeaderMap,
) -> Result<([(HeaderName, String); 2], String), Problem> {
    let (books, age) = cached.get(accepted_age(&headers), read(&db, sums)).await?;
    let headers = [(CONTENT_TYPE, "application/json".into()), (AGE, age.as_secs().to_string())];
    Ok((headers, books))
}

async fn read(db: &PgPool, sums: &str) -> Result<String, Problem> {
    let mut tx = db.begin().await?;
    sqlx::query("set local statement_timeout = '14s'").execute(&mut *tx).await?;
    let has_pending =
        "select exists (select from chassis.scheduled) or exists (select from chassis.calls)";
    let has_pending = sqlx::query_scalar(has_pending).fetch_one(&mut *tx).await?;
    let books = sqlx::query_scalar(AssertSqlSafe(with_chassis(sums, has_pending)));
    let books: String = books.fetch_one(&mut *tx).await?;
    tx.rollback().await?;
    Ok(books)
}

/// The age of an answer that a request accepts (RFC 9111). A request without the directive `max-age`, or with one that
/// cannot be parsed, accepts none: a test and an operator expect the books of now.
fn accepted_age(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    let age = directives.find_map(|directive| directive.strip_prefix("max-age="));
    Duration::from_secs(age.and_then(|seconds| seconds.parse().ok()).unwrap_or_default())
}

/// The statement that reads the books. Write-offs are summed by unit, and what is pending is counted by name.
fn with_chassis(sums: &str, has_pending: bool) -> String {
    let pending = match has_pending {
        false => "",
        true => {
            ", (select json_agg(of_name order by name)
                from (select name, count(*) from (select source as name from chassis.scheduled
                                                  union all select name from chassis.calls) as each
                      group by name) as of_name) as pending"
        }
    };
    format!(
        "select row_to_json(books)::text from (
             select sums.*, coalesce(
                 (select json_agg(total order by unit)
                  from (select unit, sum(amount) as amount from chassis.write_offs group by unit) as total),
                 '[]') as written_off {pending}
             from ({sums}) as sums) as books"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_accepts_the_age_that_it_names() {
        let age = |values: &[&str]| {
            let values = values.iter().map(|value| (CACHE_CONTROL, value.parse().unwrap()));
            accepted_age(&values.collect()).as_secs()
        };
        assert_eq!(age(&[]), 0);
        assert_eq!(age(&["no-cache"]), 0);
        assert_eq!(age(&["max-age=60"]), 60);
        assert_eq!(age(&["no-transform, max-age=60"]), 60);
        assert_eq!(age(&["no-transform", "max-age=7"]), 7);
        for invalid in ["max-age=", "max-age=-1", "max-age=x", "max-age"] {
            assert_eq!(age(&[invalid]), 0, "{invalid}");
        }
    }
}
