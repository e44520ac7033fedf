//! The replay of a dead letter, after its cause was removed.
//!
//! Promise: the event has its effect in the transaction that settles its dead letter, and once, however often and by
//! however many operators it is replayed. Settling a dead letter without the inbox or a lock on its row breaks it.

use std::sync::Arc;
use std::time::Duration;

use messaging::consumer::Consumer;
use messaging::consumer::resources::ConsumerResources;
use messaging::consumer::router::EventRouter;
use messaging::crash_point;
use messaging::db::{self, DbErrorClass};
use messaging::dead_letter::{self, DeadLetter, DeadLetterReason, DeadLetterState};
use messaging::event::avro::{Undecodable, unframe};
use messaging::event::is_scheduled;
use messaging::flow::wakeups::Wakeups;
use messaging::kafka::record::{dataschema, schema_id};
use messaging::kafka::schema_registry::{CachedSchema, SchemaRegistryClient};
use messaging::transaction::events::apply_events;
use messaging::transaction::failure::{Failure, Next};
use messaging::transaction::incoming_record::{Content, IncomingRecord};
use messaging::unit_of_work::UnitOfWork;
use rdkafka::message::Message as _;
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgPool, PgTransaction};
use utoipa::ToSchema;

use crate::http::callers::caller::Caller;
use crate::http::problem::Problem;

/// Timeout of settling one dead letter. It is shorter than that of a request, so that the operator gets this
/// answer and not the server's.
pub(super) const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The `kind` of the problem that a dead letter still cannot be handled.
pub(crate) const STILL_UNPROCESSABLE: &str = "still-unprocessable";

/// The dead letters of a service, with everything that settling them needs.
pub(crate) struct DeadLetters<R: UnitOfWork> {
    pub db: PgPool,
    pub registry: Arc<SchemaRegistryClient>,
    pub router: Arc<EventRouter<R>>,
    pub wakeups: Arc<Wakeups>,
}

impl<R: UnitOfWork> DeadLetters<R> {
    pub fn of(consumer: &Consumer<R>) -> DeadLetters<R> {
        let ConsumerResources { db, registry, wakeups, router, .. } = &consumer.resources;
        DeadLetters {
            db: db.clone(),
            registry: registry.clone(),
            router: router.clone(),
            wakeups: wakeups.clone(),
        }
    }
}

/// The outcome of a replay or of a discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SettleOutcome {
    /// The event had its effect in this transaction.
    Replayed,
    /// The event had its effect in another delivery; now the dead letter is settled as well.
    HandledBefore,
    /// The event was discarded in this transaction.
    Discarded,
    /// The event was discarded with another dead letter; now this one is settled as well.
    DiscardedBefore,
    /// The dead letter was already settled in this way; nothing was done.
    DoneBefore,
}

/// The decoded content of a record, as far as it can be decoded.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct DecodedRecord {
    /// The event.
    #[schema(required)]
    pub event: Option<Value>,
    /// The schema with which it was decoded.
    #[schema(required)]
    pub read_with: Option<String>,
    /// Why it could not be decoded, or not with the schema that the record names.
    #[schema(required)]
    pub unreadable: Option<String>,
}

enum ReplayError {
    Failed(Failure),
    Refused(Problem),
}

impl<E: Into<Failure>> From<E> for ReplayError {
    fn from(error: E) -> ReplayError {
        ReplayError::Failed(error.into())
    }
}

impl From<Problem> for ReplayError {
    fn from(problem: Problem) -> ReplayError {
        ReplayError::Refused(problem)
    }
}

/// Whether a dead letter, whose state is now `state`, is already settled in the way that the operator requests.
///
/// # Errors
/// It was settled in the other way, which is final.
pub(super) fn is_settled(
    dead_letter: &DeadLetter,
    state: DeadLetterState,
    requested: DeadLetterState,
) -> Result<bool, Problem> {
    let id = dead_letter.dead_letter_id;
    let (kind, detail) = match state {
        DeadLetterState::Waiting => return Ok(false),
        _ if state == requested => return Ok(true),
        DeadLetterState::Replayed => ("replayed", "replayed: there is nothing left to discard"),
        DeadLetterState::Discarded => ("discarded", "discarded, which is final"),
    };
    Err(Problem::conflict(kind, format!("Dead letter {id} was {detail}.")))
}

