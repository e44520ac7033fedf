//! The executors: each takes commands from the queue as a batch and commits it, until every command has its
//! answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use metrics::histogram;
use sqlx::PgPool;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::commands::queue::{COMMAND_BATCH_MAX, LINGER, QueuedCommand, START_TIMEOUT};
use crate::commands::refusal::{HostRefusal, Refusal};
use crate::commands::reply::Reply;
use crate::crash_point;
use crate::db::connection::DedicatedConnection;
use crate::db::{self, DbErrorClass};
use crate::flow::backoff::RetryBackoff;
use crate::flow::heartbeat::Heartbeat;
use crate::flow::linger::AdaptiveLinger;
use crate::flow::wakeups::Wakeups;
use crate::transaction::failure::{Failure, Next};
use crate::transaction::part::Part;
use crate::transaction::{self, Applied};
use crate::unit_of_work::UnitOfWork;

/// Timeout of an attempt up to its commit. It is longer than the timeouts of connections and locks, so that
/// it ends only an attempt whose connection has lost its peer.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(7);

const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a batch waits for a row that another transaction holds. All commands of the batch wait, so it is
/// well below [`START_TIMEOUT`]: afterwards each of them is tried by itself and has time for that.
const BATCH_LOCK_TIMEOUT: &str = "500ms";

/// The same for a single command, which is tried again. Other commands may wait behind it.
const SINGLE_COMMAND_LOCK_TIMEOUT: &str = "100ms";

const COMMAND_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_millis(20), delay_max: Duration::from_millis(500) };

pub(crate) struct BatchExecutor {
    connection: DedicatedConnection,
    wakeups: Arc<Wakeups>,
    heartbeat: Heartbeat,
    /// Whether idempotency keys are queried before anything is decided: at first, and as long as batches contain
    /// duplicates or refusals. Otherwise every command is assumed to be new, which saves a round trip.
    expects_duplicates: bool,
}

impl BatchExecutor {
    pub fn new(db: &PgPool, wakeups: Arc<Wakeups>, heartbeat: Heartbeat) -> BatchExecutor {
        let connection = DedicatedConnection::new(db).with_lock_timeout(BATCH_LOCK_TIMEOUT);
        BatchExecutor { connection, wakeups, heartbeat, expects_duplicates: true }
    }

