//! The checks of every single change in the change log (see `change_log.rs`), not only of the end:
//! a terminal state stays, legs only advance, no balance is negative at any time, and the amounts
//! moved in a transaction equal those of the responses that it recorded.

use std::collections::{HashMap, HashSet};

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{I3, I5, I6, I7};
use crate::checker::rows::ReservationLine;

/// A row as a transaction left it; no values if it was deleted. `tx` is 0 for a row that existed
/// before the log.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct RowChange {
    pub tx: i64,
    pub table_name: String,
    pub key: String,
    pub new_values: Option<Vec<Option<String>>>,
}

/// The states by name, so that a row is kept in few bytes.
const STATES: [&str; 12] = [
    "pending",
    "confirmed",
    "cancelled",
    "waiting",
    "verified",
    "declined",
    "refunded",
    "reserved",
    "rejected",
    "released",
    "void",
    "",
];

/// What payment and stock take something with.
const APPROVALS: [&str; 2] = ["verified", "reserved"];

type States = [&'static str; 3];

/// Checks the changes of one database, in the order in which each row had them.
#[derive(Default)]
pub struct TransitionCheck {
    count: u64,
    /// The last state of orders, payments and reservations, by table and key.
    states: HashMap<(&'static str, String), States>,
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
        let Some(became) = became else {
            let violates = match what.as_str() {
                "orders" => I3,
                "payments" | "accounts" => I5,
                _ => I6,
            };
            return findings.add(violates, "deleted", || format!("{what} {key} was deleted"));
        };
        let column = |nth: usize| became.get(nth).and_then(Option::as_deref).unwrap_or_default();
        let number = |nth: usize| column(nth).parse::<i64>().unwrap_or_default();
        let is_erasure = self.is_erasure(what, key, [column(0), column(1)]);
        match what.as_str() {
            "orders" => {
                self.check_order(*tx, key, [column(0), column(1), column(2)].map(intern), findings)
            }
            "payments" if is_erasure => {}
            "payments" => {
                let moved = [(column(1).to_string(), number(2))];
                self.check_response("payments", change, intern(column(0)), moved, findings);
            }
            "reservations" => {
                let lines: Vec<ReservationLine> =
                    serde_json::from_str(column(1)).unwrap_or_default();
                let moved = lines.into_iter().map(|line| (line.sku, i64::from(line.quantity)));
                self.check_response("reservations", change, intern(column(0)), moved, findings);
            }
            "accounts" | "items" => {
                let negative = number(0) < 0 || number(1) < 0;
                let violates = if what == "accounts" { I5 } else { I6 };
                findings.unless(!negative, violates, "negative", || {
                    format!("{what} {key} had {} and {} in transaction {tx}", number(0), number(1))
                });
                let was = self.amounts.insert(key.clone(), number(1)).unwrap_or_default();
                if *tx != 0 && !is_erasure {
                    self.record_movement(*tx, key, was - number(1));
                }
            }
            _ => {}
        }
    }

    /// Whether a change is an erasure: it changes who paid, and neither state nor amount, or it moves an account to the
    /// replacement, with all its money.
    fn is_erasure(&self, table: &str, key: &str, [state, customer_id]: [&str; 2]) -> bool {
        match table {
            "payments" => {
                let was = self.states.get(&("payments", key.to_string()));
                self.replacements.contains(customer_id) && was == Some(&[intern(state), "", ""])
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

    fn check_order(&mut self, tx: i64, key: &str, now: States, findings: &mut Findings) {
        let was = self.states.insert(("orders", key.to_string()), now);
        let Some(was) = was else {
            let is_new = now == ["pending", "waiting", "waiting"] || tx == 0;
            return findings.unless(is_new, I3, "changed", || {
                format!("{key} was created as {} / {} / {}", now[0], now[1], now[2])
            });
        };
        findings.unless(was[0] == now[0] || was[0] == "pending", I3, "changed", || {
            format!("{key} had ended as {}, and became {}", was[0], now[0])
        });
        for (leg, was, now) in [("payment", was[1], now[1]), ("stock", was[2], now[2])] {
            findings.unless(is_forward(was, now), I3, "fell", || {
                format!("{key}: {leg} was {was}, and became {now}")
            });
        }
    }

    /// A response is given once, and compensated once if it was an approval. `moved` is what an approval takes, of each
    /// account or item, and its compensation gives back.
    fn check_response(
        &mut self,
        table: &'static str,
        RowChange { tx, key, .. }: &RowChange,
        now: &'static str,
        moved: impl IntoIterator<Item = (String, i64)>,
        findings: &mut Findings,
    ) {
        let was = self.states.insert((table, key.clone()), [now, "", ""]);
        let was = was.map_or("", |[was, ..]| was);
        // An order that arrived in one batch with its cancellation is compensated from the
        // beginning.
        let once = was.is_empty() || was != now && was != "waiting" && is_forward(was, now);
        findings.unless(once, I7, "again", || {
            format!("{table} {key} was {was:?}, and became {now} in transaction {tx}")
        });
        let (had_taken, has_taken) = (APPROVALS.contains(&was), APPROVALS.contains(&now));
        let is_undone = had_taken && ["refunded", "released"].contains(&now);
        let times = i64::from(has_taken && was != now) - i64::from(is_undone);
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

/// waiting < verified < refunded, waiting < declined, waiting < void; likewise for stock.
fn is_forward(was: &str, now: &str) -> bool {
    let undone = [("verified", "refunded"), ("reserved", "released")];
    was == now || was == "waiting" || undone.contains(&(was, now))
}

fn intern(text: &str) -> &'static str {
    STATES.into_iter().find(|word| *word == text).unwrap_or("unknown")
}
