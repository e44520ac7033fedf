//! The deadline: cancels orders that are pending for longer than `ORDER_DEADLINE_SECONDS`. Unset, an order waits
//! for payment and stock for as long as they are away, and placing it costs nothing for a deadline.
//!
//! Promises: no clock alone cancels an order, and no order is cancelled whose answers came in time. An order is
//! overdue only if the database's clock, the service's clock in the order's id, and the time that processes of the
//! service measured all agree. It is cancelled only if this service has handled everything that arrived before
//! the order was overdue. The sweep uses the same command as a customer's cancel, so that the order's row decides.
//!
//! The sweep reads the table of pending orders, the oldest first, and nothing of the orders that have ended.

use std::time::Duration;

use chassis::{
    Caller, Commands, ConsumerLag, Horizon, Idempotent, Problem, Service, ServiceLoop, db,
};
use chrono::{DateTime, TimeDelta, Utc};
use events::TOLERATED_OUTAGE;
use futures::future::join_all;
use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::order::{CancelOrder, Orders, Reason};
use crate::pending_orders;

/// From one sweep to the next.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Rows that one query reads, at most, and how long it may take.
const PAGE_ROWS_MAX: i64 = 1_000;
const QUERY_TIMEOUT: Duration = Duration::from_secs(8);

/// How far the clocks of two replicas may be apart.
const CLOCK_SKEW_MAX: TimeDelta = TimeDelta::minutes(1);

/// From one page of a sweep to the next, with room for a query, the lag of the group, and the commands of a page.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(120);

/// What the deadline reads from the environment.
#[derive(clap::Args)]
pub struct Settings {
    /// How long an order may be pending before it is cancelled. Unset: without a limit.
    #[arg(long, env, value_parser = clap::value_parser!(u64).range(1..))]
    order_deadline_seconds: Option<u64>,
}

/// The loop that sweeps, and measures how old the pending orders are. Without a deadline it only measures.
pub fn sweep(
    settings: &Settings,
    service: &Service,
    commands: Commands<Orders>,
    lag: ConsumerLag,
) -> ServiceLoop {
    let deadline = settings.order_deadline_seconds.map(Duration::from_secs);
    let heartbeat = deadline.map(|_| service.heartbeat("deadline", HEARTBEAT_TIMEOUT));
    let db = service.db.clone();
    ServiceLoop::new("deadline", move |stop: CancellationToken| async move {
        let (Some(deadline), Some(heartbeat)) = (deadline, heartbeat) else {
            stop.run_until_cancelled(pending_orders::report_oldest(&db)).await;
            return Ok(());
        };
        if deadline < TOLERATED_OUTAGE {
            // Such an outage of payment or stock cancels orders that would have been confirmed after it.
            warn!(
                "orders are cancelled after {deadline:?}, which is shorter than an outage that the services survive"
            );
        }
        let caught_up = || {
            heartbeat.beat();
            lag.caught_up()
        };
        let mut horizon = Horizon::new(deadline);
        let sweeps = async {
            loop {
                heartbeat.beat();
                let sweep = async {
                    // Until a whole deadline was measured, no order is overdue.
                    let Some(horizon) = horizon.sample(&db).await? else { return Ok(()) };
                    let criteria = OverdueCriteria { deadline, service_time: Utc::now(), horizon };
                    sweep_once(&db, &commands, &criteria, caught_up).await
                };
                if let Err(error) = sweep.await as Result<(), Problem> {
                    warn!("the deadline sweep failed and is retried: {error}");
                }
                sleep(SWEEP_INTERVAL).await;
            }
        };
        let both = async { tokio::join!(sweeps, pending_orders::report_oldest(&db)) };
        stop.run_until_cancelled(both).await;
        Ok(())
    })
}

/// What is overdue.
#[derive(Clone, Copy)]
pub(crate) struct OverdueCriteria {
    pub deadline: Duration,
    /// The time of the service's clock.
    pub service_time: DateTime<Utc>,
    /// What the database stamped with an earlier time than this is older than the deadline.
    pub horizon: DateTime<Utc>,
}

/// An order that is older than the deadline by the database's clock and by the measured time.
#[derive(sqlx::FromRow)]
struct Candidate {
    created_at: DateTime<Utc>,
    order_id: Uuid,
    /// What was created at this time or earlier is a candidate.
    cutoff: DateTime<Utc>,
}

impl OverdueCriteria {
    /// For how long an order has been overdue; `None` if it is younger than the deadline by its id. An id of the
    /// future was drawn by a clock that was wrong, and does not count.
    fn overdue_for(&self, candidate: &Candidate) -> Option<Duration> {
        let by_database = (candidate.cutoff - candidate.created_at).to_std().ok()?;
        let milliseconds = (candidate.order_id.as_u128() >> 80) as i64;
        let age = self.service_time - DateTime::from_timestamp_millis(milliseconds)?;
        if age < -CLOCK_SKEW_MAX {
            return Some(by_database);
        }
        let by_id = age.to_std().ok()?.checked_sub(self.deadline)?;
        Some(by_id.min(by_database))
    }
}

/// Cancels every overdue order, the oldest first, one page after the other. An order that cannot be cancelled does
/// not hold up the others.
///
/// `caught_up` returns a time: everything that arrived longer ago was handled. An order that has been overdue for
/// less than that is left for another sweep, because an answer that came in time may be unhandled.
pub(crate) async fn sweep_once<F: Future<Output = Option<Duration>>>(
    db: &PgPool,
    commands: &Commands<Orders>,
    criteria: &OverdueCriteria,
    caught_up: impl Fn() -> F,
) -> Result<(), Problem> {
    let (mut result, mut last) = (Ok(()), (DateTime::UNIX_EPOCH, Uuid::nil()));
    loop {
        let page = sqlx::query_as(
            "select pending_orders.created_at, order_id, cutoff
             from pending_orders join orders using (order_id),
                  least(now() - make_interval(secs => $1), $2) as cutoff
             where pending_orders.created_at <= cutoff
               and (pending_orders.created_at, order_id) > ($3, $4)
               and status = 'pending'
             order by pending_orders.created_at, order_id limit $5",
        );
        let page = page.bind(criteria.deadline.as_secs_f64()).bind(criteria.horizon);
        let page = page.bind(last.0).bind(last.1).bind(PAGE_ROWS_MAX).fetch_all(db);
        let page: Vec<Candidate> = db::with_timeout(QUERY_TIMEOUT, page).await?;
        let Some(Candidate { created_at, order_id, .. }) = page.last() else { return result };
        last = (*created_at, *order_id);
        // Called for each page, and after it was read: answers may arrive meanwhile.
        let Some(unhandled_for) = caught_up().await else { return result };
        let overdue =
            page.iter().filter(|candidate| criteria.overdue_for(candidate) >= Some(unhandled_for));
        // Commands that wait together share a transaction.
        let cancelled = join_all(overdue.map(|order| cancel(commands, order.order_id))).await;
        result = result.and(cancelled.into_iter().collect());
    }
}

/// Cancels an order if it is pending.
async fn cancel(commands: &Commands<Orders>, order_id: Uuid) -> Result<(), Problem> {
    let cancel = CancelOrder { order_id, reason: Reason::Deadline, caller: Caller::unrestricted() };
    commands.execute(Idempotent::without_key(cancel)).await.map(drop)
}
