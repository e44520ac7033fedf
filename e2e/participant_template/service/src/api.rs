//! The API of the fraud service.

use axum::Json;
use axum::extract::State;
use chassis::{Commands, Idempotent, Path, Problem, Record, Reply, label_request};
use sqlx::PgPool;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::response::{Response, Responses, Settle};
use crate::saga::NothingOwed;

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

/// The route of the admin port.
pub fn operators_router(commands: Commands<Responses>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(settle)).with_state(commands)
}

/// Settles what the service could not undo: an operator has undone it by hand, or writes it off.
#[utoipa::path(post, path = "/responses/{order_id}/settle", responses(
    (status = 200, description = "The response, which is settled now or was settled before.", body = Response),
    (status = 409, description = "Of type `/problems/nothing-owed`: fraud did not refuse to undo it."),
))]
async fn settle(
    State(commands): State<Commands<Responses>>,
    Path(order_id): Path<Uuid>,
) -> Result<Reply, Problem> {
    label_request("order_id", order_id);
    commands.execute(Idempotent::without_key(Settle { order_id })).await
}

impl From<NothingOwed> for Problem {
    fn from(NothingOwed: NothingOwed) -> Problem {
        Problem::conflict("nothing-owed", "fraud did not refuse to undo its part of this order")
    }
}

/// The numbers of responses; those that are kept wait for an operator. Balanced if each no has a reason, and nothing else
/// has one.
pub const BOOKS: &str = "
    select count(*) filter (where state = 'cleared') as cleared,
           count(*) filter (where state = 'flagged') as flagged,
           count(*) filter (where state = 'kept') as kept,
           count(*) filter (where state = 'withdrawn') as withdrawn,
           count(*) filter (where state = 'void') as void,
           count(*) filter (where (state = 'flagged') <> (reason is not null)) = 0 as balanced
    from fraud_responses";
