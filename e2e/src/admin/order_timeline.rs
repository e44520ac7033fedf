//! The timeline of an order: its events across the services, the subscribers that handled each after how
//! many attempts, and what the order waits for now. The admin ports tell it.

use anyhow::{Result, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use events::participants::{WAITING, participants};
use launcher::program::format_table;
use ops_client::{Delivery, DeliveryState, Port, ServiceError, Step, Timeline};
use reqwest::StatusCode;
use uuid::Uuid;

use crate::client::identity::Identity;
use crate::client::operator::Operator;
use crate::client::order::Order;

const HEADER: [&str; 6] = ["DECIDED", "EVENT", "BY", "HANDLED BY", "AFTER", "TRIES"];

/// Returns the timeline of an order, line by line.
pub async fn run(operator: &Operator, order_id: Uuid) -> Result<Vec<String>> {
    let (ops, support) = (operator.ask()?, operator.ask_as(Identity::Support)?);
    let (key, path) = (order_id.to_string(), format!("/orders/{order_id}"));
    let order = support.get::<Order>(("order", Port::Api), &path);
    let (order, timeline) = tokio::join!(order, ops.timeline(&key));
    match &order {
        Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => {
            bail!("order {order_id} does not exist")
        }
        Err(error) => ensure!(!timeline.steps.is_empty(), "{error}"),
        Ok(_) => {}
    }
    Ok(render(order_id, &order, &timeline, Utc::now()))
}

fn render(
    order_id: Uuid,
    order: &Result<Order, ServiceError>,
    timeline: &Timeline,
    now: DateTime<Utc>,
) -> Vec<String> {
    let first = timeline.steps.first().map(|step| step.event.occurred_at);
    let placed_at = order.as_ref().ok().map(|order| order.created_at).or(first);
    let of = placed_at.map_or(String::new(), |at| at.format(" of %Y-%m-%d, UTC").to_string());
    let mut lines = vec![format!("order {order_id}{of}"), String::new()];
    let rows = timeline.steps.iter().flat_map(|step| rows(step, now));
    lines.extend(format_table(HEADER, &[4, 5], rows));
    lines.push(String::new());
    lines.extend(match order {
        Ok(order) => describe(order),
        Err(error) => vec![format!("  its state is missing: {error}")],
    });
    let mut pending: Vec<String> = timeline.steps.iter().flat_map(Step::open_work).collect();
    if timeline.steps.iter().any(waits_at_subscriber) {
        pending.push(format!("if the lag is 0, it was skipped: make republish KEY={order_id}"));
    }
    if let Ok(order) = order {
        let is_missing = |service: &str| timeline.steps.iter().all(|it| it.publisher != service);
        for service in participants().map(|it| it.service) {
            if order.leg(service) == WAITING && is_missing(service) {
                pending.push(format!("the order waits for the response of {service}"));
            }
        }
        if pending.is_empty() && timeline.silent.is_empty() && order.status != "pending" {
            pending.push("nothing is pending".into());
        }
    }
    let silent = timeline.silent.iter();
    pending.extend(silent.map(|(service, why)| format!("the part of {service} is missing: {why}")));
    lines.extend(pending.into_iter().map(|wait| format!("  {wait}")));
    lines
}

fn describe(order: &Order) -> Vec<String> {
    let Order { status, legs, .. } = order;
    let reason = order.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let decided = order.ended_at.map(|ended_at| {
        format!("  decided {} after it was placed", format_duration(ended_at - order.created_at))
    });
    [format!("  status {status}{reason}, {legs}")].into_iter().chain(decided).collect()
}

fn waits_at_subscriber(step: &Step) -> bool {
    let waits = step.deliveries.iter().any(|it| it.state == DeliveryState::Waits);
    waits && step.event.in_outbox != Some(true)
}

/// The event with its first subscriber, and the further ones.
fn rows(step: &Step, now: DateTime<Utc>) -> Vec<[String; 6]> {
    let delivery = |delivery: &Delivery| {
        let (after, tries) = match &delivery.state {
            DeliveryState::Handled { attempts, .. } => {
                (format_duration(step.duration(delivery, now)), attempts.to_string())
            }
            DeliveryState::DeadLetter { id, .. } => (format!("dead letter {id}"), "-".to_string()),
            DeliveryState::Waits => ("waits".to_string(), "-".to_string()),
            DeliveryState::Forgotten => {
                ("unknown: older than the inbox keeps".to_string(), "-".to_string())
            }
        };
        [delivery.subscriber.clone(), after, tries]
    };
    let mut deliveries: Vec<[String; 3]> = step.deliveries.iter().map(delivery).collect();
    if deliveries.is_empty() {
        deliveries.push(["-".to_string(), String::new(), String::new()]);
    }
    let decided = step.event.occurred_at.format("%H:%M:%S%.3f").to_string();
    let mut event = [decided, step.event.topic.clone(), step.publisher.clone()];
    let row = |[by, after, tries]: [String; 3]| {
        let [decided, topic, publisher] = std::mem::take(&mut event);
        [decided, topic, publisher, by, after, tries]
    };
    deliveries.into_iter().map(row).collect()
}

/// A duration, with one or two units.
fn format_duration(span: TimeDelta) -> String {
    let millis = span.num_milliseconds().max(0);
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", millis as f64 / 1_000.0),
        60_000..3_600_000 => format!("{} min {} s", millis / 60_000, millis / 1_000 % 60),
        _ => format!("{} h {} min", millis / 3_600_000, millis / 60_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_one_or_two_units() {
        assert_eq!(format_duration(TimeDelta::milliseconds(61_500)), "1 min 1 s");
        assert_eq!(format_duration(TimeDelta::milliseconds(-3)), "0 ms");
    }
}
