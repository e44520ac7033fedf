//! The runner: the one shape of every scenario.
//!
//! A scenario is a load, faults during it on a schedule, and expectations. It is a page of data and a few functions:
//! what it injects, and what must hold beyond the promises of every run. A [`Run`] does the rest, and each of its steps
//! adds what was not as promised to one [`Report`]:
//!
//! 1. It takes a stack: that of the checkout, which is left as it was found ([`on_stack`]), or one of its own, which is
//!    deleted if the run held ([`on_own_stack`]). It starts what does not run, and creates the demo items and accounts.
//! 2. [`Run::load`] places the load, injects the faults during it, and waits until every order has ended.
//! 3. [`Run::check`] runs the checker with the dead letters that the scenario expects.
//! 4. [`Run::add_exits`] adds the exits of processes that the run did not cause.
//! 5. The report becomes one line, the verdict: held, VIOLATED or INCONCLUSIVE. A run that exercises too little proves
//!    nothing, so it is inconclusive and not held.
//!
//! Chaos takes its stack itself, since an interrupted run continues. It places its loads itself as well: after the
//! faults are healed, an error is a violation and does not end the run.

use std::collections::HashSet;

use anyhow::{Context, Result};
use checker::record::RecordPosition;
use launcher::{ComponentState, Exit, Stack, StackDescription};
use serde::{Deserialize, Serialize};

use crate::checker::exits;
use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant;
use crate::checker::run::{self, CheckOptions};
use crate::checker::verdict::Verdict;
use crate::client::http_client::Client;
use crate::console::{print_line, print_lines, print_step};
use crate::workload::load;
use crate::workload::load_summary::LoadSummary;
use crate::workload::options::Load;
use crate::workload::seed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Held,
    /// Something that the run must exercise did not happen.
    Inconclusive,
    Violated,
}

/// Everything that was not as promised, as sentences.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub violations: Vec<String>,
    /// Why the run proves too little.
    pub inconclusive: Vec<String>,
}

impl Report {
    pub fn outcome(&self) -> Outcome {
        match (self.violations.is_empty(), self.inconclusive.is_empty()) {
            (false, _) => Outcome::Violated,
            (true, false) => Outcome::Inconclusive,
            (true, true) => Outcome::Held,
        }
    }

    pub fn holds(&self) -> bool {
        self.outcome() == Outcome::Held
    }

    /// Adds a violation, unless what was promised holds.
    pub fn require(&mut self, holds: bool, violation: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(violation());
        }
    }

    /// The verdict and its reasons. `held` states what a run that held has shown.
    pub fn verdict(&self, held: &str) -> String {
        match self.outcome() {
            Outcome::Held => format!("held{held}"),
            Outcome::Inconclusive => format!("INCONCLUSIVE: {}", self.inconclusive.join("; ")),
            Outcome::Violated => {
                let reasons = [&self.violations[..], &self.inconclusive].concat();
                format!("VIOLATED: {}", reasons.join("; "))
            }
        }
    }
}

/// A scenario that runs on a stack where every component runs.
pub struct Run<'a> {
    pub stack: &'a Stack,
    pub client: Client,
    pub report: Report,
    steps: u32,
    exits_before: Vec<Exit>,
}

