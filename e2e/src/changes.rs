//! What must hold of every single change that a database wrote down (see [`crate::witness`]), not of
//! the end alone: what is terminal stays, legs only climb, nothing is negative at any time, and in
//! each transaction as much moved as the answers that it recorded come to.

use std::collections::HashMap;

use crate::facts::Line;
use crate::findings::Findings;
use crate::invariants::Invariant::{I3, I5, I6, I7};

/// A row as a transaction left it; nothing where it was deleted. `tx` 0 was there before.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Change {
    pub tx: i64,
    pub what: String,
    pub key: String,
    pub became: Option<Vec<Option<String>>>,
}

/// Every word that a state is told by, so that a row's are kept in few bytes.
const WORDS: [&str; 12] = [
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

type Words = [&'static str; 3];

/// Goes through the changes of one database, in the order in which each row had them.
#[derive(Default)]
pub struct Changes {
    count: u64,
    /// Of orders, payments and reservations, by table and key.
    states: HashMap<(&'static str, String), Words>,
    /// Of accounts what was taken, of items what is reserved.
    held: HashMap<String, i64>,
    /// By transaction and account or item: what moved, less what that transaction's answers explain.
    /// What comes to nothing is forgotten.
    unexplained: HashMap<(i64, String), i64>,
}

impl Changes {
    pub fn next(&mut self, change: &Change, findings: &mut Findings) {
        let Change { tx, what, key, became } = change;
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
        match what.as_str() {
            "orders" => self.order(*tx, key, [column(0), column(1), column(2)].map(word), findings),
            "payments" => {
                let was = self.answered("payments", *tx, key, word(column(0)), findings);
                if *tx != 0 {
                    let taken = times(was, word(column(0)), ["verified", "refunded"]) * number(2);
                    self.explain(*tx, column(1), taken);
                }
            }
            "reservations" => {
                let was = self.answered("reservations", *tx, key, word(column(0)), findings);
                let times = times(was, word(column(0)), ["reserved", "released"]);
                let lines: Vec<Line> = serde_json::from_str(column(1)).unwrap_or_default();
                for line in lines.iter().filter(|_| *tx != 0) {
                    self.explain(*tx, &line.sku, times * i64::from(line.quantity));
                }
            }
            "accounts" | "items" => {
                let negative = number(0) < 0 || number(1) < 0;
                let violates = if what == "accounts" { I5 } else { I6 };
                findings.unless(!negative, violates, "negative", || {
                    format!("{what} {key} had {} and {} in transaction {tx}", number(0), number(1))
                });
                let was = self.held.insert(key.clone(), number(1)).unwrap_or_default();
                if *tx != 0 {
                    self.explain(*tx, key, was - number(1));
                }
            }
            _ => {}
        }
    }

    /// What moved without an answer that says so. Answers how many changes there were.
    pub fn end(self, findings: &mut Findings) -> u64 {
        let mut unexplained: Vec<_> = self.unexplained.into_iter().collect();
        unexplained.sort_unstable();
        for ((tx, whose), amount) in unexplained {
            findings.add(I7, "effect", || {
                format!("{whose}: transaction {tx} moved {} that no answer of it explains", -amount)
            });
        }
        self.count
    }

    fn order(&mut self, tx: i64, key: &str, now: Words, findings: &mut Findings) {
        let was = self.states.insert(("orders", key.to_string()), now);
        let Some(was) = was else {
            let is_new = now == ["pending", "waiting", "waiting"] || tx == 0;
            return findings.unless(is_new, I3, "changed", || {
                format!("{key} began as {} / {} / {}", now[0], now[1], now[2])
            });
        };
        findings.unless(was[0] == now[0] || was[0] == "pending", I3, "changed", || {
            format!("{key} had ended {}, and became {}", was[0], now[0])
        });
        for (leg, was, now) in [("payment", was[1], now[1]), ("stock", was[2], now[2])] {
            findings.unless(climbs(was, now), I3, "fell", || {
                format!("{key}: {leg} was {was}, and became {now}")
            });
        }
    }

    /// An answer is given once, and undone once if it was a yes. Answers what it was before.
    fn answered(
        &mut self,
        what: &'static str,
        tx: i64,
        key: &str,
        now: &'static str,
        findings: &mut Findings,
    ) -> &'static str {
        let was = self.states.insert((what, key.to_string()), [now, "", ""]);
        let was = was.map_or("", |[was, ..]| was);
        // One that came with its cancellation, in one batch, is undone from the beginning.
        let once = was.is_empty() || was != now && was != "waiting" && climbs(was, now);
        findings.unless(once, I7, "again", || {
            format!("{what} {key} was {was:?}, and became {now} in transaction {tx}")
        });
        was
    }

    fn explain(&mut self, tx: i64, whose: &str, amount: i64) {
        let place = (tx, whose.to_string());
        let sum = self.unexplained.remove(&place).unwrap_or_default() + amount;
        if sum != 0 {
            self.unexplained.insert(place, sum);
        }
    }
}

/// How often a change takes what its row is about: once, not at all, or once back.
fn times(was: &str, now: &str, [yes, undone]: [&str; 2]) -> i64 {
    i64::from(was != yes && now == yes) - i64::from(was == yes && now == undone)
}

/// waiting < verified < refunded, waiting < declined, waiting < void; likewise for stock.
fn climbs(was: &str, now: &str) -> bool {
    was == now
        || was == "waiting"
        || (was, now) == ("verified", "refunded")
        || (was, now) == ("reserved", "released")
}

fn word(text: &str) -> &'static str {
    WORDS.into_iter().find(|word| *word == text).unwrap_or("unknown")
}
