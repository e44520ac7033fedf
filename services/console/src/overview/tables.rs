//! The tables of the overview.

use maud::{Markup, html};
use serde_json::Value;

use crate::feeds::books::Books;
use crate::feeds::pending::PendingOrders;
use crate::format;
use crate::metrics::snapshot::{InstanceState, LAG_MARKED, Readiness, Snapshot, bound_of_letters};

/// Each instance of each service.
pub fn instances(snapshot: &Snapshot) -> Markup {
    html! {
        h2 { "Instances" }
        div.scroll { table {
            thead { tr {
                th { "Instance" } th { "State" } th { "Relay" } th { "Consumer" }
                th.number { "Partitions" } th { "Version" } th.number { "Up for" } th { "Address" }
            } }
            tbody {
                @for instance in snapshot.services.iter().flat_map(|service| &service.instances) {
                    (instance_row(snapshot, instance))
                }
            }
        } }
    }
}

fn instance_row(snapshot: &Snapshot, instance: &InstanceState) -> Markup {
    let partitions = instance.partitions(snapshot.at);
    let is_down = matches!(instance.readiness, Readiness::Down(_));
    let up = instance.started_at().map(|at| format::ago(at, snapshot.at));
    html! {
        tr {
            th scope="row" { (instance.name) }
            td { (readiness(&instance.readiness)) }
            td { @if is_down { "–" } @else if instance.kafka_wait().is_some() { span.state.is-warning { "waits for Kafka" } } @else if instance.relays() { span.state.is-good { "active" } } @else { "standby" } }
            td { @if is_down { "–" } @else if let Some(by) = instance.paused_by() { span.state.is-bad { "paused" } " " span.quiet { "by " (by) } } @else if partitions.is_some_and(|it| it < 1.0) { span.state.is-warning { "no partition" } } @else { "reading" } }
            td.number { @if is_down { "–" } @else { (partitions.map_or("–".to_string(), format::count)) } }
            td { (instance.version().unwrap_or("–")) }
            td.number { (up.as_deref().unwrap_or("–")) }
            td.quiet { (instance.address) }
        }
    }
}

fn readiness(readiness: &Readiness) -> Markup {
    match readiness {
        Readiness::Ready => html! { span.state.is-good { "ready" } },
        Readiness::NotReady(why) => {
            html! { span.state.is-warning { "not ready" } " " span.quiet { (why) } }
        }
        Readiness::Down(why) => html! { span.state.is-bad { "down" } " " span.quiet { (why) } },
    }
}

/// The records that each consumer group has not handled, by topic. The services report them, so the lag of a service
/// that is down is unknown, and the pending orders tell what waits for it.
pub fn lag(snapshot: &Snapshot, pending: Option<&PendingOrders>) -> Markup {
    html! {
        h2 { "Lag by group and topic" span.legend { "records that are not handled yet" } }
        div.groups { @for service in &snapshot.services { div {
            @let lag = service.lag();
            @let lags = service.lags();
            h3 { (service.name) " "
                @if lag >= LAG_MARKED { span.state.is-bad { (format::count(lag)) " behind" } }
                @else if !service.reads_all() { span.state.is-warning { "unknown" } }
                @else if lag > 0.0 { span.state { (format::count(lag)) " behind" } }
                @else { span.state.is-good { "caught up" } }
            }
            @if lags.is_empty() { p.quiet {
                @if service.reports() { "No partition is assigned yet." } @else { "No instance reports." }
                @if let Some(pending) = pending {
                    " " (pending.waiting_for(&service.name)) " pending orders wait for it."
                }
            } }
            dl { @for (topic, (records, partitions)) in &lags {
                dt { (topic) @if *partitions < 1.0 { " " span.state.is-warning { "not read" } } }
                dd { span.is-marked[*records >= LAG_MARKED] {
                    @if *partitions < 1.0 { "unknown" } @else { (format::count(*records)) }
                } }
            } }
        } } }
    }
}

