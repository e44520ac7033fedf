//! Commands: what clients wish, decided in batches.
//!
//! Commands that arrive together share a transaction; a lone one waits for nobody. A few writers
//! take whatever is waiting, and in a crowd what comes a moment later ([`crate::pace`]).
//!
//! Promise: an answer of success is durable before it is given, and a command with an
//! Idempotency-Key has its effect once. It is broken by answering before the commit, or by writing
//! the key in another transaction than the effect.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use opentelemetry::Context;
use sqlx::PgPool;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::event::At;
use crate::idempotency::{self, Once};
use crate::pace::{Crowd, Wait};
use crate::probes::Heartbeat;
use crate::problem::Problem;
use crate::reply::Reply;
use crate::rows::{Rows, Touches};
use crate::telemetry;
use crate::wake::Wake;
use crate::writer::{TRIED_WITHIN, Writer};

/// Writers of one service: while one batch is on its way to the disk, the next is taken. With more,
/// batches are smaller, and what they cost is missing elsewhere: measured with 16 to 1,024
/// callers, eight cost Postgres a tenth to a quarter more for each order than two. One more waits with
/// those that need a row that somebody holds.
const WRITERS: usize = 2;

/// So many commands in one batch are a crowd: two clients are.
const CROWD: usize = 2;

/// Each waits up to 30 ms longer for its answer, and where there are many, what they asked for ends sooner.
/// Clients who come by chance leave gaps: left after 5 ms in vain, and the consumers after 4, an order cost 540
/// us of processor at half of the highest rate and not 484, and 16 callers ended 870 orders a second and not
/// 987 and 999. After 12 and 10 they ended 857.
pub(crate) const WAIT: Wait =
    Wait { at_most: Duration::from_millis(30), in_vain: Duration::from_millis(8) };

/// Commands in one transaction, at most.
pub const BATCH_MAX: usize = 256;

/// Commands waiting, at most. Beyond that the answer is 503, before memory grows.
const WAITING_MAX: usize = 4_096;

/// How long a caller waits for its answer: the last try, with all its waits for a connection and for
/// locks, has ended by then, so that "unknown" is said only where it is so.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);

/// Where the API hands commands over.
pub struct Commands<R: Rows> {
    service: &'static str,
    waiting: mpsc::Sender<Pending<R>>,
}

impl<R: Rows> Clone for Commands<R> {
    fn clone(&self) -> Self {
        Commands { service: self.service, waiting: self.waiting.clone() }
    }
}

/// The writers behind [`Commands`]: part of the API loop.
pub struct Writers<R: Rows> {
    db: PgPool,
    waiting: mpsc::Receiver<Pending<R>>,
    wake: Arc<Wake>,
    heartbeat: Heartbeat,
}

/// A command that waits for its answer.
pub(crate) struct Pending<R: Rows> {
    pub command: Box<dyn Decide<R>>,
    pub once: Option<Once>,
    pub event_id: Uuid,
    pub traceparent: String,
    pub deadline: Instant,
    /// A commit with its effect was cut: from then on, nobody can say that nothing was stored.
    pub in_doubt: bool,
    pub caller: oneshot::Sender<Result<Reply, Problem>>,
}

impl<R: Rows> Pending<R> {
    /// What its caller is told in place of a problem that says that nothing was stored.
    pub fn unless_in_doubt(&self, problem: Problem) -> Problem {
        if self.in_doubt { Problem::outcome_unknown() } else { problem }
    }

    /// Tells its caller, who may be gone.
    pub fn refuse(self, problem: Problem) {
        let problem = self.unless_in_doubt(problem);
        let _ = self.caller.send(Err(problem));
    }
}

/// A command, as [`Writers`] see it.
pub(crate) trait Decide<R: Rows>: Send + Sync {
    fn touch(&self, keys: &mut R::Keys);
    fn decide(&self, rows: &mut R, at: At) -> Result<Reply, Problem>;
}

/// A command that a service is given, with the function that decides it.
struct Given<R, C> {
    service: &'static str,
    command: C,
    decide: fn(&C, &mut R, At) -> Result<Reply, Problem>,
}

