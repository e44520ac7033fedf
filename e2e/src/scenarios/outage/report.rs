//! The report of an outage: failures, verdict, and the table of all outages.

use checker::group_digits;
use launcher::Exit;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::checker::exits;
use crate::checker::invariants::Invariant;
use crate::scenarios::outage::plan::Outage;
use crate::workload::load_summary::LoadSummary;
use crate::workload::stall_detector::Stall;
use launcher::program::format_table;

/// The longest time that a redundant service may be without progress.
const STALL_MAX: Duration = Duration::from_secs(20);

/// The result of an outage.
#[derive(Debug)]
pub struct OutageReport {
    pub victims: String,
    pub kills: u32,
    pub summary: LoadSummary,
    pub verify_holds: bool,
    /// Invariants violated according to the clients or the checker.
    pub violated: BTreeSet<Invariant>,
    pub stalls: Vec<Stall>,
    /// Everything that was not as promised, as sentences.
    pub failures: Vec<String>,
}

impl OutageReport {
    pub fn holds(&self) -> bool {
        self.failures.is_empty()
    }

    pub fn evaluate(&mut self, outage: &Outage, exits: &[Exit]) {
        let LoadSummary { accepted, unknown, refused, .. } = self.summary;
        if !self.summary.holds() {
            self.failures.push("a promise to a client was broken (step 2)".to_string());
        }
        if !self.verify_holds {
            self.failures.push("the checker found violations (step 3)".to_string());
        }
        if !self.violated.is_empty() {
            let violated: Vec<String> = self.violated.iter().map(Invariant::to_string).collect();
            self.failures.push(format!("violated: {}", violated.join(", ")));
        }
        // While another instance accepts orders, a client may get no answer but is never refused.
        let takes_orders = |victim: &String| victim.starts_with("order");
        let may_doubt = outage.victims.iter().any(takes_orders);
        let excused = self.summary.excused_count();
        if unknown > excused && !may_doubt {
            self.failures.push(format!("{unknown} clients got no response"));
        }
        if refused > excused && (!may_doubt || outage.is_redundant) {
            self.failures.push(format!("{refused} clients were refused"));
        }
        // A run in which every request failed would hold as well.
        if accepted + unknown + refused < self.summary.placed || accepted * 5 < self.summary.placed
        {
            self.failures.push(format!("only {accepted} orders were accepted"));
        }
        self.failures.extend(exits::unexpected_exits(exits));
        for stall in &self.stalls {
            let longest = stall.consumer.max(stall.relay);
            if longest > STALL_MAX {
                self.failures.push(format!(
                    "{} made no progress for {:.1} s",
                    stall.service,
                    longest.as_secs_f64()
                ));
            }
        }
        if outage.is_redundant && self.summary.longest_gap > STALL_MAX {
            let longest_gap = self.summary.longest_gap.as_secs_f64();
            self.failures.push(format!("no order was accepted for {longest_gap:.1} s"));
        }
    }

    pub fn verdict(&self) -> String {
        let OutageReport { victims, kills, summary, failures, .. } = self;
        if !self.holds() {
            return format!("{victims}: BROKEN: {}.", failures.join("; "));
        }
        let stall = self.stalls.iter().map(|stall| stall.consumer.max(stall.relay)).max();
        let stall = stall.map_or(String::new(), |stall| {
            format!(", no service stalled for more than {:.1} s", stall.as_secs_f64())
        });
        format!(
            "{victims}: held. Killed {}; {} orders accepted and none lost, {} unknown outcomes \
             settled, all ended {:.1} s after the load{stall}, no violation found.",
            times(*kills),
            group_digits(summary.accepted),
            group_digits(summary.unknown),
            summary.drained_in.as_secs_f64()
        )
    }
}

pub fn times(count: u32) -> String {
    if count == 1 { "once".to_string() } else { format!("{count} times") }
}

pub fn stall_lines(stalls: &[Stall], summary: &LoadSummary) -> Vec<String> {
    let mut lines = vec!["  the longest time with work and without progress:".to_string()];
    for stall in stalls {
        lines.push(format!(
            "    {:<12} consumer {:>4.1} s, relay {:>4.1} s, one partition {:>4.1} s",
            stall.service,
            stall.consumer.as_secs_f64(),
            stall.relay.as_secs_f64(),
            stall.partition.as_secs_f64()
        ));
    }
    let longest_gap = summary.longest_gap.as_secs_f64();
    lines.push(format!("    {:<12} {longest_gap:.1} s between two accepted orders", "API"));
    lines
}

pub fn table(reports: &[OutageReport]) -> Vec<String> {
    let rows = reports.iter().map(|report| {
        let summary = &report.summary;
        [
            report.victims.clone(),
            report.kills.to_string(),
            group_digits(summary.accepted),
            group_digits(summary.refused),
            group_digits(summary.unknown),
            format!("{:.1} ms", summary.latency.p99.as_secs_f64() * 1_000.0),
            format!("{:.1} s", summary.drained_in.as_secs_f64()),
            if report.verify_holds { "0" } else { "1" }.to_string(),
            if report.holds() { "held".to_string() } else { report.failures.join("; ") },
        ]
    });
    let header = [
        "VICTIM", "KILLS", "ACCEPTED", "REFUSED", "UNKNOWN", "POST p99", "DRAINED", "VERIFY",
        "VERDICT",
    ];
    format_table(header, &[1, 2, 3, 4, 5, 6, 7], rows)
}
