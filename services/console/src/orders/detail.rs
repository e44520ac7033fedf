//! One order: its state, now or after any of its events, its lines, and its way through the services.

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::{DateTime, SecondsFormat, Utc};
use events::participants::{Answers, WAITING, leg_state};
use maud::{Markup, html};
use ops_client::{Delivery, DeliveryState, Port, Step, Timeline};
use serde::Deserialize;

use super::{causes, picture};
use crate::app::App;
use crate::format;
use crate::operators::Operator;
use crate::order::{DECIDER, Order, money, title};
use crate::pages::{self, PageError, Section};

/// The moment to show; now if there is none.
#[derive(Deserialize)]
pub struct Moment {
    at: Option<DateTime<Utc>>,
}

/// The events of an order, as its service committed them.
#[derive(Default, Deserialize)]
struct History {
    history: Vec<HistoryEntry>,
}

#[derive(Deserialize)]
struct HistoryEntry {
    event: String,
    recorded_at: DateTime<Utc>,
}

pub async fn show(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    Path(order_id): Path<String>,
    Query(Moment { at }): Query<Moment>,
) -> Result<Response, PageError> {
    let Some(order_id) = super::find::parse_id(&order_id) else {
        return Err(PageError::new(StatusCode::NOT_FOUND, "An order's id is a UUID."));
    };
    let (ops, path) = (operator.ask(&app.services), format!("/orders/{order_id}"));
    let history_path = format!("{path}/history");
    let history = ops.get::<History>((DECIDER, Port::Api), &history_path);
    let shown_path = at.map_or(path.clone(), |at| format!("{path}?at={}", moment(at)));
    let order = ops.get::<Order>((DECIDER, Port::Api), &shown_path);
    let (order, history, timeline) = tokio::join!(order, history, ops.timeline(&order_id));
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
            Ok(order) => {
                (steps(&history.unwrap_or_default(), at))
                (state(order, at.unwrap_or(now)))
            }
            Err(error) => p.notice.is-bad role="alert" { (error) },
        }
        @if at.is_none() { (open_work(&app, order.as_ref().ok(), &timeline)) }
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

/// A moment as a parameter.
fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Links to the order as it was after each of its events, and as it is now.
fn steps(history: &History, at: Option<DateTime<Utc>>) -> Markup {
    let is_shown = |step: bool| step.then_some("step");
    html! {
        nav.steps aria-label="The order after each event" {
            @for HistoryEntry { event, recorded_at } in &history.history {
                a href={ "?at=" (moment(*recorded_at)) } aria-current=[is_shown(at == Some(*recorded_at))] { (event) }
            }
            a href="?" aria-current=[is_shown(at.is_none())] { "now" }
        }
        @if let Some(at) = at { p.quiet { "As it was at " (moment(at)) "." } }
    }
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
            @for (answers, state) in order.legs.states() {
                dt { (title(answers.service)) } dd { (leg(&answers, state)) }
            }
            dt { "Placed" } dd { (format::time(order.created_at)) " UTC" }
            dt { @if ended.is_some() { "Decided after" } @else { "Pending for" } }
            dd { (format::span((ended.unwrap_or(now) - order.created_at).as_seconds_f64())) }
            dt { "Total" } dd { (order.amount()) }
            dt { "Customer" } dd { a href={ "/orders?id=" (customer) } { code { (customer) } } }
        } }
    }
}

fn leg(answers: &Answers, state: &str) -> Markup {
    let is = |topic| state == leg_state(topic);
    let is_bad = is(answers.refused) || answers.undo_refused.is_some_and(is);
    html! {
        span.state.is-warning[state == WAITING].is-bad[is_bad].is-good[is(answers.accepted)] { (state) }
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
