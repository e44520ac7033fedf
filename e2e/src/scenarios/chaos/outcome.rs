//! The outcome of a chaos run: held, violated, or inconclusive because it exercised too little.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checker::coverage::Situation;
use crate::scenarios::chaos::classes::CLASSES;
use crate::scenarios::chaos::fault::FaultClass;
use crate::scenarios::chaos::round::{ChaosRound, FaultCounts};
use crate::scenarios::runner::{Outcome, Report};

/// What a full run must exercise.
const FULL_RUN: Duration = Duration::from_secs(30 * 60);
const KILLS_MIN: usize = 100;
const CLASSES_MIN: usize = 20;

/// The largest share of faults that failed or came too late.
const FAILED_FAULTS_PERCENT_MAX: usize = 10;

/// A slow run continues until it has exercised enough, for at most half of its time again.
const OVERTIME_FACTOR_MAX: f64 = 1.5;

/// The saved state of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChaosRun {
    pub seed: u64,
    pub instances: u16,
    pub rounds: Vec<ChaosRound>,
    /// How often it was interrupted and continued.
    pub resumptions: u64,
    /// The error that ended it.
    pub error: Option<String>,
}

impl ChaosRun {
    pub fn duration(&self) -> Duration {
        self.rounds.iter().map(|round| round.duration).sum()
    }

    pub fn kills(&self) -> usize {
        self.rounds.iter().map(ChaosRound::kills).sum()
    }

    pub fn is_violated(&self) -> bool {
        self.rounds.iter().any(|round| !round.report.violations.is_empty())
    }

    /// The counts of every class that was scheduled.
    pub fn counts_by_class(&self) -> Vec<(&'static FaultClass, FaultCounts)> {
        let of = |class| -> FaultCounts {
            self.rounds.iter().flat_map(|round| round.faults_of(class)).sum()
        };
        let counts = CLASSES.iter().map(|class| (class, of(class)));
        counts.filter(|(_, counts)| counts.scheduled > 0).collect()
    }

    fn overlapping_classes(&self) -> usize {
        self.counts_by_class().iter().filter(|(_, counts)| counts.overlapping > 0).count()
    }

    pub fn is_finished(&self, minutes: u64) -> bool {
        let wanted = Duration::from_secs(minutes * 60);
        let time_is_up = !self.rounds.is_empty() && self.duration() >= wanted;
        let too_long = self.duration() >= wanted.mul_f64(OVERTIME_FACTOR_MAX);
        self.is_violated()
            || too_long
            || time_is_up && self.inconclusive_reasons(minutes).is_empty()
    }

    /// Why the run is inconclusive; empty if it is not.
    pub fn inconclusive_reasons(&self, minutes: u64) -> Vec<String> {
        let mut reasons: Vec<String> = self.error.iter().cloned().collect();
        for ChaosRound { nth, report, .. } in &self.rounds {
            if !report.inconclusive.is_empty() {
                let why = report.inconclusive.join(", ");
                reasons.push(format!("round {} is inconclusive: {why}", nth + 1));
            }
        }
        let classes = self.counts_by_class();
        let share = (minutes as f64 * 60.0 / FULL_RUN.as_secs_f64()).min(1.0);
        let kills_min = (KILLS_MIN as f64 * share) as usize;
        if self.kills() < kills_min {
            reasons.push(format!("{} kills, {kills_min} at least", self.kills()));
        }
        let is_full = share >= 1.0;
        reasons.extend(
            classes.iter().filter_map(|(class, counts)| missing_effect(class, counts, is_full)),
        );
        let faults = self.rounds.iter().flat_map(|round| &round.faults);
        let ineffective = faults.clone().filter(|record| !record.was_injected()).count();
        if ineffective * 100 > faults.count() * FAILED_FAULTS_PERCENT_MAX {
            reasons.push(format!(
                "{ineffective} faults failed or came too late, {FAILED_FAULTS_PERCENT_MAX} of a hundred at most"
            ));
        }
        let overlapping = self.overlapping_classes();
        if is_full && overlapping < CLASSES_MIN {
            reasons.push(format!("{overlapping} classes of faults, {CLASSES_MIN} at least"));
        }
        // What one class alone brings about is due if the run had to inject it.
        let is_due = |situation: &Situation| {
            let causes = |class: &FaultClass| class.causes == Some(*situation);
            let injected =
                |(class, counts): &(&FaultClass, FaultCounts)| causes(class) && counts.injected > 0;
            is_full || !CLASSES.iter().any(causes) || classes.iter().any(injected)
        };
        let due: Vec<Situation> = Situation::all().into_iter().filter(is_due).collect();
        match self.rounds.last() {
            Some(last) => {
                let unseen = last.coverage.missing(&due);
                reasons.extend(
                    unseen.iter().map(|situation| format!("never happened: {}", situation.name())),
                );
                let uncompared = last.coverage.uncompared_topics().into_iter();
                reasons.extend(uncompared.map(|topic| format!("no record was compared: {topic}")));
            }
            None => reasons.push("there was no round".to_string()),
        }
        reasons
    }

