//! Outside calls on the admin port: those that are pending, a try at once, and a result that a person knows.

use axum::extract::State;
use chrono::{DateTime, Utc};
use messaging::calls::{self, CallSummary, SettledAs};
use messaging::db::operator_acts::OperatorActError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::admin::reason::check_reason;
use crate::http::callers::caller::Caller;
use crate::http::extractors::{Json, Path, Query};
use crate::http::pagination::PageLimit;
use crate::http::problem::Problem;

pub(super) fn router(db: PgPool) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list_calls))
        .routes(routes!(try_call))
        .routes(routes!(settle_call))
        .with_state(db)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    #[param(inline)]
    pub limit: PageLimit<200>,
}

#[derive(Serialize, ToSchema)]
struct Calls {
    /// When they were read, by the service's clock.
    read_at: DateTime<Utc>,
    calls: Vec<CallSummary>,
}

/// Lists the calls whose outcome is not known yet.
///
/// Ordered by `created_at`: the oldest come first.
#[utoipa::path(get, path = "/calls", params(ListQuery),
    responses((status = 200, description = "The oldest pending calls.", body = Calls)))]
async fn list_calls(
    State(db): State<PgPool>,
    Query(ListQuery { limit }): Query<ListQuery>,
) -> Result<Json<Calls>, Problem> {
    let calls = calls::list(&db, limit.query_limit() - 1).await?;
    Ok(Json(Calls { read_at: Utc::now(), calls }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct CallPath {
    call_id: Uuid,
}

fn not_pending(call_id: Uuid) -> Problem {
    Problem::not_found(format!("No call {call_id} is pending."))
}

/// Tries a call at once, also one that is not tried any more. Its target gets the same key once more: if it has
/// forgotten the key, it may do the call a second time.
#[utoipa::path(post, path = "/calls/{call_id}/try", params(CallPath), responses(
    (status = 200, description = "It is tried within a second.", body = CallSummary),
    (status = 404, description = "No such call is pending."),
))]
async fn try_call(
    State(db): State<PgPool>,
    actor: Caller,
    Path(CallPath { call_id }): Path<CallPath>,
) -> Result<Json<CallSummary>, Problem> {
    let call = calls::try_now(&db, call_id, actor.subject()).await?;
    call.map(Json).ok_or_else(|| not_pending(call_id))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SettleRequest {
    /// What the target would have answered, if the call was done. Either this, or `not_done`.
    done: Option<Value>,
    /// Whether it was not done, and never will be: the service may undo what it did for it.
    #[serde(default)]
    not_done: bool,
    /// The operator's reason, of 1 to 1,000 characters.
    #[schema(min_length = 1, max_length = 1_000)]
    reason: String,
}

/// Settles a call by what a person knows of it. Its handler hears that, and it is never tried again.
#[utoipa::path(post, path = "/calls/{call_id}/settle", params(CallPath), request_body = SettleRequest, responses(
    (status = 200, description = "It is settled.", body = CallSummary),
    (status = 404, description = "No such call is pending."),
))]
async fn settle_call(
    State(db): State<PgPool>,
    actor: Caller,
    Path(CallPath { call_id }): Path<CallPath>,
    Json(request): Json<SettleRequest>,
) -> Result<Json<CallSummary>, Problem> {
    let reason = check_reason(&request.reason)?;
    let settled_as = match (request.done, request.not_done) {
        (Some(answer), false) => SettledAs::Done(answer),
        (None, true) => SettledAs::NotDone,
        _ => return Err(Problem::invalid("done", "Either done or not_done must be given.")),
    };
    let settled = calls::settle(&db, call_id, settled_as, reason, actor.subject());
    let settled: Result<_, OperatorActError> = settled.await;
    settled?.map(Json).ok_or_else(|| not_pending(call_id))
}
