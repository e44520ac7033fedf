//! Puts each mutant into a worktree, builds it, runs its detector, and removes it again. Each trial also runs with the
//! programs of the checkout, and must then find nothing.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::builder::PossibleValuesParser;
use launcher::Stack;
use launcher::directories::programs_directory;
use tokio::time::Instant;

use crate::checker::findings::Findings;
use crate::checker::relay_leadership::{self, RelayLeadership};
use crate::checker::{change_log, exits, run};
use crate::console::print_line;
use crate::mutants::disturbance::Disturbance;
use crate::mutants::list::{Detector, MUTANTS, Mutant, patch_file};
use crate::mutants::worktree::Worktree;
use crate::stack_description::{SERVICES, checkout, stack_description};
use crate::workload::resource_usage::ResourceUsage;
use crate::workload::{load, seed};

/// A longer trial hangs.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(300);
const QUIESCENCE_TIMEOUT: Duration = Duration::from_secs(15);

/// A trial with fewer confirmed orders proves nothing.
const CONFIRMED_MIN: u64 = 100;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct MutantOptions {
    /// Only these mutants, as in `B1 B7`; all of them by default
    #[arg(value_parser = PossibleValuesParser::new(MUTANTS.map(|mutant| mutant.id)))]
    pub only: Vec<String>,
    /// Leave out the trials without a mutant
    #[arg(long)]
    pub without_controls: bool,
}

/// Runs the selected trials, writes the table into `target/mutants.md`, and returns whether every
/// mutant was caught and nothing was found without one.
pub async fn run(options: &MutantOptions) -> Result<bool> {
    let is_wanted =
        |mutant: &&Mutant| options.only.is_empty() || options.only.contains(&mutant.id.into());
    let mutants: Vec<&Mutant> = MUTANTS.iter().filter(is_wanted).collect();
    let mut table = Table::default();
    if !options.without_controls {
        // The tests already run without a mutant in `make test`.
        for detector in BTreeSet::from_iter(mutants.iter().map(|mutant| mutant.detector)) {
            if let Detector::Trial(disturbance, instances) = detector {
                let control = async {
                    let findings = run_trial(disturbance, instances, None).await?;
                    // A trial that finds something without a mutant would also "catch" correct code.
                    ensure!(findings.is_empty(), "{}", findings.lines().join("\n"));
                    anyhow::Ok("nothing found".to_string())
                };
                table.add(("-", "no mutant"), detector, control).await;
            }
        }
    }
    let worktree = Worktree::create_incremental("mutants").await?;
    for mutant in mutants {
        let verdict = async {
            let findings = run_mutant(&worktree, mutant).await?;
            let (violated, shown) = (findings.violated(), findings.lines().join("\n"));
            ensure!(violated.contains(&mutant.violates), "NOT CAUGHT:\n{shown}");
            let others = violated.iter().filter(|other| **other != mutant.violates);
            let named: Vec<String> =
                [&mutant.violates].into_iter().chain(others).map(ToString::to_string).collect();
            anyhow::Ok(format!("caught by {}", named.join(", ")))
        };
        table.add((mutant.id, mutant.description), mutant.detector, verdict).await;
    }
    let file = worktree.root.ancestors().nth(2).context("a worktree lies in target")?;
    let (rows, report) = (table.lines.lines().count(), format!("{TABLE_HEAD}{}", table.lines));
    std::fs::write(file.join("mutants.md"), &report)?;
    print_line(&format!("\n{report}"));
    print_line(&format!("VERDICT  {} of {rows} as expected.", rows - table.faults));
    Ok(table.faults == 0)
}

const TABLE_HEAD: &str = "| mutant | what | detected by | verdict | s |\n|---|---|---|---|---|\n";

/// The rows of the report, in Markdown.
#[derive(Default)]
struct Table {
    lines: String,
    faults: usize,
}

impl Table {
    async fn add(
        &mut self,
        (id, description): (&str, &str),
        detector: Detector,
        verdict: impl Future<Output = Result<String>>,
    ) {
        let (began, verdict) = (Instant::now(), verdict.await);
        let seconds = began.elapsed().as_secs();
        self.faults += usize::from(verdict.is_err());
        let told = verdict.as_ref().map_or_else(|error| format!("{error:#}"), String::clone);
        print_line(&format!("{seconds:>6} s  {id} ({detector:?}): {told}"));
        let verdict = verdict.unwrap_or("**RED**".to_string());
        self.lines +=
            &format!("| {id} | {description} | `{detector:?}` | {verdict} | {seconds} |\n");
    }
}

