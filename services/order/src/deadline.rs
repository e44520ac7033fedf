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

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chassis::clock::Horizon;
use chassis::commands::Commands;
use chassis::db;
use chassis::event::Retention;
use chassis::group::{ENDS_COUNT_FOR, Group};
use chassis::probes::Heartbeat;
use chassis::problem::Problem;
use chassis::reply::Reply;
use chassis::service::{Loop, Service};
use chrono::{DateTime, Utc};
use futures::future::join_all;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::order::{CancelOrder, Orders, Reason};
use crate::saga;

/// How often to look, and at how many orders at a time.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
const LOOKED_AT_MAX: i64 = 1_000;

/// How long one look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(8);

/// From one look to the next: with as many questions of the group and answers to commands as it takes to
/// end what was found, with room to spare.
const BEATS_WITHIN: Duration = Duration::from_secs(120);

/// Looks of the walk through all orders in one sweep: 20,000 orders a second at most.
const WALKED_MAX: u32 = 100;

/// How far the clocks of a service and of its database may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// An order whose id bears a wrong time, because the clock that it was drawn by was wrong by more than
/// that, is found by looking at all orders this often.
const ALL_EVERY: Duration = Duration::from_secs(3600);

/// The outage of payment or stock that we promise to survive is as long as topics are kept, less a
/// day. A shorter deadline ends orders that would have ended well.
const PROMISED_OUTAGE: Duration = match events::FACTS {
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
    group: Group,
) -> Loop {
    let deadline = settings.order_deadline_seconds.map(Duration::from_secs);
    let heartbeat = deadline.map(|_| service.heartbeat("deadline", BEATS_WITHIN));
    let db = service.db.clone();
    if let Some(deadline) = deadline.filter(|deadline| *deadline < PROMISED_OUTAGE) {
        tracing::warn!(
            "orders are cancelled after {deadline:?}, sooner than an outage that would be survived"
        );
    }
    Loop::new("deadline", move |stop: CancellationToken| async move {
        let Some(deadline) = deadline else {
            stop.cancelled().await;
            return Ok(());
        };
        let mut swept = Swept { heartbeat, ..Swept::default() };
        let mut horizon = Horizon::new(deadline);
        while !stop.is_cancelled() {
            let sweep = async {
                swept.heartbeat.iter().for_each(Heartbeat::beat);
                let caught_up = || group.caught_up();
                let swept = async {
                    // Not known until so much time was measured: then nothing is overdue.
                    let Some(horizon) = horizon.look(&db).await? else { return Ok(()) };
                    let times = Times { deadline, service: SystemTime::now(), horizon };
                    once(&db, &commands, &times, &mut swept, caught_up).await
                };
                if let Err(error) = swept.await as Result<(), Problem> {
                    tracing::warn!("the deadline sweep is tried again: {error}");
                }
            };
            tokio::select! {
                () = sweep => {}
                () = stop.cancelled() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    })
}

/// What is overdue.
pub(crate) struct Times {
    pub deadline: Duration,
    /// The service's own time.
    pub service: SystemTime,
    /// What the database stamped with an earlier time than this is older than the deadline.
    pub horizon: DateTime<Utc>,
}

impl Times {
    /// Up to this id, unless ids bear wrong times, none is younger than the deadline: by the service's
    /// clock, and by what was measured.
    fn surely_overdue(&self) -> SystemTime {
        let due = self.service.checked_sub(self.deadline).unwrap_or(UNIX_EPOCH);
        due.min(self.horizon.into())
    }

    /// For how long an order has been overdue by its id; `None` where it is younger than the deadline. An id
    /// of the future was drawn by a clock that was wrong, and does not count.
    fn overdue_by_its_id(&self, order_id: Uuid) -> Option<Duration> {
        let drawn_at = UNIX_EPOCH + Duration::from_millis((order_id.as_u128() >> 80) as u64);
        match self.service.duration_since(drawn_at) {
            Ok(age) => age.checked_sub(self.deadline),
            Err(ahead) => (ahead.duration() > CLOCKS_APART).then_some(Duration::MAX),
        }
    }
}

/// How far the sweep has come.
#[derive(Default)]
pub(crate) struct Swept {
    /// Beaten before each look.
    pub heartbeat: Option<Heartbeat>,
    /// No order up to this id is pending, if its id bears its time.
    pub ended_up_to: Uuid,
    /// How far the walk through all orders has come, and when the last one ended.
    pub walked_up_to: Uuid,
    pub walked_at: Option<Instant>,
}

/// Ends every overdue order, oldest first, a bounded number of rows at a time.
///
/// Ids grow with time and an ended order stays ended, so each look goes on where the last one ended:
/// no index has to know which orders are pending. Ids carry the time of the service that drew them, and
/// the database's clock may be another. So orders within
/// [`CLOCKS_APART`] of the deadline are looked at again, as are those that were left for another sweep for
/// [`ENDS_COUNT_FOR`] at most, and larger errors are found by a walk through all orders every
/// [`ALL_EVERY`].
pub(crate) async fn once<F: Future<Output = Option<Duration>>>(
    db: &PgPool,
    commands: &Commands<Orders>,
    times: &Times,
    swept: &mut Swept,
    caught_up: impl Fn() -> F,
) -> Result<(), Problem> {
    let due = times.service.checked_sub(times.deadline).unwrap_or(UNIX_EPOCH);
    let surely_ended = first_id_of(times.surely_overdue() - CLOCKS_APART - ENDS_COUNT_FOR);
    let (mut looked_up_to, before) = (swept.ended_up_to, first_id_of(due + CLOCKS_APART));
    let mut ended = Ok(());
    while let Some((last, overdue)) = swept.look(db, times, looked_up_to, before).await? {
        let Some(done) = end(commands, overdue, &caught_up).await else { return ended };
        ended = ended.and(done);
        looked_up_to = last;
        if ended.is_ok() {
            swept.ended_up_to = looked_up_to.min(surely_ended);
        }
    }
    if swept.walked_at.is_some_and(|at| at.elapsed() < ALL_EVERY) {
        return ended;
    }
    for _ in 0..WALKED_MAX {
        let from = swept.walked_up_to;
        let Some((last, overdue)) = swept.look(db, times, from, Uuid::max()).await? else {
            (swept.walked_up_to, swept.walked_at) = (Uuid::nil(), Some(Instant::now()));
            break;
        };
        let Some(done) = end(commands, overdue, &caught_up).await else { return ended };
        ended = ended.and(done);
        swept.walked_up_to = last;
    }
    ended
}

impl Swept {
    /// Looks at the next orders. Answers the last one, and those that are overdue; `None` where there are no
    /// more.
    async fn look(
        &self,
        db: &PgPool,
        times: &Times,
        from: Uuid,
        before: Uuid,
    ) -> Result<Option<(Uuid, Vec<Overdue>)>, Problem> {
        self.heartbeat.iter().for_each(Heartbeat::beat);
        // Whether an order is overdue is answered and not asked for: a look ends after so many rows, and
        // not after so many that are overdue.
        let looked_at = sqlx::query_as(
            "select order_id, case status when 'pending'
                    then extract(epoch from least(now() - make_interval(secs => $3), $5)
                                            - created_at)::float8 end
         from orders where order_id > $1 and order_id < $2 order by order_id limit $4",
        )
        .bind(from)
        .bind(before)
        .bind(times.deadline.as_secs_f64())
        .bind(LOOKED_AT_MAX)
        .bind(times.horizon)
        .fetch_all(db);
        let looked_at: Vec<(Uuid, Option<f64>)> = db::in_time(LOOK_WITHIN, looked_at).await?;
        let Some((last, _)) = looked_at.last().copied() else { return Ok(None) };
        let overdue = looked_at.into_iter().filter_map(|(order_id, by)| {
            // What is negative is no duration, and not overdue.
            let by = Duration::try_from_secs_f64(by?).ok()?;
            Some(Overdue { order_id, by: by.min(times.overdue_by_its_id(order_id)?) })
        });
        Ok(Some((last, overdue.collect())))
    }
}

/// An order whose time is over, and for how long it has been.
struct Overdue {
    order_id: Uuid,
    by: Duration,
}

/// Ends them all at once: those that wait together share a transaction. One that can't be ended is no
/// reason to leave the others. Those to which an answer may lie unread that came in time are left for
/// another sweep; `None` where that can't be told of any. It is asked each time, since answers may come in
/// while others are ended.
async fn end<F: Future<Output = Option<Duration>>>(
    commands: &Commands<Orders>,
    overdue: Vec<Overdue>,
    caught_up: impl Fn() -> F,
) -> Option<Result<(), Problem>> {
    if overdue.is_empty() {
        return Some(Ok(()));
    }
    let ago = caught_up().await?;
    let overdue = overdue.into_iter().filter(|order| order.by >= ago);
    let ended = join_all(overdue.map(|order| cancel(commands, order.order_id))).await;
    Some(ended.into_iter().collect())
}

/// No id that is drawn at this time or later is smaller.
fn first_id_of(time: SystemTime) -> Uuid {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Uuid::from_u128(since.as_millis() << 80)
}

async fn cancel(commands: &Commands<Orders>, order_id: Uuid) -> Result<(), Problem> {
    let cancel = CancelOrder { order_id, reason: Reason::Deadline };
    let decide = |cancel: &CancelOrder, orders: &mut Orders, at| {
        // Confirmed meanwhile: then there is nothing to end.
        let event = saga::cancel_order(cancel, orders, at).unwrap_or_default();
        Ok(Reply::ok(&()).publishing(event))
    };
    commands.run(cancel, None, decide).await.map(drop)
}
