//! The circuit breaker of the consumer. After too many events in a row that could not be handled it pauses the
//! consumer of every instance, until an operator resumes it: the fault is then in the deployment, and without
//! a pause every event would become a dead letter.

use std::collections::HashMap;

use rdkafka::message::Message;
use sqlx::PgPool;
use tracing::warn;

use crate::consumer::commit::CommittedPart;
use crate::consumer::pause::{pause_by_circuit_breaker, wait_while_paused};
use crate::consumer::wait::{LoopWait, with_attempt_timeout};
use crate::dead_letter::{self, ReasonKind};
use crate::transaction::incoming_record::IncomingRecord;
use crate::transaction::part::Part;
use crate::unit_of_work::UnitOfWork;

/// This number of failed events of one topic in a row means a bad deployment, not bad events.
const CONSECUTIVE_FAILURES_MAX: u32 = 20;

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
        part: &Part<IncomingRecord<R>>,
        committed: &CommittedPart,
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
        while let Err(error) = with_attempt_timeout(pause_by_circuit_breaker(db, reason)).await {
            warn!("the pause could not be stored: {error}");
            if wait.back_off(&mut failures).await.is_err() {
                return;
            }
        }
        self.consecutive_failures.clear();
        wait_while_paused(db, wait).await;
    }
}
