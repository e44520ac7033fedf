//! What one client was told about its order, and whether that is true of what is there.
//! An outcome is ok, refused or unknown. Whoever is left in doubt asks again with the same key until
//! told the truth, and all that was ever told for one key must agree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::client::{Client, Order, Wish};
use crate::facts::OrderLine;
use crate::findings::Findings;
use crate::invariants::Invariant::{I1, I2, I13};
use crate::outcome::{Answer, Outcome};
use crate::plan::Plan;

/// All that one client was told about its order.
#[derive(Clone, Debug)]
pub struct Told {
    pub plan: Plan,
    pub tries: Vec<Try>,
    /// What another request with the same key was told, where the client sent one.
    pub other: Option<Outcome>,
    pub cancel: Cancel,
}

/// One POST, always with the same key and the same body.
#[derive(Clone, Debug)]
pub struct Try {
    pub outcome: Outcome,
    /// From the beginning of the load.
    pub answered_at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cancel {
    None,
    Accepted,
    TooLate,
    Unknown,
    /// With a status that is no answer to it.
    Denied(u16),
}

/// What a client can be sure of in the end.
#[derive(Debug, PartialEq)]
pub enum Truth<'a> {
    Accepted(&'a Answer),
    Refused(&'a Answer),
    Unsettled,
}

impl Told {
    pub fn new(plan: &Plan, tries: Vec<Try>) -> Told {
        Told { plan: plan.clone(), tries, other: None, cancel: Cancel::None }
    }

    pub fn is_settled(&self) -> bool {
        self.truth() != Truth::Unsettled
    }

    pub fn order(&self) -> Option<Order> {
        match self.truth() {
            Truth::Accepted(answer) => answer.json().ok(),
            _ => None,
        }
    }

    /// Every order that was acknowledged: one, if keys are worth anything.
    fn orders(&self) -> impl Iterator<Item = Order> {
        self.yeses().into_iter().filter_map(|answer| answer.json().ok())
    }

    /// One yes is the truth. A 503 says that this very try stored nothing: that settles nothing
    /// about another one which had no answer.
    pub fn truth(&self) -> Truth<'_> {
        let (mut refused, mut doubtful) = (None, false);
        for Try { outcome, .. } in &self.tries {
            match outcome {
                Outcome::Ok(answer) => return Truth::Accepted(answer),
                Outcome::Refused(answer) if answer.status != 503 => {
                    return Truth::Refused(answer);
                }
                Outcome::Refused(answer) => refused = Some(answer),
                Outcome::Unknown(_) | Outcome::Failed(_) => doubtful = true,
            }
        }
        match refused {
            Some(answer) if !doubtful => Truth::Refused(answer),
            _ => Truth::Unsettled,
        }
    }

    /// Every yes that was told, and what it said.
    pub fn yeses(&self) -> Vec<&Answer> {
        let answers = self.tries.iter().filter_map(|told| match &told.outcome {
            Outcome::Ok(answer) => Some(answer),
            _ => None,
        });
        answers.collect()
    }

    /// Every no that was told for good. A 503 only says that this very try stored nothing.
    fn noes(&self) -> Vec<&Answer> {
        let answers = self.tries.iter().filter_map(|told| match &told.outcome {
            Outcome::Refused(answer) if answer.status != 503 => Some(answer),
            _ => None,
        });
        answers.collect()
    }

    /// What was told against the first yes: another yes, or a no. Neither may be.
    pub fn contradiction(&self) -> Option<(&Answer, &Answer)> {
        let yeses = self.yeses();
        let first = yeses.first().copied()?;
        let other = yeses.into_iter().find(|answer| *answer != first);
        Some((first, other.or(self.noes().first().copied())?))
    }

    pub fn first_doubt(&self) -> Option<&Outcome> {
        let doubtful =
            |told: &&Try| matches!(told.outcome, Outcome::Unknown(_) | Outcome::Failed(_));
        Some(&self.tries.iter().find(doubtful)?.outcome)
    }

    /// An answer that the service ought never to give, to any of its requests.
    pub fn failure(&self) -> Option<&Answer> {
        let outcomes = self.tries.iter().map(|told| &told.outcome).chain(&self.other);
        outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Failed(answer) => Some(answer),
            _ => None,
        })
    }

    pub fn latency(&self) -> Duration {
        self.tries.first().map_or(Duration::ZERO, |first| first.answered_at - self.plan.at)
    }

    pub fn accepted_at(&self) -> Option<Duration> {
        let yes = self.tries.iter().filter(|told| matches!(told.outcome, Outcome::Ok(_)));
        yes.map(|told| told.answered_at).min()
    }
}

/// An order as it lies in the order service's database.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub lines: Vec<Wish>,
}

/// Every order of the customers of a load. They order nothing else, so each has to be one that a
/// client was told of, or may not have been told of.
pub async fn stored(client: &Client, told: &[Told]) -> Result<Vec<Stored>> {
    let customers: HashSet<Uuid> = told.iter().map(|told| told.plan.customer_id).collect();
    let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
    let rows: Vec<(Uuid, Uuid, sqlx::types::Json<Vec<OrderLine>>)> = sqlx::query_as(
        "select order_id, customer_id, lines from orders where customer_id = any($1)",
    )
    .bind(Vec::from_iter(customers))
    .fetch_all(&mut db)
    .await
    .context("what became of the orders cannot be read")?;
    let wish = |line: OrderLine| Wish { sku: line.sku, quantity: line.quantity.into() };
    let stored = rows.into_iter().map(|(order_id, customer_id, lines)| Stored {
        order_id,
        customer_id,
        lines: lines.0.into_iter().map(wish).collect(),
    });
    Ok(stored.collect())
}