/// What waits in each service: events for Kafka, dead letters for an operator.
pub fn outboxes(snapshot: &Snapshot) -> Markup {
    html! {
        h2 { "Outboxes and dead letters" }
        div.scroll { table {
            thead { tr {
                th { "Service" } th.number { "Oldest in the outbox" } th.number { "Deferred" } th.number { "Dead letters" }
            } }
            tbody {
                @for service in &snapshot.services {
                    @let oldest = service.outbox_age();
                    @let letters = service.dead_letters();
                    // The gauge begins with the first event that waits.
                    @let deferred = service.sum("consumer_events_deferred").or(service.reports().then_some(0.0));
                    tr {
                        th scope="row" { (service.name) }
                        td.number { span.is-marked[service.kafka_wait().is_some()] {
                            (oldest.map_or("–".to_string(), |it| if it == 0.0 { "empty".to_string() } else { format::span(it) }))
                        } }
                        td.number { (deferred.map_or("–".to_string(), format::count)) }
                        td.number {
                            @match letters {
                                Some(number) if number > 0.0 => a.is-marked href={ "/dead-letters?service=" (service.name) } { (bound_of_letters(letters.into_iter())) (format::count(number)) },
                                Some(_) => "0",
                                None => "–",
                            }
                        }
                    }
                }
            }
        } }
    }
}

/// The sums that must balance.
pub fn books(books: &Books) -> Markup {
    let at = books.at.map(|at| at.format("%H:%M:%S").to_string());
    html! {
        h2 { "Books"
            span.legend { @match at { Some(at) => { "as of " (at) " UTC, once a minute" }, None => "are being read" } } }
        div.books {
            @for (service, sums) in &books.services {
                div {
                    h3 { (service) " "
                        @match sums {
                            Ok(sums) if sums["balanced"] == true => span.state.is-good { "balanced" },
                            Ok(_) => span.state.is-bad { "not balanced" },
                            Err(_) => span.state.is-warning { "unknown" },
                        }
                    }
                    @match sums {
                        Ok(sums) => {
                            dl { @for (name, value) in flat_sums(sums) { dt { (name) } dd { (value) } } }
                            (owed_orders(sums))
                        }
                        Err(why) => p.quiet { (why) },
                    }
                }
            }
        }
    }
}

/// The oldest orders of which a participant could not undo its part, if the books have any.
fn owed_orders(sums: &Value) -> Markup {
    let orders = sums["owed_orders"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let orders: Vec<&str> = orders.collect();
    html! {
        @if !orders.is_empty() { p.notice.waits {
            "Cancelled, and not undone: " @for id in orders { a href={ "/orders/" (id) } { code { (id) } } " " }
        } }
    }
}

/// The numbers of the books with readable names. Objects are flattened; what was written off has its unit.
fn flat_sums(sums: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, value) in sums.as_object().into_iter().flatten() {
        match value {
            Value::Number(_) => found.push((readable(name), number(name, value))),
            Value::Object(fields) => {
                // The figures have the orders that are pending now, and these sums may be a minute old.
                let fields = fields.iter().filter(|(field, _)| *field != "pending");
                found.extend(fields.map(|(field, value)| {
                    (format!("{} {}", readable(name), readable(field)), number(field, value))
                }));
            }
            Value::Array(rows) if name == "written_off" => {
                for row in rows {
                    let unit = row["unit"].as_str().unwrap_or_default();
                    let amount = row["amount"].as_f64().unwrap_or_default();
                    found.push((format!("written off, {unit}"), format::count(amount)));
                }
            }
            _ => {}
        }
    }
    found
}

fn readable(name: &str) -> String {
    let name =
        name.strip_suffix("_cents").map_or(name.to_string(), |name| format!("{name} amount"));
    name.replace('_', " ")
}

fn number(name: &str, value: &Value) -> String {
    match value.as_f64() {
        Some(cents) if name.ends_with("cents") => {
            format!("{}.{:02.0}", format::count((cents / 100.0).trunc()), (cents % 100.0).abs())
        }
        Some(number) => format::count(number),
        None => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_sums_of_the_books_have_names_and_units() {
        let sums = json!({"orders": {"pending": 6, "confirmed": 1234}, "taken_cents": 3_800_370, "balanced": true,
            "written_off": [{"unit": "units", "amount": 2}]});
        let found = flat_sums(&sums);
        let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (&**a, &**b)).collect();
        let expected = [
            ("orders confirmed", "1,234"),
            ("taken amount", "38,003.70"),
            ("written off, units", "2"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_books_lead_to_the_orders_with_something_owed() {
        for (orders, links) in [(json!(null), 0), (json!([]), 0), (json!(["1", "2"]), 2)] {
            let shown = owed_orders(&json!({"owed_orders": orders})).into_string();
            assert_eq!(shown.matches("href=\"/orders/").count(), links, "{shown}");
        }
    }
}