impl<'a> Run<'a> {
    /// Starts what does not run, and creates the demo items and accounts.
    pub async fn start(stack: &'a Stack) -> Result<Run<'a>> {
        Run::new(stack, seed::start(stack).await?).await
    }

    /// On a stack that runs and has the items and accounts.
    pub async fn new(stack: &'a Stack, client: Client) -> Result<Run<'a>> {
        let (report, exits_before) = (Report::default(), stack.exits().await?);
        Ok(Run { stack, client, report, steps: 0, exits_before })
    }

    /// Prints the heading of the next step.
    pub fn step(&mut self, what: &str) {
        self.steps += 1;
        print_step(self.steps, what);
    }

    /// Places the load, injects the faults during it, and waits until every order has ended. A broken promise to a client
    /// is a violation.
    pub async fn load<T>(
        &mut self,
        load: &Load,
        faults: impl Future<Output = Result<T>>,
    ) -> Result<(LoadSummary, T)> {
        let Load { rate, duration, .. } = load;
        self.step(&format!("{rate} orders a second for {} s", duration.as_secs_f64()));
        let (summary, done) = load::run(&self.client, load, faults).await?;
        self.step("Every order is settled and must have ended");
        self.add_summary(&summary);
        Ok((summary, done))
    }

    /// Prints the summary of a load.
    pub fn add_summary(&mut self, summary: &LoadSummary) {
        print_lines(&summary.lines());
        self.add_findings("a promise to a client was broken", &summary.findings);
    }

    /// Runs the checker and prints its verdict. Every finding is a violation, and so is a dead letter beyond those that
    /// are expected, if any are given.
    pub async fn check(
        &mut self,
        options: &CheckOptions,
        expected: Option<&HashSet<RecordPosition>>,
    ) -> Result<Verdict> {
        self.step("No event may be lost, no effect may happen twice (make verify)");
        let verdict = match expected {
            None => run::run(&self.client, options).await?,
            Some(these) => run::run_expecting(&self.client, options, these).await?,
        };
        print_lines(&verdict.lines());
        self.add_findings("the checker found violations", &verdict.findings);
        Ok(verdict)
    }

    fn add_findings(&mut self, what: &str, findings: &Findings) {
        let violated: Vec<String> = findings.violated().iter().map(Invariant::to_string).collect();
        let sentence = || format!("{what} (step {}): {}", self.steps, violated.join(", "));
        self.report.require(findings.is_empty(), sentence);
    }

    /// The exits of processes since the run began.
    pub async fn exits(&self) -> Result<Vec<Exit>> {
        let mut exits = self.stack.exits().await?;
        exits.retain(|exit| !self.exits_before.contains(exit));
        Ok(exits)
    }

    /// Each exit that the run did not cause is a violation.
    pub async fn add_exits(&mut self) -> Result<()> {
        let exits = self.exits().await?;
        self.report.violations.extend(exits::unexpected_exits(&exits));
        Ok(())
    }
}

/// Runs a scenario on a stack that is left as it was found, and returns its result.
pub async fn on_stack<T>(stack: &Stack, scenario: impl Future<Output = Result<T>>) -> Result<T> {
    let was_up = is_stack_up(stack).await?;
    with_stack_restored(stack, was_up, scenario).await
}

/// Starts what does not run, runs a scenario, and prints its verdict: whether it held.
pub async fn prove(
    stack: &Stack,
    what: &str,
    scenario: impl AsyncFnOnce(&mut Run<'_>) -> Result<()>,
) -> Result<bool> {
    let proof = async {
        print_line("Starting the components that do not run …");
        let mut run = Run::start(stack).await?;
        scenario(&mut run).await?;
        print_line(&format!("\nVERDICT  {what}: {}.", run.report.verdict("")));
        Ok(run.report.holds())
    };
    on_stack(stack, proof).await
}

/// Runs a scenario on a stack of its own, which is deleted if it held. It returns its report, and what it has shown if
/// it held.
pub async fn on_own_stack(
    description: &StackDescription,
    kind: &str,
    scenario: impl AsyncFnOnce(&Stack) -> Result<(Report, String)>,
) -> Result<bool> {
    let (stack, _lock) = Stack::for_exclusive_run(description, kind).await?;
    let (report, held) = with_stack_restored(&stack, false, scenario(&stack)).await?;
    print_line(&format!("\nVERDICT  {kind}: {}.", report.verdict(&held)));
    if report.holds() {
        stack.clean().await?;
    } else {
        print_line(&format!("Logs and data are kept in {}.", stack.directory().display()));
    }
    Ok(report.holds())
}

/// Whether a component of the stack runs.
pub async fn is_stack_up(stack: &Stack) -> Result<bool> {
    Ok(stack.status().await?.iter().any(|component| component.state != ComponentState::Stopped))
}

/// Runs a scenario until it ends or Ctrl-C is pressed. The stack is stopped again if it was not up
/// before.
pub async fn with_stack_restored<T>(
    stack: &Stack,
    was_up: bool,
    scenario: impl Future<Output = Result<T>>,
) -> Result<T> {
    let result = tokio::select! {
        done = scenario => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("waiting for Ctrl-C")?;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    if !was_up {
        print_line("\nStopping the stack again; its data is kept …");
        stack.down().await?;
    } else if result.is_err() {
        print_line("\nThe stack was up before: starting the components that were killed …");
        stack.up().await?;
    } else {
        print_line("\nThe stack was up before, and stays up.");
    }
    result
}
