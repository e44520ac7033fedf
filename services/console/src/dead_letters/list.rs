//! The list of dead letters, with its filters.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};
use futures::future::join_all;
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;

use super::live::Loaded;
use super::{position, text};
use crate::app::App;
use crate::format;
use crate::operators::Operator;
use crate::pages::{self, PageError, Section};
use crate::repair::consumers;
use crate::services::{Port, ServiceError};

/// Rows of one service on a page.
const ROWS_MAX: usize = 200;

/// Reasons above the rows.
const CAUSES_MAX: usize = 5;

/// The states of a dead letter, as the admin port names them.
const STATES: [(&str, &str); 4] = [
    ("waiting", "that wait"),
    ("replayed", "replayed"),
    ("discarded", "discarded"),
    ("all", "in any state"),
];

/// The kinds of causes, as the admin port names them.
const KINDS: [&str; 3] = ["undecodable", "unprocessable", "handler_failed"];

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Filter {
    service: String,
    state: String,
    topic: String,
    kind: String,
    after: Option<i64>,
}

/// What a service answered.
struct Listing {
    service: String,
    page: Result<Value, ServiceError>,
}

pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Query(mut filter): Query<Filter>,
) -> Result<Response, PageError> {
    if !STATES.iter().any(|(state, _)| *state == filter.state) {
        filter.state = "waiting".to_string();
    }
    let names =
        app.services.names.iter().filter(|it| filter.service.is_empty() || **it == filter.service);
    let listings = join_all(names.map(|service| list(&app, &operator, service, &filter))).await;
    let paused = consumers::paused_notices(&app, &operator).await;
    let pages = listings.iter().filter_map(|listing| listing.page.as_ref().ok());
    let waiting = pages.map(|page| page["waiting"].as_i64().unwrap_or_default()).sum();
    let loaded = Loaded { service: filter.service.clone(), waiting };
    let body = html! {
        h1 { "Dead letters" }
        (loaded.region(&app, &paused))
        (filters(&app, &filter))
        @for Listing { page, .. } in &listings {
            @if let Err(error) = page { p.notice.is-bad role="alert" { (error) } }
        }
        (table(&filter, &listings, waiting))
    };
    Ok(pages::page(&headers, Section::DeadLetters, "Dead letters", body))
}

async fn list(app: &App, operator: &Operator, service: &str, filter: &Filter) -> Listing {
    let mut path = format!("/dead-letters?state={}&limit={ROWS_MAX}", filter.state);
    if !filter.topic.is_empty() {
        path += &format!("&topic={}", utf8_percent_encode(&filter.topic, NON_ALPHANUMERIC));
    }
    if let Some(after) = filter.after {
        path += &format!("&after={after}");
    }
    let page = app.services.get(operator, (service, Port::Admin), &path).await;
    Listing { service: service.to_string(), page }
}

fn filters(app: &App, filter: &Filter) -> Markup {
    let select = |id: &str, name: &str, options: Vec<(String, String)>, chosen: &str| {
        html! {
            label for=(id) { (name) }
            select id=(id) name=(id) {
                @for (value, text) in options {
                    option value=(value) selected[value == chosen] { (text) }
                }
            }
        }
    };
    let with_all = |all: &str, names: &mut dyn Iterator<Item = &str>| {
        let first = (String::new(), all.to_string());
        std::iter::once(first)
            .chain(names.map(|it| (it.to_string(), it.replace('_', " "))))
            .collect()
    };
    let services = with_all("every service", &mut app.services.names.iter().map(String::as_str));
    let kinds = with_all("every cause", &mut KINDS.into_iter());
    let states = STATES.iter().map(|(value, text)| (value.to_string(), text.to_string())).collect();
    html! {
        form.filters method="get" action="/dead-letters" {
            (select("service", "Service", services, &filter.service))
            (select("state", "State", states, &filter.state))
            (select("kind", "Cause", kinds, &filter.kind))
            label for="topic" { "Topic" }
            input #topic name="topic" value=(filter.topic) placeholder="every topic" autocomplete="off";
            button type="submit" { "Filter" }
        }
    }
}