    /// The report of the whole run.
    pub fn report(&self, minutes: u64) -> Report {
        let violations = self.rounds.iter().flat_map(|round| round.report.violations.clone());
        let inconclusive = self.inconclusive_reasons(minutes);
        Report { violations: violations.collect(), inconclusive }
    }

    pub fn summary(&self, minutes: u64) -> String {
        let what = format!(
            "SEED={}: {} rounds in {:.0} minutes, {} kills, {} classes of faults",
            self.seed,
            self.rounds.len(),
            self.duration().as_secs_f64() / 60.0,
            self.kills(),
            self.overlapping_classes(),
        );
        let report = self.report(minutes);
        match report.outcome() {
            Outcome::Held => {
                format!("held. {what}, no event was lost and no effect happened twice.")
            }
            // Their details are in the report.
            Outcome::Violated => format!("VIOLATED. {what}."),
            Outcome::Inconclusive => format!("{}. {what}.", report.verdict("")),
        }
    }
}

/// Why a class of faults makes the run inconclusive. A short run has each class about once, and
/// that one may have no effect. A full run has each class many times.
fn missing_effect(class: &FaultClass, counts: &FaultCounts, is_full: bool) -> Option<String> {
    let what = class.description;
    match counts {
        FaultCounts { injected: 0, .. } if is_full => {
            Some(format!("no fault of this class was injected: {what}"))
        }
        FaultCounts { effective: 0, .. } if is_full => {
            Some(format!("no fault of this class had an effect: {what}"))
        }
        FaultCounts { effective: 1.., overlapping: 0, .. } => {
            Some(format!("no order was in flight during a fault of this class: {what}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::checker::coverage::Coverage;
    use crate::scenarios::chaos::fault::Fault;
    use crate::scenarios::chaos::nemesis::{FaultRecord, FaultResult};
    use crate::scenarios::chaos::{round, schedule};

    /// Rounds in which every fault had an effect with orders in flight, and every situation
    /// occurred.
    fn full_run(rounds: u64) -> ChaosRun {
        let round = |nth| {
            let faults = schedule::generate(1, nth, 1, round::LOAD_DURATION);
            let faults = faults.into_iter().map(effective).collect();
            let mut seen = Coverage::default();
            Situation::all().into_iter().for_each(|situation| seen.record(situation, 1));
            ChaosRound {
                nth,
                faults,
                coverage: seen,
                duration: Duration::from_secs(180),
                ..ChaosRound::default()
            }
        };
        ChaosRun { rounds: (0..rounds).map(round).collect(), ..ChaosRun::default() }
    }

    fn effective(fault: Fault) -> FaultRecord {
        let (at, began, ended) = (fault.at, DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH);
        FaultRecord {
            fault,
            at,
            began,
            ended,
            result: FaultResult::Affected(1),
            orders_in_flight: 1,
        }
    }

    fn failed(record: &mut FaultRecord) {
        record.result = FaultResult::Failed("it did not run".to_string());
    }

    /// The run after a change to every fault of a class.
    fn with_changed_faults(
        mut run: ChaosRun,
        class: &FaultClass,
        change: impl Fn(&mut FaultRecord),
    ) -> ChaosRun {
        let faults = run.rounds.iter_mut().flat_map(|round| &mut round.faults);
        faults.filter(|record| record.fault.class == class).for_each(change);
        run
    }

    fn reasons_after(
        rounds: u64,
        minutes: u64,
        class: &FaultClass,
        change: impl Fn(&mut FaultRecord),
    ) -> Vec<String> {
        with_changed_faults(full_run(rounds), class, change).inconclusive_reasons(minutes)
    }

    #[test]
    fn a_full_run_holds_only_if_every_scheduled_class_had_an_effect() {
        assert_eq!(full_run(10).inconclusive_reasons(30), Vec::<String>::new());
        for class in
            ["orders have a deadline while stock is frozen", "a black hole", "a service is killed"]
        {
            let class = FaultClass::described(class).unwrap();
            assert!(!reasons_after(10, 30, class, failed).is_empty());
            let nothing = |record: &mut FaultRecord| record.result = FaultResult::Affected(0);
            assert_eq!(reasons_after(10, 30, class, nothing).len(), 1);
            assert_eq!(reasons_after(2, 5, class, nothing), Vec::<String>::new());
            let alone = |record: &mut FaultRecord| record.orders_in_flight = 0;
            assert_eq!(reasons_after(10, 30, class, alone).len(), 1);
        }
    }

    #[test]
    fn a_full_run_covers_every_situation_and_a_short_one_those_of_its_faults() {
        let without = |situation, mut run: ChaosRun| {
            let mut seen = Coverage::default();
            let others = Situation::all().into_iter().filter(|other| *other != situation);
            others.for_each(|situation| seen.record(situation, 1));
            run.rounds.last_mut().unwrap().coverage = seen;
            run
        };
        for situation in [Situation::Deadline, Situation::DeadLetterReplayed] {
            let class = CLASSES.iter().find(|class| class.causes == Some(situation)).unwrap();
            let full = with_changed_faults(without(situation, full_run(10)), class, failed)
                .inconclusive_reasons(30);
            assert!(full.contains(&format!("never happened: {}", situation.name())), "{full:?}");
            assert_eq!(without(situation, full_run(3)).inconclusive_reasons(5).len(), 1);
            let short = with_changed_faults(without(situation, full_run(3)), class, failed);
            assert_eq!(short.inconclusive_reasons(5), Vec::<String>::new());
        }
        assert_eq!(without(Situation::RelayResend, full_run(3)).inconclusive_reasons(5).len(), 1);
    }

    #[test]
    fn a_run_that_compared_no_record_of_a_topic_is_inconclusive() {
        let mut run = full_run(2);
        let coverage = &mut run.rounds.last_mut().unwrap().coverage;
        coverage.record_compared("orders.created", 3);
        coverage.record_compared("stock.rejected", 0);
        assert_eq!(run.inconclusive_reasons(3), ["no record was compared: stock.rejected"]);
    }

    #[test]
    fn a_run_whose_faults_failed_too_often_is_inconclusive() {
        let mut run = full_run(2);
        let faults = run.rounds.iter_mut().flat_map(|round| &mut round.faults);
        faults.step_by(9).for_each(|record| record.result = FaultResult::Skipped);
        assert_eq!(run.inconclusive_reasons(3).len(), 1, "{:?}", run.inconclusive_reasons(3));
    }

    #[test]
    fn a_run_without_a_round_is_inconclusive() {
        assert_eq!(ChaosRun::default().report(30).outcome(), Outcome::Inconclusive);
    }
}
