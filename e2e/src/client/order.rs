//! An order as the order service's API shows it.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use events::participants::{Answers, WAITING, leg_state, participants};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A line of an order to be placed, or of a reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineRequest {
    pub sku: String,
    pub quantity: i64,
}

/// An order in the representation of the API.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Order {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub status: String,
    pub reason: Option<String>,
    #[serde(flatten)]
    pub legs: Legs,
    pub total_cents: i64,
    pub currency: String,
    pub lines: Vec<OrderLine>,
    pub created_at: chrono::DateTime<chrono::Utc>,
    pub ended_at: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderLine {
    pub sku: String,
    pub quantity: i64,
    pub unit_price_cents: i64,
}

/// The legs of an order: the state of each participant that it asks. In the API they are fields of the order, and null
/// where it does not ask one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "BTreeMap<String, Option<String>>")]
pub struct Legs(pub BTreeMap<&'static str, String>);

impl Legs {
    /// Whether an order with this status and these legs has ended in all services.
    pub fn have_ended(&self, status: &str) -> bool {
        participants().iter().all(|answers| {
            let (leg, yes) = (self.0.get(answers.service), leg_state(answers.accepted));
            match status {
                "confirmed" => leg.is_none_or(|leg| leg == yes),
                "cancelled" => leg.is_none_or(|leg| ![WAITING, yes].contains(&leg.as_str())),
                _ => false,
            }
        })
    }
}

/// Of the fields that are none of the others of an order. An unknown one is refused.
impl TryFrom<BTreeMap<String, Option<String>>> for Legs {
    type Error = String;

    fn try_from(mut fields: BTreeMap<String, Option<String>>) -> Result<Legs, String> {
        let leg = |it: Answers| Some((it.service, fields.remove(it.service)??));
        let legs = Legs(participants().into_iter().filter_map(leg).collect());
        let unknown = fields.into_keys().next();
        unknown.map_or(Ok(legs), |name| Err(format!("unknown field `{name}`")))
    }
}

/// `payment verified, stock waiting`
impl Display for Legs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leg = |it: Answers| Some(format!("{} {}", it.service, self.0.get(it.service)?));
        let legs: Vec<String> = participants().into_iter().filter_map(leg).collect();
        out.write_str(&legs.join(", "))
    }
}

impl Order {
    /// The state of a leg; empty if the order does not ask this participant.
    pub fn leg(&self, service: &str) -> &str {
        self.legs.0.get(service).map_or("", String::as_str)
    }

    /// Whether it has ended in all services: it is decided, and all legs have ended.
    pub fn has_ended(&self) -> bool {
        self.legs.have_ended(&self.status)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_order_has_a_leg_for_each_participant_that_it_asks_and_no_unknown_field() {
        let mut order = json!({
            "order_id": Uuid::nil(), "customer_id": Uuid::nil(), "status": "confirmed", "reason": null,
            "payment": "verified", "stock": null, "total_cents": 150, "currency": "EUR", "lines": [],
            "created_at": "2026-11-20T09:44:35Z", "ended_at": "2026-11-20T09:44:36Z",
        });
        let read: Order = serde_json::from_value(order.clone()).unwrap();
        assert_eq!((read.leg("payment"), read.leg("stock")), ("verified", ""));
        assert_eq!((read.legs.to_string(), read.has_ended()), ("payment verified".into(), true));
        order["stock"] = "waiting".into();
        assert!(!serde_json::from_value::<Order>(order.clone()).unwrap().has_ended());
        order["legs"] = json!({});
        assert!(serde_json::from_value::<Order>(order).is_err());
    }
}