    /// The queued commands, up to a bound, and under concurrency those that arrive a moment later. `None`
    /// once the executor is stopped and the queue is empty.
    pub async fn next_batch<R: UnitOfWork, P: HostRefusal>(
        &self,
        waiting: &Mutex<(mpsc::Receiver<QueuedCommand<R, P>>, AdaptiveLinger)>,
        stop: &CancellationToken,
    ) -> Option<Vec<QueuedCommand<R, P>>> {
        let mut batch = Vec::new();
        let (waiting, linger) = &mut *waiting.lock().await;
        while batch.is_empty() {
            self.heartbeat.beat();
            tokio::select! {
                biased;
                taken = waiting.recv_many(&mut batch, COMMAND_BATCH_MAX) => if taken == 0 { return None },
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        }
        self.wakeups.relay_backpressure.yield_to_busy().await;
        self.wakeups.consumer_backpressure.yield_to_busy().await;
        linger.collect(&mut batch, COMMAND_BATCH_MAX, waiting, LINGER).await;
        Some(batch)
    }

    /// Runs a batch, part by part from left to right, until every caller has an answer. A single command whose row is
    /// locked is deferred, so that no other command waits for it.
    pub async fn execute<R: UnitOfWork, P: HostRefusal>(
        &mut self,
        batch: Vec<QueuedCommand<R, P>>,
        mut defer: impl FnMut(QueuedCommand<R, P>),
    ) {
        let (mut parts, mut failures) = (vec![Part::new(batch)], 0);
        while let Some(mut part) = parts.pop() {
            self.heartbeat.beat();
            part.items = self.drop_expired(part.items).await;
            if part.items.is_empty() {
                continue;
            }
            histogram!("command_batch_size").record(part.items.len() as f64);
            let failure = match self.try_commit(&mut part.items).await {
                Ok(Applied { answers, expects_duplicates, ages, .. }) => {
                    ages.record();
                    self.wakeups.relay.notify_one();
                    self.wakeups.change_feed.send_replace(());
                    failures = 0;
                    // The parts of a batch are tried in the way in which the batch was tried.
                    self.expects_duplicates =
                        expects_duplicates || self.expects_duplicates && !parts.is_empty();
                    parts.push(Part::new(reply_all(part.items, answers)));
                    continue;
                }
                Err(failure) => failure,
            };
            let next = failure.next(part.items.len(), self.expects_duplicates, part.races);
            match (next, &failure) {
                (Next::CheckDuplicates, _) => {
                    self.expects_duplicates = true;
                    parts.push(part);
                }
                (Next::Isolate(nth), _) => {
                    reject_failed(part.items.remove(nth), &failure);
                    parts.push(part);
                }
                (Next::Singles, _) => {
                    warn!("{} commands are retried one by one: a row is locked", part.items.len());
                    parts.extend(part.singles());
                }
                (Next::Halves, _) => parts.extend(part.halves()),
                // The races of commands are not counted: their deadline ends them.
                (Next::Race | Next::Retry, _)
                | (Next::Defer, Failure::Database(DbErrorClass::StatementTimeout, _)) => {
                    log_retry(&part, &failure);
                    parts.push(part);
                    failures += 1;
                    tokio::time::sleep(COMMAND_BACKOFF.pause_after(failures)).await;
                }
                (Next::Defer, Failure::Database(DbErrorClass::LockTimeout, _)) => {
                    defer(part.items.remove(0));
                }
                // A retry here would delay every command behind it.
                (Next::Defer | Next::Reject(_), _) => {
                    reject_failed(part.items.remove(0), &failure);
                }
            }
        }
    }

    /// Refuses the commands whose deadline has passed, and drops those whose caller no longer waits.
    async fn drop_expired<R: UnitOfWork, P: HostRefusal>(
        &mut self,
        batch: Vec<QueuedCommand<R, P>>,
    ) -> Vec<QueuedCommand<R, P>> {
        let now = Instant::now();
        let waiting = batch.into_iter().filter(|pending| !pending.reply_sender.is_closed());
        let (mut late, in_time): (Vec<_>, Vec<_>) =
            waiting.partition(|pending| pending.deadline <= now);
        if !late.is_empty()
            && self.connection.had_hung_commit()
            && self.connection.has_hung_commits().await
        {
            late.iter_mut().for_each(QueuedCommand::note_hung_commits);
        }
        for pending in late {
            let late = "it could not be stored in time; nothing was stored";
            pending.reject(Refusal::Unavailable(late));
        }
        in_time
    }

    /// Runs the deferred commands, whose rows are locked, one by one until each has its answer.
    pub async fn execute_locked<R: UnitOfWork, P: HostRefusal>(
        &mut self,
        mut waiting: mpsc::Receiver<QueuedCommand<R, P>>,
    ) {
        while let Some(first) = waiting.recv().await {
            let mut locked = VecDeque::from([first]);
            while let Some(pending) = locked.pop_front() {
                self.execute(vec![pending], |pending| locked.push_back(pending)).await;
                locked.extend(std::iter::from_fn(|| waiting.try_recv().ok()));
            }
        }
    }

    /// One transaction, all or nothing. After a commit that was cut, the outcome of its commands is unknown.
    async fn try_commit<R: UnitOfWork, P: HostRefusal>(
        &mut self,
        batch: &mut [QueuedCommand<R, P>],
    ) -> Result<Applied<Result<Reply, P>>, Failure> {
        crash_point!("commands.taken");
        // Keys are checked first if a command has no time for a second attempt: a duplicate that is assumed to be
        // new makes its whole batch fail.
        let soon = Instant::now() + START_TIMEOUT / 2;
        self.expects_duplicates |= batch.iter().any(|pending| pending.deadline < soon);
        let expects_duplicates = self.expects_duplicates;
        let connection = &mut self.connection;
        let prepared = async {
            let mut tx = match batch.len() {
                1 => connection.begin_with_lock_timeout(SINGLE_COMMAND_LOCK_TIMEOUT).await?,
                _ => connection.begin().await?,
            };
            let now = tx.now;
            let applied = transaction::apply(&mut tx, batch, now, expects_duplicates, 1).await;
            let (mut tx, applied) = tx.keep_or_rollback(applied).await?;
            let checked = tx.check_hung_commits().await;
            if checked.is_err() {
                let had_duplicates = applied.expects_duplicates;
                batch.iter_mut().for_each(|pending| pending.note_rollback(had_duplicates));
            }
            Ok::<_, Failure>(tx.keep_or_rollback(checked.map(|()| applied)).await?)
        };
        let (tx, applied) = match db::with_timeout(PREPARE_TIMEOUT, prepared).await {
            Ok(prepared) => prepared,
            Err(error) => {
                if let ([single], Failure::Database(DbErrorClass::LockTimeout, _)) =
                    (&mut *batch, &error)
                {
                    // An earlier request of its client may hold the row or the key, in a commit that has no answer.
                    single.outcome_unknown |= self.connection.has_hung_commits().await;
                }
                return Err(error);
            }
        };
        crash_point!("commands.prepared");
        if let Err(error) = db::with_timeout(COMMIT_TIMEOUT, tx.commit()).await {
            for (pending, answer) in batch.iter_mut().zip(&applied.answers) {
                pending.outcome_unknown |= matches!(answer, Some(Ok(_)));
            }
            return Err(error.into());
        }
        crash_point!("commands.committed");
        Ok(applied)
    }
}

fn log_retry<R: UnitOfWork, P: HostRefusal>(part: &Part<QueuedCommand<R, P>>, failure: &Failure) {
    match failure {
        Failure::Database(DbErrorClass::UniqueRace, _) => debug!("commands are retried: {failure}"),
        Failure::Database(DbErrorClass::StatementTimeout, _) => {
            let _current = part.items[0].context.clone().attach();
            warn!("a command is retried: {failure}");
        }
        _ => warn!("{} commands are retried: {failure}", part.items.len()),
    }
}

/// Answers a command that can never be decided, or that the database refuses.
fn reject_failed<R: UnitOfWork, P: HostRefusal>(pending: QueuedCommand<R, P>, failure: &Failure) {
    let _current = pending.context.clone().attach();
    let refusal = match failure {
        Failure::Database(DbErrorClass::DatabaseRule | DbErrorClass::SchemaMismatch, _) => {
            error!(
                "the database rejected a command because of a rule, its schema or a missing right: {failure}"
            );
            Refusal::Unavailable("the database rejected the command; nothing was stored")
        }
        Failure::Database(..) => {
            error!("the database rejected a command: {failure}");
            Refusal::Failed
        }
        _ => {
            error!("a command failed: {failure}");
            Refusal::Failed
        }
    };
    pending.reject(refusal);
}

/// Sends the answers. Returns the commands without one, whose key is that of an earlier command of the batch.
fn reply_all<R: UnitOfWork, P: HostRefusal>(
    batch: Vec<QueuedCommand<R, P>>,
    answers: Vec<Option<Result<Reply, P>>>,
) -> Vec<QueuedCommand<R, P>> {
    let mut repeated = Vec::new();
    for (pending, answer) in batch.into_iter().zip(answers) {
        let Some(answer) = answer else {
            repeated.push(pending);
            continue;
        };
        // An earlier attempt, whose commit is still under way, may have stored what is refused now.
        let answer = answer.map_err(|refusal| pending.or_outcome_unknown(refusal));
        let _ = pending.reply_sender.send(answer);
    }
    repeated
}
