//! The deadline: cancels orders that are pending for longer than `ORDER_DEADLINE_SECONDS`. Unset, an order waits
//! for payment and stock for as long as they are away, and placing it costs nothing for a deadline.
//!
//! Promises: no clock alone cancels an order, and no order is cancelled whose answers came in time. The guard of the
//! timer keeps them: processes of the service have measured the time, and the service has handled everything that
//! arrived before the order was overdue. An order that has ended keeps its timer, which then does nothing.

use std::time::Duration;

use chassis::{Service, ServiceLoop, Timer, db};
use chrono::{DateTime, Utc};
use events::TOLERATED_OUTAGE;
use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::order::Deadline;
use crate::pending_orders;

/// Orders whose timers one statement sets, at most, and how long it may take.
const PAGE_ROWS_MAX: i64 = 1_000;
const QUERY_TIMEOUT: Duration = Duration::from_secs(8);

/// The pause before the setting is applied once more after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// What the deadline reads from the environment.
#[derive(clap::Args)]
pub struct Settings {
    /// How long an order may be pending before it is cancelled. Unset: without a limit.
    #[arg(long, env, value_parser = clap::value_parser!(u64).range(1..))]
    order_deadline_seconds: Option<u64>,
}

impl Settings {
    /// How long an order may be pending.
    pub fn deadline(&self) -> Option<Duration> {
        self.order_deadline_seconds.map(Duration::from_secs)
    }
}

/// The loop that measures how old the pending orders are. It begins by applying the setting to those that were placed
/// before.
pub fn watch(settings: &Settings, service: &Service) -> ServiceLoop {
    let (deadline, db) = (settings.deadline(), service.db.clone());
    ServiceLoop::new("deadline", move |stop: CancellationToken| async move {
        if let Some(deadline) = deadline.filter(|deadline| *deadline < TOLERATED_OUTAGE) {
            // Such an outage of payment or stock cancels orders that would have been confirmed after it.
            warn!(
                "orders are cancelled after {deadline:?}, which is shorter than an outage that the services survive"
            );
        }
        let applied = async {
            while let Err(error) = apply(&db, deadline).await {
                warn!(
                    "the deadline could not be applied to the pending orders, and is retried: {error}"
                );
                sleep(RETRY_INTERVAL).await;
            }
        };
        let both = async { tokio::join!(applied, pending_orders::report_oldest(&db)) };
        stop.run_until_cancelled(both).await;
        Ok(())
    })
}

/// Gives the pending orders this deadline, or none: a setting holds for orders that are older than it.
pub(crate) async fn apply(db: &PgPool, deadline: Option<Duration>) -> sqlx::Result<()> {
    let Some(deadline) = deadline else {
        return db::scheduled::cancel_all::<Deadline>(db).await.map(drop);
    };
    let mut last = (DateTime::<Utc>::UNIX_EPOCH, Uuid::nil());
    loop {
        let page = "select created_at, order_id from pending_orders where (created_at, order_id) > ($1, $2)
                    order by created_at, order_id limit $3";
        let page = sqlx::query_as(page).bind(last.0).bind(last.1).bind(PAGE_ROWS_MAX);
        let page: Vec<(DateTime<Utc>, Uuid)> =
            db::with_timeout(QUERY_TIMEOUT, page.fetch_all(db)).await?;
        let Some(end) = page.last() else { return Ok(()) };
        last = *end;
        let timers = page.into_iter().map(|(created_at, order_id)| {
            (Deadline { order_id }.at(created_at + deadline), created_at)
        });
        db::with_timeout(QUERY_TIMEOUT, db::scheduled::set_since(db, timers)).await?;
    }
}
