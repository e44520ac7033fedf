//! What an operator decides about one dead letter.

use std::fmt::Display;

use axum::Form;
use axum::extract::{Path, State};
use axum::response::Response;
use ops_client::ServiceError;
use serde::Deserialize;

use crate::app::App;
use crate::operators::Operator;
use crate::pages::{self, Notice};

type DeadLetterPath = Path<(String, i64)>;

/// Back to the dead letter, with what its service answered.
fn answer(service: &str, id: i64, answered: Result<impl Display, ServiceError>) -> Response {
    let notice = answered.map_or_else(Notice::failed, |done| Notice::done(done.to_string()));
    pages::redirect(&format!("/dead-letters/{service}/{id}"), notice)
}

pub async fn replay(
    State(app): State<App>,
    operator: Operator,
    Path((service, id)): DeadLetterPath,
) -> Response {
    let done = operator.ask(&app.services).replay(&service, id).await;
    answer(&service, id, done)
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
    let (ops, reason) = (operator.ask(&app.services), form.reason.trim());
    let done = ops.discard(&service, id, reason, form.write_off.is_some()).await;
    if done.is_ok() {
        app.books.expire();
    }
    answer(&service, id, done)
}

/// Sends the request that limits the damage. Its path comes from the service and not from the browser.
pub async fn remedy(
    State(app): State<App>,
    operator: Operator,
    Path((service, id)): DeadLetterPath,
) -> Response {
    let taken = async {
        let ops = operator.ask(&app.services);
        let impact = ops.dead_letter(&service, id).await?.discard_impact;
        let remedy = impact.and_then(|impact| impact.remedy);
        let Some(remedy) = remedy.filter(|remedy| remedy.method == "POST") else {
            return Ok("This dead letter has no remedy any more.".to_string());
        };
        ops.take(&remedy).await?;
        let (at, does) = (&remedy.service, &remedy.description);
        Ok(format!("The remedy was requested from {at}: it {does}."))
    };
    answer(&service, id, taken.await)
}
