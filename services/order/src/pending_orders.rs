//! Pending orders, for operators: `GET /pending-orders` on the admin port lists the oldest ones with what they wait for.
//! All callers share one query a second, which reads a bounded number of rows of the table `pending_orders`.
//!
//! Promise: the table has a row for each pending order. A transaction that places or ends an order writes it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use chassis::{CachedAnswer, Problem, Query, db};
use chrono::{DateTime, TimeDelta, Utc};
use events::participants::{WAITING, participants};
use metrics::{describe_gauge, gauge};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::sleep;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::order::{PaymentLeg, StockLeg};

/// Orders that are listed, at most.
const LIST_MAX: u32 = 200;

/// Pending orders that are counted, at most.
const COUNT_MAX: i64 = 50_000;

/// The ages by which they are counted, in seconds.
const AGES: [i32; 5] = [10, 60, 600, 3_600, 86_400];

/// How long one answer serves all callers.
const CACHED_FOR: Duration = Duration::from_secs(1);

/// How often the age of the oldest pending order is measured.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

pub(crate) type PendingState = (PgPool, Arc<CachedAnswer<Snapshot>>);

/// The route of the admin port.
pub fn router(db: PgPool) -> OpenApiRouter {
    routes().with_state((db, Arc::default()))
}

/// The route with its description.
pub(crate) fn routes() -> OpenApiRouter<PendingState> {
    OpenApiRouter::new().routes(routes!(list_pending_orders))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Only orders that were placed so many seconds ago, or earlier.
    #[serde(default)]
    #[param(minimum = 0, maximum = 4_294_967_295u32)]
    older_than_seconds: u32,
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 200, default = 100)]
    limit: u32,
}

fn default_limit() -> u32 {
    100
}

/// The pending orders at one moment.
#[derive(Clone)]
pub(crate) struct Snapshot {
    read_at: DateTime<Utc>,
    /// All of them, and those that are at least as old as each of [`AGES`].
    counts: Vec<i64>,
    /// The oldest first.
    oldest: Arc<[PendingOrder]>,
}

#[derive(Clone, Serialize, sqlx::FromRow, ToSchema)]
struct PendingOrder {
    order_id: Uuid,
    created_at: DateTime<Utc>,
    payment: PaymentLeg,
    stock: StockLeg,
    /// The services whose answer is missing.
    waits_for: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct PendingOrders {
    /// When it was read, by the database's clock.
    read_at: DateTime<Utc>,
    /// The number of all pending orders, counted up to `counted_at_most`.
    pending: i64,
    by_age: Vec<AgeCount>,
    counted_at_most: i64,
    orders: Vec<PendingOrder>,
}

#[derive(Serialize, ToSchema)]
struct AgeCount {
    older_than_seconds: i32,
    orders: i64,
}

/// Lists the pending orders that were placed first, with what each waits for.
///
/// Ordered by `created_at`, then by `order_id`. All callers of an instance share one query a second.
#[utoipa::path(get, path = "/pending-orders", params(ListQuery), responses(
    (status = 200, description = "The oldest pending orders.", body = PendingOrders),
))]
async fn list_pending_orders(
    State((db, cached)): State<PendingState>,
    Query(ListQuery { older_than_seconds, limit }): Query<ListQuery>,
) -> Result<Json<PendingOrders>, Problem> {
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format!("must be 1 to {LIST_MAX}")));
    }
    let (snapshot, _) = cached.get(CACHED_FOR, read(&db)).await?;
    let Snapshot { read_at, counts, oldest } = snapshot;
    // The oldest come first, so those that are old enough are a beginning of the list.
    let created_by = read_at - TimeDelta::seconds(older_than_seconds.into());
    let old_enough = oldest.iter().take_while(|order| order.created_at <= created_by);
    let ages = AGES.into_iter().zip(&counts[1..]);
    Ok(Json(PendingOrders {
        read_at,
        pending: counts[0],
        by_age: ages.map(|(age, n)| AgeCount { older_than_seconds: age, orders: *n }).collect(),
        counted_at_most: COUNT_MAX,
        orders: old_enough.take(limit as usize).cloned().collect(),
    }))
}

async fn read(db: &PgPool) -> Result<Snapshot, Problem> {
    let mut tx = db::begin(db).await?;
    // To start a worker takes longer than the whole query.
    sqlx::query("set local max_parallel_workers_per_gather = 0").execute(&mut *tx).await?;
    let ages = AGES.map(|age| {
        format!("count(*) filter (where created_at <= (select now() - interval '{age} s'))")
    });
    let (read_at, counts) = sqlx::query_as(AssertSqlSafe(format!(
        "select now(), array[count(*), {}]
         from (select created_at from pending_orders order by created_at, order_id limit $1) as oldest",
        ages.join(", ")
    )))
    .bind(COUNT_MAX)
    .fetch_one(&mut *tx)
    .await?;
    let legs = participants().map(|participant| participant.service);
    let unanswered = legs.map(|leg| format!("case {leg} when '{WAITING}' then '{leg}' end"));
    let oldest: Vec<PendingOrder> = sqlx::query_as(AssertSqlSafe(format!(
        "select order_id, pending_orders.created_at, {},
                array_remove(array[{}], null) as waits_for
         from pending_orders join orders using (order_id)
         where status = 'pending'
         order by pending_orders.created_at, order_id limit $1",
        legs.join(", "),
        unanswered.join(", ")
    )))
    .bind(i64::from(LIST_MAX))
    .fetch_all(&mut *tx)
    .await?;
    tx.rollback().await?;
    Ok(Snapshot { read_at, counts, oldest: oldest.into() })
}

/// Everything that a pending order can wait for: each set of services whose answer is missing, and its label of the metric.
pub(crate) fn waits() -> impl Iterator<Item = (Vec<&'static str>, String)> {
    let legs = participants().map(|participant| participant.service);
    (0..1 << legs.len()).map(move |set: u32| {
        let waits_for = (0..).zip(legs).filter(|(nth, _)| set >> nth & 1 == 1);
        let waits_for = Vec::from_iter(waits_for.map(|(_, leg)| leg));
        let label = if set == 0 { "order".into() } else { waits_for.join(" and ") };
        (waits_for, label)
    })
}

/// Measures the age of the oldest pending order by what it waits for, among the orders that an operator can list. Nothing
/// else shows an order that waits for an event which is in no topic any more.
pub async fn report_oldest(db: &PgPool) {
    describe_gauge!(
        "pending_order_oldest_seconds",
        "Age of the oldest pending order, by what it waits for."
    );
    loop {
        if let Ok(Snapshot { read_at, oldest, .. }) = read(db).await {
            for (waits_for, label) in waits() {
                let first = oldest.iter().find(|order| order.waits_for == waits_for);
                let age = first.map_or(TimeDelta::zero(), |order| read_at - order.created_at);
                gauge!("pending_order_oldest_seconds", "waits_for" => label)
                    .set(age.as_seconds_f64());
            }
        }
        sleep(REPORT_INTERVAL).await;
    }
}
