//! The one path of everything that writes: the commands of clients, the events of other services and replayed dead
//! letters. `apply` is its eight steps. Its caller has begun the transaction and commits it: the command executors
//! and the consumer with a batch, and the admin port with one dead letter, which it settles in the same transaction.
//!
//! Promise: the effect of a command or an event, the key by which its duplicates are recognised, and what it
//! publishes are committed together or not at all. A write outside this transaction breaks it.

mod decisions;
pub mod events;
pub mod failure;
pub mod incoming_record;
pub(crate) mod part;

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use opentelemetry::Context;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::calls;
use crate::crash_point;
use crate::dead_letter::DeadLetterReason;
use crate::event::timer::TimerKey;
use crate::event::{Effects, HandlerContext, Unprocessable};
use crate::outbox::{self, Envelope};
use crate::scheduled;
use crate::telemetry::panics::catch_panic;
use crate::transaction::decisions::DecisionAges;
use crate::transaction::failure::Failure;
use crate::unit_of_work::UnitOfWork;
use crate::unit_of_work::loader::Loader;
use crate::unit_of_work::table::Changes;
use crate::unit_of_work::write_batch::WriteBatch;

/// A command or a record of a batch.
pub(crate) trait WorkItem<R: UnitOfWork>: Sized {
    /// What the loop needs after the commit: the answer to a command, the span of an event.
    type Output: Send;
    /// The crash points after steps 2, 3 and 4.
    const CRASH_POINTS: [&str; 3];

    fn keys(&self, keys: &mut R::Keys);

    /// `None` for an item that may be applied twice.
    fn dedup_key(&self) -> Option<DedupKey<'_>>;

    /// The timer that fires, with the id of its row.
    fn timer(&self) -> Option<(&TimerKey, Uuid)> {
        None
    }

    /// Finds the items that had their effect before, by their index, with the answer to each.
    fn find_duplicates(
        tx: &mut PgConnection,
        items: &[Self],
    ) -> impl Future<Output = Result<HashMap<usize, Self::Output>, Failure>> + Send;

    /// Changes the rows; returns the answer, and what it wants done.
    ///
    /// # Errors
    /// It can never be decided.
    fn decide(
        &self,
        rows: &mut R,
        now: DateTime<Utc>,
    ) -> Result<(Self::Output, Wanted), Unprocessable>;

    /// Whether an answer is a refusal: then the item changed nothing, and its key is not stored.
    fn is_refusal(_answer: &Self::Output) -> bool {
        false
    }

    /// Adds the keys of the items that were decided and not refused. `attempts` is the number of this attempt.
    fn store_keys(writes: &mut WriteBatch<'_>, accepted: &[(&Self, &Self::Output)], attempts: i32);
}

/// What decisions want done beside their rows.
#[derive(Default)]
pub(crate) struct Wanted {
    envelopes: Vec<Envelope>,
    timers: scheduled::Changes,
    calls: calls::Changes,
}

impl Wanted {
    /// What a decision wants, in the trace of its cause.
    pub fn of_decision(mut effects: Effects, context: HandlerContext, trace: &Context) -> Wanted {
        let mut wanted = Wanted::default();
        wanted.timers.decide(std::mem::take(&mut effects.timers), context, trace);
        wanted.calls.decide(std::mem::take(&mut effects.calls), context, trace);
        wanted.envelopes = Envelope::of_decision(effects, context, trace);
        wanted
    }

