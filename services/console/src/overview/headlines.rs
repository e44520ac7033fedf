//! The figures at the top of the overview.

use maud::{Markup, html};

use crate::format;
use crate::metrics::snapshot::Snapshot;
use crate::orders::pending::PendingOrders;
use crate::overview::books::Books;

/// The seconds over which rates are taken.
const RATE_SECONDS: i64 = 60;

/// The outbox and the dead letters that need a look.
const OUTBOX_SECONDS_MAX: f64 = 30.0;

struct Headline {
    name: &'static str,
    value: String,
    hint: String,
    is_bad: bool,
    link: Option<&'static str>,
}

pub fn render(
    snapshot: &Snapshot,
    books: &Books,
    pending: Option<&Result<PendingOrders, String>>,
) -> Markup {
    // The count is exact while it is small, and the books are a minute old.
    let counted = pending.and_then(|it| it.as_ref().ok()).filter(|it| !it.is_truncated());
    let pending = counted.map(|it| it.pending as f64);
    let pending = pending.or_else(|| books.pending(&snapshot.window.total));
    html! {
        @for Headline { name, value, hint, is_bad, link } in headlines(snapshot, pending) {
            div.figure.is-bad[is_bad] {
                span.name { (name) }
                @if let Some(path) = link { a.value href=(path) { (value) } }
                @else { span.value { (value) } }
                span.hint { (hint) }
            }
        }
    }
}

fn headlines(snapshot: &Snapshot, pending: Option<f64>) -> [Headline; 6] {
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
        figure("Pending", pending.map_or("–".to_string(), format::count), "orders not decided"),
        attention(snapshot),
    ]
}

/// The dead letters that wait, or what else needs a look.
fn attention(snapshot: &Snapshot) -> Headline {
    let waiting = snapshot.services.iter().filter_map(|it| it.largest("dead_letters_waiting"));
    let waiting: f64 = waiting.sum();
    let outbox = snapshot.services.iter().filter_map(|it| it.outbox_age());
    let outbox = outbox.fold(0.0, f64::max);
    let is_late = outbox > OUTBOX_SECONDS_MAX;
    let hint = match is_late {
        true => format!("and an outbox is {} old", format::span(outbox)),
        false => "wait for an operator".to_string(),
    };
    Headline {
        name: "Dead letters",
        value: format::count(waiting),
        hint,
        is_bad: waiting > 0.0 || is_late,
        link: Some("/dead-letters"),
    }
}
