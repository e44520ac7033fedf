//! One round of a chaos run: load with faults, healing, the end of every order, and a run of the
//! checker.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::time::Duration;

use anyhow::{Result, bail};
use checker::group_digits;
use faults::links::Links;
use launcher::Stack;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::checker::coverage::Coverage;
use crate::checker::invariants::Invariant::I13;
use crate::checker::relay_leadership::RelayLeadership;
use crate::checker::run::{self, CheckOptions};
use crate::checker::verdict::Verdict;
use crate::client::http_client::Client;
use crate::console::print_line;
use crate::scenarios::chaos::fault::{Fault, FaultClass};
use crate::scenarios::chaos::nemesis::{FaultRecord, FaultResult, Nemesis};
use crate::scenarios::chaos::schedule;
use crate::scenarios::runner::{Outcome, Report, Run};
use crate::scenarios::{poison, redelivery};
use crate::workload::load;
use crate::workload::load_summary::LoadSummary;
use crate::workload::options::Load;
use crate::workload::resource_usage::ResourceUsage;

/// For how long orders are placed, with faults, and how many a second.
pub const LOAD_DURATION: Duration = Duration::from_secs(90);
pub const RATE: u32 = 40;

/// How long orders may take to end after healing, and the stack to become quiescent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

/// The orders that a conclusive round needs at least: confirmed, cancelled by a customer or the
/// deadline, declined by payment and rejected by stock.
const OUTCOMES_MIN: [(&str, u64); 4] =
    [("confirmed", 500), ("cancelled", 50), ("declined", 20), ("rejected", 20)];

/// The result of a round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChaosRound {
    pub nth: u64,
    pub faults: Vec<FaultRecord>,
    pub accepted: u64,
    pub refused: u64,
    pub unknown: u64,
    pub confirmed: u64,
    /// By reason.
    pub cancelled: BTreeMap<String, u64>,
    pub records: u64,
    pub drained_in: Duration,
    pub verified_in: Duration,
    pub duration: Duration,
    pub report: Report,
    /// How often each situation occurred, in the whole run so far.
    pub coverage: Coverage,
}

/// What every round needs.
pub struct ChaosContext<'a> {
    pub stack: &'a Stack,
    pub client: &'a Client,
    pub links: &'a Links,
    pub instances: u16,
    pub seed: u64,
    /// The resource usage before the first round.
    pub baseline: &'a ResourceUsage,
}

/// How often the faults of a class were scheduled, injected, had an effect, and had one with orders
/// in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    pub scheduled: u64,
    pub injected: u64,
    pub effective: u64,
    pub overlapping: u64,
}

impl<'a> Sum<&'a FaultRecord> for FaultCounts {
    fn sum<I: Iterator<Item = &'a FaultRecord>>(records: I) -> FaultCounts {
        records.fold(FaultCounts::default(), |sum, record| FaultCounts {
            scheduled: sum.scheduled + 1,
            injected: sum.injected + u64::from(record.was_injected()),
            effective: sum.effective + u64::from(record.had_effect()),
            overlapping: sum.overlapping
                + u64::from(record.had_effect() && record.orders_in_flight > 0),
        })
    }
}