fn table(filter: &Filter, listings: &[Listing], waiting: i64) -> Markup {
    let (mut rows, mut next) = (Vec::new(), Vec::new());
    for Listing { service, page } in listings {
        let Ok(page) = page else { continue };
        next.extend(page["next"].as_i64().map(|next| (service, next)));
        let all = page["dead_letters"].as_array().into_iter().flatten();
        let of_kind = |it: &&Value| filter.kind.is_empty() || text(it, "kind") == filter.kind;
        rows.extend(all.filter(of_kind).map(|letter| (&**service, letter)));
    }
    rows.sort_by(|a, b| text(a.1, "received_at").cmp(text(b.1, "received_at")));
    html! {
        form.letters method="post" action="/dead-letters/replay" {
            input type="hidden" name="service" value=(filter.service);
            input type="hidden" name="topic" value=(filter.topic);
            (actions(filter, waiting, rows.len()))
            (common_causes(&rows))
            @if rows.is_empty() {
                p.empty { "No dead letter matches." }
            } @else {
                div.scroll { table.hover {
                    thead { tr {
                        th { input type="checkbox" data-selects="letter" aria-label="Select all rows"; }
                        th { "Dead letter" } th { "Why" } th { "Record" } th { "Since" } th { "State" }
                    } }
                    tbody { @for (service, letter) in &rows { (row(service, letter)) } }
                } }
            }
            @for (service, next) in next {
                p { a href={ "/dead-letters?service=" (service) "&state=" (filter.state) "&topic=" (filter.topic)
                    "&kind=" (filter.kind) "&after=" (next) } { "Newer ones of " (service) } }
            }
        }
    }
}

fn actions(filter: &Filter, waiting: i64, shown: usize) -> Markup {
    let all = match (filter.service.is_empty(), filter.topic.is_empty()) {
        (true, true) => "Replay all that wait".to_string(),
        (false, true) => format!("Replay all of {}", filter.service),
        (true, false) => format!("Replay all of {}", filter.topic),
        (false, false) => format!("Replay all of {} at {}", filter.topic, filter.service),
    };
    html! {
        div.actions {
            p { strong { (format::count(waiting as f64)) } " wait for an operator, " (shown) " shown" }
            span {
                label for="rate" { "At most" }
                input #rate name="rate" type="number" min="1" max="200" value="20" required;
                span { "a second" }
                button type="submit" name="which" value="selected" { "Replay the selected" }
                button.primary type="submit" name="which" value="all" disabled[waiting == 0] { (all) }
            }
        }
    }
}

/// The reasons that several rows have, the most frequent first: a bad deployment makes one reason many times.
fn common_causes(rows: &[(&str, &Value)]) -> Markup {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (service, letter) in rows {
        *counts.entry((service, text(letter, "reason"))).or_default() += 1;
    }
    let mut causes: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 1).collect();
    causes.sort_by_key(|(_, count)| Reverse(*count));
    html! {
        @if !causes.is_empty() {
            ul.causes aria-label="Common causes" {
                @for ((service, reason), count) in causes.into_iter().take(CAUSES_MAX) {
                    li { strong { (count) " of " (service) } " " span.why { (reason) } }
                }
            }
        }
    }
}

fn row(service: &str, letter: &Value) -> Markup {
    let id = letter["dead_letter_id"].as_i64().unwrap_or_default();
    let name = format!("{service} {id}");
    let since = text(letter, "received_at").parse::<DateTime<Utc>>();
    let state = text(letter, "state");
    html! {
        tr {
            td { @if state == "waiting" {
                input type="checkbox" name="letter" value={ (service) "/" (id) } aria-label={ "Select " (name) };
            } }
            th scope="row" { a href={ "/dead-letters/" (service) "/" (id) } { (name) } }
            td.why { span.tag { (text(letter, "kind").replace('_', " ")) } " " (text(letter, "reason")) }
            td.quiet { (position(letter)) }
            td { @if let Ok(since) = since { time datetime=(since.to_rfc3339()) { (format::time(since)) } } }
            td { span.state.is-warning[state == "waiting"] { (state) } }
        }
    }
}
