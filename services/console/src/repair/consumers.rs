//! The consumers: which are paused, by whom and why, and the forms that pause and resume one.

use axum::Form;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use maud::{Markup, html};
use ops_client::ConsumerState;
use serde::Deserialize;

use crate::app::App;
use crate::feeds::attention::Consumer;
use crate::operators::Operator;
use crate::pages::{self, Notice};

/// A notice for each consumer that is paused, with the button that resumes it.
pub fn paused_notices(paused: &[(String, String)]) -> Markup {
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
                    @match state.as_ref().map(ConsumerState::pause) {
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
pub struct PauseForm {
    service: String,
    reason: String,
}

pub async fn pause(
    State(app): State<App>,
    operator: Operator,
    Form(PauseForm { service, reason }): Form<PauseForm>,
) -> Response {
    let paused = operator.ask(&app.services).pause(&service, &reason).await;
    let done = |state: ConsumerState| {
        let pause = state.pause().unwrap_or_default();
        Notice::done(format!("The consumer of {service} is paused {pause}"))
    };
    pages::redirect("/repair", paused.map_or_else(Notice::failed, done))
}

pub async fn resume(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Path(service): Path<String>,
) -> Response {
    let resumed = operator.ask(&app.services).resume(&service).await;
    let done = |_| Notice::done(format!("The consumer of {service} reads again."));
    let notice = resumed.map_or_else(Notice::failed, done);
    // The pages of the dead letters have this button too.
    pages::redirect(pages::referer_path(&headers), notice)
}
