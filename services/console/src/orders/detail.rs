//! One order: its state, its lines, and its way through the services.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use ops_client::{Delivery, DeliveryState, Port, Step, Timeline};

use super::{causes, picture};
use crate::app::App;
use crate::format;
use crate::operators::Operator;
use crate::order::{DECIDER, Order, money};
use crate::pages::{self, PageError, Section};

pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Path(order_id): Path<String>,
) -> Result<Response, PageError> {
    let Some(order_id) = super::find::parse_id(&order_id) else {
        return Err(PageError::new(StatusCode::NOT_FOUND, "An order's id is a UUID."));
    };
    let (ops, path) = (operator.ask(&app.services), format!("/orders/{order_id}"));
    let order = ops.get::<Order>((DECIDER, Port::Api), &path);
    let (order, timeline) = tokio::join!(order, ops.timeline(&order_id));
    if order.as_ref().is_err_and(|error| error.status() == Some(StatusCode::NOT_FOUND)) {
        return Err(PageError::new(StatusCode::NOT_FOUND, "There is no such order."));
    }
    let now = Utc::now();
    let body = html! {
        p.crumbs { a href="/orders" { "Orders" } }
        div.title {
            h1 { "Order " code { (order_id) } }
            @if let Ok(order) = &order { (status(order)) }
            @if let Some(link) = app.settings.traces.of_order(&order_id) { a href=(link) { "Find its trace" } }
        }
        @match &order {
            Ok(order) => (state(order, now)),
            Err(error) => p.notice.is-bad role="alert" { (error) },
        }
        (open_work(&app, order.as_ref().ok(), &timeline))
        section.panel aria-label="Timeline" {
            h2 { "Timeline" span.legend {
                i.key-handled {} "handled" i.key-waits {} "waits" i.key-dead {} "dead letter" " · UTC, not to scale"
            } }
            @if timeline.steps.is_empty() {
                p.empty { "No service that answers has published an event of this order." }
            } @else {
                div.scroll { (picture::draw(&timeline, &app.services.names, now)) }
            }
        }
        @if !timeline.steps.is_empty() { (deliveries(&timeline, now)) }
        @if let Ok(order) = &order { (lines(order)) }
    };
    let title = format!("Order {order_id}");
    Ok(pages::page(&headers, Section::Orders, &title, body))
}

fn status(order: &Order) -> Markup {
    let status = &order.status;
    html! {
        span.state.is-good[status == "confirmed"].is-warning[status == "pending"] {
            (status)
            @if let Some(reason) = order.reason() { ": " (reason) }
        }
    }
}

fn state(order: &Order, now: DateTime<Utc>) -> Markup {
    let (ended, customer) = (order.ended_at, &order.customer_id);
    html! {
        section.panel aria-label="State" { dl.facts {
            dt { "Payment" } dd { (leg(&order.payment)) }
            dt { "Stock" } dd { (leg(&order.stock)) }
            dt { "Placed" } dd { (format::time(order.created_at)) " UTC" }
            dt { @if ended.is_some() { "Decided after" } @else { "Pending for" } }
            dd { (format::span((ended.unwrap_or(now) - order.created_at).as_seconds_f64())) }
            dt { "Total" } dd { (order.amount()) }
            dt { "Customer" } dd { a href={ "/orders?id=" (customer) } { code { (customer) } } }
        } }
    }
}

fn leg(state: &str) -> Markup {
    let is_no = ["declined", "rejected"].contains(&state);
    html! {
        span.state.is-warning[state == "waiting"].is-bad[is_no].is-good[["verified", "reserved"].contains(&state)] {
            (state)
        }
    }
}

/// What the order waits for, and why.
fn open_work(app: &App, order: Option<&Order>, timeline: &Timeline) -> Markup {
    let mut open: Vec<String> = timeline.steps.iter().flat_map(Step::open_work).collect();
    let snapshot = app.snapshot.borrow().clone();
    for (service, missing) in order.into_iter().flat_map(Order::missing_answers) {
        let causes = causes::find_causes(&snapshot, DECIDER, service);
        let because = if causes.is_empty() { "" } else { ": " };
        open.push(format!("{missing}{because}{}", causes.join("; ")));
    }
    html! {
        @if !open.is_empty() {
            section.notice.waits aria-label="What is waited for" { ul { @for line in &open { li { (line) } } } }
        } @else if order.is_some() && timeline.silent.is_empty() {
            p.quiet { "This order waits for nothing." }
        }
        @for (service, why) in &timeline.silent {
            p.quiet { "The part of " (service) " is missing in the timeline. " (why) }
        }
    }
}

/// The same as the picture, in words.
fn deliveries(timeline: &Timeline, now: DateTime<Utc>) -> Markup {
    let rows = timeline.steps.iter().flat_map(|step| {
        let none = step.deliveries.is_empty().then_some((step, None));
        none.into_iter().chain(step.deliveries.iter().map(move |delivery| (step, Some(delivery))))
    });
    html! {
        details.panel {
            summary { "Every event and delivery" }
            div.scroll { table {
                thead { tr {
                    th { "Decided, UTC" } th { "Event" } th { "By" } th { "Handled by" } th { "After" } th.number { "Tries" } th { "Event id" }
                } }
                tbody { @for (step, delivery) in rows { (delivery_row(step, delivery, now)) } }
            } }
        }
    }
}

fn delivery_row(step: &Step, delivery: Option<&Delivery>, now: DateTime<Utc>) -> Markup {
    html! {
        tr {
            td { (step.event.occurred_at.format("%H:%M:%S%.6f")) }
            td { (step.event.topic) }
            td { (step.publisher) }
            @match delivery {
                None => td.quiet colspan="3" { "no service subscribes" },
                Some(delivery) => {
                    td { (delivery.subscriber) }
                    @match &delivery.state {
                        DeliveryState::Handled { attempts, .. } => {
                            td { (picture::label(step, delivery, now)) }
                            td.number { (attempts) }
                        },
                        DeliveryState::DeadLetter { id, reason, .. } => td colspan="2" {
                            a href={ "/dead-letters/" (delivery.subscriber) "/" (id) } { "dead letter " (id) } ": " (reason)
                        },
                        _ => td colspan="2" { (picture::label(step, delivery, now)) },
                    }
                }
            }
            td.quiet { code { (step.event.event_id) } }
        }
    }
}

fn lines(order: &Order) -> Markup {
    html! {
        section.panel aria-label="Lines" {
            h2 { "Lines" }
            table {
                thead { tr { th { "Item" } th.number { "Quantity" } th.number { "Each" } } }
                tbody { @for line in &order.lines {
                    tr {
                        th scope="row" { (line.sku) }
                        td.number { (line.quantity) }
                        td.number { (money(line.unit_price_cents)) }
                    }
                } }
            }
        }
    }
}