/// Runs the nth round. A step that fails after healing is a violation, and the results so far are
/// kept.
pub async fn run(context: &ChaosContext<'_>, nth: u64) -> Result<ChaosRound> {
    let ChaosContext { stack, client, links, instances, seed, baseline } = *context;
    let began = Instant::now();
    let mut faults = schedule::generate(seed, nth, instances, LOAD_DURATION);
    if stack.description().secure {
        faults.iter_mut().for_each(Fault::adapt_to_encryption);
    }
    let nemesis = Nemesis::new(stack, client, links, instances, &faults);
    let mut run = Run::new(stack, client.clone()).await?;
    let (mut records, mut healed) = (Vec::new(), Ok(()));
    let loaded = load::run(client, &load_of_round(seed, nth), async {
        records = nemesis.run(&faults, LOAD_DURATION).await;
        healed = nemesis.heal_all().await;
        print_line(&format!("{:>6.1} s  healing begins", began.elapsed().as_secs_f64()));
        Ok(())
    })
    .await;
    if records.is_empty() {
        loaded?;
        bail!("no fault was scheduled");
    }

    let mut round = ChaosRound { nth, ..ChaosRound::default() };
    round.must("healing everything", healed);
    if let Some((summary, ())) = round.must("ending the load", loaded) {
        round.record_load(&summary);
    }
    // Only now, after healing: during a fault, an instance that is cut off may still believe that
    // it is the leader.
    let mut leadership = RelayLeadership::default();
    let options = CheckOptions { timeout: DRAIN_TIMEOUT };
    let expected = async || poison::expected_dead_letters(client).await;
    let checked = tokio::select! {
        checked = run::run_expecting_with(client, &options, expected) => checked,
        watched = leadership.watch(stack, client) => watched.and_then(|()| bail!("the watch ended")),
    };
    if let Some(mut verdict) = round.must("checking", checked) {
        leadership.check(&mut verdict.findings);
        if let Some(now) = round.must("measuring", ResourceUsage::measure(stack, client).await) {
            now.check(baseline, &mut verdict.findings);
        }
        let copies = round.must("counting the copies", redelivery::count_copies(client).await);
        round.record_verdict(&verdict, copies.unwrap_or_default());
    }
    for FaultRecord { fault, result, .. } in &records {
        if let FaultResult::Violated(violation) = result {
            round.report.violations.push(format!("{fault}: {violation}"));
        }
    }
    // When a backend of a database is killed, its postmaster continues.
    run.add_exits().await?;
    round.report.violations.append(&mut run.report.violations);
    let counted = count_in_flight(client, &mut records).await;
    round.must("counting the orders", counted);
    round.faults = records;
    round.duration = began.elapsed();
    Ok(round)
}

fn load_of_round(seed: u64, nth: u64) -> Load {
    Load {
        rate: RATE,
        duration: LOAD_DURATION,
        drain_timeout: DRAIN_TIMEOUT,
        ..Load::unruly(schedule::workload_seed(seed, nth))
    }
}

/// Counts, for each fault, the orders that were pending during it.
async fn count_in_flight(client: &Client, records: &mut [FaultRecord]) -> Result<()> {
    let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
    for FaultRecord { began, ended, orders_in_flight, .. } in records {
        let count = sqlx::query_scalar(
            "select count(*) from orders
             where created_at <= $2 and (ended_at is null or ended_at >= $1)",
        );
        *orders_in_flight = count.bind(*began).bind(*ended).fetch_one(&mut db).await?;
    }
    Ok(())
}

impl ChaosRound {
    /// A step that must succeed after healing, or the stack did not recover.
    fn must<T>(&mut self, what: &str, done: Result<T>) -> Option<T> {
        done.inspect_err(|error| {
            self.report.violations.push(format!("{what} did not succeed ({I13}): {error:#}"))
        })
        .ok()
    }

    fn record_load(&mut self, summary: &LoadSummary) {
        print_line(&format!(
            "         {} accepted, {} refused, {} unknown at first; all ended {:.1} s later",
            group_digits(summary.accepted),
            group_digits(summary.refused),
            group_digits(summary.unknown),
            summary.drained_in.as_secs_f64()
        ));
        if !summary.holds() {
            let lines = summary.lines().join("\n");
            self.report.violations.push(format!("a promise to a client was broken:\n{lines}"));
        }
        self.accepted = summary.accepted;
        self.refused = summary.refused;
        self.unknown = summary.unknown;
        self.confirmed = summary.confirmed;
        self.cancelled = summary.cancelled.clone();
        self.drained_in = summary.drained_in;
        self.report.inconclusive.extend(missing_outcomes(summary.confirmed, &summary.cancelled));
    }

    fn record_verdict(&mut self, verdict: &Verdict, copies: u64) {
        if !verdict.holds() {
            let lines = verdict.lines().join("\n");
            self.report.violations.push(format!("findings of the checker:\n{lines}"));
        }
        if verdict.changes.is_none_or(|changes| changes == 0) {
            self.report.inconclusive.push("the change logs of the databases are empty".to_string());
        }
        self.records = verdict.records;
        self.verified_in = verdict.duration;
        self.coverage = Coverage::from_verdict(verdict, copies);
    }

