//! The components of a native stack, which the launcher kills and starts through its control server. On containers
//! the page shows the command to type.

use axum::Form;
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use crate::app::App;
use crate::launcher::Component;
use crate::pages::{self, Notice};

/// The components with a button each, or how to kill one by hand.
pub async fn panel(app: &App) -> Markup {
    let Some(launcher) = &app.launcher else { return by_hand(None) };
    let components = match launcher.components().await {
        Ok(components) => components,
        Err(reason) => return by_hand(Some(reason)),
    };
    html! {
        section.panel aria-label="Components" {
            h2 { "Kill and start" }
            table {
                thead { tr { th { "Component" } th { "State" } th.number { "Action" } } }
                tbody { @for Component { name, state } in &components {
                tr {
                    th scope="row" { (name) }
                    td { span.state.is-good[state == "ready"].is-bad[state == "stopped"] { (state) } }
                    td.number { form method="post" action="/demo/components" {
                        input type="hidden" name="name" value=(name);
                        @if state == "stopped" {
                            button type="submit" name="action" value="start" aria-label={ "Start " (name) } { "Start" }
                        } @else {
                            button.danger type="submit" name="action" value="kill" aria-label={ "Kill " (name) } { "Kill" }
                        }
                    } }
                }
            } } }
        }
    }
}

/// `reason` is why the launcher does not answer; `make up` starts its server.
fn by_hand(reason: Option<String>) -> Markup {
    html! {
        section.panel aria-label="Components" {
            h2 { "Kill and start" }
            @if let Some(reason) = reason { p.quiet { "The launcher does not answer: " (reason) } }
            p { "Type this in the checkout, watch the overview, and start it again:" }
            pre { "make kill SERVICE=stock\nmake start SERVICE=stock" }
            p { "With docker compose:" }
            pre { "docker compose kill stock\ndocker compose start stock" }
        }
    }
}

#[derive(Deserialize)]
pub struct ComponentForm {
    name: String,
    action: String,
}

pub async fn act(State(app): State<App>, Form(form): Form<ComponentForm>) -> Response {
    let Some(launcher) = &app.launcher else {
        return pages::redirect(
            "/demo",
            Notice::failed("The launcher does not offer control here."),
        );
    };
    let done = match &*form.action {
        "start" => "runs again",
        "kill" => "is killed",
        _ => return pages::redirect("/demo", Notice::failed("There is no such action.")),
    };
    let notice = match launcher.act(&form.action, &form.name).await {
        Ok(()) => Notice::done(format!("{} {done}.", form.name)),
        Err(reason) => Notice::failed(reason),
    };
    pages::redirect("/demo", notice)
}
