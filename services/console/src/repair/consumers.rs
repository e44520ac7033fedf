//! The consumers: which are paused, by whom and why, and the forms that pause and resume one.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::post;
use axum::{Form, Router};
use futures::future::join_all;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::format;
use crate::operators::Operator;
use crate::pages::{self, Notice};
use crate::services::{Port, ServiceError};

pub fn router() -> Router<App> {
    Router::new()
        .route("/repair/pause", post(pause))
        .route("/repair/{service}/resume", post(resume))
}

/// The state of a consumer, as its service answers.
type Consumer = (String, Result<Value, ServiceError>);

pub async fn read_all(app: &App, operator: &Operator) -> Vec<Consumer> {
    let names = app.services.names.iter();
    join_all(names.map(async |name| {
        (name.clone(), app.services.get(operator, (name, Port::Admin), "/consumer").await)
    }))
    .await
}

/// A notice for each consumer that is paused, with the button that resumes it.
pub async fn paused_notices(app: &App, operator: &Operator) -> Markup {
    let consumers = read_all(app, operator).await;
    let paused = consumers.iter().filter_map(|(name, state)| {
        let state = state.as_ref().ok()?;
        Some((name, describe_pause(state)?))
    });
    html! {
        @for (name, pause) in paused {
            div.notice.is-bad role="alert" {
                strong { "The consumer of " (name) " is paused" }
                span { (pause) }
                (resume_form(name))
            }
        }
    }
}

/// By whom a consumer is paused, since when and why; nothing if it is not.
fn describe_pause(state: &Value) -> Option<String> {
    let text = |field: &str| state[field].as_str();
    let since = text("paused_at")?;
    let since = since.parse().map_or_else(|_| since.to_owned(), |at| format::time(at) + " UTC");
    let by = match text("cause") {
        Some("operator") => text("actor").unwrap_or("an operator"),
        _ => "its circuit breaker",
    };
    Some(format!("by {by} since {since}: {}", text("reason").unwrap_or_default()))
}

fn resume_form(service: &str) -> Markup {
    html! {
        form method="post" action={ "/repair/" (service) "/resume" } {
            button type="submit" { "Resume" }
        }
    }
}

pub fn panel(consumers: &[Consumer]) -> Markup {
    html! {
        section.panel aria-label="Consumers" {
            h2 { "Consumers" }
            p.quiet { "A consumer pauses by itself after 20 events in a row that it can decode and not handle. Remove the cause, resume it, and replay its dead letters." }
            table { tbody { @for (name, state) in consumers {
                tr {
                    th scope="row" { (name) }
                    @match state.as_ref().map(describe_pause) {
                        Err(error) => td colspan="2" { span.state.is-bad { "unknown" } " " span.quiet { (error) } },
                        Ok(Some(pause)) => {
                            td { span.state.is-bad { "paused" } " " (pause) }
                            td { (resume_form(name)) }
                        },
                        Ok(None) => td colspan="2" { span.state.is-good { "reads" } },
                    }
                }
            } } }
            (pause_form(consumers))
        }
    }
}

fn pause_form(consumers: &[Consumer]) -> Markup {
    html! {
        form.stacked method="post" action="/repair/pause" data-question="Pause this consumer? Orders stay pending until it is resumed." {
            label for="paused-service" { "Pause the consumer of" }
            select #paused-service name="service" {
                @for (name, _) in consumers { option value=(name) { (name) } }
            }
            label for="pause-reason" { "Reason" }
            input #pause-reason name="reason" maxlength="1000" required autocomplete="off";
            button type="submit" { "Pause" }
        }
    }
}

#[derive(Deserialize)]
struct PauseForm {
    service: String,
    reason: String,
}

async fn pause(
    State(app): State<App>,
    operator: Operator,
    Form(PauseForm { service, reason }): Form<PauseForm>,
) -> Response {
    let (place, body) = ((&*service, Port::Admin), json!({"reason": reason}));
    let paused = app.services.post(&operator, place, "/consumer/pause", Some(&body)).await;
    let done = |state: Value| {
        let pause = describe_pause(&state).unwrap_or_default();
        Notice::done(format!("The consumer of {service} is paused {pause}"))
    };
    pages::redirect("/repair", paused.map_or_else(Notice::failed, done))
}

async fn resume(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Path(service): Path<String>,
) -> Response {
    let place = (&*service, Port::Admin);
    let resumed =
        app.services.post::<Value>(&operator, place, "/consumer/resume", None::<&()>).await;
    let done = |_| Notice::done(format!("The consumer of {service} reads again."));
    let notice = resumed.map_or_else(Notice::failed, done);
    // The pages of the dead letters have this button too.
    pages::redirect(pages::referer_path(&headers), notice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_says_who_began_it() {
        let pause = |cause: Value, actor: Value| {
            let state =
                json!({"paused_at": "noon", "cause": cause, "reason": "a copy", "actor": actor});
            describe_pause(&state).unwrap()
        };
        assert_eq!(pause(json!("operator"), json!("ann")), "by ann since noon: a copy");
        assert_eq!(pause(json!("operator"), json!(null)), "by an operator since noon: a copy");
        let by_itself = "by its circuit breaker since noon: a copy";
        assert_eq!(pause(json!("circuit_breaker"), json!(null)), by_itself);
        assert_eq!(pause(json!(null), json!(null)), by_itself, "an older version names no cause");
        assert_eq!(describe_pause(&json!({"paused_at": null})), None);
    }
}
