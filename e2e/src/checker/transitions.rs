//! The checks of every single change in the change log (see `change_log.rs`), not only of the end:
//! a terminal state stays, legs only advance, no balance is negative at any time, and the amounts
//! moved in a transaction equal those of the responses that it recorded.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use events::participants::{Answers, VOID, WAITING, leg_state, participants};

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{I3, I5, I6, I7};
use crate::checker::rows::TABLES;
use crate::client::order::LineRequest;

/// A row as a transaction left it; no values if it was deleted. `tx` is 0 for a row that existed
/// before the log.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct RowChange {
    pub tx: i64,
    pub table_name: String,
    pub key: String,
    pub new_values: Option<Vec<Option<String>>>,
}

/// Checks the changes of one database, in the order in which each row had them.
#[derive(Default)]
pub struct TransitionCheck {
    count: u64,
    /// By table and key: the last status of an order with its legs, or the last state of a part. The leg of a participant
    /// that an order does not ask is empty.
    states: HashMap<(&'static str, String), Vec<&'static str>>,
    /// The last amount taken of an account and reserved of an item.
    amounts: HashMap<String, i64>,
    /// By transaction and account or item: the amount moved, less the amount of that transaction's
    /// responses. Zeros are removed.
    unexplained: HashMap<(i64, String), i64>,
    /// The replacements of erased customers.
    replacements: HashSet<String>,
}

impl TransitionCheck {
    /// A check of changes among which are erasures with these replacements.
    pub fn new(replacements: HashSet<String>) -> TransitionCheck {
        TransitionCheck { replacements, ..TransitionCheck::default() }
    }

    pub fn check_change(&mut self, change: &RowChange, findings: &mut Findings) {
        let RowChange { tx, table_name: what, key, new_values: became } = change;
        self.count += u64::from(*tx != 0);
        let violates = match what.as_str() {
            "payments" | "accounts" => I5,
            "reservations" | "items" => I6,
            _ => I3,
        };
        let Some(became) = became else {
            return findings.add(violates, "deleted", || format!("{what} {key} was deleted"));
        };
        let column = |nth: usize| became.get(nth).and_then(Option::as_deref).unwrap_or_default();
        let number = |nth: usize| column(nth).parse::<i64>().unwrap_or_default();
        let is_erasure = self.is_erasure(what, key, [column(0), column(1)]);
        match what.as_str() {
            "orders" => {
                let states = became.iter().map(|it| intern(it.as_deref().unwrap_or_default()));
                self.check_order(*tx, key, states.collect(), findings)
            }
            "accounts" | "items" => {
                let negative = number(0) < 0 || number(1) < 0;
                findings.unless(!negative, violates, "negative", || {
                    format!("{what} {key} had {} and {} in transaction {tx}", number(0), number(1))
                });
                let was = self.amounts.insert(key.clone(), number(1)).unwrap_or_default();
                if *tx != 0 && !is_erasure {
                    self.record_movement(*tx, key, was - number(1));
                }
            }
            _ if is_erasure => {}
            _ => {
                // What an approval takes, of each account or item.
                let moved: Vec<(String, i64)> = match what.as_str() {
                    "payments" => vec![(column(1).to_string(), number(2))],
                    "reservations" => {
                        let lines: Vec<LineRequest> =
                            serde_json::from_str(column(1)).unwrap_or_default();
                        lines.into_iter().map(|line| (line.sku, line.quantity)).collect()
                    }
                    _ => Vec::new(),
                };
                self.check_response(change, intern(column(0)), moved, findings);
            }
        }
    }

    /// Whether a change is an erasure: it changes who paid, and neither state nor amount, or it moves an account to the
    /// replacement, with all its money.
    fn is_erasure(&self, table: &str, key: &str, [state, customer_id]: [&str; 2]) -> bool {
        match table {
            "payments" => {
                let was = self.states.get(&("payments", key.to_string()));
                self.replacements.contains(customer_id) && was.is_some_and(|was| was[..] == [state])
            }
            "accounts" => self.replacements.contains(key) && !self.amounts.contains_key(key),
            _ => false,
        }
    }

