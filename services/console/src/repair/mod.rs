//! Repairs: consumers that are paused, events that are published again, and the items of the order service.

pub mod consumers;

use axum::Form;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use maud::{Markup, html};
use ops_client::{Port, RepublishRequest};
use serde::Deserialize;
use serde_json::Value;

use crate::app::App;
use crate::feeds::attention::read_consumers;
use crate::jobs::JobReport;
use crate::operators::Operator;
use crate::order::DECIDER;
use crate::pages::{self, Notice, PageError, Section};
use crate::{format, streams};

pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    let consumers = read_consumers(&app.services, &operator).await;
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
pub struct RepublishForm {
    service: String,
    key: String,
    since: String,
}

pub async fn republish(
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
    let (names, key) = (names.cloned().collect(), Some(form.key.trim().to_string()));
    let all = RepublishRequest { key: key.filter(|key| !key.is_empty()), since, after: None };
    let title = format!(
        "Republication of {}",
        if form.service.is_empty() { "every service" } else { &form.service }
    );
    let (jobs, app) = (app.clone(), app);
    let started = jobs.jobs.start(title, |report| republish_all(app, operator, names, all, report));
    let notice = started.map_or_else(|refused| refused, |()| Notice::done(""));
    pages::redirect("/repair", notice)
}

/// One request works for some seconds and answers where the next one continues.
async fn republish_all(
    app: App,
    operator: Operator,
    services: Vec<String>,
    all: RepublishRequest,
    report: JobReport,
) -> Result<String, String> {
    let mut count = 0;
    let republished = |count: u64| format!("{} events republished", format::count(count as f64));
    for service in &services {
        let mut request = all.clone();
        loop {
            let done = operator.ask(&app.services).republish(service, &request).await;
            let done = done.map_err(|error| format!("{}; then: {error}", republished(count)))?;
            count += done.republished;
            report.update(format!("{}, now {service}", republished(count)));
            if report.is_stopping() {
                return Ok(format!("{}, then stopped by an operator", republished(count)));
            }
            if done.next.is_none() {
                break;
            }
            request.after = done.next;
        }
    }
    Ok(republished(count))
}

pub async fn rebuild(State(app): State<App>, operator: Operator) -> Response {
    // It has a copy of another service's items.
    let (ops, place) = (operator.ask(&app.services), (DECIDER, Port::Admin));
    let rebuilt = ops.post(place, "/items/rebuild", None::<&()>).await;
    let done = |answer: Value| {
        let fields = answer.as_object().into_iter().flatten();
        let fields: Vec<_> = fields.map(|(name, value)| format!("{name} {value}")).collect();
        Notice::done(format!("The items are rebuilt: {}.", fields.join(", ")))
    };
    pages::redirect("/repair", rebuilt.map_or_else(Notice::failed, done))
}

/// The job under way stops.
pub async fn stop_job(State(app): State<App>, headers: HeaderMap) -> Response {
    app.jobs.stop();
    let notice = Notice::done("The job stops after its current step.");
    pages::redirect(pages::referer_path(&headers), notice)
}

/// The job under way, live.
pub async fn follow_job(State(app): State<App>) -> Response {
    streams::respond(&app.stopping, app.jobs.updates())
}
