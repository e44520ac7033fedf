//! Commands: requests of clients that change rows, decided in batches. Commands that arrive together share a
//! transaction, and a single command is committed at once. A few executors take the queued commands, and
//! under concurrency those that arrive a moment later (`flow::linger`). Promise: a success is
//! durable before it is answered, and a command with an idempotency key has its effect once. An answer
//! before the commit breaks it, and so does a key that is written in another transaction than the effect.

pub(crate) mod apply;
pub(crate) mod executor;
pub mod command;
pub mod idempotency;
pub(crate) mod queue;
pub mod refusal;
pub mod reply;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;
use sqlx::PgPool;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::commands::command::Command;
use crate::commands::executor::BatchExecutor;
use crate::commands::idempotency::IdempotentRequest;
pub use crate::commands::queue::COMMAND_BATCH_MAX;
use crate::commands::queue::{BoundCommand, QUEUE_MAX, QueuedCommand, START_TIMEOUT, queue_full};
use crate::commands::refusal::{HostRefusal, Refusal};
use crate::commands::reply::Reply;
use crate::flow::heartbeat::Heartbeat;
use crate::flow::linger::AdaptiveLinger;
use crate::flow::wakeups::Wakeups;
use crate::telemetry;
use crate::unit_of_work::UnitOfWork;

/// Executors of one service: while one batch is written to the disk, the next is prepared. More executors mean
/// smaller batches, which cost Postgres more for each command. One further executor runs the commands whose rows
/// are locked.
const EXECUTORS: usize = 2;

/// A batch of at least this many commands counts as concurrent.
const SIBLINGS_MIN: usize = 2;

/// How long a caller waits for its answer. The last attempt, with its waits for a connection and for locks,
/// has ended by then, so that an unknown outcome is reported only where there is one.
const REPLY_TIMEOUT: Duration = Duration::from_secs(12);

/// The end of the queue that the API uses.
pub struct Commands<R: UnitOfWork, P> {
    service: &'static str,
    queue: mpsc::Sender<QueuedCommand<R, P>>,
}

impl<R: UnitOfWork, P> Clone for Commands<R, P> {
    fn clone(&self) -> Self {
        Commands { service: self.service, queue: self.queue.clone() }
    }
}

/// The end of the queue behind [`Commands`]: it runs the executors, as part of the API loop.
pub struct CommandExecutor<R: UnitOfWork, P> {
    db: PgPool,
    queue: mpsc::Receiver<QueuedCommand<R, P>>,
    wakeups: Arc<Wakeups>,
    heartbeat: Heartbeat,
}

/// Creates both ends of the queue.
pub fn command_channel<R: UnitOfWork, P: HostRefusal>(
    service: &'static str,
    db: PgPool,
    wakeups: Arc<Wakeups>,
    heartbeat: Heartbeat,
) -> (Commands<R, P>, CommandExecutor<R, P>) {
    let (sender, waiting) = mpsc::channel(QUEUE_MAX);
    let executor = CommandExecutor { db, queue: waiting, wakeups, heartbeat };
    (Commands { service, queue: sender }, executor)
}

impl<R: UnitOfWork, P: HostRefusal> Commands<R, P> {
    /// Runs a command and answers when it is durable or refused, within 12 s in any case.
    ///
    /// # Errors
    /// The command's own refusal, or one of messaging. [`Refusal::Unavailable`] if 4,096 commands wait already, or no
    /// attempt that began within 3 s was committed.
    pub async fn execute<C: Command<Aggregate = R, Refusal: Into<P>>>(
        &self,
        command: C,
        identity: Option<IdempotentRequest>,
    ) -> Result<Reply, P> {
        let (caller, answer) = oneshot::channel();
        let pending = QueuedCommand {
            command: Box::new(BoundCommand { service: self.service, command }),
            idempotent_request: identity,
            // Generated once: a batch that is run again after a cut commit finds its own rows.
            event_id: Uuid::now_v7(),
            context: telemetry::with_trace(&Context::current()),
            deadline: Instant::now() + START_TIMEOUT,
            outcome_unknown: false,
            key_was_free: false,
            reply_sender: caller,
        };
        if self.queue.try_send(pending).is_err() {
            return Err(queue_full().into());
        }
        match tokio::time::timeout(REPLY_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            // The executors have ended or are still at work: it may be stored or not.
            _ => Err(Refusal::OutcomeUnknown.into()),
        }
    }
}

impl<R: UnitOfWork, P: HostRefusal> CommandExecutor<R, P> {
    /// Runs until it is stopped. Commands that are queued by then are still answered.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let waiting = Arc::new(Mutex::new((self.queue, AdaptiveLinger::new(SIBLINGS_MIN))));
        let (locked_sender, locked_commands) = mpsc::channel(QUEUE_MAX);
        let executor =
            || BatchExecutor::new(&self.db, self.wakeups.clone(), self.heartbeat.clone());
        let mut executors = tokio::task::JoinSet::new();
        for _ in 0..EXECUTORS {
            let (mut executor, locked_sender) = (executor(), locked_sender.clone());
            let (waiting, stop) = (waiting.clone(), stop.clone());
            executors.spawn(async move {
                while let Some(batch) = executor.next_batch(&waiting, &stop).await {
                    let defer = |pending: QueuedCommand<R, P>| {
                        if let Err(refused) = locked_sender.try_send(pending) {
                            refused.into_inner().reject(queue_full());
                        }
                    };
                    executor.execute(batch, defer).await;
                }
            });
        }
        // The executor of locked commands ends when the others have ended.
        drop(locked_sender);
        let mut executor = executor();
        executors.spawn(async move { executor.execute_locked(locked_commands).await });
        let pruning = tokio::spawn(idempotency::prune(self.db.clone()));
        while let Some(ended) = executors.join_next().await {
            ended?;
        }
        pruning.abort();
        Ok(())
    }
}
