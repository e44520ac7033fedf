//! The API of the shop service.

use axum::extract::State;
use axum::Json;
use chassis::{Path, Problem, Record};
use sqlx::PgPool;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::purchases::ConfirmedPurchase;

/// The API.
pub fn router(db: PgPool) -> OpenApiRouter {
    routes().with_state(db)
}

/// The routes of the API, each with its description.
pub fn routes() -> OpenApiRouter<PgPool> {
    OpenApiRouter::new().routes(routes!(show_purchase))
}

/// Shows a purchase that was confirmed.
#[utoipa::path(get, path = "/purchases/{purchase_id}", security(("token" = ["support:read"])), responses(
    (status = 200, description = "The purchase.", body = ConfirmedPurchase),
    (status = 404, description = "There is no confirmed purchase with this id."),
))]
async fn show_purchase(
    State(db): State<PgPool>,
    Path(purchase_id): Path<Uuid>,
) -> Result<Json<ConfirmedPurchase>, Problem> {
    let purchase = ConfirmedPurchase::find(&db, purchase_id).await?;
    purchase
        .map(Json)
        .ok_or_else(|| Problem::not_found("there is no confirmed purchase with this id"))
}

/// Balanced if the lines of all purchases add up to their totals.
pub const BOOKS: &str = "
    select purchases, total_cents, lines_cents, total_cents = lines_cents as balanced
    from (select count(*) as purchases,
                 coalesce(sum(total_cents), 0) as total_cents
          from confirmed_purchases) as paid,
         (select coalesce(sum((line ->> 'quantity')::bigint
                              * (line ->> 'unit_price_cents')::bigint), 0) as lines_cents
          from confirmed_purchases, jsonb_array_elements(lines) as line) as ordered";
