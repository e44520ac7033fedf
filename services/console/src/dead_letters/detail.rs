//! One dead letter: everything that its service knows about it, and what can be decided.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use maud::{Markup, html};
use ops_client::{DeadLetter, DiscardImpact};

use crate::app::App;
use crate::format;
use crate::operators::Operator;
use crate::pages::{self, PageError, Section};

pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Path((service, id)): Path<(String, i64)>,
) -> Result<Response, PageError> {
    let letter = operator.ask(&app.services).dead_letter(&service, id).await?;
    let summary = &letter.summary;
    let title = format!("Dead letter {id} of {service}");
    let trace = app.settings.traces.of_record(letter.traceparent.as_deref().unwrap_or_default());
    let body = html! {
        p.crumbs { a href="/dead-letters" { "Dead letters" } }
        div.title { h1 { (title) } span.state.is-warning[summary.is_waiting()] { (summary.state) } }
        p.why.lead { span.tag { (summary.kind.replace('_', " ")) } " " (summary.reason) }
        div.columns {
            div {
                (attributes(&letter, trace))
                (content(&letter))
                (record(&letter))
            }
            @if let Some(impact) = &letter.discard_impact { div { (replay(&service, id)) (discard(&service, id, impact)) } }
        }
    };
    Ok(pages::page(&headers, Section::DeadLetters, &title, body))
}

fn attributes(letter: &DeadLetter, trace: Option<String>) -> Markup {
    let time = |at| format!("{} UTC", format::time(at));
    let summary = &letter.summary;
    let event_id = summary.event_id.map_or("none".to_string(), |id| id.to_string());
    html! {
        section.panel aria-label="Facts" { dl.facts {
            dt { "Record" } dd { (summary.position()) }
            dt { "Cluster" } dd.quiet { (letter.cluster) }
            dt { "Since" } dd { (time(summary.received_at)) }
            dt { "Tries" } dd { (letter.attempts) }
            dt { "Event" } dd { code { (event_id) } }
            dt { "Key" } dd { code { (summary.key.as_deref().unwrap_or("none")) } }
            dt { "Trace" } dd {
                @match (trace, &letter.traceparent) {
                    (Some(link), _) => a href=(link) { "open the trace" },
                    (None, None) => "none",
                    (None, Some(traceparent)) => code { (traceparent) },
                }
            }
            @if let Some(at) = summary.settled_at {
                dt { "Settled" } dd { (time(at)) " " (summary.actor.as_deref().unwrap_or_default()) }
            }
            @if let Some(reason) = &letter.discard_reason { dt { "Because" } dd { (reason) } }
        } }
    }
}

fn content(letter: &DeadLetter) -> Markup {
    html! {
        section.panel aria-label="Content" {
            h2 { "Content" span.legend { (letter.read_with.as_deref().unwrap_or_default()) } }
            @if let Some(why) = &letter.unreadable { p.quiet { (why) } }
            @if let Some(event) = &letter.event { pre { (serde_json::to_string_pretty(event).unwrap_or_default()) } }
        }
    }
}

fn record(letter: &DeadLetter) -> Markup {
    html! {
        details.panel {
            summary { "Headers and bytes" }
            dl.facts {
                @for (name, value) in &letter.headers {
                    dt { (name) } dd { code { (value.as_deref().unwrap_or("null")) } }
                }
            }
            h3 { "Record, in base64" }
            pre.wrap { (letter.record.as_deref().unwrap_or("none")) }
        }
    }
}

fn replay(service: &str, id: i64) -> Markup {
    html! {
        section.panel aria-label="Replay" {
            h2 { "Replay" }
            p { "The event is handled now, with the present code and schemas. It has its effect once, however often it is replayed." }
            form method="post" action={ "/dead-letters/" (service) "/" (id) "/replay" } {
                button.primary type="submit" { "Replay" }
            }
        }
    }
}

fn discard(service: &str, id: i64, impact: &DiscardImpact) -> Markup {
    let action = |word: &str| format!("/dead-letters/{service}/{id}/{word}");
    html! {
        section.panel aria-label="Discard" {
            h2 { "Discard" }
            p { (impact.consequence) }
            @if let Some(remedy) = &impact.remedy {
                form.remedy method="post" action=(action("remedy")) {
                    p { strong { "Remedy: " } (remedy.description) " ("
                        code { (remedy.method) " " (remedy.path) } " at " (remedy.service) ")" }
                    button type="submit" { "Take the remedy" }
                }
            }
            form method="post" action=(action("discard")) data-question="A discard is final. Discard it?" {
                label for="reason" { "Reason" }
                textarea #reason name="reason" rows="3" maxlength="1000" required {}
                @if !impact.write_offs.is_empty() {
                    label.check { input type="checkbox" name="write_off" value="1" required;
                        span { "Write off "
                            @for (nth, it) in impact.write_offs.iter().enumerate() {
                                @if nth > 0 { ", " }
                                strong { (it.amount) " " (it.unit) } ": " (it.what)
                            }
                        }
                    }
                }
                button.danger type="submit" { "Discard" }
            }
        }
    }
}
