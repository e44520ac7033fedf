//! Repairs: consumers that are paused, events that are published again, and the items of the order service.

pub mod consumers;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Form, Router};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::jobs::JobReport;
use crate::operators::Operator;
use crate::pages::{self, Notice, PageError, Section};
use crate::services::Port;
use crate::{format, streams};

/// The service with a copy of another service's items, which can be rebuilt.
const REBUILT_SERVICE: &str = "order";

pub fn router() -> Router<App> {
    Router::new()
        .route("/repair", get(show))
        .route("/repair/republish", post(republish))
        .route("/repair/rebuild", post(rebuild))
        .merge(consumers::router())
}

async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    let consumers = consumers::read_all(&app, &operator).await;
    let body = html! {
        div.title { h1 { "Repair" } (streams::state()) }
        (app.jobs.live_region())
        div.columns.even {
            (consumers::panel(&consumers))
            (republish_panel(&app))
            (rebuild_panel())
        }
    };
    Ok(pages::page(&headers, Section::Repair, "Repair", body))
}

fn republish_panel(app: &App) -> Markup {
    html! {
        section.panel aria-label="Republish" {
            h2 { "Republish" }
            p.quiet { "Services republish the events that their rows record, with the same ids. This repairs a broker that lost its disk, and is safe at any time." }
            form.stacked method="post" action="/repair/republish" data-question="Publish these events again?" {
                label for="service" { "Service" }
                select #service name="service" {
                    option value="" { "every service" }
                    @for name in &app.services.names { option value=(name) { (name) } }
                }
                label for="key" { "Key: an order's id or an SKU" }
                input #key name="key" placeholder="every key" autocomplete="off";
                label for="since" { "Decided since, UTC" }
                input #since name="since" type="datetime-local";
                button type="submit" { "Republish" }
            }
        }
    }
}

fn rebuild_panel() -> Markup {
    html! {
        section.panel aria-label="Rebuild" {
            h2 { "Rebuild the items" }
            p.quiet { "Makes the order service's copy of the items equal to their topic. Orders continue meanwhile, at the old prices." }
            form method="post" action="/repair/rebuild" data-question="Rebuild the copy of the items?" {
                button type="submit" { "Rebuild" }
            }
        }
    }
}

#[derive(Deserialize)]
struct RepublishForm {
    service: String,
    key: String,
    since: String,
}

async fn republish(
    State(app): State<App>,
    operator: Operator,
    Form(form): Form<RepublishForm>,
) -> Response {
    let since = match &*form.since {
        "" => None,
        text => match format::parse_time(text) {
            Some(since) => Some(since),
            None => return pages::redirect("/repair", Notice::failed("This is no time.")),
        },
    };
    let names = app.services.names.iter();
    let names = names.filter(|name| form.service.is_empty() || **name == form.service);
    let (names, key) = (names.cloned().collect(), form.key.trim().to_string());
    let title = format!(
        "Republication of {}",
        if form.service.is_empty() { "every service" } else { &form.service }
    );
    let (jobs, app) = (app.clone(), app);
    let started =
        jobs.jobs.start(title, |report| republish_all(app, operator, names, (key, since), report));
    let notice = started.map_or_else(|refused| refused, |()| Notice::done(""));
    pages::redirect("/repair", notice)
}

/// One request works for some seconds and answers where the next one continues.
async fn republish_all(
    app: App,
    operator: Operator,
    services: Vec<String>,
    (key, since): (String, Option<DateTime<Utc>>),
    report: JobReport,
) -> Result<String, String> {
    let mut republished = 0.0;
    for service in &services {
        let mut body = json!({});
        if !key.is_empty() {
            body["key"] = key.clone().into();
        }
        if let Some(since) = since {
            body["since"] = since.to_rfc3339().into();
        }
        loop {
            let place = (&**service, Port::Admin);
            let done =
                app.services.post::<Value>(&operator, place, "/republish", Some(&body)).await;
            let done = done.map_err(|error| {
                format!("{} events republished; then: {error}", format::count(republished))
            })?;
            republished += done["republished"].as_f64().unwrap_or_default();
            report.update(format!(
                "{} events republished, now {service}",
                format::count(republished)
            ));
            if report.is_stopping() {
                let count = format::count(republished);
                return Ok(format!("{count} events republished, then stopped by an operator"));
            }
            if done["next"].is_null() {
                break;
            }
            body["after"] = done["next"].clone();
        }
    }
    Ok(format!("{} events republished", format::count(republished)))
}

async fn rebuild(State(app): State<App>, operator: Operator) -> Response {
    let place = (REBUILT_SERVICE, Port::Admin);
    let rebuilt = app.services.post::<Value>(&operator, place, "/items/rebuild", None::<&()>).await;
    let done = |answer: Value| {
        let fields = answer.as_object().into_iter().flatten();
        let fields: Vec<_> = fields.map(|(name, value)| format!("{name} {value}")).collect();
        Notice::done(format!("The items are rebuilt: {}.", fields.join(", ")))
    };
    pages::redirect("/repair", rebuilt.map_or_else(Notice::failed, done))
}
