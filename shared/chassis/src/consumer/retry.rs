//! Why an event is tried again, and when it becomes a dead letter instead.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::consumer::sub_batch::{SubBatch, record_age};
use crate::dead_letter::DeadLetterReason;
use crate::transaction::incoming_record::Content;
use crate::unit_of_work::UnitOfWork;

/// An event that a rule of the database refuses becomes a dead letter after at least this number of attempts
/// over at least this time, if another event of its topic had its effect meanwhile: a rule that refuses every
/// event is no fault of a single one.
const REJECTED_ATTEMPTS_MIN: u32 = if cfg!(test) { 4 } else { 10 };
pub(crate) const REJECTED_FOR_MIN: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 300 });

/// The shortest time for which an unknown schema id is requested, even for an old record.
const UNKNOWN_SCHEMA_WAIT_MIN: Duration = Duration::from_secs(2);

pub(crate) enum RetryReason {
    UnknownSchema,
    DatabaseRule,
    /// A temporary failure that concerns this event only.
    SingleEvent,
    /// A temporary failure that concerns every event.
    AllEvents,
}

impl RetryReason {
    /// Why a single event that has waited becomes a dead letter now, if it does.
    pub fn dead_letter_reason<R: UnitOfWork>(
        &self,
        part: &SubBatch<R>,
        detail: &str,
        lag_max: Duration,
        has_room: bool,
        last_success_at: &HashMap<&'static str, Instant>,
    ) -> Option<DeadLetterReason> {
        let waited = part.attempts.started_at.elapsed();
        match (self, &part.items[0].content) {
            (RetryReason::UnknownSchema, Content::SchemaPending { is_unregistered: true, .. }) => {
                let is_old = waited > lag_max
                    || waited > UNKNOWN_SCHEMA_WAIT_MIN
                        && record_age(&part.items[0]) > Some(lag_max)
                    || !has_room;
                is_old.then(|| DeadLetterReason::undecodable(detail))
            }
            (RetryReason::DatabaseRule, Content::Event(topic, _)) => {
                let succeeded = last_success_at.get(topic.name);
                let others_go_on = succeeded.is_some_and(|at| *at > part.attempts.started_at);
                let tried =
                    part.attempts.count >= REJECTED_ATTEMPTS_MIN && waited >= REJECTED_FOR_MIN;
                (others_go_on && tried).then(|| DeadLetterReason::handler_failed(detail))
            }
            _ => None,
        }
    }
}

pub(super) fn rejection_reason(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    let DeadLetterReason { detail: reason, .. } = DeadLetterReason::rejected_by_database(error);
    format!("{reason} (SQLSTATE {})", code.as_deref().unwrap_or("unknown"))
}