    /// Adds what a later decision of the same batch wants.
    fn extend(&mut self, later: Wanted) {
        self.envelopes.extend(later.envelopes);
        self.timers.extend(later.timers);
        self.calls.extend(later.calls);
    }
}

/// What the duplicates of an item have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DedupKey<'a> {
    /// The id and the topic.
    Event(Uuid, &'static str),
    /// The path and the client's idempotency key.
    Command(&'a str, &'a str),
}

/// A batch that is applied and not committed yet.
#[must_use]
pub(crate) struct Applied<A> {
    /// In the order of the items. `None` for an item with the key of an earlier one of its batch.
    pub answers: Vec<Option<A>>,
    pub publishes: bool,
    /// Recorded after the commit.
    pub ages: DecisionAges,
    /// Whether the next batch has to check for duplicates too: this one had some, or refused a command with a key.
    pub expects_duplicates: bool,
}

/// Applies a batch: everything but the commit. `now` is the time at which the transaction began.
///
/// Rows are locked before the [`DedupKey`]s are queried, and those are written last. So all transactions wait for one
/// another in one direction. And a duplicate that waited for a row which the first delivery held finds that
/// delivery's key, and is not decided on the rows that it left.
///
/// Without `expects_duplicates` every item is assumed to be new, which saves a round trip. If the assumption is
/// wrong, the unique key of the table makes the batch fail, and the caller tries it again with
/// `expects_duplicates`.
pub(crate) async fn apply<R: UnitOfWork, I: WorkItem<R>>(
    tx: &mut PgConnection,
    items: &[I],
    now: DateTime<Utc>,
    expects_duplicates: bool,
    attempts: i32,
) -> Result<Applied<I::Output>, Failure> {
    // 1. Name the rows.
    let mut keys = R::Keys::default();
    items.iter().for_each(|item| item.keys(&mut keys));
    // 2. Load and lock them.
    let mut loader = Loader::new(tx);
    let mut rows = R::load(&mut loader, keys).await?;
    let changes = loader.changes();
    crash_point!(I::CRASH_POINTS[0], !items.is_empty());
    // 3. Find the duplicates.
    let mut duplicates = match expects_duplicates {
        true => I::find_duplicates(tx, items).await?,
        false => HashMap::new(),
    };
    crash_point!(I::CRASH_POINTS[1], duplicates.len() < items.len());
    // 4. Decide.
    let (mut answers, mut wanted) = (Vec::with_capacity(items.len()), Wanted::default());
    items.iter().filter_map(I::timer).for_each(|(timer, id)| wanted.timers.fire(timer, id));
    let (mut accepted, mut accepted_keys) = (Vec::new(), HashSet::new());
    let mut had_duplicates = !duplicates.is_empty();
    for (nth, item) in items.iter().enumerate() {
        let (key, known) = (item.dedup_key(), duplicates.remove(&nth));
        let is_repeated = key.is_some_and(|key| accepted_keys.contains(&key));
        let is_replaced = item.timer().is_some_and(|(timer, _)| wanted.timers.has_decided(timer));
        if known.is_some() || is_repeated || is_replaced {
            had_duplicates = true;
            answers.push(known);
            continue;
        }
        let (answer, wants) = decide(item, &mut rows, &changes, now)
            .map_err(|reason| Failure::Undecidable(nth, reason))?;
        if !I::is_refusal(&answer) {
            accepted.push(nth);
            accepted_keys.extend(key);
        } else if key.is_some() {
            // It may have been accepted before. Then it must not be refused now.
            if !expects_duplicates {
                return Err(Failure::RefusedUnchecked);
            }
            had_duplicates = true;
        }
        wanted.extend(wants);
        answers.push(Some(answer));
    }
    crash_point!(I::CRASH_POINTS[2], !accepted.is_empty());
    // 5. Save the rows that changed.
    let mut writes = WriteBatch::new(tx);
    rows.save(&mut writes);
    // 6. Publish, set timers and ask for calls.
    let Wanted { envelopes, timers, calls } = wanted;
    outbox::insert(&mut writes, &envelopes);
    timers.write(&mut writes);
    calls.write(&mut writes);
    // 7. Store the keys.
    let accepted =
        accepted.into_iter().filter_map(|nth| Some((&items[nth], answers[nth].as_ref()?)));
    I::store_keys(&mut writes, &Vec::from_iter(accepted), attempts);
    // 8. Write all of it. A refusal states that nothing is stored, so there is nothing to wait for.
    let is_refused = |answer: &Option<_>| answer.as_ref().is_some_and(I::is_refusal);
    match !answers.is_empty() && answers.iter().all(is_refused) {
        true => writes.execute().await?,
        false => writes.execute_durably().await?,
    }
    let publishes = !envelopes.is_empty();
    let ages = DecisionAges::new(&envelopes, now);
    Ok(Applied { answers, publishes, ages, expects_duplicates: had_duplicates })
}

fn decide<R: UnitOfWork, I: WorkItem<R>>(
    item: &I,
    rows: &mut R,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<(I::Output, Wanted), DeadLetterReason> {
    let before = changes.count();
    let decided = catch_panic(|| item.decide(rows, now)).map_err(|panic| {
        DeadLetterReason::handler_failed(format!("its handler panicked: {panic}"))
    })?;
    let decided =
        decided.map_err(|Unprocessable(detail)| DeadLetterReason::unprocessable(detail))?;
    if I::is_refusal(&decided.0) && changes.count() != before {
        let detail = "it changed rows and was refused";
        return Err(DeadLetterReason::handler_failed(detail));
    }
    Ok(decided)
}
