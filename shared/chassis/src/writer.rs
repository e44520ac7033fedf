//! A writer of commands: takes those that wait, tries them as a batch until each has its answer.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics::histogram;
use sqlx::{PgConnection, PgPool};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::commands::{BATCH_MAX, Pending, WAIT};
use crate::crash;
use crate::db::{self, Failure};
use crate::event::{At, Outgoing};
use crate::idempotency::{self, Once};
use crate::outbox::{self, Envelope};
use crate::pace::Crowd;
use crate::probes::Heartbeat;
use crate::problem::Problem;
use crate::reply::Reply;
use crate::rows::{self, Rows, guarded};
use crate::session::Session;
use crate::wake::Wake;
use crate::writes::Writes;

/// No try begins later than this after a command's arrival; what was not begun is refused.
pub(crate) const TRIED_WITHIN: Duration = Duration::from_secs(3);

/// How long a try may take up to its commit: more than a connection and the locks may, so that only
/// what hangs on a connection whose other end is gone is ended.
const PREPARED_WITHIN: Duration = Duration::from_secs(7);

/// How long its commit may take.
const COMMITTED_WITHIN: Duration = Duration::from_secs(2);

/// How long a try waits for a row that another transaction holds. Those who share its batch wait too,
/// so it is well below [`TRIED_WITHIN`]: each of them is tried by itself then, and has time for that.
const LOCK_WAIT: &str = "500ms";

/// The same for a command that is tried by itself. Others may come after it, and it is tried again.
const LONE_LOCK_WAIT: &str = "100ms";

/// Between two tries of a batch, at most.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// One of the tasks that take what is waiting.
pub(crate) struct Writer {
    session: Session,
    wake: Arc<Wake>,
    heartbeat: Heartbeat,
    /// Whether keys may have come before, and are to be looked up before anything is decided: to begin
    /// with, and as long as some have. Otherwise all are taken for new, which spares small batches a
    /// fifth of their round trips. Where that is wrong there is trouble of one kind or another, and the
    /// batch is tried again with a look; one that is refused is looked up before it is told.
    expects_repeats: bool,
}

impl Writer {
    pub fn of(db: &PgPool, wake: Arc<Wake>, heartbeat: Heartbeat) -> Writer {
        let session = Session::of(db).waiting_for_locks(LOCK_WAIT);
        Writer { session, wake, heartbeat, expects_repeats: true }
    }

