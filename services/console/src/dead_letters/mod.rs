//! The dead letters of all services: why each record could not be handled, what a discard costs, and what an operator
//! decides about it.

pub mod detail;
pub mod list;
pub mod live;
pub mod replay;
pub mod settle;

/// The states of a dead letter, as the admin port names them.
const STATES: [(&str, &str); 4] = [
    ("waiting", "that wait"),
    ("replayed", "replayed"),
    ("discarded", "discarded"),
    ("all", "in any state"),
];

/// The kinds of causes, as the admin port names them.
const KINDS: [&str; 3] = ["undecodable", "unprocessable", "handler_failed"];
