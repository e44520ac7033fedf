//! The scheduler fires the timers that are due: a part of the consumer, since a timer enters by the same path as an
//! event and stops with it while it is paused. One instance of the service does it at a time.
//!
//! Promise: a timer fires once in effect, not before its time, and not after it was cancelled. The lease only spares
//! work: two schedulers that read one row are told apart by the lock on it and by the inbox. A handler that is called
//! without both breaks the promise.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics::{counter, gauge};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::consumer::circuit_breaker::CircuitBreaker;
use crate::consumer::commit::{CommittedPart, log_dead_letters};
use crate::consumer::lag::ConsumerLag;
use crate::consumer::pause::{PAUSE_POLL_INTERVAL, wait_while_paused};
use crate::consumer::resources::ConsumerResources;
use crate::consumer::wait::{ATTEMPT_TIMEOUT, LoopWait};
use crate::crash_point;
use crate::db;
use crate::db::connection::DedicatedConnection;
use crate::db::lease::{Lease, with_query_timeout};
use crate::db::trusted_clock::TrustedClock;
use crate::dead_letter::{self, DeadLetterReason, ReasonKind};
use crate::event::TASK_PREFIX;
use crate::event::timer::Guard;
use crate::flow::backoff::RetryBackoff;
use crate::scheduled::{self, DueRow, Ready, TIMER_BATCH_MAX};
use crate::tasks;
use crate::transaction::WorkItem;
use crate::transaction::events::apply_events;
use crate::transaction::failure::{Failure, Next};
use crate::transaction::incoming_record::{Content, IncomingRecord};
use crate::transaction::part::Part;
use crate::unit_of_work::UnitOfWork;

/// The advisory lock of the active scheduler: one number for every service, since each has its own database.
const SCHEDULER_LOCK_ID: i64 = 0x0073_6368_6564;

/// The place of a dead letter that was a timer, where others have their Kafka cluster.
const CLUSTER: &str = "scheduled";

/// How often the schedule is read while nothing is due.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The pause after a full batch, as a multiple of the time that the batch took: what is due together leaves the
/// database to the commands and the events.
const DRAIN_PAUSE_FACTOR: u32 = 2;

/// How often the consumer's lag is measured while it holds up timers that are due, at first and later.
const CAUGHT_UP_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_secs(1), delay_max: Duration::from_secs(5) };

/// How often the age of what is due is measured.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The pauses before the scheduler starts again after a failure, or tries to get the lease again.
const LEASE_BACKOFF: RetryBackoff = RetryBackoff::constant(Duration::from_millis(1_500));

/// The pauses of one timer that another transaction or a rule of the database holds up.
const DEFER_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_millis(500), delay_max: Duration::from_secs(30) };

/// How long a timer waits for a row that another transaction holds, if it is alone in its transaction.
const SINGLE_TIMER_LOCK_TIMEOUT: &str = "100ms";

pub(crate) struct Scheduler<'a, R: UnitOfWork> {
    resources: &'a ConsumerResources<R>,
    lag: &'a ConsumerLag,
    wait: LoopWait<'a>,
    connection: DedicatedConnection,
    timers: Vec<(&'static str, Guard)>,
    clock: TrustedClock,
    measured: MeasuredTime,
    caught_up: CaughtUp,
    circuit_breaker: CircuitBreaker,
    reported_at: Option<Instant>,
}

