//! An order, as its service shows it.

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::format;

/// The service that decides orders.
pub const DECIDER: &str = "order";

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Order {
    pub order_id: String,
    pub customer_id: String,
    pub status: String,
    pub reason: Option<String>,
    pub payment: String,
    pub stock: String,
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
        let legs = [("payment", &self.payment, "verified"), ("stock", &self.stock, "reserved")];
        let missing = legs.into_iter().filter_map(|(service, leg, accepted)| {
            let waits = leg == "waiting";
            match &*self.status {
                "pending" if waits => {
                    Some((service, format!("the order waits for the answer of {service}")))
                }
                "cancelled" if waits || leg == accepted => {
                    Some((service, format!("{service} has not undone its part yet")))
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
            let [status, payment, stock] = [status, payment, stock].map(str::to_string);
            let order = Order { status, payment, stock, ..Order::default() };
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
    fn amounts_have_two_decimals() {
        assert_eq!([0, 5, 390, 1_234_567].map(money), ["0.00", "0.05", "3.90", "12,345.67"]);
    }
}
