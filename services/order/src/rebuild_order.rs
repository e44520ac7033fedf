//! Rebuilds the row of an order from its history, for an operator who doubts the row: `POST /orders/{order_id}/rebuild`
//! on the admin port.

use axum::Json as JsonResponse;
use axum::extract::State;
use chassis::{Path, Problem, Record, db};
use serde::Serialize;
use sqlx::PgPool;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::order::{HistoryEntry, Order, Status};

/// The route of the admin port.
pub fn router(db: PgPool) -> OpenApiRouter {
    routes().with_state(db)
}

/// The route with its description.
pub(crate) fn routes() -> OpenApiRouter<PgPool> {
    OpenApiRouter::new().routes(routes!(rebuild_order))
}

/// What the rebuild did.
#[derive(Serialize, ToSchema)]
struct RebuiltOrder {
    /// Whether the row was missing or other than its history says.
    repaired: bool,
    /// The order as its history says.
    order: Order,
}

const UPSERT: &str = "
    insert into orders (order_id, customer_id, status, reason, payment, stock, total_cents, currency, lines,
                        created_at, ended_at, created_event_id, ended_event_id, last_position)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    on conflict (order_id) do update set
        customer_id = excluded.customer_id, status = excluded.status, reason = excluded.reason,
        payment = excluded.payment, stock = excluded.stock, total_cents = excluded.total_cents,
        currency = excluded.currency, lines = excluded.lines, created_at = excluded.created_at,
        ended_at = excluded.ended_at, created_event_id = excluded.created_event_id,
        ended_event_id = excluded.ended_event_id, last_position = excluded.last_position";

/// Makes the row of an order equal to what its history says.
#[utoipa::path(post, path = "/orders/{order_id}/rebuild", responses(
    (status = 200, description = "The order.", body = RebuiltOrder),
    (status = 404, description = "There is no history of such an order."),
    (status = 409, description = "Of type `/problems/broken-history`: the history has an event that cannot be at its place."),
))]
async fn rebuild_order(
    State(db): State<PgPool>,
    Path(order_id): Path<Uuid>,
) -> Result<JsonResponse<RebuiltOrder>, Problem> {
    let mut tx = db::begin(&db).await?;
    // Its lock keeps every handler from the history.
    let row = Order::select("where order_id = $1 for update").bind(order_id);
    let row = row.fetch_optional(&mut *tx).await?;
    let history = sqlx::query_as(
        "select order_id, position, event, event_id, detail, occurred_at, recorded_at
         from history where order_id = $1 order by position",
    );
    let history: Vec<HistoryEntry> = history.bind(order_id).fetch_all(&mut *tx).await?;
    let order = Order::fold(&history)?;
    let mut order =
        order.ok_or_else(|| Problem::not_found("there is no history of such an order"))?;
    // Positions may be left out, also the last ones.
    let counted = row.as_ref().map_or(0, |row| row.last_position);
    order.last_position = order.last_position.max(counted);
    let repaired = row.as_ref() != Some(&order);
    if repaired {
        let upsert = sqlx::query(UPSERT).bind(order_id).bind(order.customer_id);
        let upsert = upsert.bind(order.status).bind(order.reason).bind(order.payment);
        let upsert = upsert.bind(order.stock).bind(order.total_cents).bind(&order.currency);
        let upsert = upsert.bind(&order.lines).bind(order.created_at).bind(order.ended_at);
        let upsert = upsert.bind(order.created_event_id).bind(order.ended_event_id);
        upsert.bind(order.last_position).execute(&mut *tx).await?;
    }
    let listing = match order.status {
        Status::Pending => {
            "insert into pending_orders (created_at, order_id) values ($1, $2) on conflict do nothing"
        }
        _ => "delete from pending_orders where created_at = $1 and order_id = $2",
    };
    sqlx::query(listing).bind(order.created_at).bind(order_id).execute(&mut *tx).await?;
    tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
    Ok(JsonResponse(RebuiltOrder { repaired, order }))
}
