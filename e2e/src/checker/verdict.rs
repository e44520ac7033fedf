//! The verdict of the checker: totals and findings, and their report.

use std::collections::BTreeMap;
use std::time::Duration;

use events::TOPICS;

use crate::checker::balances::{MoneyTotals, StockTotals};
use crate::checker::findings::Findings;
use crate::checker::tally::Tally;
use crate::checker::waivers::Waivers;
use crate::launcher::format::{format_hundredths, group_digits};

/// The result of one run of the checker.
#[derive(Debug)]
pub struct Verdict {
    pub tally: Tally,
    pub money: MoneyTotals,
    pub stock: StockTotals,
    pub records: u64,
    /// How many of the records an operator had republished.
    pub republished: u64,
    pub unknown_records: u64,
    /// Events handled, by service.
    pub handled: BTreeMap<&'static str, u64>,
    pub dead_letters_waiting: i64,
    pub dead_letters_replayed: u64,
    /// The number of changes in the change log, if every database has one.
    pub changes: Option<u64>,
    pub waivers: Waivers,
    pub findings: Findings,
    pub duration: Duration,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.findings.count() == 0
    }

    /// The report: totals and findings, line by line.
    pub fn lines(&self) -> Vec<String> {
        let Tally { pending, confirmed, cancelled, .. } = &self.tally;
        let cancelled_all: u64 = cancelled.values().sum();
        let by = |counts: &BTreeMap<String, u64>| {
            let counts: Vec<String> = counts
                .iter()
                .map(|(name, count)| format!("{} {name}", group_digits(*count)))
                .collect();
            counts.join(", ")
        };
        let mut reasons = by(cancelled);
        if !reasons.is_empty() {
            reasons = format!(" ({reasons})");
        }
        let handled: Vec<String> = self
            .handled
            .iter()
            .map(|(service, count)| format!("{service} {}", group_digits(*count)))
            .collect();
        let MoneyTotals { deposited_cents, balance_cents, taken_cents, .. } = self.money;
        let StockTotals { delivered, available, reserved, .. } = self.stock;
        let mut rows = vec![
            (
                "orders",
                format!(
                    "{} confirmed, {} cancelled{reasons}, {} pending",
                    group_digits(*confirmed),
                    group_digits(cancelled_all),
                    group_digits(*pending)
                ),
            ),
            ("payments", by(&self.tally.payments)),
            ("stock", by(&self.tally.reservations)),
            (
                "money",
                format!(
                    "deposited {} = balance {} + taken {}",
                    format_hundredths(deposited_cents),
                    format_hundredths(balance_cents),
                    format_hundredths(taken_cents)
                ),
            ),
            (
                "",
                format!("confirmed orders total {}", format_hundredths(self.tally.confirmed_cents)),
            ),
            (
                "items",
                format!(
                    "delivered {} = available {} + reserved {}",
                    group_digits(delivered),
                    group_digits(available),
                    group_digits(reserved)
                ),
            ),
            (
                "records",
                format!(
                    "{} in {} topics: {} events of orders, {} of them duplicates; {} unknown",
                    group_digits(self.records),
                    TOPICS.len(),
                    group_digits(self.tally.order_records),
                    group_digits(self.tally.duplicates),
                    group_digits(self.unknown_records + self.tally.dead_lettered)
                ),
            ),
            ("handled", format!("each once: {}", handled.join(", "))),
            (
                "traces",
                format!(
                    "{} of {} confirmed orders have one trace",
                    group_digits(self.tally.traced),
                    group_digits(*confirmed)
                ),
            ),
            ("dead letters", format!("{} waiting", self.dead_letters_waiting)),
        ];
        if let Some(changes) = self.changes {
            let changes = group_digits(changes);
            rows.push((
                "changes",
                format!("{changes} recorded by the change logs of the databases"),
            ));
        }
        if self.republished > 0 {
            let republished = group_digits(self.republished);
            rows.push(("", format!("{republished} of the records were republished")));
        }
        if self.tally.expired > 0 {
            rows.push((
                "expired",
                format!("{} events older than the retention of their topics", self.tally.expired),
            ));
        }
        rows.extend(self.waivers.rows());
        let mut lines: Vec<String> =
            rows.into_iter().map(|(name, row)| format!("  {name:<13} {row}")).collect();
        let seconds = self.duration.as_secs_f64();
        if self.holds() {
            lines.push(format!(
                "  verified in {seconds:.1} s: no event is lost, no effect happened twice, the books balance."
            ));
        }
        lines.extend(self.findings.lines());
        lines
    }
}
