//! The pause of the consumer. The circuit breaker begins it, or an operator, and an operator ends it. It is one row of
//! the service's database, which every instance reads every few seconds: a pause and its end hold for every instance
//! and survive restarts.

use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics::gauge;
use serde::Serialize;
use sqlx::{PgExecutor, PgPool};
use tracing::{error, warn};
use utoipa::ToSchema;

use crate::consumer::wait::{LoopWait, with_attempt_timeout};
use crate::db::operator_acts::{self, OperatorAct, OperatorActError};
use crate::dead_letter::storable_text;

pub const PAUSE_POLL_INTERVAL: Duration = Duration::from_secs(3);

/// Who paused the consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
enum PauseCause {
    /// Its circuit breaker: it cannot handle what it reads.
    CircuitBreaker,
    /// An operator, for a reason of theirs.
    Operator,
}

/// Since when the consumer is paused, by whom and why; nothing while it is not.
#[derive(Serialize, sqlx::FromRow, ToSchema)]
pub struct PauseState {
    #[schema(required)]
    paused_at: Option<DateTime<Utc>>,
    #[schema(required)]
    cause: Option<PauseCause>,
    #[schema(required)]
    reason: Option<String>,
    /// The operator who paused it, if the service knows its callers.
    #[schema(required)]
    actor: Option<String>,
}

/// Waits while the consumer is paused. It stays in its group meanwhile.
pub async fn wait_while_paused(db: &PgPool, wait: &LoopWait<'_>) {
    let mut logged = None;
    while !wait.stop.is_cancelled() {
        match with_attempt_timeout(pause_status(db)).await {
            Ok((paused_by, dead_letters)) => {
                gauge!("dead_letters_waiting").set(dead_letters as f64);
                let Some(cause) = paused_by else { break };
                report(paused_by);
                if logged.replace(cause) != paused_by {
                    log(cause);
                }
            }
            Err(error) => warn!("the pause of the consumer could not be read: {error}"),
        }
        let _ = wait.sleep(PAUSE_POLL_INTERVAL).await;
    }
    report(None);
}

/// A gauge for each cause, so that it is known who has to act.
fn report(paused_by: Option<PauseCause>) {
    let is_by = |cause| f64::from(u8::from(paused_by == Some(cause)));
    gauge!("consumer_paused", "cause" => "circuit_breaker").set(is_by(PauseCause::CircuitBreaker));
    gauge!("consumer_paused", "cause" => "operator").set(is_by(PauseCause::Operator));
}

fn log(cause: PauseCause) {
    match cause {
        PauseCause::CircuitBreaker => error!(
            "the consumer is paused by its circuit breaker until an operator resumes it: check the dead letters"
        ),
        PauseCause::Operator => {
            warn!("the consumer is paused by an operator until an operator resumes it");
        }
    }
}

/// Who has paused the consumer, and how many dead letters wait for an operator, up to 1,000: the query runs
/// every few seconds and must be short.
async fn pause_status(db: &PgPool) -> sqlx::Result<(Option<PauseCause>, i64)> {
    let paused = "select case when paused_at is not null then cause end, (select count(*) from (
                      select from chassis.dead_letters where state = 'waiting' limit 1000) as letters)
                  from chassis.consumer";
    sqlx::query_as(paused).fetch_one(db).await
}

pub async fn pause_state(db: impl PgExecutor<'_>) -> sqlx::Result<PauseState> {
    // A resume leaves its own actor.
    let state = "select paused_at, reason, case when paused_at is not null then cause end as cause,
                        case when paused_at is not null then actor end as actor
                 from chassis.consumer";
    sqlx::query_as(state).fetch_one(db).await
}

/// The circuit breaker pauses the consumer of every instance. A pause by an operator becomes its own, since a resume
/// would now meet its fault.
pub async fn pause_by_circuit_breaker(db: &PgPool, reason: &str) -> sqlx::Result<()> {
    let pause = "update chassis.consumer
                 set paused_at = now(), cause = 'circuit_breaker', reason = $1, actor = null";
    sqlx::query(pause).bind(storable_text(reason)).execute(db).await?;
    Ok(())
}

/// An operator pauses the consumer of every instance. A consumer that is paused stays so, with the cause and the reason
/// that it has.
pub async fn pause_by_operator(
    db: &PgPool,
    reason: &str,
    actor: Option<&str>,
) -> Result<PauseState, OperatorActError> {
    let mut tx = db.begin().await?;
    let pause = "update chassis.consumer
                 set paused_at = now(), cause = 'operator', reason = $1, actor = $2
                 where paused_at is null";
    let reason = storable_text(reason);
    sqlx::query(pause).bind(&reason).bind(actor).execute(&mut *tx).await?;
    operator_acts::insert(&mut tx, OperatorAct::Pause, Some(&reason), actor).await?;
    let paused = pause_state(&mut *tx).await?;
    tx.commit().await.map_err(OperatorActError::OutcomeUnknown)?;
    Ok(paused)
}

/// Ends the pause of the consumer of every instance.
pub async fn resume(db: &PgPool, actor: Option<&str>) -> Result<PauseState, OperatorActError> {
    let mut tx = db.begin().await?;
    let resume = "update chassis.consumer
                  set paused_at = null, cause = null, reason = null, actor = $1";
    sqlx::query(resume).bind(actor).execute(&mut *tx).await?;
    operator_acts::insert(&mut tx, OperatorAct::Resume, None, actor).await?;
    let resumed = pause_state(&mut *tx).await?;
    tx.commit().await.map_err(OperatorActError::OutcomeUnknown)?;
    Ok(resumed)
}
