//! The tasks that are open: calls to a person. An answer closes one in the transaction that schedules what its handler hears.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::calls::{Asked, schedule_answer};
use crate::crash_point;
use crate::db::operator_acts::{self, OperatorAct, OperatorActError};
use crate::event::call::PERSON;
use crate::event::task::Question;

/// For how long the oldest task has been open, in seconds; 0 if none is.
pub(crate) async fn oldest(db: &mut PgConnection) -> sqlx::Result<f64> {
    let oldest =
        "select coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8
                  from chassis.calls where target = $1";
    sqlx::query_scalar(oldest).bind(PERSON).fetch_one(db).await
}

/// An open task, as operators see it.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
pub struct OpenTaskSummary {
    /// Its id.
    pub task_id: Uuid,
    name: String,
    key: String,
    opened_at: DateTime<Utc>,
    #[schema(value_type = Question)]
    question: Json<Question>,
}

const TASK_SUMMARY: &str =
    "call_id as task_id, name, key, created_at as opened_at, request as question";

/// The oldest open tasks.
pub async fn list(db: &PgPool, limit: i64) -> sqlx::Result<Vec<OpenTaskSummary>> {
    let tasks = format!(
        "select {TASK_SUMMARY} from chassis.calls where target = $2 order by created_at, call_id limit $1"
    );
    sqlx::query_as(AssertSqlSafe(tasks)).bind(limit).bind(PERSON).fetch_all(db).await
}

/// What became of an answer to a task.
#[derive(Debug)]
pub enum TaskAnswered {
    /// Its handler hears it.
    Answered(OpenTaskSummary),
    /// It is none of the answers that the question allows, which are these.
    NotAllowed(Vec<String>),
    /// No such task is open.
    NotOpen,
}

/// Answers a task: its handler hears the answer.
///
/// # Errors
/// Those of the database.
pub async fn answer(
    db: &PgPool,
    task_id: Uuid,
    answer: &str,
    reason: &str,
    actor: Option<&str>,
) -> Result<TaskAnswered, OperatorActError> {
    let mut tx = db.begin().await?;
    let delete = format!(
        "delete from chassis.calls where call_id = $1 and target = $2
         returning {TASK_SUMMARY}, call_id, call, causation_id, traceparent, tracestate"
    );
    let open = sqlx::query(AssertSqlSafe(delete)).bind(task_id).bind(PERSON);
    let Some(row) = open.fetch_optional(&mut *tx).await? else { return Ok(TaskAnswered::NotOpen) };
    let (task, asked) = (OpenTaskSummary::from_row(&row)?, Asked::from_row(&row)?);
    let choices = &task.question.choices;
    if !choices.iter().any(|choice| choice.answer == answer) {
        let allowed = choices.iter().map(|choice| choice.answer.clone());
        return Ok(TaskAnswered::NotAllowed(allowed.collect()));
    }
    schedule_answer(&mut tx, &asked, "answered", &json!(answer)).await?;
    let request = format!("{task_id}: {answer}: {reason}");
    operator_acts::insert(&mut tx, OperatorAct::AnswerTask, Some(&request), actor).await?;
    crash_point!("tasks.prepared");
    tx.commit().await.map_err(OperatorActError::OutcomeUnknown)?;
    crash_point!("tasks.committed");
    Ok(TaskAnswered::Answered(task))
}