/// Whether what clients were told is true: what was acknowledged is there, what was refused is not,
/// and nothing is there twice.
pub fn check(told: &[Told], stored: &[Stored], findings: &mut Findings) {
    let there: HashSet<Uuid> = stored.iter().map(|order| order.order_id).collect();
    let mut known: HashMap<Uuid, &str> = HashMap::new();
    let mut wishes: HashMap<Wished<'_>, Wishes<'_>> = HashMap::new();
    for told in told {
        let of_wish = wishes.entry(wish_of(told.plan.customer_id, &told.plan.lines)).or_default();
        match told.truth() {
            Truth::Accepted(answer) => {
                findings.unless(told.order().is_some(), I1, "unreadable", || {
                    format!("key {} was answered {answer}", told.plan.key)
                });
                for order in told.orders() {
                    let own = *known.entry(order.order_id).or_insert(&told.plan.key);
                    findings.unless(own == told.plan.key, I2, "shared", || {
                        format!("{} was told to keys {own} and {}", order.order_id, told.plan.key)
                    });
                    findings.unless(there.contains(&order.order_id), I1, "lost", || {
                        format!("{} was acknowledged with key {}", order.order_id, told.plan.key)
                    });
                }
                of_wish.accepted.push(&told.plan.key);
            }
            Truth::Refused(answer) => {
                let refusal = (told.plan.key.as_str(), answer.status);
                of_wish.refused.push(refusal);
            }
            Truth::Unsettled => of_wish.in_doubt += 1,
        }
        check_other(told, findings);
    }
    for order in stored.iter().filter(|order| !known.contains_key(&order.order_id)) {
        let id = order.order_id;
        let Some(of_wish) = wishes.get_mut(&wish_of(order.customer_id, &order.lines)) else {
            let which = "whose key came before with another";
            findings.add(I2, "other request", || format!("{id} is a request {which}"));
            continue;
        };
        if of_wish.in_doubt > 0 {
            of_wish.in_doubt -= 1;
        } else if let Some(key) = of_wish.accepted.first() {
            findings.add(I2, "twice", || {
                format!("nobody was told of {id}, which was asked for with a key such as {key}")
            });
        } else {
            findings.add(I1, "refused", || {
                format!("{id} is there; who asked for it was refused: {:?}", of_wish.refused)
            });
        }
    }
}

/// What the clients who wished for the same were told. Orders bear no keys, so of two such clients'
/// orders nobody can say whose is whose; how many there may be can be said.
#[derive(Default)]
struct Wishes<'a> {
    accepted: Vec<&'a str>,
    refused: Vec<(&'a str, u16)>,
    in_doubt: u64,
}

/// Who wished for how much of what.
type Wished<'a> = (Uuid, Vec<(&'a str, i64)>);

fn wish_of(customer_id: Uuid, lines: &[Wish]) -> Wished<'_> {
    let lines: BTreeMap<&str, i64> =
        lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect();
    (customer_id, lines.into_iter().collect())
}

/// Another request under a key that was accepted is refused for that reason.
fn check_other(told: &Told, findings: &mut Findings) {
    let key = &told.plan.key;
    match &told.other {
        Some(Outcome::Ok(answer)) => {
            findings.add(I2, "other request", || format!("key {key} took another: {answer}"));
        }
        Some(Outcome::Refused(answer)) if answer.status != 503 => {
            let says_so = answer.status == 422
                && answer.problem().as_deref() == Some("idempotency-key-reused");
            findings.unless(says_so, I2, "other request", || {
                format!("key {key} with another request was answered {answer}")
            });
        }
        Some(unsettled @ (Outcome::Refused(_) | Outcome::Unknown(_))) => {
            findings.add(I13, "unsettled", || {
                format!("key {key} with another request: {unsettled}, until the end")
            })
        }
        Some(Outcome::Failed(_)) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status, location: None, content_type: String::new(), body: Vec::new() }
    }

    fn told(outcomes: &[Outcome]) -> Told {
        let plan = Plan {
            at: Duration::ZERO,
            key: "key".to_string(),
            customer_id: Uuid::now_v7(),
            lines: Vec::new(),
            cancel_after: None,
            repeated: false,
            confused: false,
            hung_up_after: None,
        };
        let tries = outcomes
            .iter()
            .map(|outcome| Try { outcome: outcome.clone(), answered_at: Duration::ZERO });
        Told::new(&plan, tries.collect())
    }

    #[test]
    fn only_a_yes_or_a_no_for_good_settles_a_doubt() {
        let (ok, later) = (Outcome::Ok(answer(201)), Outcome::Refused(answer(503)));
        let (no, doubt) = (Outcome::Refused(answer(422)), Outcome::Unknown("cut".to_string()));
        let settled = |outcomes: &[&Outcome]| {
            let outcomes: Vec<Outcome> = outcomes.iter().map(|&outcome| outcome.clone()).collect();
            told(&outcomes).is_settled()
        };
        assert!(settled(&[&ok]) && settled(&[&no]) && settled(&[&later]));
        assert!(!settled(&[&doubt]));
        assert!(!settled(&[&doubt, &later]), "a 503 says nothing of the try before it");
        assert!(settled(&[&doubt, &later, &ok]) && settled(&[&doubt, &no]));
        assert!(settled(&[&doubt, &ok, &doubt]), "a yes stays true");
    }
}
