//! The dead letters of all services: why each record could not be handled, what a discard costs, and what an operator
//! decides about it.

mod detail;
mod list;
mod live;
mod replay;
mod settle;

use axum::Router;
use axum::routing::{get, post};
use serde_json::Value;

use crate::app::App;

pub use live::AttentionCache;

pub fn router() -> Router<App> {
    Router::new()
        .route("/dead-letters", get(list::show))
        .route("/dead-letters/events", get(live::follow))
        .route("/dead-letters/replay", post(replay::start))
        .route("/dead-letters/{service}/{id}", get(detail::show))
        .route("/dead-letters/{service}/{id}/replay", post(settle::replay))
        .route("/dead-letters/{service}/{id}/discard", post(settle::discard))
        .route("/dead-letters/{service}/{id}/remedy", post(settle::remedy))
}

/// The text of a field, or nothing.
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The place of a record, such as `orders.created[2]@89`.
fn position(letter: &Value) -> String {
    format!("{}[{}]@{}", text(letter, "topic"), letter["partition"], letter["offset"])
}

/// The states of a dead letter, as the admin port names them.
const STATES: [(&str, &str); 4] = [
    ("waiting", "that wait"),
    ("replayed", "replayed"),
    ("discarded", "discarded"),
    ("all", "in any state"),
];

/// The kinds of causes, as the admin port names them.
const KINDS: [&str; 3] = ["undecodable", "unprocessable", "handler_failed"];