    pub fn kills(&self) -> usize {
        let injected = self.faults.iter().filter(|record| record.was_injected());
        injected.filter(|record| record.fault.class.is_kill()).count()
    }

    pub fn other_faults(&self) -> usize {
        self.faults.iter().filter(|record| record.was_injected()).count() - self.kills()
    }

    pub fn faults_of(&self, class: &FaultClass) -> impl Iterator<Item = &FaultRecord> {
        self.faults.iter().filter(move |record| record.fault.class == class)
    }

    /// The verdict in a word.
    pub fn word(&self) -> &'static str {
        match self.report.outcome() {
            Outcome::Held => "held",
            Outcome::Inconclusive => "inconclusive",
            Outcome::Violated => "VIOLATED",
        }
    }

    pub fn verdict(&self) -> String {
        let reasons = match self.report.outcome() {
            Outcome::Inconclusive => format!(": {}", self.report.inconclusive.join(", ")),
            _ => String::new(),
        };
        format!(
            "round {}: {}{reasons}. {} kills, {} other faults; {} orders confirmed, {} cancelled; \
             drained in {:.1} s, {} records verified in {:.1} s",
            self.nth + 1,
            self.word(),
            self.kills(),
            self.other_faults(),
            group_digits(self.confirmed),
            group_digits(self.cancelled.values().sum::<u64>()),
            self.drained_in.as_secs_f64(),
            group_digits(self.records),
            self.verified_in.as_secs_f64()
        )
    }
}

/// The outcomes that too few orders had.
fn missing_outcomes(
    confirmed: u64,
    cancelled: &BTreeMap<String, u64>,
) -> impl Iterator<Item = String> {
    let by =
        |reasons: &[&str]| reasons.iter().filter_map(|reason| cancelled.get(*reason)).sum::<u64>();
    let counts = [
        confirmed,
        by(&["customer", "deadline"]),
        by(&["payment_declined"]),
        by(&["stock_rejected"]),
    ];
    let ended = OUTCOMES_MIN.into_iter().zip(counts);
    let few = ended.filter(|((_, least), count)| count < least);
    few.map(|((how, least), count)| format!("only {count} {how}, at least {least} are required"))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn a_rejected_order_does_not_count_as_cancelled() {
        let mut cancelled: BTreeMap<String, u64> =
            [("customer", 45), ("deadline", 5), ("payment_declined", 20), ("stock_rejected", 20)]
                .map(|(reason, count)| (reason.to_string(), count))
                .into();
        assert_eq!(missing_outcomes(500, &cancelled).count(), 0);
        cancelled.insert("customer".to_string(), 44);
        cancelled.insert("payment_declined".to_string(), 900);
        assert_eq!(
            missing_outcomes(500, &cancelled).collect::<Vec<_>>(),
            ["only 49 cancelled, at least 50 are required"]
        );
    }

    #[test]
    fn a_step_that_fails_once_all_is_healed_is_a_violation_and_the_round_goes_on() {
        let mut round = ChaosRound::default();
        assert_eq!(round.must("healing everything", Ok(7)), Some(7));
        assert!(round.report.violations.is_empty());
        assert_eq!(round.must::<()>("healing everything", Err(anyhow::anyhow!("away"))), None);
        assert_eq!(round.report.violations, ["healing everything did not succeed (I13): away"]);
    }

    #[test]
    fn a_fault_without_effect_overlapped_no_order() {
        let class = FaultClass::described("a database ends its sessions").unwrap();
        let record = |result| {
            let fault = schedule::generate(1, 0, 1, LOAD_DURATION).remove(0);
            let (fault, at) = (Fault { class, ..fault }, Duration::ZERO);
            let (began, ended) = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH);
            FaultRecord { fault, at, began, ended, result, orders_in_flight: 9 }
        };
        let results = [
            FaultResult::Affected(3),
            FaultResult::Affected(0),
            FaultResult::Failed("it did not run".to_string()),
        ];
        let faults = results.map(record).to_vec();
        let round = ChaosRound { faults, ..ChaosRound::default() };
        let counts: FaultCounts = round.faults_of(class).sum();
        assert_eq!(counts, FaultCounts { scheduled: 3, injected: 2, effective: 1, overlapping: 1 });
    }
}
