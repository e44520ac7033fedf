//! The audit: the history of an order, folded event by event, must yield its current state (I3).
//!
//! This is a pure function that shares only the names of events with the handlers. The checker
//! applies it to every order. The tests of the order service include this file by its path and
//! apply it to every sequence of handlers, so it imports nothing of this crate.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use events::participants::{Answers, VOID, WAITING, leg_state, participants};
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
    /// The states of the participants that it asks.
    pub legs: BTreeMap<&'static str, String>,
    pub ended_at: Option<DateTime<Utc>>,
}

/// Folds the history of an order that asks these participants. The error names the event that is impossible at its
/// position.
pub fn fold<'a>(
    asked: impl IntoIterator<Item = &'static str>,
    history: impl IntoIterator<Item = HistoryEntry<'a>>,
) -> Result<OrderState, String> {
    let mut lines = history.into_iter();
    match lines.next() {
        Some(first) if first.event == "orders.created" => {}
        first => return Err(format!("begins with {:?}", first.map(|line| line.event))),
    }
    let mut order = OrderState {
        status: "pending".into(),
        reason: None,
        legs: asked.into_iter().map(|service| (service, WAITING.into())).collect(),
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
        match line.event {
            "orders.confirmed" => {
                let is_accepted = |answers: &Answers| {
                    let leg = self.legs.get(answers.service);
                    leg.is_none_or(|leg| leg == leg_state(answers.accepted))
                };
                participants().iter().all(is_accepted)
                    && self.end("confirmed", None, line.occurred_at)
            }
            "orders.cancelled" => match line.detail["reason"].as_str() {
                Some(reason) => self.end("cancelled", Some(reason), line.occurred_at),
                None => false,
            },
            _ => participants().iter().any(|answers| self.answer(answers, line)),
        }
    }

    /// An answer moves the leg of its participant. Where the order does not ask this one, it moves nothing.
    fn answer(&mut self, answers: &Answers, line: &HistoryEntry<'_>) -> bool {
        let Answers { service, accepted, refused, undone, undo_refused } = *answers;
        let (yes, compensated) = (leg_state(accepted), leg_state(undone));
        let kept = undo_refused.map_or(yes, leg_state);
        let cancelled = self.status == "cancelled";
        let mut none = WAITING.to_string();
        let leg = self.legs.get_mut(service).unwrap_or(&mut none);
        match line.event {
            event if event == accepted.name => advance(leg, yes, &[WAITING], &[kept, compensated]),
            event if event == refused.name => advance(leg, leg_state(refused), &[WAITING], &[]),
            event if undo_refused.is_some_and(|topic| topic.name == event) => {
                cancelled && advance(leg, kept, &[WAITING, yes], &[compensated])
            }
            event if event != undone.name => false,
            _ if names_nothing(line.detail) => cancelled && advance(leg, VOID, &[WAITING], &[]),
            _ => cancelled && advance(leg, compensated, &[WAITING, yes, kept], &[]),
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

/// Whether an answer names nothing that was undone: it has only nulls and empty lists beside the order and the time.
fn names_nothing(detail: &Value) -> bool {
    let fields = detail.as_object().into_iter().flatten();
    let mut others = fields.filter(|(name, _)| !["order_id", "occurred_at"].contains(&&***name));
    others.all(|(_, value)| value.is_null() || value.as_array().is_some_and(Vec::is_empty))
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
