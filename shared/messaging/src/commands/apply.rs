//! A command on the one path: its key, its decision, and the reply that is stored.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::commands::idempotency;
use crate::commands::queue::QueuedCommand;
use crate::commands::refusal::HostRefusal;
use crate::commands::reply::Reply;
use crate::event::{HandlerContext, Unprocessable};
use crate::transaction::failure::Failure;
use crate::transaction::{DedupKey, Wanted, WorkItem};
use crate::unit_of_work::UnitOfWork;
use crate::unit_of_work::write_batch::WriteBatch;

impl<R: UnitOfWork, P: HostRefusal> WorkItem<R> for QueuedCommand<R, P> {
    type Output = Result<Reply, P>;
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
    ) -> Result<HashMap<usize, Self::Output>, Failure> {
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
    ) -> Result<(Self::Output, Wanted), Unprocessable> {
        let context = HandlerContext { now, event_id: self.event_id, causation_id: None };
        let current = self.context.clone().attach();
        let decided = self.command.decide(rows, context);
        drop(current);
        match decided {
            Ok((reply, effects)) => {
                Ok((Ok(reply), Wanted::of_decision(effects, context, &self.context)))
            }
            Err(refused) => Ok((Err(refused), Wanted::default())),
        }
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