    /// Whatever is waiting, and in a crowd who comes a moment later, up to a bound; `None` once stopped
    /// and nothing waits.
    pub async fn take<R: Rows>(
        &self,
        waiting: &Mutex<(mpsc::Receiver<Pending<R>>, Crowd)>,
        stop: &CancellationToken,
    ) -> Option<Vec<Pending<R>>> {
        let mut batch = Vec::new();
        let (waiting, crowd) = &mut *waiting.lock().await;
        while batch.is_empty() {
            self.heartbeat.beat();
            tokio::select! {
                biased;
                taken = waiting.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { return None },
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        }
        self.wake.relaying.after_you().await;
        self.wake.consuming.after_you().await;
        crowd.fill(&mut batch, BATCH_MAX, waiting, WAIT).await;
        Some(batch)
    }

    /// Runs a batch until every caller has an answer. What can't go together goes apart: commands with
    /// the key of one that is accepted wait for the next round, a batch that the database refuses is
    /// halved, and where one needs a row that somebody holds, each goes by itself. Those that do are
    /// put aside: they are to wait where nobody waits for them.
    pub async fn write<R: Rows>(
        &mut self,
        batch: Vec<Pending<R>>,
        mut aside: impl FnMut(Pending<R>),
    ) {
        let mut rounds = vec![batch];
        let mut tries = 0;
        while let Some(batch) = rounds.pop() {
            self.heartbeat.beat();
            let mut batch = still_in_time(batch);
            if batch.is_empty() {
                continue;
            }
            histogram!("command_batch_size").record(batch.len() as f64);
            match self.attempt(&batch).await {
                Ok(Prepared { answers, has_repeats }) => {
                    self.wake.relay.notify_one();
                    self.wake.watchers.send_replace(());
                    tries = 0;
                    // What a batch came apart into is tried as the batch was.
                    self.expects_repeats =
                        has_repeats || self.expects_repeats && !rounds.is_empty();
                    rounds.push(tell(batch, answers));
                }
                // It may have had its effect before, and that be the whole trouble.
                Err(trouble) if !self.expects_repeats && trouble.may_be_a_repeat() => {
                    self.expects_repeats = true;
                    rounds.push(batch);
                }
                Err(Trouble::Undecided(nth, because)) => {
                    error!("a command can't be decided: {because}");
                    batch.remove(nth).refuse(Problem::internal());
                    rounds.push(batch);
                }
                Err(Trouble::Database { error, cut }) => {
                    for (pending, cut) in batch.iter_mut().zip(cut) {
                        pending.in_doubt |= cut;
                    }
                    match db::classify(&error) {
                        Failure::Refused | Failure::TooSlow | Failure::Rule | Failure::Mismatch
                            if batch.len() > 1 =>
                        {
                            let mut left = batch;
                            let right = left.split_off(left.len() / 2);
                            rounds.push(right);
                            rounds.push(left);
                        }
                        Failure::Locked if batch.len() > 1 => {
                            warn!("{} commands are tried one by one: {error}", batch.len());
                            rounds.extend(batch.into_iter().rev().map(|pending| vec![pending]));
                        }
                        Failure::Refused => {
                            error!("the database refuses a command: {error}");
                            for pending in batch {
                                pending.refuse(Problem::internal());
                            }
                        }
                        // Tried again here, it would hold up all who come behind it.
                        Failure::Rule | Failure::Mismatch => {
                            error!("the database does not take a command: {error}");
                            let refused = "the database does not take it; nothing was stored";
                            for pending in batch {
                                pending.refuse(Problem::unavailable(refused));
                            }
                        }
                        Failure::Locked => batch.into_iter().for_each(&mut aside),
                        failure @ (Failure::Race | Failure::Transient | Failure::TooSlow) => {
                            // What another transaction wrote at the same moment is seen at the next
                            // try: a client that is in two minds, and nothing to worry about.
                            match failure {
                                Failure::Race => debug!("commands are tried again: {error}"),
                                _ => warn!("{} commands are tried again: {error}", batch.len()),
                            }
                            rounds.push(batch);
                            tries += 1;
                            let wait = Duration::from_millis(10 << tries.min(6)).min(BACKOFF_MAX);
                            tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
                        }
                    }
                }
            }
        }
    }

    /// Tries those that need a row that somebody holds, one by one, until each has its answer.
    pub async fn write_held<R: Rows>(&mut self, mut waiting: mpsc::Receiver<Pending<R>>) {
        while let Some(first) = waiting.recv().await {
            let mut held = VecDeque::from([first]);
            while let Some(pending) = held.pop_front() {
                self.write(vec![pending], |pending| held.push_back(pending)).await;
                held.extend(std::iter::from_fn(|| waiting.try_recv().ok()));
            }
        }
    }

    /// One transaction, all or nothing.
    async fn attempt<R: Rows>(&mut self, batch: &[Pending<R>]) -> Result<Prepared, Trouble> {
        crash::point!("commands.taken");
        // Who has no time for another try is not to lose this one to somebody's repeat.
        let soon = Instant::now() + TRIED_WITHIN / 2;
        self.expects_repeats |= batch.iter().any(|pending| pending.deadline < soon);
        let expects_repeats = self.expects_repeats;
        let session = &mut self.session;
        let prepared = async {
            let mut tx = match batch.len() {
                1 => session.begin_waiting(LONE_LOCK_WAIT).await?,
                _ => session.begin().await?,
            };
            let now = tx.now;
            let prepared = prepare(&mut tx, batch, now, expects_repeats).await;
            tx.having(prepared).await
        };
        let (tx, prepared) = db::in_time(PREPARED_WITHIN, prepared).await?;
        crash::point!("commands.prepared");
        db::in_time(COMMITTED_WITHIN, tx.commit()).await.map_err(|error| Trouble::Database {
            error,
            cut: prepared.answers.iter().map(|answer| matches!(answer, Some(Ok(_)))).collect(),
        })?;
        crash::point!("commands.committed");
        Ok(prepared)
    }
}

/// Tells each what was decided, and gives back those that are still without an answer.
fn tell<R: Rows>(batch: Vec<Pending<R>>, answers: Vec<Decided>) -> Vec<Pending<R>> {
    let mut repeats = Vec::new();
    for (pending, answer) in batch.into_iter().zip(answers) {
        let Some(answer) = answer else {
            repeats.push(pending);
            continue;
        };
        // What is refused now may have been stored by an earlier try whose commit is still on its way.
        let answer = answer.map_err(|problem| pending.unless_in_doubt(problem));
        let _ = pending.caller.send(answer);
    }
    repeats
}

/// Tells those whose time is over, and leaves out those who no longer wait.
fn still_in_time<R: Rows>(batch: Vec<Pending<R>>) -> Vec<Pending<R>> {
    let now = Instant::now();
    let waiting = batch.into_iter().filter(|pending| !pending.caller.is_closed());
    let (late, in_time): (Vec<_>, _) = waiting.partition(|pending| pending.deadline <= now);
    for pending in late {
        let late = "it could not be stored in time; nothing was stored";
        pending.refuse(Problem::unavailable(late));
    }
    in_time
}

/// Why a batch did not go through. All of it was rolled back, unless its commit was cut.
enum Trouble {
    /// The command at this place can't be decided, because.
    Undecided(usize, String),
    /// And if its commit was cut, of which commands that would have been the effect.
    Database { error: sqlx::Error, cut: Vec<bool> },
}

impl Trouble {
    /// Whether a command that was taken for new may cause it only because it had its effect before.
    fn may_be_a_repeat(&self) -> bool {
        match self {
            Trouble::Undecided(..) => true,
            Trouble::Database { error, .. } => db::classify(error).may_be_a_repeat(),
        }
    }
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Trouble {
        Trouble::Database { error, cut: Vec::new() }
    }
}

/// What a command is answered; nothing yet, where it came with the key of one that the same transaction
/// accepts: that one's answer is to be found.
type Decided = Option<Result<Reply, Problem>>;

/// What a batch comes to, as long as it is not committed.
struct Prepared {
    answers: Vec<Decided>,
    /// Whether any of the keys had come before.
    has_repeats: bool,
}

/// Load, look back if repeats are expected, decide, save, publish: all but the commit.
///
/// Whenever keys are looked up, the rows are locked already: a repeat may have waited for the row that the
/// first one held, and has to find its answer and not to be refused for what the first one left.
async fn prepare<R: Rows>(
    tx: &mut PgConnection,
    batch: &[Pending<R>],
    now: DateTime<Utc>,
    expects_repeats: bool,
) -> Result<Prepared, Trouble> {
    let mut keys = R::Keys::default();
    batch.iter().for_each(|pending| pending.command.touch(&mut keys));
    let mut rows = R::load(tx, keys).await?;
    let mut remembered = match expects_repeats {
        true => idempotency::remembered(tx, keyed(batch)).await?,
        false => HashMap::new(),
    };
    let mut has_repeats = false;
    crash::point!("commands.loaded");
    let (mut answers, mut envelopes) = (Vec::with_capacity(batch.len()), Vec::new());
    let mut accepted = HashMap::new();
    for (nth, pending) in batch.iter().enumerate() {
        let place = pending.once.as_ref().map(Once::place);
        let known = remembered.remove(&nth);
        if known.is_some() || place.is_some_and(|place| accepted.contains_key(&place)) {
            has_repeats = true;
            answers.push(known);
            continue;
        }
        let at = At { now, event_id: pending.event_id, cause: None };
        let before = rows::changes();
        let answer = guarded(|| pending.command.decide(&mut rows, at));
        let mut answer =
            answer.map_err(|panic| Trouble::Undecided(nth, format!("it panicked: {panic}")))?;
        if answer.is_err() && rows::changes() != before {
            return Err(Trouble::Undecided(nth, "it changed rows and was refused".to_string()));
        }
        if let Ok(reply) = &mut answer {
            envelopes.extend(reply.event.take().map(|event| envelope(event, pending, now)));
        }
        if let (Some(place), Ok(_)) = (place, &answer) {
            accepted.insert(place, nth);
        }
        answers.push(Some(answer));
    }
    if !expects_repeats {
        let refused = keyed(batch).filter(|(nth, _)| matches!(answers[*nth], Some(Err(_))));
        for (nth, known) in idempotency::remembered(tx, refused).await? {
            has_repeats = true;
            answers[nth] = Some(known);
        }
    }
    let mut writes = Writes::of(tx);
    rows.save(&mut writes);
    outbox::publish(&mut writes, &envelopes);
    let accepted = accepted
        .into_values()
        .filter_map(|nth| Some((batch[nth].once.as_ref()?, answers[nth].as_ref()?.as_ref().ok()?)));
    idempotency::remember(&mut writes, accepted);
    match answers.iter().flatten().any(Result::is_ok) {
        true => writes.run_durably().await?,
        // A refusal says that nothing is stored: there is nothing to wait for.
        false => writes.run().await?,
    }
    Ok(Prepared { answers, has_repeats })
}

/// The commands of a batch that came with a key, with their places in it.
fn keyed<R: Rows>(batch: &[Pending<R>]) -> impl Iterator<Item = (usize, &Once)> {
    batch.iter().enumerate().filter_map(|(nth, pending)| Some((nth, pending.once.as_ref()?)))
}

fn envelope<R: Rows>(event: Outgoing, pending: &Pending<R>, now: DateTime<Utc>) -> Envelope {
    let traceparent = Some(pending.traceparent.clone());
    Envelope { event, event_id: pending.event_id, traceparent, cause: None, occurred_at: now }
}
