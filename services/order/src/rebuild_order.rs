//! Rebuilds the row of an order from its history, for an operator who doubts the row: `POST /orders/{order_id}/rebuild`
//! on the admin port.

use axum::Json as JsonResponse;
use axum::extract::State;
use chassis::{Path, Problem, Record, WriteBatch, db};
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
        let mut writes = WriteBatch::new(&mut tx);
        writes.replace(&order);
        writes.execute().await?;
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
