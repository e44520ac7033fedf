//! What ends an order that nobody answers, if that is wanted. It is off by default: an order waits
//! for payment and stock for as long as they are away, and shows it.
//!
//! No clock alone ends an order: the database's may jump, and the service's as well. An order is overdue if
//! the database's clock says so, and so much time was measured to have passed since it was placed, and its
//! id is not younger by the service's clock.
//!
//! The sweep goes through the same command as a customer's cancel, so that the order row decides; and it
//! only ends an order when this service has handled everything that was said to it while that was not
//! overdue yet, since the answers may lie there unread.

use chassis::{
    Commands, ConsumerLag, Heartbeat, Horizon, LAG_VALID_FOR, Problem, Reply, Retention, Service,
    ServiceLoop, db,
};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use futures::future::join_all;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::order::{CancelOrder, Orders, Reason};
use crate::saga;

/// How often to look, and at how many orders at a time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
const SCANNED_ROWS_MAX: i64 = 1_000;

/// How long one look may take.
const SCAN_TIMEOUT: Duration = Duration::from_secs(8);

/// From one look to the next: with as many questions of the group and answers to commands as it takes to
/// end what was found, with room to spare.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(120);

/// Looks of the walk through all orders in one sweep: 20,000 orders a second at most.
const FULL_SCAN_PAGES_MAX: u32 = 100;

/// How far the clocks of a service and of its database may be apart.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);

/// An order whose id bears a wrong time, because the clock that it was drawn by was wrong by more than
/// that, is found by looking at all orders this often.
const FULL_SCAN_INTERVAL: Duration = Duration::from_secs(3600);

/// The outage of payment or stock that we promise to survive is as long as topics are kept, less a
/// day. A shorter deadline ends orders that would have ended well.
const TOLERATED_OUTAGE: Duration = match events::FACT_RETENTION {
    Retention::Days(days) => Duration::from_secs((days as u64 - 1) * 24 * 3600),
    Retention::Compact => panic!("facts are kept by time"),
};

/// What the deadline reads from the environment.
#[derive(clap::Args)]
pub struct Settings {
    /// How long an order may be pending before it is cancelled. Unset: for ever.
    #[arg(long, env, value_parser = clap::value_parser!(u64).range(1..))]
    order_deadline_seconds: Option<u64>,
}

