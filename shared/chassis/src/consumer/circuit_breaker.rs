//! The circuit breaker of the consumer. After too many events in a row that could not be handled it pauses the
//! consumer of every instance, until an operator resumes it: the fault is then in the deployment, and without
//! a pause every event would become a dead letter. The pause is stored in the database, so that
//! it holds for every instance and survives restarts.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics::gauge;
use rdkafka::message::Message;
use serde::Serialize;
use sqlx::PgPool;
use tracing::{error, warn};

use crate::consumer::commit::CommittedSubBatch;
use crate::consumer::sub_batch::SubBatch;
use crate::consumer::wait::{LoopWait, with_attempt_timeout};
use crate::dead_letter::{self, ReasonKind, storable_text};
use crate::http::problem::Problem;
use crate::unit_of_work::UnitOfWork;

/// This number of failed events of one topic in a row means a bad deployment, not bad events.
const CONSECUTIVE_FAILURES_MAX: u32 = 20;

/// How often the consumer checks whether it is paused.
pub(crate) const PAUSE_POLL_INTERVAL: Duration = Duration::from_secs(3);

/// What one consumer has counted since its last success, by topic.
#[derive(Default)]
pub(crate) struct CircuitBreaker {
    /// By topic, since each has a handler of its own: events in a row that could not be handled.
    /// Undecodable records are not counted.
    consecutive_failures: HashMap<String, u32>,
    /// Whether there are dead letters that were stored after their number was last checked.
    has_new_dead_letters: bool,
}

impl CircuitBreaker {
    /// After a commit: counts failures in a row. A dead letter that was stored before does not count, and an
    /// event that had its effect before does not end a series: a topic may be read again from its beginning.
    pub fn record_committed<R: UnitOfWork>(
        &mut self,
        part: &SubBatch<R>,
        committed: &CommittedSubBatch,
    ) {
        self.consecutive_failures.retain(|topic, _| !committed.handled.contains(&**topic));
        for (item, reason) in committed.new_dead_letters(part) {
            if reason.kind != ReasonKind::Undecodable {
                let topic = item.message.topic().to_string();
                *self.consecutive_failures.entry(topic).or_default() += 1;
            }
        }
        self.has_new_dead_letters |= !committed.dead_letters.is_empty();
    }

    /// Why the consumer must be paused, if it must.
    pub async fn open_reason(&mut self, db: &PgPool) -> Option<String> {
        if self.consecutive_failures.values().any(|failures| *failures >= CONSECUTIVE_FAILURES_MAX)
        {
            return Some(format!(
                "{CONSECUTIVE_FAILURES_MAX} events of a topic in a row could not be handled"
            ));
        }
        if !std::mem::take(&mut self.has_new_dead_letters) {
            return None;
        }
        // Dead letters must not fill the database.
        match with_attempt_timeout(dead_letter::full_reason(db)).await {
            Ok(reason) => reason,
            Err(error) => {
                // The next dead letter repeats the check.
                warn!("the dead letters could not be counted: {error}");
                None
            }
        }
    }

    /// Pauses the consumer of every instance and waits for an operator. API and relay continue.
    pub async fn open(&mut self, db: &PgPool, wait: &LoopWait<'_>, reason: &str) {
        let mut failures = 0;
        while let Err(error) = with_attempt_timeout(pause(db, reason)).await {
            warn!("the pause could not be stored: {error}");
            if wait.back_off(&mut failures).await.is_err() {
                return;
            }
        }
        self.consecutive_failures.clear();
        wait_while_paused(db, wait).await;
    }
}

/// Waits while the consumer is paused. It stays in its group meanwhile.
pub(crate) async fn wait_while_paused(db: &PgPool, wait: &LoopWait<'_>) {
    let mut logged = false;
    while !wait.stop.is_cancelled() {
        match with_attempt_timeout(pause_status(db)).await {
            Ok((paused, dead_letters)) => {
                gauge!("dead_letters_waiting").set(dead_letters as f64);
                if !paused {
                    break;
                }
                gauge!("consumer_paused").set(1);
                if !logged {
                    error!(
                        "the consumer is paused until an operator resumes it: see the dead \
                         letters"
                    );
                    logged = true;
                }
            }
            Err(error) => warn!("the pause of the consumer could not be read: {error}"),
        }
        let _ = wait.sleep(PAUSE_POLL_INTERVAL).await;
    }
    gauge!("consumer_paused").set(0);
}

/// Whether the consumer is paused, and how many dead letters wait for an operator, up to 1,000: the query runs
/// every few seconds and must be short.
async fn pause_status(db: &PgPool) -> sqlx::Result<(bool, i64)> {
    let paused = "select paused_at is not null, (select count(*) from (
                      select from chassis.dead_letters where state = 'waiting' limit 1000) as letters)
                  from chassis.consumer";
    sqlx::query_as(paused).fetch_one(db).await
}

/// Pauses the consumer of every instance, until an operator resumes it.
async fn pause(db: &PgPool, reason: &str) -> sqlx::Result<()> {
    sqlx::query("update chassis.consumer set paused_at = now(), reason = $1")
        .bind(storable_text(reason))
        .execute(db)
        .await?;
    Ok(())
}

/// Since when the consumer is paused, and why; nothing while it is not.
#[derive(Serialize, sqlx::FromRow)]
pub(crate) struct PauseState {
    paused_at: Option<DateTime<Utc>>,
    reason: Option<String>,
}

/// Reads whether the consumer is paused.
pub(crate) async fn pause_state(db: &PgPool) -> sqlx::Result<PauseState> {
    sqlx::query_as("select paused_at, reason from chassis.consumer").fetch_one(db).await
}

/// Ends the pause of the consumer of every instance.
pub(crate) async fn resume(db: &PgPool, actor: Option<&str>) -> Result<PauseState, Problem> {
    let mut tx = db.begin().await?;
    let resume = "update chassis.consumer set paused_at = null, reason = null, actor = $1
                  returning paused_at, reason";
    let resumed = sqlx::query_as(resume).bind(actor).fetch_one(&mut *tx).await?;
    tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
    Ok(resumed)
}
