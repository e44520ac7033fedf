//! The queue between the API and the executors: its entries, and its limits in number and in time.

use std::time::Duration;

use metrics::counter;
use opentelemetry::Context;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use crate::commands::command::Command;
use crate::commands::idempotency::IdempotentRequest;
use crate::commands::refusal::{HostRefusal, Refusal};
use crate::commands::reply::Reply;
use crate::event::{Effects, HandlerContext};
use crate::flow::linger::LingerLimits;
use crate::unit_of_work::{Loads, UnitOfWork};

/// Commands in one transaction, at most.
pub const COMMAND_BATCH_MAX: usize = 256;

/// Commands in the queue, at most. Further ones are answered 503, so that memory stays bounded.
pub(super) const QUEUE_MAX: usize = 4_096;

/// After this time a command is not tried any more and is refused.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(3);

/// A batch waits at most 30 ms for further commands, and ends as soon as none arrived for 8 ms. Both apply
/// only while commands arrive together. Decision 7 has the measurements of other values.
pub(crate) const LINGER: LingerLimits =
    LingerLimits { max_wait: Duration::from_millis(30), idle_gap: Duration::from_millis(8) };

/// A command in the queue, with the channel on which its caller waits.
pub(crate) struct QueuedCommand<R: UnitOfWork, P> {
    pub command: Box<dyn ErasedCommand<R, P>>,
    pub idempotent_request: Option<IdempotentRequest>,
    pub event_id: Uuid,
    /// The trace of the request, with its labels.
    pub context: Context,
    pub deadline: Instant,
    /// A commit with its effect was cut: from then on it is unknown whether something was stored.
    pub outcome_unknown: bool,
    /// An attempt stored its key and was rolled back: no earlier request with the key is under way.
    pub key_was_free: bool,
    pub reply_sender: oneshot::Sender<Result<Reply, P>>,
}

impl<R: UnitOfWork, P: HostRefusal> QueuedCommand<R, P> {
    /// Notes that an attempt was rolled back before its commit. A reply that is stored under its key may be lost with a
    /// database that waits for its standby, so it proves nothing.
    pub fn note_rollback(&mut self, had_duplicates: bool) {
        self.key_was_free |= !had_duplicates;
        self.outcome_unknown |= had_duplicates && self.idempotent_request.is_some();
    }

    /// Notes that commits without an answer may have its key.
    pub fn note_hung_commits(&mut self) {
        self.outcome_unknown |= self.idempotent_request.is_some() && !self.key_was_free;
    }

    /// Replaces a refusal that states that nothing was stored, if that is not certain.
    pub fn or_outcome_unknown(&self, refusal: P) -> P {
        if self.outcome_unknown { Refusal::OutcomeUnknown.into() } else { refusal }
    }

    /// Answers its caller with a refusal. The caller may have gone away.
    pub fn reject(self, refusal: Refusal) {
        let refusal = self.or_outcome_unknown(refusal.into());
        let _ = self.reply_sender.send(Err(refusal));
    }
}

/// A command without its type, as the executors need it: the keys of its rows, and its decision.
pub(crate) trait ErasedCommand<R: UnitOfWork, P>: Send + Sync {
    fn keys(&self, keys: &mut R::Keys);
    fn decide(&self, rows: &mut R, context: HandlerContext) -> Result<(Reply, Effects), P>;
}

/// A command with the name of its service.
pub(super) struct BoundCommand<C> {
    pub service: &'static str,
    pub command: C,
}

impl<C: Command<Refusal: Into<P>>, P> ErasedCommand<C::Aggregate, P> for BoundCommand<C> {
    fn keys(&self, keys: &mut <C::Aggregate as UnitOfWork>::Keys) {
        C::Aggregate::keys(&self.command, keys);
    }
    fn decide(
        &self,
        rows: &mut C::Aggregate,
        context: HandlerContext,
    ) -> Result<(Reply, Effects), P> {
        let accepted = self.command.decide(rows, context).map_err(Into::into)?;
        let (reply, event) = accepted.into_parts();
        let events = Effects::of(event);
        events.assert_published_by(self.service);
        Ok((reply, events))
    }
}

pub(super) fn queue_full() -> Refusal {
    counter!("commands_refused_total").increment(1);
    Refusal::Unavailable("too many requests are waiting; nothing was stored")
}
