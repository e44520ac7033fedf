//! A command on the one path: its key, its decision, and the reply that is stored.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::commands::idempotency;
use crate::commands::queue::QueuedCommand;
use crate::commands::reply::Reply;
use crate::event::{HandlerContext, Unprocessable};
use crate::http::problem::Problem;
use crate::outbox::Envelope;
use crate::telemetry;
use crate::transaction::failure::ApplyError;
use crate::transaction::{DedupKey, WorkItem};
use crate::unit_of_work::write_batch::WriteBatch;
use crate::unit_of_work::{UnitOfWork, table};

impl<R: UnitOfWork> WorkItem<R> for QueuedCommand<R> {
    type Output = Result<Reply, Problem>;
    const CRASH_POINTS: [&str; 3] =
        ["commands.loaded", "commands.deduplicated", "commands.decided"];

    fn keys(&self, keys: &mut R::Keys) {
        self.command.keys(keys);
    }

    fn dedup_key(&self) -> Option<DedupKey<'_>> {
        let (path, key) = self.idempotent_request.as_ref()?.scope();
        Some(DedupKey::Command(path, key))
    }

    async fn find_duplicates(
        tx: &mut PgConnection,
        items: &[Self],
    ) -> Result<HashMap<usize, Self::Output>, ApplyError> {
        let requests = items
            .iter()
            .enumerate()
            .filter_map(|(nth, pending)| Some((nth, pending.idempotent_request.as_ref()?)));
        Ok(idempotency::find_stored_replies(tx, requests).await?)
    }

    fn decide(
        &self,
        rows: &mut R,
        now: DateTime<Utc>,
    ) -> Result<(Self::Output, Option<Envelope>), Unprocessable> {
        let context = HandlerContext { now, event_id: self.event_id, causation_id: None };
        let before = table::change_count();
        let current = self.context.clone().attach();
        let mut answer = self.command.decide(rows, context);
        drop(current);
        if answer.is_err() && table::change_count() != before {
            return Err(Unprocessable("it changed rows and was refused".to_string()));
        }
        let event = answer.as_mut().ok().and_then(|reply| reply.event.take());
        let envelope = event.map(|event| {
            let (traceparent, tracestate) = telemetry::trace_headers(&self.context);
            Envelope {
                event,
                event_id: self.event_id,
                traceparent: Some(traceparent),
                tracestate,
                causation_id: None,
                occurred_at: now,
            }
        });
        Ok((answer, envelope))
    }

    fn is_refusal(answer: &Self::Output) -> bool {
        answer.is_err()
    }

    fn store_keys(writes: &mut WriteBatch<'_>, accepted: &[(&Self, &Self::Output)], _: i32) {
        let replies = accepted.iter().filter_map(|(pending, answer)| {
            Some((pending.idempotent_request.as_ref()?, answer.as_ref().ok()?))
        });
        idempotency::store_replies(writes, replies);
    }
}
