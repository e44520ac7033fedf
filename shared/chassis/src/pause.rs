//! Whether the consumer is paused: too many events in a row could not be handled, and an operator has
//! to look before more of them become dead letters. Kept in the database, so that it holds for every
//! instance and outlives them.

use axum::extract::State;
use axum::{Json, Router, routing::get, routing::post};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;

use crate::dead_letter::stored;
use crate::problem::Problem;

/// Whether an operator has yet to resume the consumer, and how many letters wait for one, up to 1,000:
/// asked every few seconds, it must not count for long.
pub async fn paused(db: &PgPool) -> sqlx::Result<(bool, i64)> {
    let paused = "select paused_at is not null, (select count(*) from (
                      select from dead_letters where state = 'waiting' limit 1000) as letters)
                  from consumer";
    sqlx::query_as(paused).fetch_one(db).await
}

/// Pauses the consumer of every instance, until an operator resumes it.
pub async fn pause(db: &PgPool, reason: &str) -> sqlx::Result<()> {
    sqlx::query("update consumer set paused_at = now(), reason = $1")
        .bind(stored(reason))
        .execute(db)
        .await?;
    Ok(())
}

/// What operators do about it.
pub(crate) fn router(db: PgPool) -> Router {
    Router::new()
        .route("/consumer", get(consumer))
        .route("/consumer/resume", post(resume))
        .with_state(db)
}

#[derive(Serialize, sqlx::FromRow)]
struct ConsumerState {
    paused_at: Option<DateTime<Utc>>,
    reason: Option<String>,
}

async fn consumer(State(db): State<PgPool>) -> Result<Json<ConsumerState>, Problem> {
    Ok(Json(sqlx::query_as("select paused_at, reason from consumer").fetch_one(&db).await?))
}

async fn resume(State(db): State<PgPool>) -> Result<Json<ConsumerState>, Problem> {
    let mut tx = db.begin().await?;
    let resume = "update consumer set paused_at = null, reason = null returning paused_at, reason";
    let resumed = sqlx::query_as(resume).fetch_one(&mut *tx).await?;
    tx.commit().await.map_err(Problem::cut)?;
    Ok(Json(resumed))
}