/// Applies the patch, builds, runs the detector, and takes the patch away.
async fn run_mutant(worktree: &Worktree, mutant: &Mutant) -> Result<Findings> {
    let patch = patch_file(&checkout(), mutant);
    worktree.patch(&patch, false).await.context("the patch does not apply")?;
    let build: &[&str] = match mutant.detector {
        Detector::Trial(..) => &["build", "--bin=order", "--bin=payment", "--bin=stock"],
        Detector::Test(_) => &["test", "--lib", "--no-run"],
    };
    let built = worktree.cargo(build).await.context("the patched checkout does not compile");
    let found = match (built, mutant.detector) {
        (Err(broken), _) => Err(broken),
        (Ok(_), Detector::Trial(disturbance, instances)) => {
            let programs = (&*worktree.programs_directory(), mutant.service);
            run_trial(disturbance, instances, Some(programs)).await
        }
        (Ok(_), Detector::Test(test)) => run_test(worktree, mutant, test).await,
    };
    worktree.patch(&patch, true).await?;
    found
}

/// Runs a test of the chassis on its own infrastructure. A failed test is a finding.
async fn run_test(worktree: &Worktree, mutant: &Mutant, test: &str) -> Result<Findings> {
    let cargo = format!("cargo test --workspace --profile ci --locked --lib -- {test}");
    let launcher = programs_directory()?.join("e2e");
    let ran = worktree.run(launcher, &["with-infrastructure", "--", "sh", "-c", &cargo]).await;
    let mut findings = Findings::default();
    if let Err(failed) = ran {
        let output = format!("{failed:#}");
        ensure!(output.contains(&format!("{test} ... FAILED")), "{output}");
        findings.add(mutant.violates, "test", || format!("{test} failed"));
    }
    Ok(findings)
}

/// Runs a load with its disturbance on a stack of its own, and returns what the checks find. `programs` is the folder of
/// other programs, and the only service that runs them.
async fn run_trial(
    disturbance: Disturbance,
    instances: u16,
    programs: Option<(&Path, Option<&str>)>,
) -> Result<Findings> {
    let stack = Stack::ephemeral(&stack_description())?;
    stack.set_instances(instances).await?;
    if let Some((directory, only)) = programs {
        for service in SERVICES.into_iter().filter(|of| only.is_none_or(|only| only == *of)) {
            for name in stack.instances_of(service)? {
                stack.set_programs(&name, directory)?;
            }
        }
    }
    let ran = tokio::time::timeout(TRIAL_TIMEOUT, disturb(&stack, disturbance)).await;
    stack.clean().await?;
    let (findings, confirmed, changes) = ran.context("it took too long").flatten()?;
    if programs.is_none() {
        ensure!(confirmed >= CONFIRMED_MIN, "only {confirmed} orders were confirmed");
        ensure!(changes > 0, "the change logs of the databases are empty");
    }
    Ok(findings)
}

/// Returns the findings, the number of confirmed orders, and that of changes in the databases' logs.
async fn disturb(stack: &Stack, disturbance: Disturbance) -> Result<(Findings, u64, u64)> {
    let client = seed::start(stack).await?;
    change_log::install(&client).await?;
    let before = ResourceUsage::measure(stack, &client).await?;
    let (load, mut leaders) = (disturbance.load(), RelayLeadership::default());
    let (summary, ()) = tokio::select! {
        loaded = load::run(&client, &load, disturbance.disturb(stack, &client)) => loaded?,
        broken = leaders.watch(stack, &client) => {
            return Err(broken.err().context("the watch ended")?);
        }
    };
    let mut findings = summary.findings.clone();
    leaders.check(&mut findings);
    // Any dead letter of a trial is a finding.
    let options = run::CheckOptions { timeout: QUIESCENCE_TIMEOUT };
    let verdict = run::run_expecting(&client, &options, &HashSet::new()).await?;
    findings.merge(&verdict.findings);
    if disturbance == Disturbance::Nothing {
        relay_leadership::check_no_duplicates(&verdict.tally, &mut findings);
    }
    exits::check_unexpected_exits(&stack.exits().await?, 0, &mut findings);
    ResourceUsage::measure(stack, &client).await?.check(&before, &mut findings);
    Ok((findings, summary.confirmed, verdict.changes.unwrap_or_default()))
}
