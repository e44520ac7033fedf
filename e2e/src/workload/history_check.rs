//! I1 and I2: whether the responses that clients received agree with the stored orders.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{I1, I2, I13};
use crate::client::client_history::{ClientHistory, FinalOutcome};
use crate::client::http_client::Client;
use crate::client::order::{LineRequest, OrderLine};
use crate::client::outcome::Outcome;

/// An order in the order service's database.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredOrder {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub lines: Vec<LineRequest>,
}

/// Every order of the customers of a load. They place no other orders, so each must be one whose
/// acceptance its client received, or whose outcome is unknown.
pub async fn find_stored_orders(
    client: &Client,
    histories: &[ClientHistory],
) -> Result<Vec<StoredOrder>> {
    let customers: HashSet<Uuid> =
        histories.iter().map(|history| history.plan.customer_id).collect();
    let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
    let rows: Vec<(Uuid, Uuid, sqlx::types::Json<Vec<OrderLine>>)> = sqlx::query_as(
        "select order_id, customer_id, lines from orders where customer_id = any($1)",
    )
    .bind(Vec::from_iter(customers))
    .fetch_all(&mut db)
    .await
    .context("the orders of the load cannot be read")?;
    let line_request = |line: OrderLine| LineRequest { sku: line.sku, quantity: line.quantity };
    let stored = rows.into_iter().map(|(order_id, customer_id, lines)| StoredOrder {
        order_id,
        customer_id,
        lines: lines.0.into_iter().map(line_request).collect(),
    });
    Ok(stored.collect())
}

/// Checks that the responses to clients are true: every acknowledged order is stored, no refused
/// order is stored, and no order is stored twice.
pub fn check(histories: &[ClientHistory], stored: &[StoredOrder], findings: &mut Findings) {
    let there: HashSet<Uuid> = stored.iter().map(|order| order.order_id).collect();
    let mut known: HashMap<Uuid, &str> = HashMap::new();
    let mut requests: HashMap<OrderContent<'_>, RequestOutcomes<'_>> = HashMap::new();
    for history in histories {
        let outcomes = requests
            .entry(order_content(history.plan.customer_id, &history.plan.lines))
            .or_default();
        match history.final_outcome() {
            FinalOutcome::Accepted(answer) => {
                findings.unless(history.order().is_some(), I1, "unreadable", || {
                    format!("key {} got the response {answer}", history.plan.key)
                });
                for order in history.acknowledged_orders() {
                    let own = *known.entry(order.order_id).or_insert(&history.plan.key);
                    findings.unless(own == history.plan.key, I2, "shared", || {
                        format!(
                            "{} was acknowledged to keys {own} and {}",
                            order.order_id, history.plan.key
                        )
                    });
                    findings.unless(there.contains(&order.order_id), I1, "lost", || {
                        format!("{} was acknowledged with key {}", order.order_id, history.plan.key)
                    });
                }
                outcomes.accepted.push(&history.plan.key);
            }
            FinalOutcome::Refused(answer) => {
                let refusal = (history.plan.key.as_str(), answer.status);
                outcomes.refused.push(refusal);
            }
            FinalOutcome::Unsettled => outcomes.unknown += 1,
        }
        check_conflicting(history, findings);
    }
    for order in stored.iter().filter(|order| !known.contains_key(&order.order_id)) {
        let id = order.order_id;
        let Some(outcomes) = requests.get_mut(&order_content(order.customer_id, &order.lines))
        else {
            findings.add(I2, "key reused", || {
                format!("{id} is the order of a second request with a used key")
            });
            continue;
        };
        if outcomes.unknown > 0 {
            outcomes.unknown -= 1;
        } else if let Some(key) = outcomes.accepted.first() {
            findings.add(I2, "twice", || {
                format!("no client received {id}, which was requested with a key such as {key}")
            });
        } else {
            findings.add(I1, "refused", || {
                format!("{id} is stored, but its request was refused: {:?}", outcomes.refused)
            });
        }
    }
}

/// The outcomes of all clients with the same request. Orders have no keys, so the orders of two
/// such clients cannot be distinguished; only their number can be checked.
#[derive(Default)]
struct RequestOutcomes<'a> {
    accepted: Vec<&'a str>,
    refused: Vec<(&'a str, u16)>,
    unknown: u64,
}

/// The customer, and the quantity of each item.
type OrderContent<'a> = (Uuid, Vec<(&'a str, i64)>);

fn order_content(customer_id: Uuid, lines: &[LineRequest]) -> OrderContent<'_> {
    let lines: BTreeMap<&str, i64> =
        lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect();
    (customer_id, lines.into_iter().collect())
}

/// A different request with an accepted key must be refused for that reason.
fn check_conflicting(history: &ClientHistory, findings: &mut Findings) {
    let key = &history.plan.key;
    match &history.conflicting {
        Some(Outcome::Ok(answer)) => {
            findings.add(I2, "key reused", || {
                format!("key {key} with another request was accepted: {answer}")
            });
        }
        Some(Outcome::Refused(answer)) if answer.status != 503 => {
            let is_reuse = answer.status == 422
                && answer.problem_type().as_deref() == Some("idempotency-key-reused");
            findings.unless(is_reuse, I2, "key reused", || {
                format!("key {key} with another request got the response {answer}")
            });
        }
        Some(unsettled @ (Outcome::Refused(_) | Outcome::Unknown(_))) => {
            findings.add(I13, "unsettled", || {
                format!("key {key} with another request: {unsettled} until the end")
            })
        }
        Some(Outcome::Failed(_)) | None => {}
    }
}
