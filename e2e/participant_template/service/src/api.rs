//! The API of the fraud service.

use axum::Json;
use axum::extract::State;
use chassis::{Path, Problem, Record, label_request};
use sqlx::PgPool;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::response::Response;

/// The API.
pub fn router(db: PgPool) -> OpenApiRouter {
    routes().with_state(db)
}

/// The routes of the API, each with its description.
pub fn routes() -> OpenApiRouter<PgPool> {
    OpenApiRouter::new().routes(routes!(show_response))
}

/// Shows what fraud answered to an order, and why.
#[utoipa::path(get, path = "/responses/{order_id}", security(("token" = ["support:read"])), responses(
    (status = 200, description = "The response. It is void if the cancellation of the order arrived \
        before the order.", body = Response),
    (status = 404, description = "There is no response to this order, or not yet."),
))]
async fn show_response(
    State(db): State<PgPool>,
    Path(order_id): Path<Uuid>,
) -> Result<Json<Response>, Problem> {
    label_request("order_id", order_id);
    let response = Response::find(&db, order_id).await?;
    response.map(Json).ok_or_else(|| Problem::not_found("there is no response to this order"))
}

/// The numbers of responses. Balanced if each no has a reason, and nothing else has one.
pub const BOOKS: &str = "
    select count(*) filter (where state = 'cleared') as cleared,
           count(*) filter (where state = 'flagged') as flagged,
           count(*) filter (where state = 'withdrawn') as withdrawn,
           count(*) filter (where state = 'void') as void,
           count(*) filter (where (state = 'flagged') <> (reason is not null)) = 0 as balanced
    from fraud_responses";
