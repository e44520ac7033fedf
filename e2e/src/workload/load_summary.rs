//! The summary of a load: the responses to its clients, and the outcomes of their orders.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use checker::group_digits;
use uuid::Uuid;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{I1, I2, I13, I14};
use crate::client::client_history::{CancelOutcome, ClientHistory, FinalOutcome};

const EXAMPLES_MAX: usize = 8;

/// A longer commit is a stall of the disk: the order service cancels a commit after 2 s, and
/// responds that the outcome is unknown.
pub const DISK_STALL_MIN: Duration = Duration::from_millis(1_500);

/// The commit latency of the order service's disk, measured with empty commits. While one of them
/// waits, no client gets a response to an order.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskStats {
    pub slowest_commit: Duration,
    /// The duration of all stalls together.
    pub stalled_for: Duration,
}

/// Median, 99th percentile and maximum of many durations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Percentiles {
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Percentiles {
    pub(crate) fn from_durations(mut spans: Vec<Duration>) -> Percentiles {
        spans.sort_unstable();
        let at = |share: f64| {
            let nth = (spans.len() as f64 * share) as usize;
            spans.get(nth.min(spans.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        Percentiles { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// The summary of a load.
#[derive(Clone, Debug, Default)]
pub struct LoadSummary {
    pub placed: u64,
    pub accepted: u64,
    pub refused: u64,
    /// Orders with an attempt without a clear response, and the number of their repeated requests.
    pub unknown: u64,
    pub retries: u64,
    /// Orders whose outcome stayed unknown.
    pub unsettled: u64,
    /// Orders whose repeated requests got the same response, and those whose responses differed.
    pub duplicates_same: u64,
    pub duplicates_differ: u64,
    /// Orders repeated with another body, and refused for that reason.
    pub conflicting_refused: u64,
    /// Orders that differ from the request.
    pub altered: u64,
    pub cancels_accepted: u64,
    pub cancels_too_late: u64,
    /// Cancellations whose outcome was unknown.
    pub cancels_unknown: u64,
    /// Orders cancelled according to their client, but not according to the order service.
    pub cancels_broken: u64,
    pub confirmed: u64,
    pub cancelled: BTreeMap<String, u64>,
    pub not_ended: u64,
    pub duration: Duration,
    pub drained_in: Duration,
    /// The latency of first responses.
    pub latency: Percentiles,
    /// From an order's creation to its decision.
    pub decision_time: Percentiles,
    /// The longest time without an accepted order.
    pub longest_gap: Duration,
    /// The commit latency during the load.
    pub disk: DiskStats,
    /// Examples of refusals, unknown outcomes and failures.
    pub examples: Vec<String>,
    pub orders: Vec<Uuid>,
    /// Broken promises to clients.
    pub findings: Findings,
}

impl LoadSummary {
    /// Counts the responses to the clients.
    pub fn from_histories(histories: &[ClientHistory], took: Duration) -> LoadSummary {
        let mut summary = LoadSummary {
            duration: took,
            placed: histories.len() as u64,
            ..LoadSummary::default()
        };
        for history in histories {
            summary.count(history);
        }
        summary.latency =
            Percentiles::from_durations(histories.iter().map(ClientHistory::latency).collect());
        let mut accepted: Vec<Duration> =
            histories.iter().filter_map(ClientHistory::accepted_at).collect();
        accepted.extend([Duration::ZERO, took]);
        accepted.sort_unstable();
        let silences = accepted.windows(2).map(|pair| pair[1] - pair[0]);
        summary.longest_gap = silences.max().unwrap_or_default();
        summary
    }

    fn count(&mut self, history: &ClientHistory) {
        if let Some(why) = history.first_unknown() {
            self.add_example("unknown at first", why);
            self.unknown += 1;
            let at_first = if history.plan.duplicated { 2 } else { 1 };
            self.retries += history.attempts.len().saturating_sub(at_first) as u64;
        }
        if let Some((accepted, other)) = history.contradiction() {
            self.duplicates_differ += 1;
            self.findings.add(I2, "answers differ", || {
                format!("key {}: {accepted}, and {other}", history.plan.key)
            });
        } else if history.acknowledged().len() > 1 {
            self.duplicates_same += 1;
        }
        if let Some(failure) = history.failure() {
            self.findings.add(I14, "failed", || format!("key {}: {failure}", history.plan.key));
        }
        match history.cancel {
            CancelOutcome::Unknown => self.cancels_unknown += 1,
            CancelOutcome::Unexpected(status) => self.findings.add(I1, "cancel", || {
                format!("key {}: its cancellation got the status {status}", history.plan.key)
            }),
            CancelOutcome::NotRequested | CancelOutcome::Accepted | CancelOutcome::TooLate => {}
        }
        match history.final_outcome() {
            FinalOutcome::Accepted(_) => self.accepted += 1,
            FinalOutcome::Refused(answer) => {
                self.add_example("refused", answer);
                self.refused += 1;
            }
            FinalOutcome::Unsettled => {
                self.unsettled += 1;
                self.findings.add(I13, "unsettled", || {
                    format!("key {}: the outcome of its order stayed unknown", history.plan.key)
                });
            }
        }
        let other = history.conflicting.as_ref();
        self.conflicting_refused +=
            u64::from(other.is_some_and(|other| other.status() == Some(422)));
    }

    fn add_example(&mut self, what: &str, why: &dyn Display) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{what}: {why}"));
        }
    }

    /// Whether every promise to a client was kept: outcomes settled, all responses to one key
    /// equal, and every accepted order ended as its client intended.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether no client was refused or left without a response, as it must be unless the order
    /// service or its database was away, or the disk stalled.
    pub fn answered_all(&self) -> bool {
        self.unknown + self.refused + self.cancels_unknown <= self.excused_count()
    }

    /// How many orders came during a stall of the disk, or so shortly before it that the stall may
    /// have cost their response: commands are tried for 3 s, which is at most twice the length of a stall.
    pub fn excused_count(&self) -> u64 {
        let rate = self.placed as f64 / self.duration.as_secs_f64().max(1.0);
        (3.0 * self.disk.stalled_for.as_secs_f64() * rate).ceil() as u64
    }

    fn describe_unknown(&self) -> String {
        let [unknown, retries, unsettled] =
            [self.unknown, self.retries, self.unsettled].map(group_digits);
        match self.unsettled {
            0 => format!("{unknown} at first, all settled by {retries} repeated requests"),
            _ => format!(
                "{unknown} at first, {retries} repeated requests, {unsettled} never settled"
            ),
        }
    }

    pub fn lines(&self) -> Vec<String> {
        let cancelled: Vec<String> = self
            .cancelled
            .iter()
            .map(|(reason, count)| format!("{} {reason}", group_digits(*count)))
            .collect();
        let ms = |span: Duration| format!("{:.1} ms", span.as_secs_f64() * 1_000.0);
        let spread = |of: &Percentiles| {
            format!("p50 {}, p99 {}, max {}", ms(of.p50), ms(of.p99), ms(of.max))
        };
        let mut lines = vec![
            format!(
                "  posted        {} in {:.0} s: {} accepted, {} refused, {} unsettled",
                group_digits(self.placed),
                self.duration.as_secs_f64(),
                group_digits(self.accepted),
                group_digits(self.refused),
                group_digits(self.unsettled)
            ),
            format!("  unknown       {}", self.describe_unknown()),
            format!(
                "  ended         {} confirmed, {} cancelled ({}), {} not ended, {} altered",
                group_digits(self.confirmed),
                group_digits(self.cancelled.values().sum::<u64>()),
                cancelled.join(", "),
                group_digits(self.not_ended),
                group_digits(self.altered)
            ),
            format!("  POST          {}", spread(&self.latency)),
            format!("  POST to end   {}", spread(&self.decision_time)),
            format!("  drained       in {:.1} s", self.drained_in.as_secs_f64()),
            format!(
                "  repeats       {} with equal responses, {} with different ones; {} with another body refused",
                group_digits(self.duplicates_same),
                group_digits(self.duplicates_differ),
                group_digits(self.conflicting_refused)
            ),
            format!(
                "  cancels       {} accepted, {} too late, {} unknown, {} broken",
                group_digits(self.cancels_accepted),
                group_digits(self.cancels_too_late),
                group_digits(self.cancels_unknown),
                group_digits(self.cancels_broken)
            ),
        ];
        if self.excused_count() > 0 {
            lines.push(format!(
                "  disk          stalled for {}, {} at worst: {} refusals and unknown outcomes are excused",
                ms(self.disk.stalled_for),
                ms(self.disk.slowest_commit),
                group_digits(self.excused_count())
            ));
        }
        lines.extend(self.examples.iter().map(|example| format!("    {example}")));
        lines.extend(self.findings.lines());
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::client_history::Attempt;
    use crate::client::outcome::{HttpResponse, Outcome};
    use crate::workload::options::Load;
    use crate::workload::plan;

    fn response(status: u16, body: &str) -> HttpResponse {
        let body = body.as_bytes().to_vec();
        HttpResponse { status, location: None, content_type: String::new(), body }
    }

    fn history(outcomes: &[Outcome]) -> ClientHistory {
        let tries = outcomes.iter().zip(1..).map(|(outcome, nth)| Attempt {
            outcome: outcome.clone(),
            answered_at: Duration::from_secs(nth),
        });
        let load = Load { rate: 1, duration: Duration::from_secs(1), ..Load::default() };
        ClientHistory::new(&plan::generate(&load)[0], tries.collect())
    }

    #[test]
    fn two_acceptances_that_differ_are_a_violation_and_a_late_one_is_a_gap() {
        let ok = |body: &str| Outcome::Ok(response(201, body));
        let doubt = Outcome::Unknown("cut".to_string());
        let history =
            [history(&[ok("a"), ok("a")]), history(&[doubt.clone(), doubt, ok("b"), ok("c")])];
        let summary = LoadSummary::from_histories(&history, Duration::from_secs(9));
        assert_eq!((summary.duplicates_same, summary.duplicates_differ), (1, 1));
        assert_eq!((summary.accepted, summary.unknown, summary.unsettled), (2, 1, 0));
        assert_eq!(summary.longest_gap, Duration::from_secs(6));
        assert!(!summary.holds());
    }
}
