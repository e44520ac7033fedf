//! The acts of operators that no other row records.
//!
//! Promise: an act that had its effect is on record, with its actor. The log is no record: its lines may be lost. Code
//! that stores an act in another transaction than its effect breaks the promise.

use sqlx::{PgConnection, query};

#[derive(Clone, Copy, Debug, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum OperatorAct {
    /// Paused the consumer, or asked for that while it was paused.
    Pause,
    /// Ended the pause of the consumer, or asked for that while it was not paused.
    Resume,
    Republish,
    /// Had an outside call tried at once.
    TryCall,
    /// Settled an outside call by what a person knows of it.
    SettleCall,
    /// Answered a task.
    AnswerTask,
}

/// Why an act failed.
#[derive(Debug)]
pub enum OperatorActError {
    /// It had no effect.
    NotStored(sqlx::Error),
    /// Its commit got no answer.
    OutcomeUnknown(sqlx::Error),
}

impl From<sqlx::Error> for OperatorActError {
    fn from(error: sqlx::Error) -> OperatorActError {
        OperatorActError::NotStored(error)
    }
}

/// Records an act in the transaction of its effect. `request` is the reason for it, or what it is about.
pub async fn insert(
    tx: &mut PgConnection,
    act: OperatorAct,
    request: Option<&str>,
    actor: Option<&str>,
) -> sqlx::Result<()> {
    let insert = "insert into chassis.operator_acts (act, request, actor) values ($1, $2, $3)";
    query(insert).bind(act).bind(request).bind(actor).execute(tx).await.map(drop)
}
