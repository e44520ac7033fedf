//! The timeline as a picture: a lifeline for each service, from top to bottom in the sequence of the decisions, and an
//! arrow for each delivery. The distance between two events is not to scale: the one takes milliseconds, the other the
//! length of an outage.

use chrono::{DateTime, Utc};
use maud::{Markup, html};
use ops_client::{Delivery, DeliveryState, Step, Timeline};

use crate::format;

/// The columns of the drawing: times, names of events, and the lifelines.
const TIME_X: f64 = 4.0;
const EVENT_X: f64 = 96.0;
const LANES_X: f64 = 300.0;
const LANE_WIDTH: f64 = 190.0;

/// The rows: names of the services, an event, a delivery.
const HEAD_HEIGHT: f64 = 34.0;
const STEP_HEIGHT: f64 = 22.0;
const DELIVERY_HEIGHT: f64 = 26.0;
const GAP: f64 = 12.0;

/// How long the head of an arrow is, and how far it stays from the lifeline.
const ARROW: f64 = 7.0;

/// The sentence for readers who do not see the picture; the table below it has the details.
fn summary(timeline: &Timeline) -> String {
    let events =
        timeline.steps.iter().map(|step| format!("{} by {}", step.event.topic, step.publisher));
    format!("Sequence of the events of the order: {}", events.collect::<Vec<_>>().join(", "))
}

pub fn draw(timeline: &Timeline, services: &[String], now: DateTime<Utc>) -> Markup {
    let lane = |name: &str| {
        let nth = services.iter().position(|service| service == name).unwrap_or_default();
        LANES_X + LANE_WIDTH * (nth as f64 + 0.5)
    };
    let mut y = HEAD_HEIGHT + GAP;
    let mut rows = Vec::new();
    let mut before: Option<DateTime<Utc>> = None;
    for step in &timeline.steps {
        let deliveries = step.deliveries.iter().enumerate();
        let deliveries = deliveries.map(|(nth, delivery)| {
            let y = y + STEP_HEIGHT + DELIVERY_HEIGHT * (nth as f64 + 0.5);
            arrow(step, delivery, (lane(&step.publisher), lane(&delivery.subscriber)), y, now)
        });
        let deliveries: Vec<Markup> = deliveries.collect();
        let since =
            before.map(|before| (step.event.occurred_at - before).to_std().unwrap_or_default());
        let height = STEP_HEIGHT + DELIVERY_HEIGHT * deliveries.len() as f64;
        rows.push(html! {
            (event(step, since.map(|since| since.as_secs_f64()), y, lane(&step.publisher)))
            @for delivery in &deliveries { (delivery) }
        });
        before = Some(step.event.occurred_at);
        y += height + GAP;
    }
    let width = LANES_X + LANE_WIDTH * services.len() as f64;
    html! {
        svg.timeline viewBox={ "0 0 " (px(width)) " " (px(y)) } role="img" aria-label=(summary(timeline)) {
            @for name in services {
                @let is_silent = timeline.silent.contains_key(name);
                line.lifeline.is-silent[is_silent] x1=(px(lane(name))) x2=(px(lane(name))) y1=(px(HEAD_HEIGHT)) y2=(px(y)) {}
                text.lane.is-silent[is_silent] x=(px(lane(name))) y="20" text-anchor="middle" {
                    (name) @if is_silent { " · silent" }
                }
            }
            @for row in &rows { (row) }
        }
    }
}

/// The time, the name and the dot of an event.
fn event(step: &Step, since: Option<f64>, y: f64, x: f64) -> Markup {
    let waits = step.event.in_outbox == Some(true);
    html! {
        text.time x=(px(TIME_X)) y=(px(y + 4.0)) { (step.event.occurred_at.format("%H:%M:%S%.3f")) }
        @if let Some(seconds) = since {
            text.since x=(px(TIME_X)) y=(px(y + 19.0)) { "+" (format::span(seconds)) }
        }
        text.event x=(px(EVENT_X)) y=(px(y + 4.0)) { (step.event.topic) }
        @if waits { text.since.is-warning x=(px(EVENT_X)) y=(px(y + 19.0)) { "waits in the outbox" } }
        line.lead x1=(px(EVENT_X + 8.0 * step.event.topic.len() as f64)) x2=(px(x - 8.0)) y1=(px(y)) y2=(px(y)) {}
        circle.decided.is-warning[waits] cx=(px(x)) cy=(px(y)) r="5" {}
    }
}

fn arrow(
    step: &Step,
    delivery: &Delivery,
    (from, to): (f64, f64),
    y: f64,
    now: DateTime<Utc>,
) -> Markup {
    // An event that its own service hears comes from half a lane away.
    let from = if from == to { to - LANE_WIDTH / 2.0 } else { from };
    let direction = if to >= from { 1.0 } else { -1.0 };
    let (start, end) = (from + 6.0 * direction, to - 5.0 * direction);
    let back = end - ARROW * direction;
    let head =
        format!("{},{} {},{} {},{}", px(end), px(y), px(back), px(y - 4.0), px(back), px(y + 4.0));
    let class = match delivery.state {
        DeliveryState::Handled { .. } => "delivery is-good",
        DeliveryState::DeadLetter { .. } => "delivery is-bad",
        DeliveryState::Waits => "delivery is-warning",
        DeliveryState::Forgotten => "delivery is-silent",
    };
    // The label is beside the lifeline where the arrow ends, since arrows cross the lifelines between.
    let label_x = to - LANE_WIDTH / 2.0 * direction;
    html! {
        g class=(class) {
            line x1=(px(start)) x2=(px(back)) y1=(px(y)) y2=(px(y)) {}
            polygon points=(head) {}
            text x=(px(label_x)) y=(px(y - 4.0)) text-anchor="middle" { (label(step, delivery, now)) }
        }
    }
}

/// What became of a delivery, in a few words.
pub fn label(step: &Step, delivery: &Delivery, now: DateTime<Utc>) -> String {
    let span = format::span(step.duration(delivery, now).as_seconds_f64());
    match &delivery.state {
        DeliveryState::Handled { attempts: 1, .. } => span,
        DeliveryState::Handled { attempts, .. } => format!("{span}, {attempts} tries"),
        DeliveryState::DeadLetter { id, state, .. } => format!("dead letter {id}, {state}"),
        DeliveryState::Waits => format!("waits, {span}"),
        DeliveryState::Forgotten => "unknown: too old".to_string(),
    }
}

/// A coordinate with one decimal.
fn px(value: f64) -> String {
    format!("{value:.1}")
}