    /// The amounts that moved without a response. Returns the number of changes.
    pub fn finish(self, findings: &mut Findings) -> u64 {
        let mut unexplained: Vec<_> = self.unexplained.into_iter().collect();
        unexplained.sort_unstable();
        for ((tx, key), amount) in unexplained {
            findings.add(I7, "effect", || {
                format!("{key}: transaction {tx} moved {} without a response", -amount)
            });
        }
        self.count
    }

    fn check_order(&mut self, tx: i64, key: &str, now: Vec<&'static str>, findings: &mut Findings) {
        let was = self.states.insert(("orders", key.to_string()), now.clone());
        let Some(was) = was else {
            let is_open = |leg: &&str| [WAITING, ""].contains(leg);
            let is_new = now[0] == "pending" && now[1..].iter().all(is_open);
            return findings.unless(is_new || tx == 0, I3, "changed", || {
                format!("{key} was created as {}", now.join(" / "))
            });
        };
        findings.unless(was[0] == now[0] || was[0] == "pending", I3, "changed", || {
            format!("{key} had ended as {}, and became {}", was[0], now[0])
        });
        for (answers, (was, now)) in participants().iter().zip(was[1..].iter().zip(&now[1..])) {
            findings.unless(is_forward(answers, was, now), I3, "fell", || {
                format!("{key}: {} was {was}, and became {now}", answers.service)
            });
        }
    }

    /// A response is given once, and compensated once if it was an approval. `moved` is what an approval takes, of each
    /// account or item, and its compensation gives back.
    fn check_response(
        &mut self,
        RowChange { tx, table_name, key, .. }: &RowChange,
        now: &'static str,
        moved: Vec<(String, i64)>,
        findings: &mut Findings,
    ) {
        let part = TABLES.iter().find(|(_, table, ..)| table == table_name);
        let Some((service, table, ..)) = part else { return };
        let answers = participants().into_iter().find(|answers| answers.service == *service);
        let answers = answers.expect("TABLES lists participants");
        let was = self.states.insert((*table, key.clone()), vec![now]);
        let was = was.map_or("", |was| was[0]);
        // An order that arrived in one batch with its cancellation is compensated from the
        // beginning.
        let once = was.is_empty() || was != now && was != WAITING && is_forward(&answers, was, now);
        findings.unless(once, I7, "again", || {
            format!("{table} {key} was {was:?}, and became {now} in transaction {tx}")
        });
        let [yes, undone] = [answers.accepted, answers.undone].map(leg_state);
        let times = i64::from(now == yes && was != yes) - i64::from(was == yes && now == undone);
        for (account, amount) in moved.into_iter().filter(|_| *tx != 0) {
            self.record_movement(*tx, &account, times * amount);
        }
    }

    fn record_movement(&mut self, tx: i64, key: &str, amount: i64) {
        let movement = (tx, key.to_string());
        let sum = self.unexplained.remove(&movement).unwrap_or_default() + amount;
        if sum != 0 {
            self.unexplained.insert(movement, sum);
        }
    }
}

/// waiting < accepted < undo refused < undone, waiting < refused, waiting < void.
fn is_forward(answers: &Answers, was: &str, now: &str) -> bool {
    let [yes, undone] = [answers.accepted, answers.undone].map(leg_state);
    let kept = answers.undo_refused.map_or(yes, leg_state);
    was == now
        || was == WAITING
        || [(yes, kept), (yes, undone), (kept, undone)].contains(&(was, now))
}

/// The state of this name, so that a row is kept in few bytes.
fn intern(text: &str) -> &'static str {
    static STATES: LazyLock<Vec<&str>> = LazyLock::new(|| {
        let answers = participants().into_iter().flat_map(|it| it.topics().map(leg_state));
        let others = ["pending", "confirmed", "cancelled", WAITING, VOID, ""];
        others.into_iter().chain(answers).collect()
    });
    STATES.iter().find(|word| **word == text).copied().unwrap_or("unknown")
}
