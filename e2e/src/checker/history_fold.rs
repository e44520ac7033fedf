//! The audit: the history of an order, folded event by event, must yield its current state (I3).
//!
//! This is a pure function that shares only the names of events with the handlers. The checker
//! applies it to every order. The tests of the order service include this file by its path and
//! apply it to every sequence of handlers, so it imports nothing of this crate.

use chrono::{DateTime, Utc};
use serde_json::Value;

/// A history entry: an event, its detail and the time of its decision.
#[derive(Clone, Copy, Debug)]
pub struct HistoryEntry<'a> {
    pub event: &'a str,
    pub detail: &'a Value,
    pub occurred_at: DateTime<Utc>,
}

/// The state of an order, in the words of its API.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderState {
    pub status: String,
    pub reason: Option<String>,
    pub payment: String,
    pub stock: String,
    pub ended_at: Option<DateTime<Utc>>,
}

/// Folds a history. The error names the event that is impossible at its position.
pub fn fold<'a>(history: impl IntoIterator<Item = HistoryEntry<'a>>) -> Result<OrderState, String> {
    let mut lines = history.into_iter();
    match lines.next() {
        Some(first) if first.event == "orders.created" => {}
        first => return Err(format!("begins with {:?}", first.map(|line| line.event))),
    }
    let mut order = OrderState {
        status: "pending".into(),
        reason: None,
        payment: "waiting".into(),
        stock: "waiting".into(),
        ended_at: None,
    };
    for line in lines {
        let before = order.clone();
        if !order.apply(&line) {
            return Err(format!("{} cannot come when it is {before:?}", line.event));
        }
    }
    Ok(order)
}

impl OrderState {
    /// False for an impossible transition.
    fn apply(&mut self, line: &HistoryEntry<'_>) -> bool {
        let undone_of_nothing = line.detail["amount_cents"].is_null();
        let released_nothing = line.detail["lines"].as_array().is_none_or(Vec::is_empty);
        let cancelled = self.status == "cancelled";
        match line.event {
            "payments.verified" => {
                advance(&mut self.payment, "verified", &["waiting"], &["refunded"])
            }
            "payments.declined" => advance(&mut self.payment, "declined", &["waiting"], &[]),
            "payments.refunded" if undone_of_nothing => {
                cancelled && advance(&mut self.payment, "void", &["waiting"], &[])
            }
            "payments.refunded" => {
                cancelled && advance(&mut self.payment, "refunded", &["waiting", "verified"], &[])
            }
            "stock.reserved" => advance(&mut self.stock, "reserved", &["waiting"], &["released"]),
            "stock.rejected" => advance(&mut self.stock, "rejected", &["waiting"], &[]),
            "stock.released" if released_nothing => {
                cancelled && advance(&mut self.stock, "void", &["waiting"], &[])
            }
            "stock.released" => {
                cancelled && advance(&mut self.stock, "released", &["waiting", "reserved"], &[])
            }
            "orders.confirmed" => {
                let both = self.payment == "verified" && self.stock == "reserved";
                both && self.end("confirmed", None, line.occurred_at)
            }
            "orders.cancelled" => match line.detail["reason"].as_str() {
                Some(reason) => self.end("cancelled", Some(reason), line.occurred_at),
                None => false,
            },
            _ => false,
        }
    }

    fn end(&mut self, status: &str, reason: Option<&str>, at: DateTime<Utc>) -> bool {
        let pending = self.status == "pending";
        self.status = status.into();
        self.reason = reason.map(str::to_string);
        self.ended_at = Some(at);
        pending
    }
}

/// Moves a leg from one of the states `from` to a later one. A leg that is already there or beyond
/// stays unchanged.
fn advance(leg: &mut String, to: &str, from: &[&str], above: &[&str]) -> bool {
    if from.contains(&leg.as_str()) {
        *leg = to.into();
        return true;
    }
    leg == to || above.contains(&leg.as_str())
}
