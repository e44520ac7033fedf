//! A batch of commands inside its transaction: decided and written, before the commit.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::commands::idempotency::{self, IdempotentRequest};
use crate::commands::queue::QueuedCommand;
use crate::commands::reply::Reply;
use crate::crash_point;
use crate::db;
use crate::event::{HandlerContext, Outgoing};
use crate::http::problem::Problem;
use crate::outbox::{self, Envelope};
use crate::telemetry::panics::catch_panic;
use crate::unit_of_work::UnitOfWork;
use crate::unit_of_work::table;
use crate::unit_of_work::write_batch::WriteBatch;

/// Why a batch was not committed. All of it was rolled back, unless its commit was cut.
pub(super) enum BatchError {
    /// The command at this index cannot be decided, and why.
    Undecidable(usize, String),
    /// The database's error. If the commit was cut: for each command, whether it may have had its effect.
    Database { error: sqlx::Error, outcome_unknown: Vec<bool> },
}

impl BatchError {
    /// Whether the cause may be a duplicate: a command that was assumed to be new but had its effect before.
    pub(super) fn may_be_duplicate(&self) -> bool {
        match self {
            BatchError::Undecidable(..) => true,
            BatchError::Database { error, .. } => db::classify(error).may_be_duplicate(),
        }
    }
}

impl From<sqlx::Error> for BatchError {
    fn from(error: sqlx::Error) -> BatchError {
        BatchError::Database { error, outcome_unknown: Vec::new() }
    }
}

/// The answer to a command. `None` for a command with the same key as one that this transaction accepts:
/// the next round finds that one's stored reply.
pub(super) type CommandOutcome = Option<Result<Reply, Problem>>;

/// The result of a batch that is applied and not committed yet.
pub(super) struct AppliedBatch {
    pub outcomes: Vec<CommandOutcome>,
    /// Whether any of its keys was used before.
    pub has_duplicates: bool,
}

/// Loads the rows, finds stored replies if duplicates are expected, decides, saves and publishes: everything
/// but the commit.
///
/// The rows are always locked before keys are queried. A duplicate may have waited for a row that the first
/// command held; it must find that command's reply, and must not be refused for the rows that it left.
pub(super) async fn apply_commands<R: UnitOfWork>(
    tx: &mut PgConnection,
    batch: &[QueuedCommand<R>],
    now: DateTime<Utc>,
    expects_duplicates: bool,
) -> Result<AppliedBatch, BatchError> {
    let mut keys = R::Keys::default();
    batch.iter().for_each(|pending| pending.command.keys(&mut keys));
    let mut rows = R::load(tx, keys).await?;
    let mut stored_replies = match expects_duplicates {
        true => idempotency::find_stored_replies(tx, idempotent_commands(batch)).await?,
        false => HashMap::new(),
    };
    let mut has_duplicates = false;
    crash_point!("commands.loaded");
    let (mut answers, mut envelopes) = (Vec::with_capacity(batch.len()), Vec::new());
    let mut accepted = HashMap::new();
    for (nth, pending) in batch.iter().enumerate() {
        let scope = pending.idempotent_request.as_ref().map(IdempotentRequest::scope);
        let known = stored_replies.remove(&nth);
        if known.is_some() || scope.is_some_and(|scope| accepted.contains_key(&scope)) {
            has_duplicates = true;
            answers.push(known);
            continue;
        }
        let context = HandlerContext { now, event_id: pending.event_id, causation_id: None };
        let before = table::change_count();
        let answer = catch_panic(|| pending.command.decide(&mut rows, context));
        let mut answer = answer
            .map_err(|panic| BatchError::Undecidable(nth, format!("it panicked: {panic}")))?;
        if answer.is_err() && table::change_count() != before {
            return Err(BatchError::Undecidable(
                nth,
                "it changed rows and was refused".to_string(),
            ));
        }
        if let Ok(reply) = &mut answer {
            envelopes.extend(reply.event.take().map(|event| envelope(event, pending, now)));
        }
        if let (Some(scope), Ok(_)) = (scope, &answer) {
            accepted.insert(scope, nth);
        }
        answers.push(Some(answer));
    }
    if !expects_duplicates {
        let refused =
            idempotent_commands(batch).filter(|(nth, _)| matches!(answers[*nth], Some(Err(_))));
        for (nth, known) in idempotency::find_stored_replies(tx, refused).await? {
            has_duplicates = true;
            answers[nth] = Some(known);
        }
    }
    let mut writes = WriteBatch::new(tx);
    rows.save(&mut writes);
    outbox::insert(&mut writes, &envelopes);
    let accepted = accepted.into_values().filter_map(|nth| {
        Some((batch[nth].idempotent_request.as_ref()?, answers[nth].as_ref()?.as_ref().ok()?))
    });
    idempotency::store_replies(&mut writes, accepted);
    match answers.iter().flatten().any(Result::is_ok) {
        true => writes.execute_durably().await?,
        // A refusal says that nothing is stored: there is nothing to wait for.
        false => writes.execute().await?,
    }
    Ok(AppliedBatch { outcomes: answers, has_duplicates })
}

/// The commands of a batch that have an idempotency key, with their indexes.
fn idempotent_commands<R: UnitOfWork>(
    batch: &[QueuedCommand<R>],
) -> impl Iterator<Item = (usize, &IdempotentRequest)> {
    batch
        .iter()
        .enumerate()
        .filter_map(|(nth, pending)| Some((nth, pending.idempotent_request.as_ref()?)))
}

fn envelope<R: UnitOfWork>(
    event: Outgoing,
    pending: &QueuedCommand<R>,
    now: DateTime<Utc>,
) -> Envelope {
    let traceparent = Some(pending.traceparent.clone());
    Envelope {
        event,
        event_id: pending.event_id,
        traceparent,
        causation_id: None,
        occurred_at: now,
    }
}
