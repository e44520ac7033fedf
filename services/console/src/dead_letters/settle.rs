//! What an operator decides about one dead letter.

use axum::Form;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::text;
use crate::app::App;
use crate::operators::Operator;
use crate::pages::{self, Notice};
use crate::services::{Port, ServiceError};

type DeadLetterPath = Path<(String, i64)>;

/// Back to the dead letter, with what its service answered.
fn answer(service: &str, id: i64, answered: Result<String, ServiceError>) -> Response {
    let notice = answered.map_or_else(Notice::failed, Notice::done);
    pages::redirect(&format!("/dead-letters/{service}/{id}"), notice)
}

/// The outcomes of docs/operations.md, in a sentence.
fn describe(outcome: &Value) -> String {
    match text(outcome, "outcome") {
        "replayed" => "Replayed: the event had its effect now.".to_string(),
        "handled_before" => {
            "The event had its effect in another delivery, so nothing is lost.".to_string()
        }
        "discarded" => "Discarded: the event is given up.".to_string(),
        "discarded_before" => "The event was discarded with another dead letter.".to_string(),
        "done_before" => "This was already done; nothing changed.".to_string(),
        other => format!("Settled: {other}."),
    }
}

pub async fn replay(
    State(app): State<App>,
    operator: Operator,
    Path((service, id)): DeadLetterPath,
) -> Response {
    let path = format!("/dead-letters/{id}/replay");
    let done = app.services.post(&operator, (&service, Port::Admin), &path, None::<&()>).await;
    answer(&service, id, done.map(|outcome: Value| describe(&outcome)))
}

#[derive(Deserialize)]
pub struct DiscardForm {
    reason: String,
    write_off: Option<String>,
}

pub async fn discard(
    State(app): State<App>,
    operator: Operator,
    Path((service, id)): DeadLetterPath,
    Form(form): Form<DiscardForm>,
) -> Response {
    let path = format!("/dead-letters/{id}/discard");
    let body = json!({"reason": form.reason.trim(), "write_off": form.write_off.is_some()});
    let done = app.services.post(&operator, (&service, Port::Admin), &path, Some(&body)).await;
    if done.is_ok() {
        app.books.expire();
    }
    answer(&service, id, done.map(|outcome: Value| describe(&outcome)))
}

/// Sends the request that limits the damage. Its path comes from the service and not from the browser.
pub async fn remedy(
    State(app): State<App>,
    operator: Operator,
    Path((service, id)): DeadLetterPath,
) -> Response {
    let path = format!("/dead-letters/{id}");
    let taken = async {
        let letter: Value = app.services.get(&operator, (&service, Port::Admin), &path).await?;
        let remedy = &letter["discard_impact"]["remedy"];
        if text(remedy, "method") != "POST" {
            return Ok("This dead letter has no remedy any more.".to_string());
        }
        let place = (text(remedy, "service"), Port::Api);
        app.services.post::<Value>(&operator, place, text(remedy, "path"), None::<&()>).await?;
        Ok(format!(
            "The remedy was requested from {}: it {}.",
            place.0,
            text(remedy, "description")
        ))
    };
    answer(&service, id, taken.await)
}