impl<R: Touches<C>, C: Send + Sync> Decide<R> for Given<R, C> {
    fn touch(&self, keys: &mut R::Keys) {
        R::touch(&self.command, keys);
    }
    fn decide(&self, rows: &mut R, at: At) -> Result<Reply, Problem> {
        let reply = (self.decide)(&self.command, rows, at);
        reply.inspect(|reply| reply.assert_published_by(self.service))
    }
}

/// Makes both ends.
pub fn commands<R: Rows>(
    service: &'static str,
    db: PgPool,
    wake: Arc<Wake>,
    heartbeat: Heartbeat,
) -> (Commands<R>, Writers<R>) {
    let (sender, waiting) = mpsc::channel(WAITING_MAX);
    (Commands { service, waiting: sender }, Writers { db, waiting, wake, heartbeat })
}

impl<R: Rows> Commands<R> {
    /// Runs a command and answers when it is durable, or when it is refused; within 12 s, whatever
    /// happens.
    ///
    /// `decide` looks, decides, changes the rows and answers. It refuses before it changes anything: a
    /// refusal after a change is a fault of ours, answered 500, and nothing of it is stored.
    ///
    /// After a commit that was cut, it is decided once more, on rows that may have its effect already. With
    /// a key, the chassis finds the first answer. Without one, `decide` has to notice by a row of its
    /// own, whose id is drawn before this is called; or to mean the same twice whatever happens in between,
    /// as a cancellation does. Where neither is so, give it a key: [`Once::by_itself`].
    ///
    /// # Errors
    /// - Whatever `decide` refuses with, and 422 where the key came before with another request.
    /// - 503 `unavailable`, and nothing was stored: 4,096 commands wait already, or no try that
    ///   began within 3 s came through.
    /// - 503 `outcome-unknown`: a commit with its effect was cut and no later try settled it, or
    ///   nothing was heard within the 12 s.
    /// - 500: `decide` panicked, or refused after a change, or the database refuses what it wrote.
    pub async fn run<C>(
        &self,
        command: C,
        once: Option<Once>,
        decide: fn(&C, &mut R, At) -> Result<Reply, Problem>,
    ) -> Result<Reply, Problem>
    where
        R: Touches<C>,
        C: Send + Sync + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let pending = Pending {
            command: Box::new(Given { service: self.service, command, decide }),
            once,
            // Drawn once: a batch that is run again after a cut commit meets its own rows.
            event_id: Uuid::now_v7(),
            traceparent: telemetry::traceparent(&Context::current()),
            deadline: Instant::now() + TRIED_WITHIN,
            in_doubt: false,
            caller,
        };
        if self.waiting.try_send(pending).is_err() {
            return Err(too_many());
        }
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => answer,
            // The writers are gone, or still at work: it may be stored or not.
            _ => Err(Problem::outcome_unknown()),
        }
    }
}

fn too_many() -> Problem {
    counter!("commands_refused_total").increment(1);
    Problem::unavailable("too many requests are waiting; nothing was stored")
}

impl<R: Rows> Writers<R> {
    /// Runs until stopped; what is waiting by then is still answered.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let waiting = Arc::new(Mutex::new((self.waiting, Crowd::of(CROWD))));
        let (holding, held) = mpsc::channel(WAITING_MAX);
        let writer = || Writer::of(&self.db, self.wake.clone(), self.heartbeat.clone());
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..WRITERS {
            let (mut writer, holding) = (writer(), holding.clone());
            let (waiting, stop) = (waiting.clone(), stop.clone());
            writers.spawn(async move {
                while let Some(batch) = writer.take(&waiting, &stop).await {
                    let aside = |pending: Pending<R>| {
                        if let Err(refused) = holding.try_send(pending) {
                            refused.into_inner().refuse(too_many());
                        }
                    };
                    writer.write(batch, aside).await;
                }
            });
        }
        // It ends when the others have.
        drop(holding);
        let mut writer = writer();
        writers.spawn(async move { writer.write_held(held).await });
        let pruning = tokio::spawn(idempotency::prune(self.db.clone()));
        while let Some(ended) = writers.join_next().await {
            ended?;
        }
        pruning.abort();
        Ok(())
    }
}
