//! The timeline of an order: its events across the services, the position of each, its waiting
//! times, the subscribers that handled it after how many attempts, and what the order waits for
//! now.
//!
//! It reads the rows of the order, and all partitions of each topic from the time of the order on:
//! after partitions were added, older and newer records of a key are in different ones.

mod records;
mod step;
mod view;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::admin::order_timeline::records::find_records;
use crate::admin::order_timeline::step::{CLOCK_SKEW_MAX, TimelineDeadLetter, TimelineStep};
use crate::admin::order_timeline::view::format_duration;
use crate::checker::expected_records;
use crate::checker::rows::{OrderCase, OrderRow, PaymentRow, ReservationRow};
use crate::client::http_client::Client;
use crate::stack_description::SERVICES;
use launcher::program::format_table;

/// Returns the timeline of an order, line by line.
pub async fn run(client: &Client, order_id: Uuid) -> Result<Vec<String>> {
    let mut databases = BTreeMap::new();
    for service in SERVICES {
        let db = PgConnection::connect(&client.addresses.databases[service]).await;
        databases.insert(
            service,
            db.with_context(|| format!("the database of {service} does not answer"))?,
        );
    }
    let case = load_case(&mut databases, order_id).await?;
    let order = case.order.clone().with_context(|| format!("order {order_id} does not exist"))?;
    let (kafka, since) = (client.addresses.kafka.clone(), order.created_at - CLOCK_SKEW_MAX);
    let key = order_id.to_string();
    let found = tokio::task::spawn_blocking(move || find_records(&kafka, &key, since)).await??;

    let mut steps: Vec<TimelineStep> =
        case.expected.iter().filter_map(|event| TimelineStep::new(event, &found)).collect();
    steps.sort_by_key(|step| step.decided_at);
    let ids: Vec<Uuid> = steps.iter().map(|step| step.event_id).collect();
    for (service, db) in &mut databases {
        let waiting: Vec<Uuid> =
            sqlx::query_scalar("select event_id from chassis.outbox where event_id = any($1)")
                .bind(&ids)
                .fetch_all(&mut *db)
                .await?;
        let handled: Vec<(Uuid, DateTime<Utc>, i32)> = sqlx::query_as(
            "select event_id, received_at, attempts from chassis.inbox where event_id = any($1)",
        )
        .bind(&ids)
        .fetch_all(&mut *db)
        .await?;
        let dead_letters: Vec<TimelineDeadLetter> = sqlx::query_as(
            "select dead_letter_id, event_id, state, reason from chassis.dead_letters where event_id = any($1)",
        )
        .bind(&ids)
        .fetch_all(&mut *db)
        .await?;
        for step in &mut steps {
            step.in_outbox |= step.topic.publisher == *service && waiting.contains(&step.event_id);
            let handled = handled.iter().find(|(event_id, ..)| *event_id == step.event_id);
            if let Some((_, at, attempts)) = handled {
                step.handled.insert(service, (*at, *attempts));
            }
            let of_event = dead_letters.iter().filter(|l| l.event_id == Some(step.event_id));
            step.dead_letters.extend(of_event.map(|l| TimelineDeadLetter { service, ..l.clone() }));
        }
    }
    Ok(render(&order, &case, &steps))
}

async fn load_case(
    databases: &mut BTreeMap<&'static str, PgConnection>,
    order_id: Uuid,
) -> Result<OrderCase> {
    let mut case = OrderCase { order_id, ..OrderCase::default() };
    for (service, db) in databases {
        case.expected.extend(expected_records::load(db, service, order_id).await?);
        match *service {
            "order" => {
                let row = sqlx::query_as::<_, OrderRow>("select * from orders where order_id = $1");
                case.order = row.bind(order_id).fetch_optional(db).await?;
            }
            "payment" => {
                let row =
                    sqlx::query_as::<_, PaymentRow>("select * from payments where order_id = $1");
                case.payment = row.bind(order_id).fetch_optional(db).await?;
            }
            "stock" => {
                let row = sqlx::query_as::<_, ReservationRow>(
                    "select * from reservations where order_id = $1",
                );
                case.reservation = row.bind(order_id).fetch_optional(db).await?;
            }
            // A fork's service has other rows. Its inbox shows the events that it handled.
            _ => {}
        }
    }
    Ok(case)
}

fn render(order: &OrderRow, case: &OrderCase, steps: &[TimelineStep]) -> Vec<String> {
    let mut lines = vec![
        format!("order {} of {}", order.order_id, order.created_at.format("%Y-%m-%d, UTC")),
        String::new(),
    ];
    let rows = steps.iter().flat_map(TimelineStep::rows);
    lines.extend(format_table(step::HEADER, &[3, 5, 6], rows));
    lines.push(String::new());
    let reason = order.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let mut state = format!(
        "  status {}{reason}, payment {}, stock {}",
        order.status, order.payment, order.stock
    );
    if let Some(ended_at) = order.ended_at {
        let _ = write!(
            state,
            "; decided {} after it was placed",
            format_duration(ended_at - order.created_at)
        );
    }
    lines.push(state);
    let mut pending: Vec<String> = steps.iter().flat_map(TimelineStep::pending_work).collect();
    let open = [
        ("payment", case.payment.is_none(), order.payment == "waiting"),
        ("stock", case.reservation.is_none(), order.stock == "waiting"),
    ];
    for (service, no_row, waiting) in open {
        if waiting && no_row {
            pending.push(format!("the order waits for the response of {service}"));
        }
    }
    if pending.is_empty() && order.status != "pending" {
        pending.push("nothing is pending".into());
    }
    lines.extend(pending.into_iter().map(|wait| format!("  {wait}")));
    lines
}
