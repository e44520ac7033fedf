//! What the checker found, and how it tells people.

use std::collections::BTreeMap;
use std::time::Duration;

use events::TOPICS;

use crate::balances::{Goods, Money};
use crate::checks::Tally;
use crate::discarded::Discarded;
use crate::figures::{grouped, money};
use crate::findings::Findings;

/// What was found.
#[derive(Debug)]
pub struct Verdict {
    pub tally: Tally,
    pub money: Money,
    pub goods: Goods,
    pub records: u64,
    /// Of them, those that an operator had announced again.
    pub announced: u64,
    pub foreign: u64,
    /// Events handled, by service.
    pub handled: BTreeMap<&'static str, u64>,
    pub letters_waiting: i64,
    pub letters_replayed: u64,
    /// What the databases wrote down of their own changes, where all of them were asked to.
    pub changes: Option<u64>,
    pub discarded: Discarded,
    pub findings: Findings,
    pub took: Duration,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.findings.count() == 0
    }

    /// The figures and what is off, for people.
    pub fn lines(&self) -> Vec<String> {
        let Tally { pending, confirmed, cancelled, .. } = &self.tally;
        let cancelled_all: u64 = cancelled.values().sum();
        let by = |counts: &BTreeMap<String, u64>| {
            let counts: Vec<String> =
                counts.iter().map(|(name, count)| format!("{} {name}", grouped(*count))).collect();
            counts.join(", ")
        };
        let mut reasons = by(cancelled);
        if !reasons.is_empty() {
            reasons = format!(" ({reasons})");
        }
        let handled: Vec<String> = self
            .handled
            .iter()
            .map(|(service, count)| format!("{service} {}", grouped(*count)))
            .collect();
        let Money { deposited_cents, balance_cents, taken_cents, .. } = self.money;
        let Goods { delivered, available, reserved, .. } = self.goods;
        let mut rows = vec![
            (
                "orders",
                format!(
                    "{} confirmed, {} cancelled{reasons}, {} pending",
                    grouped(*confirmed),
                    grouped(cancelled_all),
                    grouped(*pending)
                ),
            ),
            ("payments", by(&self.tally.payments)),
            ("stock", by(&self.tally.reservations)),
            (
                "money",
                format!(
                    "deposited {} = balance {} + taken {}",
                    money(deposited_cents),
                    money(balance_cents),
                    money(taken_cents)
                ),
            ),
            ("", format!("confirmed orders come to {}", money(self.tally.confirmed_cents))),
            (
                "items",
                format!(
                    "delivered {} = available {} + reserved {}",
                    grouped(delivered),
                    grouped(available),
                    grouped(reserved)
                ),
            ),
            (
                "records",
                format!(
                    "{} in {} topics: {} are events of orders, of them {} repeats; {} foreign",
                    grouped(self.records),
                    TOPICS.len(),
                    grouped(self.tally.facts),
                    grouped(self.tally.repeats),
                    grouped(self.foreign + self.tally.set_aside)
                ),
            ),
            ("handled", format!("each once: {}", handled.join(", "))),
            (
                "traces",
                format!(
                    "{} of {} confirmed orders are one trace",
                    grouped(self.tally.traced),
                    grouped(*confirmed)
                ),
            ),
            ("dead letters", format!("{} waiting", self.letters_waiting)),
        ];
        if let Some(changes) = self.changes {
            let changes = grouped(changes);
            rows.push(("changes", format!("{changes} written down by the databases themselves")));
        }
        if self.announced > 0 {
            let announced = grouped(self.announced);
            rows.push(("", format!("{announced} of the records were announced again")));
        }
        if self.tally.expired > 0 {
            rows.push((
                "expired",
                format!("{} events, older than their topics", self.tally.expired),
            ));
        }
        rows.extend(self.discarded.rows());
        let mut lines: Vec<String> =
            rows.into_iter().map(|(name, row)| format!("  {name:<13} {row}")).collect();
        let seconds = self.took.as_secs_f64();
        if self.holds() {
            lines.push(format!(
                "  verified in {seconds:.1} s: nothing is lost, nothing happened twice, the books balance."
            ));
        }
        lines.extend(self.findings.lines());
        lines
    }
}
