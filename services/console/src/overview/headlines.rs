//! The figures at the top of the overview.

use maud::{Markup, html};

use crate::feeds::books::Books;
use crate::feeds::pending::PendingOrders;
use crate::format;
use crate::metrics::snapshot::{ServiceState, Snapshot, bound_of_letters};

/// The seconds over which rates are taken.
const RATE_SECONDS: i64 = 60;

struct Headline {
    name: &'static str,
    value: String,
    hint: String,
    is_bad: bool,
    link: Option<&'static str>,
}

pub fn render(snapshot: &Snapshot, books: &Books, pending: Option<&PendingOrders>) -> Markup {
    html! {
        @for Headline { name, value, hint, is_bad, link } in headlines(snapshot, books, pending) {
            div.figure.is-bad[is_bad] {
                span.name { (name) }
                @if let Some(path) = link { a.value href=(path) { (value) } }
                @else { span.value { (value) } }
                span.hint { (hint) }
            }
        }
    }
}

fn headlines(snapshot: &Snapshot, books: &Books, pending: Option<&PendingOrders>) -> [Headline; 6] {
    let (recent, seconds) = snapshot.window.recent(RATE_SECONDS, snapshot.at);
    let a_minute = |number: f64| format::rate(number * 60.0 / seconds as f64);
    let median = recent.decision_quantile(0.5).map_or("–".to_string(), format::span);
    let slow = recent
        .decision_quantile(0.95)
        .map_or("no order ended".to_string(), |slow| format!("95 % within {}", format::span(slow)));
    let figure = |name, value, hint: &str| Headline {
        name,
        value,
        hint: hint.to_string(),
        is_bad: false,
        link: None,
    };
    let share = |number: f64| match recent.confirmed + recent.cancelled {
        ended if ended > 0.0 => format!("orders a minute, {:.1} %", 100.0 * number / ended),
        _ => "orders a minute".to_string(),
    };
    [
        figure("Placed", a_minute(recent.placed), "orders a minute"),
        figure("Confirmed", a_minute(recent.confirmed), "orders a minute"),
        figure("Cancelled", a_minute(recent.cancelled), &share(recent.cancelled)),
        Headline { hint: slow, ..figure("Decided in", median, "") },
        Headline {
            is_bad: pending.is_some_and(|it| it.late_seconds().is_some()),
            ..figure("Pending", pending_count(snapshot, books, pending), "orders not decided")
        },
        dead_letters(snapshot),
    ]
}

/// The orders that are not decided. The order service counts them up to a bound, and its books are a minute old.
fn pending_count(snapshot: &Snapshot, books: &Books, pending: Option<&PendingOrders>) -> String {
    let Some(pending) = pending else { return "unknown".to_string() };
    match books.pending(&snapshot.window.total).filter(|_| pending.is_truncated()) {
        Some(booked) => format::count(booked),
        None => pending.count(pending.pending),
    }
}

fn dead_letters(snapshot: &Snapshot) -> Headline {
    let waiting = snapshot.dead_letters();
    let bound = bound_of_letters(snapshot.services.iter().filter_map(ServiceState::dead_letters));
    Headline {
        name: "Dead letters",
        value: format!("{bound}{waiting}"),
        hint: "wait for an operator".to_string(),
        is_bad: waiting.sum > Some(0.0),
        link: Some("/dead-letters"),
    }
}
