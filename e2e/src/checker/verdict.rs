//! The verdict of the checker: totals and findings, and their report.

use std::collections::BTreeMap;
use std::time::Duration;

use checker::group_digits;
use events::saga_topics;

use crate::checker::balances::Totals;
use crate::checker::findings::Findings;
use crate::checker::shipments::Shipments;
use crate::checker::tally::Tally;
use crate::checker::waivers::Waivers;
use crate::format::format_hundredths;

/// The name of a total, and its text.
type ReportRow = (&'static str, String);

/// The result of one run of the checker.
#[derive(Debug)]
pub struct Verdict {
    pub tally: Tally,
    pub money: Totals,
    pub stock: Totals,
    /// In a stack that ships.
    pub shipments: Option<Shipments>,
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
        let mut rows = self.state_rows();
        rows.extend(self.event_rows());
        rows.extend(self.occasional_rows());
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

    /// What the rows of the services add up to.
    fn state_rows(&self) -> Vec<ReportRow> {
        let Tally { pending, confirmed, cancelled, confirmed_cents, .. } = &self.tally;
        let cancelled_all = group_digits(cancelled.values().sum::<u64>());
        let reasons = match by_name(cancelled) {
            none if none.is_empty() => none,
            reasons => format!(" ({reasons})"),
        };
        let (confirmed, pending) = (group_digits(*confirmed), group_digits(*pending));
        let orders =
            format!("{confirmed} confirmed, {cancelled_all} cancelled{reasons}, {pending} pending");
        let parts = |of: &Totals| [of.received, of.left, of.taken];
        let [deposited, balance, taken] = parts(&self.money).map(format_hundredths);
        let total = format_hundredths(*confirmed_cents);
        let [delivered, available, reserved] = parts(&self.stock).map(group_digits);
        let parts = self.tally.parts.iter().map(|(service, states)| (*service, by_name(states)));
        let sums = [
            ("money", format!("deposited {deposited} = balance {balance} + taken {taken}")),
            ("", format!("confirmed orders total {total}")),
            (
                "items",
                format!("delivered {delivered} = available {available} + reserved {reserved}"),
            ),
        ];
        [("orders", orders)].into_iter().chain(parts).chain(sums).collect()
    }

    /// What was published and handled.
    fn event_rows(&self) -> Vec<ReportRow> {
        let Tally { confirmed, duplicates, dead_lettered, traced, .. } = self.tally;
        let compared: u64 = self.tally.compared.values().sum();
        let unknown = self.unknown_records + dead_lettered;
        let [records, events, duplicates, unknown, traced, confirmed] =
            [self.records, compared, duplicates, unknown, traced, confirmed].map(group_digits);
        let topics = saga_topics().len();
        let handled: Vec<String> = self
            .handled
            .iter()
            .map(|(service, count)| format!("{service} {}", group_digits(*count)))
            .collect();
        vec![
            (
                "records",
                format!(
                    "{records} in {topics} topics: {events} events of orders, {duplicates} of them \
                     duplicates; {unknown} unknown"
                ),
            ),
            ("handled", format!("each once: {}", handled.join(", "))),
            ("traces", format!("{traced} of {confirmed} confirmed orders have one trace")),
            ("dead letters", format!("{} waiting", self.dead_letters_waiting)),
        ]
    }

    /// The rows that only some runs have.
    fn occasional_rows(&self) -> Vec<ReportRow> {
        let mut rows = Vec::new();
        if let Some(Shipments { states, tasks, parcels }) = &self.shipments {
            let parcels = parcels.map_or("an unknown number of".to_string(), group_digits);
            rows.push(("shipments", by_name(states)));
            rows.push((
                "",
                format!("{parcels} parcels at the carrier, {tasks} tasks wait for a person"),
            ));
        }
        if let Some(changes) = self.changes.map(group_digits) {
            rows.push((
                "changes",
                format!("{changes} recorded by the change logs of the databases"),
            ));
        }
        if self.republished > 0 {
            let republished = group_digits(self.republished);
            rows.push(("", format!("{republished} of the records were republished")));
        }
        if self.tally.erased.count > 0 {
            let erased = group_digits(self.tally.erased.count);
            rows.push(("erased", format!("{erased} records still name an erased customer")));
        }
        if self.tally.expired > 0 {
            rows.push((
                "expired",
                format!("{} events older than the retention of their topics", self.tally.expired),
            ));
        }
        rows
    }
}

/// Counts by name, in one text.
fn by_name(counts: &BTreeMap<String, u64>) -> String {
    let counts = counts.iter().map(|(name, count)| format!("{} {name}", group_digits(*count)));
    counts.collect::<Vec<_>>().join(", ")
}
