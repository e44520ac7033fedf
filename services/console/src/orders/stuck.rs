//! What is stuck: the oldest pending orders, and why the answer that each waits for is missing.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use futures::stream;
use maud::{Markup, html};
use tokio::time::sleep;

use super::causes;
use crate::app::App;
use crate::feeds::pending::{
    AgeCount, LISTED_MAX, PendingOrders, REFRESH_INTERVAL, STUCK_SECONDS_MIN, age,
};
use crate::operators::Operator;
use crate::order::{DECIDER, leg_headings};
use crate::{format, streams};

/// The region that shows it, which a stream keeps current.
pub async fn region(app: &App, operator: &Operator) -> Markup {
    html! {
        div data-stream="/orders/stuck/events" {
            div.title { h2 { "Stuck" } (streams::state()) }
            section #stuck aria-label="Stuck orders" { (render(app, operator).await) }
        }
    }
}

async fn render(app: &App, operator: &Operator) -> Markup {
    let answer = match app.pending.read(&app.services, operator).await {
        Ok(answer) => answer,
        Err(why) => return html! { p.notice.is-bad { (why) } },
    };
    let snapshot = app.snapshot.borrow().clone();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for service in answer.orders.iter().flat_map(|order| &order.waits_for) {
        *counts.entry(service).or_default() += 1;
    }
    let causes: BTreeMap<&str, Vec<String>> = counts
        .keys()
        .map(|service| (*service, causes::find_causes(&snapshot, DECIDER, service)))
        .collect();
    html! {
        (ages(&answer))
        @if answer.orders.is_empty() {
            p.empty { "No order has been pending for longer than " (STUCK_SECONDS_MIN) " s." }
        } @else {
            @for (service, causes) in &causes {
                (missing(service, counts[service], causes, causes::dead_letters(&snapshot, service)))
            }
            (table(&answer, &causes))
        }
    }
}

/// The number of pending orders by their age.
fn ages(answer: &PendingOrders) -> Markup {
    html! {
        dl.ages {
            div { dt { "pending" } dd { (answer.count(answer.pending)) } }
            @for AgeCount { older_than_seconds, orders } in &answer.by_age {
                div { dt { "over " (age(*older_than_seconds)) } dd.is-marked[*orders > 0] { (answer.count(*orders)) } }
            }
        }
    }
}

/// Why the answers of a service are missing.
fn missing(
    service: &str,
    orders: usize,
    causes: &[String],
    dead_letters: Option<String>,
) -> Markup {
    html! {
        div.notice.waits {
            strong { (format::count(orders as f64)) " of these wait for " (service) }
            @if causes.is_empty() && dead_letters.is_none() { span { "Its instances are ready and have nothing to handle: open one of the orders." } }
            @else { ul {
                @for cause in causes { li { (cause) } }
                @if let Some(letters) = dead_letters { li { (letters) ", perhaps of these orders" } }
            } }
        }
    }
}

fn table(answer: &PendingOrders, causes: &BTreeMap<&str, Vec<String>>) -> Markup {
    html! {
        section.panel { div.scroll { table.hover {
            thead { tr {
                th { "Order" } th { "Placed, UTC" } th.number { "Pending for" } (leg_headings()) th { "Waits for" }
            } }
            tbody { @for order in &answer.orders {
                tr {
                    th scope="row" { a href={ "/orders/" (order.order_id) } { code { (order.order_id) } } }
                    td.when { (format::time(order.created_at)) }
                    td.number { (format::ago(order.created_at, answer.read_at)) }
                    @for (_, state) in order.legs.states() { td { (state) } }
                    td.why { @for service in &order.waits_for {
                        @let cause = causes.get(&**service).and_then(|causes| causes.first());
                        span.tag { (service) } " "
                        @if let Some(cause) = cause { span.quiet { (cause) } " " }
                    } }
                }
            } }
        } } }
        @if answer.orders.len() >= LISTED_MAX { p.quiet { "The oldest " (LISTED_MAX) " are shown." } }
    }
}

/// A message when the region has changed.
pub async fn follow(State(app): State<App>, operator: Operator) -> Response {
    let first = (app.clone(), operator, String::new());
    let events = stream::unfold(first, |(app, operator, sent)| async move {
        loop {
            let markup = render(&app, &operator).await.into_string();
            if markup != sent {
                let message = streams::replace_region("stuck", &markup);
                return Some((message, (app, operator, markup)));
            }
            sleep(REFRESH_INTERVAL).await;
        }
    });
    streams::respond(&app.stopping, events)
}
