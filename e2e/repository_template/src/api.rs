//! The API of the shop service.

use axum::extract::State;
use axum::{Json as JsonResponse, Router};
use chassis::{Path, Problem, Record, books, openapi};
use sqlx::PgPool;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::requests::Request;

/// Serves the API.
pub fn router(db: PgPool) -> Router {
    openapi::serve("shop", routes()).with_state(db)
}

/// The routes of the API, each with its description.
pub fn routes() -> OpenApiRouter<PgPool> {
    OpenApiRouter::new().routes(routes!(show_request))
}

/// Shows a request that was accepted.
#[utoipa::path(get, path = "/requests/{request_id}", security(("token" = ["requests:read"])), responses(
    (status = 200, description = "The request.", body = Request),
    (status = 404, description = "There is no accepted request with this id."),
))]
async fn show_request(
    State(db): State<PgPool>,
    Path(request_id): Path<Uuid>,
) -> Result<JsonResponse<Request>, Problem> {
    let request = Request::find(&db, request_id).await?;
    request
        .map(JsonResponse)
        .ok_or_else(|| Problem::not_found("there is no accepted request with this id"))
}

/// The sums that must balance. This service has none yet.
pub fn books(db: PgPool) -> Router {
    books::router(db, "select count(*) as requests, true as balanced from requests")
}
