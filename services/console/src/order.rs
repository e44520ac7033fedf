//! An order, as its service shows it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use events::participants::{Answers, WAITING, leg_state, participants};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::format;

/// The service that decides orders.
pub const DECIDER: &str = "order";

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Order {
    pub order_id: String,
    pub customer_id: String,
    pub status: String,
    pub reason: Option<String>,
    #[serde(flatten)]
    pub legs: Legs,
    pub total_cents: i64,
    pub currency: String,
    pub lines: Vec<OrderLine>,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct OrderLine {
    pub sku: String,
    pub quantity: i64,
    pub unit_price_cents: i64,
}

/// The fields of an order that are none of the others. Each participant that the order asks has its state there.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Legs(HashMap<String, Value>);

impl Legs {
    /// Each participant with its state; a dash if the order does not ask it.
    pub fn states(&self) -> impl Iterator<Item = (Answers, &str)> {
        let state = |name: &str| self.0.get(name).and_then(Value::as_str).unwrap_or("–");
        participants().into_iter().map(move |it| (it, state(it.service)))
    }
}

/// The headings of a table of orders: a column for each participant.
pub fn leg_headings() -> Markup {
    html! { @for answers in participants() { th { (title(answers.service)) } } }
}

/// A name, with a capital letter.
pub fn title(name: &str) -> String {
    name[..1].to_uppercase() + &name[1..]
}

impl Order {
    /// The total, with its currency.
    pub fn amount(&self) -> String {
        format!("{} {}", money(self.total_cents), self.currency)
    }

    /// The reason of a cancellation, in words.
    pub fn reason(&self) -> Option<String> {
        self.reason.as_ref().map(|reason| reason.replace('_', " "))
    }

    /// The services whose answer is missing, each with what it would be. After a cancellation each has to undo its
    /// part.
    pub fn missing_answers(&self) -> Vec<(&'static str, String)> {
        let missing = self.legs.states().filter_map(|(answers, leg)| {
            let (service, waits) = (answers.service, leg == WAITING);
            match &*self.status {
                "pending" if waits => {
                    Some((service, format!("the order waits for the answer of {service}")))
                }
                "cancelled" if waits || leg == leg_state(answers.accepted) => {
                    Some((service, format!("{service} has not undone its part yet")))
                }
                "cancelled" if answers.undo_refused.is_some_and(|it| leg == leg_state(it)) => {
                    Some((service, format!("{service} could not undo its part: settle it there")))
                }
                _ => None,
            }
        });
        missing.collect()
    }
}

/// Cents as whole units with two decimals.
pub fn money(cents: i64) -> String {
    format!("{}.{:02}", format::count((cents / 100) as f64), cents.unsigned_abs() % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_order_waits_for_answers_and_a_cancelled_one_for_what_is_undone() {
        let missing = |status: &str, payment: &str, stock: &str| {
            let legs = [("payment", payment), ("stock", stock)];
            let legs = legs.map(|(service, state)| (service.to_string(), state.into())).into();
            let order = Order { status: status.into(), legs: Legs(legs), ..Order::default() };
            order.missing_answers().into_iter().map(|(service, _)| service).collect::<Vec<_>>()
        };
        assert_eq!(missing("pending", "waiting", "waiting"), ["payment", "stock"]);
        assert_eq!(missing("pending", "verified", "waiting"), ["stock"]);
        assert_eq!(missing("confirmed", "verified", "reserved"), [""; 0]);
        assert_eq!(missing("cancelled", "verified", "waiting"), ["payment", "stock"]);
        assert_eq!(missing("cancelled", "refunded", "rejected"), [""; 0]);
        assert_eq!(missing("cancelled", "declined", "void"), [""; 0]);
    }

    #[test]
    fn a_leg_that_the_order_does_not_ask_is_a_dash() {
        let asks_stock = r#"{"payment": null, "stock": "waiting", "status": "pending"}"#;
        let legs: Legs = serde_json::from_str(asks_stock).unwrap();
        let states: Vec<&str> = legs.states().map(|(_, state)| state).collect();
        assert_eq!(states[..2], ["–", "waiting"]);
        assert!(leg_headings().into_string().starts_with("<th>Payment</th><th>Stock</th>"));
    }

    #[test]
    fn amounts_have_two_decimals() {
        assert_eq!([0, 5, 390, 1_234_567].map(money), ["0.00", "0.05", "3.90", "12,345.67"]);
    }
}