impl<R: UnitOfWork> DeadLetters<R> {
    pub async fn find(&self, dead_letter_id: i64) -> Result<DeadLetter, Problem> {
        let dead_letter = dead_letter::find(&self.db, dead_letter_id).await?;
        dead_letter
            .ok_or_else(|| Problem::not_found(format!("There is no dead letter {dead_letter_id}.")))
    }

    /// Applies the event and settles its dead letter, in one transaction.
    pub async fn replay(
        &self,
        dead_letter_id: i64,
        actor: &Caller,
    ) -> Result<SettleOutcome, Problem> {
        let dead_letter = self.find(dead_letter_id).await?;
        if is_settled(&dead_letter, dead_letter.state, DeadLetterState::Replayed)? {
            return self.already_settled(dead_letter_id).await;
        }
        let item = self.parse(&dead_letter).await?;
        if let Content::DeadLetter(cause) = &item.content {
            return Err(still_unprocessable(dead_letter_id, cause));
        }
        let mut races = 0;
        loop {
            let attempt = self.replay_once(&dead_letter, &item, actor.subject());
            let attempt = tokio::time::timeout(SETTLE_TIMEOUT, attempt).await;
            let failure = match attempt.map_err(Problem::admin_outcome_unknown)? {
                Ok(settled) => return Ok(settled),
                Err(ReplayError::Refused(problem)) => return Err(problem),
                Err(ReplayError::Failed(failure)) => failure,
            };
            match (failure.next(1, true, races), failure) {
                (Next::Race, _) => races += 1,
                (Next::Reject(cause), _) => {
                    return Err(still_unprocessable(dead_letter_id, &cause));
                }
                (_, Failure::Database(DbErrorClass::DatabaseRule, error)) => {
                    let cause = DeadLetterReason::rejected_by_database(&error);
                    return Err(still_unprocessable(dead_letter_id, &cause));
                }
                (_, failure) => return Err(unavailable(failure)),
            }
        }
    }

    async fn replay_once(
        &self,
        dead_letter: &DeadLetter,
        item: &IncomingRecord<R>,
        actor: Option<&str>,
    ) -> Result<SettleOutcome, ReplayError> {
        let mut tx = db::begin(&self.db).await?;
        let state = dead_letter::lock(&mut tx, dead_letter.dead_letter_id).await?;
        if is_settled(dead_letter, state, DeadLetterState::Replayed)? {
            tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
            return Ok(SettleOutcome::DoneBefore);
        }
        let attempts = dead_letter.attempts.saturating_add(1);
        let now = db::now(&mut tx).await?;
        let records = std::slice::from_ref(item);
        let effect = apply_events(&mut tx, records, now, true, attempts).await?;
        let (state, outcome) = if effect.has_effect() {
            (DeadLetterState::Replayed, SettleOutcome::Replayed)
        } else if self.was_discarded(&mut tx, item).await? {
            (DeadLetterState::Discarded, SettleOutcome::DiscardedBefore)
        } else {
            (DeadLetterState::Replayed, SettleOutcome::HandledBefore)
        };
        dead_letter::settle(&mut tx, dead_letter.dead_letter_id, state, None, actor).await?;
        crash_point!("replay.prepared");
        tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
        crash_point!("replay.committed");
        effect.after_commit(&self.wakeups);
        Ok(outcome)
    }

    pub(super) async fn was_discarded(
        &self,
        tx: &mut PgTransaction<'_>,
        item: &IncomingRecord<R>,
    ) -> sqlx::Result<bool> {
        match item.event_id {
            Some(event_id) => dead_letter::was_discarded(tx, event_id, item.message.topic()).await,
            None => Ok(false),
        }
    }

