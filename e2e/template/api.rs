//! The API of the shipping service.

use axum::extract::State;
use axum::{Json as JsonResponse, Router};
use chassis::{Path, Problem, Record, Sum, books, openapi};
use serde::Serialize;
use sqlx::PgPool;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::shipping::ConfirmedOrder;

/// The API.
pub fn router(db: PgPool) -> Router {
    openapi::serve("shipping", routes()).with_state(db)
}

/// Its routes, each with its description.
pub fn routes() -> OpenApiRouter<PgPool> {
    OpenApiRouter::new().routes(routes!(show_order))
}

/// Shows an order that was confirmed.
#[utoipa::path(get, path = "/orders/{order_id}", responses(
    (status = 200, description = "The order.", body = ConfirmedOrder),
    (status = 404, description = "No such order was confirmed, as far as is known here."),
))]
async fn show_order(
    State(db): State<PgPool>,
    Path(order_id): Path<Uuid>,
) -> Result<JsonResponse<ConfirmedOrder>, Problem> {
    let order = ConfirmedOrder::find(&db, order_id).await?;
    order.map(JsonResponse).ok_or_else(|| Problem::not_found("no such order was confirmed"))
}

#[derive(Serialize, sqlx::FromRow)]
struct Books {
    orders: i64,
    total_cents: Sum,
    lines_cents: Sum,
    balanced: bool,
}

/// Balanced if the lines of all orders add up to their totals.
pub fn books(db: PgPool) -> Router {
    books::router::<Books>(
        db,
        "select orders, total_cents::text, lines_cents::text, total_cents = lines_cents as balanced
         from (select count(*) as orders,
                      coalesce(sum(total_cents), 0) as total_cents
               from confirmed_orders) as paid,
              (select coalesce(sum((line ->> 'quantity')::bigint
                                   * (line ->> 'unit_price_cents')::bigint), 0) as lines_cents
               from confirmed_orders, jsonb_array_elements(lines) as line) as ordered",
    )
}
