//! Tasks on the admin port: those that are open, and the answer of an operator.

use axum::extract::State;
use chrono::{DateTime, Utc};

use messaging::db::operator_acts::OperatorActError;
use messaging::tasks::{self, OpenTaskSummary, TaskAnswered};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::admin::calls::ListQuery;
use crate::admin::reason::check_reason;
use crate::http::callers::caller::Caller;
use crate::http::extractors::{Json, Path, Query};
use crate::http::problem::Problem;

pub(super) fn router(db: PgPool) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(list_tasks)).routes(routes!(answer_task)).with_state(db)
}

#[derive(Serialize, ToSchema)]
struct Tasks {
    /// When they were read, by the service's clock.
    read_at: DateTime<Utc>,
    tasks: Vec<OpenTaskSummary>,
}

/// Lists what waits for the answer of a person.
///
/// Ordered by `opened_at`: the oldest come first.
#[utoipa::path(get, path = "/tasks", params(ListQuery),
    responses((status = 200, description = "The oldest open tasks.", body = Tasks)))]
async fn list_tasks(
    State(db): State<PgPool>,
    Query(ListQuery { limit }): Query<ListQuery>,
) -> Result<Json<Tasks>, Problem> {
    let tasks = tasks::list(&db, limit.query_limit() - 1).await?;
    Ok(Json(Tasks { read_at: Utc::now(), tasks }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct TaskPath {
    task_id: Uuid,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AnswerRequest {
    /// One of the `choices` of its question.
    answer: String,
    /// The operator's reason, of 1 to 1,000 characters.
    #[schema(min_length = 1, max_length = 1_000)]
    reason: String,
}

/// Answers a task. Its handler hears the answer within a second, and what follows from it is in `choices`.
#[utoipa::path(post, path = "/tasks/{task_id}/answer", params(TaskPath), request_body = AnswerRequest, responses(
    (status = 200, description = "It is answered.", body = OpenTaskSummary),
    (status = 404, description = "No such task is open."),
))]
async fn answer_task(
    State(db): State<PgPool>,
    actor: Caller,
    Path(TaskPath { task_id }): Path<TaskPath>,
    Json(request): Json<AnswerRequest>,
) -> Result<Json<OpenTaskSummary>, Problem> {
    let (answer, reason) = (&request.answer, check_reason(&request.reason)?);
    let answered = tasks::answer(&db, task_id, answer, reason, actor.subject());
    let answered: Result<_, OperatorActError> = answered.await;
    match answered? {
        TaskAnswered::Answered(task) => Ok(Json(task)),
        TaskAnswered::NotAllowed(allowed) => {
            let allowed = allowed.join(", ");
            Err(Problem::invalid("answer", format!("It must be one of these: {allowed}.")))
        }
        TaskAnswered::NotOpen => Err(Problem::not_found(format!("No task {task_id} is open."))),
    }
}
