//! The audit: an order's history, folded event by event, comes to where the order stands.
//!
//! A pure function that shares nothing with the handlers but the names of events. The checker holds
//! every order against it, and the order service's own tests every sequence of handlers.

use chrono::{DateTime, Utc};
use serde_json::Value;

/// A line of a history: an event, what it said, and when it was decided.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub event: &'a str,
    pub detail: &'a Value,
    pub occurred_at: DateTime<Utc>,
}

/// Where an order stands, in the words of its API.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    pub status: String,
    pub reason: Option<String>,
    pub payment: String,
    pub stock: String,
    pub ended_at: Option<DateTime<Utc>>,
}

/// Folds a history, or says which event of it could not be.
pub fn fold<'a>(history: impl IntoIterator<Item = Line<'a>>) -> Result<Standing, String> {
    let mut lines = history.into_iter();
    match lines.next() {
        Some(first) if first.event == "orders.created" => {}
        first => return Err(format!("begins with {:?}", first.map(|line| line.event))),
    }
    let mut order = Standing {
        status: "pending".into(),
        reason: None,
        payment: "waiting".into(),
        stock: "waiting".into(),
        ended_at: None,
    };
    for line in lines {
        let before = order.clone();
        if !order.hears(&line) {
            return Err(format!("{} cannot come when it is {before:?}", line.event));
        }
    }
    Ok(order)
}

impl Standing {
    /// False for what can't be.
    fn hears(&mut self, line: &Line<'_>) -> bool {
        let undone_of_nothing = line.detail["amount_cents"].is_null();
        let released_nothing = line.detail["lines"].as_array().is_none_or(Vec::is_empty);
        let cancelled = self.status == "cancelled";
        match line.event {
            "payments.verified" => {
                climb(&mut self.payment, "verified", &["waiting"], &["refunded"])
            }
            "payments.declined" => climb(&mut self.payment, "declined", &["waiting"], &[]),
            "payments.refunded" if undone_of_nothing => {
                cancelled && climb(&mut self.payment, "void", &["waiting"], &[])
            }
            "payments.refunded" => {
                cancelled && climb(&mut self.payment, "refunded", &["waiting", "verified"], &[])
            }
            "stock.reserved" => climb(&mut self.stock, "reserved", &["waiting"], &["released"]),
            "stock.rejected" => climb(&mut self.stock, "rejected", &["waiting"], &[]),
            "stock.released" if released_nothing => {
                cancelled && climb(&mut self.stock, "void", &["waiting"], &[])
            }
            "stock.released" => {
                cancelled && climb(&mut self.stock, "released", &["waiting", "reserved"], &[])
            }
            "orders.confirmed" => {
                let both = self.payment == "verified" && self.stock == "reserved";
                both && self.ends("confirmed", None, line.occurred_at)
            }
            "orders.cancelled" => match line.detail["reason"].as_str() {
                Some(reason) => self.ends("cancelled", Some(reason), line.occurred_at),
                None => false,
            },
            _ => false,
        }
    }

    fn ends(&mut self, status: &str, reason: Option<&str>, at: DateTime<Utc>) -> bool {
        let pending = self.status == "pending";
        self.status = status.into();
        self.reason = reason.map(str::to_string);
        self.ended_at = Some(at);
        pending
    }
}

/// Moves a leg up from where it may be; it stays where it is already there or above.
fn climb(leg: &mut String, to: &str, from: &[&str], above: &[&str]) -> bool {
    if from.contains(&leg.as_str()) {
        *leg = to.into();
        return true;
    }
    leg == to || above.contains(&leg.as_str())
}