impl<'a, R: UnitOfWork> Scheduler<'a, R> {
    pub fn new(
        resources: &'a ConsumerResources<R>,
        lag: &'a ConsumerLag,
        wait: LoopWait<'a>,
    ) -> Scheduler<'a, R> {
        Scheduler {
            resources,
            lag,
            wait,
            connection: DedicatedConnection::new(&resources.db),
            timers: resources.router.timers().collect(),
            clock: TrustedClock::default(),
            measured: MeasuredTime::default(),
            caught_up: CaughtUp::default(),
            circuit_breaker: CircuitBreaker::default(),
            reported_at: None,
        }
    }

    /// Fires timers until it is stopped. After any failure it starts again, for ever.
    pub async fn run(mut self) {
        while !self.wait.stop.is_cancelled() {
            if let Err(error) = self.run_as_leader().await {
                warn!("the scheduler failed and is retried: {error:#}");
                self.sleep(LEASE_BACKOFF.pause_after(1)).await;
            }
        }
    }

    async fn run_as_leader(&mut self) -> anyhow::Result<()> {
        let db = &self.resources.db;
        let mut lease = Lease::open(db, SCHEDULER_LOCK_ID, &db::PLANNER_SETTINGS).await?;
        let ended = self.lead(&mut lease).await;
        gauge!("scheduler_active").set(0);
        self.report(&[]);
        lease.close().await;
        ended
    }

    /// Samples the clock from the first moment: a jump while another instance has the lease is a jump too.
    async fn lead(&mut self, lease: &mut Lease) -> anyhow::Result<()> {
        let (mut is_leader, mut pause_checked_at) = (false, None::<Instant>);
        while !self.wait.stop.is_cancelled() && !lease.is_outdated(&self.resources.db) {
            self.wait.heartbeat.beat();
            let (now, trusted) = self.sample(&mut lease.session).await?;
            if !is_leader {
                is_leader = lease.try_acquire().await?;
                if !is_leader {
                    self.sleep(LEASE_BACKOFF.pause_after(1)).await;
                    continue;
                }
                info!("the scheduler is active");
                gauge!("scheduler_active").set(1);
            }
            if pause_checked_at.is_none_or(|at| at.elapsed() > PAUSE_POLL_INTERVAL) {
                wait_while_paused(&self.resources.db, &self.wait).await;
                pause_checked_at = Some(Instant::now());
            }
            self.measure(&mut lease.session).await?;
            let ready = self.ready(&mut lease.session, now, trusted).await?;
            let due = self.due(&mut lease.session, &ready, TIMER_BATCH_MAX).await?;
            let (count, began) = (due.len(), Instant::now());
            self.fire(due).await?;
            let pause = match count {
                TIMER_BATCH_MAX.. => {
                    (began.elapsed() * DRAIN_PAUSE_FACTOR).min(PAUSE_POLL_INTERVAL)
                }
                _ => POLL_INTERVAL,
            };
            self.sleep(pause).await;
        }
        Ok(())
    }

    async fn sleep(&self, pause: Duration) {
        self.wait.heartbeat.beat();
        self.wait.stop.run_until_cancelled(sleep(pause)).await;
    }

    /// The time by the database's clock, and the time that is trusted.
    async fn sample(
        &mut self,
        db: &mut PgConnection,
    ) -> sqlx::Result<(DateTime<Utc>, DateTime<Utc>)> {
        let clocks = "select clock_timestamp(), max(elapsed_ms) from chassis.clock_ticks";
        let asked_at = Instant::now();
        let (now, elapsed_ms): (_, Option<i64>) =
            with_query_timeout(sqlx::query_as(clocks).fetch_one(db)).await?;
        self.measured.sample(elapsed_ms.unwrap_or_default());
        Ok((now, self.clock.sample(asked_at, now)))
    }

    /// Which timers may fire at this time. A guard that waits for the consumer is asked only if a timer of its name is
    /// due.
    async fn ready(
        &mut self,
        db: &mut PgConnection,
        now: DateTime<Utc>,
        trusted: DateTime<Utc>,
    ) -> sqlx::Result<Vec<Ready>> {
        let ready = |(source, guard): &(&'static str, Guard)| Ready {
            source,
            now,
            trusted: if guard.trusted { trusted } else { now },
            is_measured: guard.measured,
        };
        let (guarded, free): (Vec<_>, Vec<_>) =
            self.timers.iter().partition(|(_, guard)| guard.caught_up);
        let mut may_fire = Vec::from_iter(free.iter().map(ready));
        let guarded = Vec::from_iter(guarded.iter().map(ready));
        let is_due = !guarded.is_empty() && !self.due(db, &guarded, 1).await?.is_empty();
        let has_topics = self.resources.router.topics().next().is_some();
        let handled = match has_topics {
            true => self.caught_up.within(self.lag, is_due).await,
            false => Some(Duration::ZERO),
        };
        if let Some(unhandled_for) = handled {
            may_fire.extend(guarded.into_iter().map(|ready| Ready {
                now: ready.now - unhandled_for,
                trusted: ready.trusted - unhandled_for,
                ..ready
            }));
        }
        Ok(may_fire)
    }

    async fn due(
        &self,
        db: &mut PgConnection,
        ready: &[Ready],
        limit: usize,
    ) -> sqlx::Result<Vec<DueRow>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        with_query_timeout(scheduled::due(db, ready, self.measured.now(), limit)).await
    }

    /// Has the handlers of these timers decide, in as few transactions as possible.
    ///
    /// # Errors
    /// The cause concerns no single timer. All that have not fired are read again.
    async fn fire(&mut self, due: Vec<DueRow>) -> Result<(), Failure> {
        let tried = due.iter().map(|row| (row.event_id, (row.attempts, row.age_seconds)));
        let tried = HashMap::<_, _>::from_iter(tried);
        let items = Vec::from_iter(due.into_iter().map(|row| self.resources.router.parse_due(row)));
        let mut parts = Vec::from_iter((!items.is_empty()).then(|| Part::new(items)));
        while let Some(mut part) = parts.pop() {
            if self.wait.stop.is_cancelled() {
                return Ok(());
            }
            self.wait.heartbeat.beat();
            part.attempts.count += 1;
            let committed = db::with_timeout(ATTEMPT_TIMEOUT, self.try_commit(&part)).await;
            let failure = match committed {
                Ok(committed) => {
                    log_dead_letters(&part, &committed);
                    self.circuit_breaker.record_committed(&part, &committed);
                    self.open_circuit_breaker().await;
                    continue;
                }
                Err(failure) => failure,
            };
            let next = failure.next(part.items.len(), true, part.races);
            let item = &mut part.items[0];
            match next {
                Next::Race => {
                    part.races += 1;
                    parts.push(part);
                }
                Next::Isolate(nth) => parts.extend(part.isolate(nth)),
                Next::Singles => parts.extend(part.singles()),
                Next::Halves => parts.extend(part.halves()),
                next @ (Next::Defer | Next::Reject(_)) if item.as_dead_letter().is_none() => {
                    let tried = item.event_id.and_then(|id| tried.get(&id)).copied();
                    let (attempts, age_seconds) = tried.unwrap_or_default();
                    match next {
                        Next::Reject(cause) if !self.may_pass(item, &cause, age_seconds) => {
                            item.content = Content::DeadLetter(cause);
                            parts.push(part);
                        }
                        _ => self.defer(item, attempts, &failure).await?,
                    }
                }
                // A dead letter that the database refuses waits: it must not be dropped.
                Next::CheckDuplicates | Next::Retry | Next::Defer | Next::Reject(_) => {
                    counter!("consumer_retries_total").increment(1);
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// Lets the handlers decide and stores the dead letters of a part, in one transaction.
    async fn try_commit(
        &mut self,
        part: &Part<IncomingRecord<R>>,
    ) -> Result<CommittedPart, Failure> {
        let mut tx = match part.items.len() {
            1 => self.connection.begin_with_lock_timeout(SINGLE_TIMER_LOCK_TIMEOUT).await?,
            _ => self.connection.begin().await?,
        };
        let (now, attempts) = (tx.now, i32::try_from(part.attempts.count).unwrap_or(i32::MAX));
        let prepared = async {
            let mut letters = Vec::new();
            for item in &part.items {
                let Some(letter) = item.as_dead_letter() else { continue };
                // Unless the timer was cancelled or moved.
                let timer = WorkItem::<R>::timer(item);
                if !scheduled::lock(&mut tx, timer.as_slice()).await?.is_empty() {
                    letters.push(letter);
                }
            }
            let effect = apply_events(&mut tx, &part.items, now, true, attempts).await?;
            let new = dead_letter::store(&mut tx, CLUSTER, &letters, attempts).await?;
            tx.check_hung_commits().await?;
            Ok::<_, Failure>((effect, new))
        };
        let prepared = prepared.await;
        let (tx, (effect, new)) = tx.keep_or_rollback(prepared).await?;
        crash_point!("scheduler.prepared", effect.has_effect());
        tx.commit().await?;
        crash_point!("scheduler.committed", effect.has_effect());
        Ok(CommittedPart::new(effect, new, &self.resources.wakeups))
    }

    /// Whether what is unprocessable now may not be later: what a delivery is about may be unknown still.
    fn may_pass(
        &self,
        item: &IncomingRecord<R>,
        cause: &DeadLetterReason,
        age_seconds: f64,
    ) -> bool {
        let name = WorkItem::<R>::timer(item).map(|(timer, _)| timer.source);
        let guard = self.timers.iter().find(|(known, _)| Some(*known) == name);
        let patience = guard.map_or(Duration::ZERO, |(_, guard)| guard.patience);
        cause.kind == ReasonKind::Unprocessable && age_seconds < patience.as_secs_f64()
    }

    /// Lets one timer wait by itself, each time for longer, up to a bound.
    async fn defer(
        &self,
        item: &IncomingRecord<R>,
        attempts: i32,
        failure: &Failure,
    ) -> sqlx::Result<()> {
        counter!("consumer_retries_total").increment(1);
        let Some((timer, event_id)) = WorkItem::<R>::timer(item) else { return Ok(()) };
        if attempts == 0 {
            item.in_context(|| warn!("{} of {} is deferred: {failure}", timer.source, timer.key));
        }
        let failures = u32::try_from(attempts).unwrap_or_default().saturating_add(1);
        let seconds = DEFER_BACKOFF.pause_after(failures).as_secs_f64();
        with_query_timeout(scheduled::defer(&self.resources.db, timer, event_id, seconds)).await
    }

    async fn open_circuit_breaker(&mut self) {
        let db = &self.resources.db;
        if let Some(reason) = self.circuit_breaker.open_reason(db).await {
            self.circuit_breaker.open(db, &self.wait, &reason).await;
        }
    }

    /// Periodically measures for how long the earliest timer of each name has been due, those without a handler
    /// included: a version that does not know them leaves them to another.
    async fn measure(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        if self.reported_at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return Ok(());
        }
        self.reported_at = Some(Instant::now());
        let oldest = with_query_timeout(scheduled::oldest(db)).await?;
        self.report(&oldest);
        if self.resources.router.has_any(TASK_PREFIX) {
            let oldest = with_query_timeout(tasks::oldest(db)).await?;
            gauge!("task_oldest_seconds").set(oldest);
        }
        Ok(())
    }

    /// Reports these ages, and 0 for every other name that has a handler.
    fn report(&self, oldest: &[(String, f64)]) {
        for (name, _) in &self.timers {
            gauge!("timer_oldest_due_seconds", "timer" => *name).set(0);
        }
        for (name, due_for) in oldest {
            gauge!("timer_oldest_due_seconds", "timer" => name.clone()).set(due_for.max(0.0));
        }
    }
}

/// The time that processes of the service have measured since tick 0, in milliseconds.
#[derive(Default)]
struct MeasuredTime {
    /// That of the newest tick, and when this process saw it first.
    newest: Option<(i64, Instant)>,
}

impl MeasuredTime {
    fn sample(&mut self, elapsed_ms: i64) {
        if self.newest.is_none_or(|(known, _)| known != elapsed_ms) {
            self.newest = Some((elapsed_ms, Instant::now()));
        }
    }

    fn now(&self) -> i64 {
        self.newest.map_or(0, |(elapsed_ms, seen_at)| {
            elapsed_ms + i64::try_from(seen_at.elapsed().as_millis()).unwrap_or_default()
        })
    }
}

/// When the consumer's lag is measured next, while it holds up timers.
#[derive(Default)]
struct CaughtUp {
    asked: u32,
    next_at: Option<Instant>,
}

/// How long one measurement of the lag may take.
const LAG_TIMEOUT: Duration = Duration::from_secs(20);

impl CaughtUp {
    /// How long ago everything that had arrived was handled; `None` if it is unknown, is not to be measured yet, or no
    /// timer waits for it.
    async fn within(&mut self, lag: &ConsumerLag, is_due: bool) -> Option<Duration> {
        if !is_due {
            *self = CaughtUp::default();
            return None;
        }
        if self.next_at.is_some_and(|at| at > Instant::now()) {
            return None;
        }
        let handled = timeout(LAG_TIMEOUT, lag.caught_up()).await.ok().flatten();
        self.asked = self.asked.saturating_add(1);
        self.next_at = Some(Instant::now() + CAUGHT_UP_BACKOFF.pause_after(self.asked));
        handled
    }
}
