//! The API of the shipping service.

use axum::extract::State;
use axum::{Json as JsonResponse, Router};
use chassis::{Path, Problem, Record, books, openapi};
use sqlx::PgPool;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::shipping::ConfirmedOrder;

/// Serves the API.
pub fn router(db: PgPool) -> Router {
    openapi::serve("shipping", routes()).with_state(db)
}

/// The routes of the API, each with its description.
pub fn routes() -> OpenApiRouter<PgPool> {
    OpenApiRouter::new().routes(routes!(show_order))
}

/// Shows an order that was confirmed.
#[utoipa::path(get, path = "/orders/{order_id}", security(("token" = ["support:read"])), responses(
    (status = 200, description = "The order.", body = ConfirmedOrder),
    (status = 404, description = "There is no confirmed order with this id."),
))]
async fn show_order(
    State(db): State<PgPool>,
    Path(order_id): Path<Uuid>,
) -> Result<JsonResponse<ConfirmedOrder>, Problem> {
    let order = ConfirmedOrder::find(&db, order_id).await?;
    order
        .map(JsonResponse)
        .ok_or_else(|| Problem::not_found("there is no confirmed order with this id"))
}

/// Balanced if the lines of all orders add up to their totals.
pub fn books(db: PgPool) -> Router {
    books::router(
        db,
        "select orders, total_cents, lines_cents, total_cents = lines_cents as balanced
         from (select count(*) as orders,
                      coalesce(sum(total_cents), 0) as total_cents
               from confirmed_orders) as paid,
              (select coalesce(sum((line ->> 'quantity')::bigint
                                   * (line ->> 'unit_price_cents')::bigint), 0) as lines_cents
               from confirmed_orders, jsonb_array_elements(lines) as line) as ordered",
    )
}