/// The loop that sweeps, or one that only waits for the end where no deadline is set.
pub fn sweep(
    settings: Settings,
    service: &Service,
    commands: Commands<Orders>,
    lag: ConsumerLag,
) -> ServiceLoop {
    let deadline = settings.order_deadline_seconds.map(Duration::from_secs);
    let heartbeat = deadline.map(|_| service.heartbeat("deadline", HEARTBEAT_TIMEOUT));
    let db = service.db.clone();
    if let Some(deadline) = deadline.filter(|deadline| *deadline < TOLERATED_OUTAGE) {
        tracing::warn!(
            "orders are cancelled after {deadline:?}, sooner than an outage that would be survived"
        );
    }
    ServiceLoop::new("deadline", move |stop: CancellationToken| async move {
        let Some(deadline) = deadline else {
            stop.cancelled().await;
            return Ok(());
        };
        let mut progress = SweepProgress { heartbeat, ..SweepProgress::default() };
        let mut horizon = Horizon::new(deadline);
        while !stop.is_cancelled() {
            let sweep = async {
                progress.heartbeat.iter().for_each(Heartbeat::beat);
                let caught_up = || lag.caught_up();
                let pass = async {
                    // Not known until so much time was measured: then nothing is overdue.
                    let Some(horizon) = horizon.sample(&db).await? else { return Ok(()) };
                    let criteria =
                        OverdueCriteria { deadline, service_time: SystemTime::now(), horizon };
                    sweep_once(&db, &commands, &criteria, &mut progress, caught_up).await
                };
                if let Err(error) = pass.await as Result<(), Problem> {
                    tracing::warn!("the deadline sweep is tried again: {error}");
                }
            };
            tokio::select! {
                () = sweep => {}
                () = stop.cancelled() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP_INTERVAL) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    })
}

/// What is overdue.
pub(crate) struct OverdueCriteria {
    pub deadline: Duration,
    /// The service's own time.
    pub service_time: SystemTime,
    /// What the database stamped with an earlier time than this is older than the deadline.
    pub horizon: DateTime<Utc>,
}

impl OverdueCriteria {
    /// Up to this id, unless ids bear wrong times, none is younger than the deadline: by the service's
    /// clock, and by what was measured.
    fn certain_cutoff(&self) -> SystemTime {
        let due = self.service_time.checked_sub(self.deadline).unwrap_or(UNIX_EPOCH);
        due.min(self.horizon.into())
    }

    /// For how long an order has been overdue by its id; `None` where it is younger than the deadline. An id
    /// of the future was drawn by a clock that was wrong, and does not count.
    fn overdue_by_id(&self, order_id: Uuid) -> Option<Duration> {
        let drawn_at = UNIX_EPOCH + Duration::from_millis((order_id.as_u128() >> 80) as u64);
        match self.service_time.duration_since(drawn_at) {
            Ok(age) => age.checked_sub(self.deadline),
            Err(ahead) => (ahead.duration() > CLOCK_SKEW_MAX).then_some(Duration::MAX),
        }
    }
}

/// How far the sweep has come.
#[derive(Default)]
pub(crate) struct SweepProgress {
    /// Beaten before each look.
    pub heartbeat: Option<Heartbeat>,
    /// No order up to this id is pending, if its id bears its time.
    pub completed_up_to: Uuid,
    /// How far the walk through all orders has come, and when the last one ended.
    pub full_scan_up_to: Uuid,
    pub full_scan_ended_at: Option<Instant>,
}

/// Ends every overdue order, oldest first, a bounded number of rows at a time.
///
/// Ids grow with time and an ended order stays ended, so each look goes on where the last one ended:
/// no index has to know which orders are pending. Ids carry the time of the service that drew them, and
/// the database's clock may be another. So orders within
/// [`CLOCK_SKEW_MAX`] of the deadline are looked at again, as are those that were left for another sweep for
/// [`LAG_VALID_FOR`] at most, and larger errors are found by a walk through all orders every
/// [`FULL_SCAN_INTERVAL`].
pub(crate) async fn sweep_once<F: Future<Output = Option<Duration>>>(
    db: &PgPool,
    commands: &Commands<Orders>,
    criteria: &OverdueCriteria,
    progress: &mut SweepProgress,
    caught_up: impl Fn() -> F,
) -> Result<(), Problem> {
    let due = criteria.service_time.checked_sub(criteria.deadline).unwrap_or(UNIX_EPOCH);
    let surely_ended = first_id_at(criteria.certain_cutoff() - CLOCK_SKEW_MAX - LAG_VALID_FOR);
    let (mut scanned_up_to, before) = (progress.completed_up_to, first_id_at(due + CLOCK_SKEW_MAX));
    let mut ended = Ok(());
    while let Some((last, overdue)) =
        progress.find_overdue(db, criteria, scanned_up_to, before).await?
    {
        let Some(done) = cancel_overdue(commands, overdue, &caught_up).await else { return ended };
        ended = ended.and(done);
        scanned_up_to = last;
        if ended.is_ok() {
            progress.completed_up_to = scanned_up_to.min(surely_ended);
        }
    }
    if progress.full_scan_ended_at.is_some_and(|at| at.elapsed() < FULL_SCAN_INTERVAL) {
        return ended;
    }
    for _ in 0..FULL_SCAN_PAGES_MAX {
        let from = progress.full_scan_up_to;
        let Some((last, overdue)) = progress.find_overdue(db, criteria, from, Uuid::max()).await?
        else {
            (progress.full_scan_up_to, progress.full_scan_ended_at) =
                (Uuid::nil(), Some(Instant::now()));
            break;
        };
        let Some(done) = cancel_overdue(commands, overdue, &caught_up).await else { return ended };
        ended = ended.and(done);
        progress.full_scan_up_to = last;
    }
    ended
}

impl SweepProgress {
    /// Looks at the next orders. Answers the last one, and those that are overdue; `None` where there are no
    /// more.
    async fn find_overdue(
        &self,
        db: &PgPool,
        criteria: &OverdueCriteria,
        from: Uuid,
        before: Uuid,
    ) -> Result<Option<(Uuid, Vec<Overdue>)>, Problem> {
        self.heartbeat.iter().for_each(Heartbeat::beat);
        // Whether an order is overdue is answered and not asked for: a look ends after so many rows, and
        // not after so many that are overdue.
        let scanned = sqlx::query_as(
            "select order_id, case status when 'pending'
                    then extract(epoch from least(now() - make_interval(secs => $3), $5)
                                            - created_at)::float8 end
         from orders where order_id > $1 and order_id < $2 order by order_id limit $4",
        )
        .bind(from)
        .bind(before)
        .bind(criteria.deadline.as_secs_f64())
        .bind(SCANNED_ROWS_MAX)
        .bind(criteria.horizon)
        .fetch_all(db);
        let scanned: Vec<(Uuid, Option<f64>)> = db::with_timeout(SCAN_TIMEOUT, scanned).await?;
        let Some((last, _)) = scanned.last().copied() else { return Ok(None) };
        let overdue = scanned.into_iter().filter_map(|(order_id, by)| {
            // What is negative is no duration, and not overdue.
            let by = Duration::try_from_secs_f64(by?).ok()?;
            Some(Overdue { order_id, overdue_for: by.min(criteria.overdue_by_id(order_id)?) })
        });
        Ok(Some((last, overdue.collect())))
    }
}

/// An order whose time is over, and for how long it has been.
struct Overdue {
    order_id: Uuid,
    overdue_for: Duration,
}

/// Ends them all at once: those that wait together share a transaction. One that can't be ended is no
/// reason to leave the others. Those to which an answer may lie unread that came in time are left for
/// another sweep; `None` where that can't be told of any. It is asked each time, since answers may come in
/// while others are ended.
async fn cancel_overdue<F: Future<Output = Option<Duration>>>(
    commands: &Commands<Orders>,
    overdue: Vec<Overdue>,
    caught_up: impl Fn() -> F,
) -> Option<Result<(), Problem>> {
    if overdue.is_empty() {
        return Some(Ok(()));
    }
    let ago = caught_up().await?;
    let overdue = overdue.into_iter().filter(|order| order.overdue_for >= ago);
    let ended = join_all(overdue.map(|order| cancel(commands, order.order_id))).await;
    Some(ended.into_iter().collect())
}

/// No id that is drawn at this time or later is smaller.
fn first_id_at(time: SystemTime) -> Uuid {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Uuid::from_u128(since.as_millis() << 80)
}

async fn cancel(commands: &Commands<Orders>, order_id: Uuid) -> Result<(), Problem> {
    let cancel = CancelOrder { order_id, reason: Reason::Deadline };
    let decide = |cancel: &CancelOrder, orders: &mut Orders, context| {
        // Confirmed meanwhile: then there is nothing to end.
        let event = saga::cancel_order(cancel, orders, context).unwrap_or_default();
        Ok(Reply::ok(&()).with_event(event))
    };
    commands.execute(cancel, None, decide).await.map(drop)
}