    /// The answer for a dead letter that is settled already. Locking its row writes to the database's log, so
    /// that this answer is as durable as the transaction that settled it.
    pub(super) async fn already_settled(&self, id: i64) -> Result<SettleOutcome, Problem> {
        let work = async {
            let mut tx = db::begin(&self.db).await.map_err(unavailable)?;
            dead_letter::lock(&mut tx, id).await.map_err(unavailable)?;
            tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
            Ok(SettleOutcome::DoneBefore)
        };
        tokio::time::timeout(SETTLE_TIMEOUT, work).await.map_err(Problem::admin_outcome_unknown)?
    }

    /// The event of a dead letter with its handler, decoded with today's code and schemas.
    pub(super) async fn parse(&self, letter: &DeadLetter) -> Result<IncomingRecord<R>, Problem> {
        let message = letter.to_message();
        let schemas = self.registry.get_schemas(schema_id(&message)).await;
        let mut item = self.router.parse(message, &schemas);
        if let Some(reason) = letter.truncation_reason() {
            item.content = Content::DeadLetter(DeadLetterReason::undecodable(reason));
        } else if let Content::SchemaPending { reason, is_unregistered } = item.content {
            if !is_unregistered {
                return Err(unavailable(reason));
            }
            item.content = Content::DeadLetter(DeadLetterReason::undecodable(reason));
        }
        Ok(item)
    }

    /// The content of a dead letter, decoded with the schema that its record names, or else with this
    /// service's own.
    pub async fn decode(&self, dead_letter: &DeadLetter) -> DecodedRecord {
        let mut decoded = DecodedRecord::default();
        if let Err(Undecodable(reason)) = self.decode_into(dead_letter, &mut decoded).await {
            decoded.unreadable = Some(reason);
        }
        decoded
    }

    async fn decode_into(
        &self,
        dead_letter: &DeadLetter,
        decoded: &mut DecodedRecord,
    ) -> Result<(), Undecodable> {
        if let Some(reason) = dead_letter.truncation_reason() {
            return Err(Undecodable(reason));
        }
        let record = dead_letter.record.as_deref();
        let record = record.ok_or(Undecodable("the record is empty".into()))?;
        if is_scheduled(&dead_letter.topic) {
            let timer = serde_json::from_slice(record);
            decoded.event =
                Some(timer.map_err(|error| Undecodable(format!("it is no JSON: {error}")))?);
            return Ok(());
        }
        let (id, body) = unframe(record)?;
        let schemas = self.registry.get_schemas([id]).await;
        let reason = match schemas.find(id, dataschema(&dead_letter.to_message())) {
            CachedSchema::Resolved(written) => {
                // If the bytes do not fit the writer's schema, any other schema would decode nonsense.
                decoded.event = Some(written.decode_json(body)?);
                decoded.read_with = Some(format!("schema {id} of the registry"));
                return Ok(());
            }
            CachedSchema::Unreadable(reason)
            | CachedSchema::Unregistered(reason)
            | CachedSchema::Reassigned(_, reason)
            | CachedSchema::Pending(reason) => reason,
        };
        if let Some(topic) = self.router.topic(&dead_letter.topic)
            && let Ok(event) = topic.codec().decode_json(body)
        {
            decoded.event = Some(event);
            decoded.read_with = Some("this service's own schema of the topic".into());
        }
        Err(Undecodable(reason))
    }
}

fn still_unprocessable(dead_letter_id: i64, cause: &DeadLetterReason) -> Problem {
    let detail = format!(
        "Dead letter {dead_letter_id} was not replayed, since it is still unprocessable: {}.",
        cause.detail
    );
    Problem::conflict(STILL_UNPROCESSABLE, detail)
}

pub(super) fn unavailable(reason: impl std::fmt::Display) -> Problem {
    Problem::unavailable(format!("Temporarily unavailable, nothing was changed: {reason}."))
}
