//! One dead letter: everything that its service knows about it, and what can be decided.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

use super::{position, text};
use crate::app::App;
use crate::operators::Operator;
use crate::pages::{self, PageError, Section};
use crate::services::{Port, WORK_TIMEOUT};

pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Path((service, id)): Path<(String, i64)>,
) -> Result<Response, PageError> {
    let path = format!("/dead-letters/{id}");
    let place = (&*service, Port::Admin);
    // It may wait for the registry.
    let letter: Value = app.services.get_within(WORK_TIMEOUT, &operator, place, &path).await?;
    let is_waiting = text(&letter, "state") == "waiting";
    let title = format!("Dead letter {id} of {service}");
    let trace = app.settings.traces.of_record(text(&letter, "traceparent"));
    let body = html! {
        p.crumbs { a href="/dead-letters" { "Dead letters" } }
        div.title { h1 { (title) } span.state.is-warning[is_waiting] { (text(&letter, "state")) } }
        p.why.lead { span.tag { (text(&letter, "kind").replace('_', " ")) } " " (text(&letter, "reason")) }
        div.columns {
            div {
                (attributes(&letter, trace))
                (content(&letter))
                (record(&letter))
            }
            @if is_waiting { div { (replay(&service, id)) (discard(&service, id, &letter["discard_impact"])) } }
        }
    };
    Ok(pages::page(&headers, Section::DeadLetters, &title, body))
}

fn attributes(letter: &Value, trace: Option<String>) -> Markup {
    let settled = text(letter, "settled_at");
    html! {
        section.panel aria-label="Facts" { dl.facts {
            dt { "Record" } dd { (position(letter)) }
            dt { "Cluster" } dd.quiet { (text(letter, "cluster")) }
            dt { "Since" } dd { (text(letter, "received_at")) }
            dt { "Tries" } dd { (letter["attempts"]) }
            dt { "Event" } dd { code { (letter["event_id"].as_str().unwrap_or("none")) } }
            dt { "Key" } dd { code { (letter["key"].as_str().unwrap_or("none")) } }
            dt { "Trace" } dd {
                @match (trace, text(letter, "traceparent")) {
                    (Some(link), _) => a href=(link) { "open the trace" },
                    (None, "") => "none",
                    (None, traceparent) => code { (traceparent) },
                }
            }
            @if !settled.is_empty() {
                dt { "Settled" } dd { (settled) " " (text(letter, "actor")) }
                @if !text(letter, "discard_reason").is_empty() { dt { "Because" } dd { (text(letter, "discard_reason")) } }
            }
        } }
    }
}

fn content(letter: &Value) -> Markup {
    let event = &letter["event"];
    html! {
        section.panel aria-label="Content" {
            h2 { "Content" span.legend { (text(letter, "read_with")) } }
            @if !text(letter, "unreadable").is_empty() { p.quiet { (text(letter, "unreadable")) } }
            @if !event.is_null() { pre { (serde_json::to_string_pretty(event).unwrap_or_default()) } }
        }
    }
}

fn record(letter: &Value) -> Markup {
    html! {
        details.panel {
            summary { "Headers and bytes" }
            dl.facts {
                @for (name, value) in letter["headers"].as_object().into_iter().flatten() {
                    dt { (name) } dd { code { (value.as_str().unwrap_or("null")) } }
                }
            }
            h3 { "Record, in base64" }
            pre.wrap { (letter["record"].as_str().unwrap_or("none")) }
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

fn discard(service: &str, id: i64, impact: &Value) -> Markup {
    let write_offs = impact["write_offs"].as_array().map_or(&[][..], Vec::as_slice);
    let remedy = &impact["remedy"];
    let action = |word: &str| format!("/dead-letters/{service}/{id}/{word}");
    html! {
        section.panel aria-label="Discard" {
            h2 { "Discard" }
            p { (text(impact, "consequence")) }
            @if remedy.is_object() {
                form.remedy method="post" action=(action("remedy")) {
                    p { strong { "Remedy: " } (text(remedy, "description")) " ("
                        code { (text(remedy, "method")) " " (text(remedy, "path")) } " at " (text(remedy, "service")) ")" }
                    button type="submit" { "Take the remedy" }
                }
            }
            form method="post" action=(action("discard")) data-question="A discard is final. Discard it?" {
                label for="reason" { "Reason" }
                textarea #reason name="reason" rows="3" maxlength="1000" required {}
                @if !write_offs.is_empty() {
                    label.check { input type="checkbox" name="write_off" value="1" required;
                        span { "Write off "
                            @for (nth, it) in write_offs.iter().enumerate() {
                                @if nth > 0 { ", " }
                                strong { (it["amount"]) " " (text(it, "unit")) } ": " (text(it, "what"))
                            }
                        }
                    }
                }
                button.danger type="submit" { "Discard" }
            }
        }
    }
}
