//! Puts each mutant into a worktree, builds it, runs its detector, and removes it again. Each trial
//! also runs with the programs of the checkout, and must then find nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::directories::programs_directory;
use tokio::time::Instant;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant;
use crate::console::print_line;
use crate::mutants::list::{Detector, MUTANTS, Mutant, patch_file};
use crate::mutants::trial::{MutantTrial, TestedPrograms};
use crate::mutants::worktree::Worktree;
use crate::stack_description::checkout;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct MutantOptions {
    /// Only these mutants, as in `B1 B7`; all of them by default
    pub only: Vec<String>,
    /// Leave out the trials without a mutant
    #[arg(long)]
    pub without_controls: bool,
}

/// The result of a mutant, or of a trial without one.
struct MutantResult {
    id: &'static str,
    description: &'static str,
    detector: String,
    expected: Option<Invariant>,
    violated: BTreeSet<Invariant>,
    /// Why the result is not the expected one.
    problem: Option<String>,
    duration: Duration,
}

/// Runs the selected trials, writes the table into `target/mutants.md`, and returns whether every
/// mutant was caught and nothing was found without one.
pub async fn run(options: &MutantOptions) -> Result<bool> {
    let known = |id: &&String| MUTANTS.iter().any(|mutant| mutant.id == **id);
    let unknown = options.only.iter().find(|id| !known(id));
    ensure!(unknown.is_none(), "there is no mutant {}", unknown.map_or("", String::as_str));
    let is_wanted =
        |mutant: &&Mutant| options.only.is_empty() || options.only.contains(&mutant.id.into());
    let mutants: Vec<&Mutant> = MUTANTS.iter().filter(is_wanted).collect();
    let mut rows = Vec::new();
    if !options.without_controls {
        // These tests already run without a mutant in `make test`.
        let trials = mutants.iter().filter_map(|mutant| match mutant.detector {
            Detector::Trial(trial) => Some(trial),
            Detector::Test(_) => None,
        });
        for trial in trials.collect::<BTreeSet<MutantTrial>>() {
            add_result(&mut rows, run_control(&trial).await);
        }
    }
    let root = checkout();
    let worktree = Worktree::create_incremental("mutants").await?;
    for mutant in mutants {
        add_result(&mut rows, run_mutant(&root, &worktree, mutant).await);
    }
    let table = markdown_table(&rows);
    print_line("");
    table.iter().for_each(|line| print_line(line));
    let file = worktree.root.ancestors().nth(2).context("a worktree lies in target")?;
    std::fs::write(file.join("mutants.md"), table.join("\n") + "\n")?;
    let faults = rows.iter().filter(|row| row.problem.is_some()).count();
    print_line(&format!("\nVERDICT  {} of {} as expected.", rows.len() - faults, rows.len()));
    Ok(faults == 0)
}

fn add_result(rows: &mut Vec<MutantResult>, row: MutantResult) {
    let outcome = row.problem.clone().unwrap_or_else(|| format!("as expected: {}", row.verdict()));
    print_line(&format!(
        "{:>6.1} s  {} ({}): {outcome}",
        row.duration.as_secs_f64(),
        row.id,
        row.detector
    ));
    rows.push(row);
}

/// A trial with a finding without a mutant is worthless: it would also "catch" correct code.
async fn run_control(trial: &MutantTrial) -> MutantResult {
    let began = Instant::now();
    let ran = trial.run(None).await.and_then(|proof| proof.ensure_holds());
    let fault = ran.err().map(|error| format!("{error:#}"));
    let (catcher, took, violated) = (trial.describe(), began.elapsed(), BTreeSet::new());
    MutantResult {
        id: "-",
        description: "no mutant",
        detector: catcher,
        expected: None,
        violated,
        problem: fault,
        duration: took,
    }
}

async fn run_mutant(root: &Path, worktree: &Worktree, mutant: &Mutant) -> MutantResult {
    let began = Instant::now();
    let ran = build_and_run(root, worktree, mutant).await;
    let (violated, fault) = match ran {
        Ok(findings) => {
            let violated = findings.violated();
            let is_caught = violated.contains(&mutant.violates);
            let shown = || findings.lines().join("\n");
            let fault = format!("NOT CAUGHT by {}:\n{}", mutant.violates, shown());
            (violated, (!is_caught).then_some(fault))
        }
        Err(error) => (BTreeSet::new(), Some(format!("the trial was interrupted: {error:#}"))),
    };
    let catcher = match mutant.detector {
        Detector::Trial(trial) => trial.describe(),
        Detector::Test(test) => format!("`{test}`"),
    };
    let (meant, took) = (Some(mutant.violates), began.elapsed());
    MutantResult {
        id: mutant.id,
        description: mutant.description,
        detector: catcher,
        expected: meant,
        violated,
        problem: fault,
        duration: took,
    }
}

/// Applies the patch, builds, reverts it, and runs the trial with the built programs.
async fn build_and_run(root: &Path, worktree: &Worktree, mutant: &Mutant) -> Result<Findings> {
    let patch = patch_file(root, mutant);
    worktree.patch(&patch, false).await.context("the patch does not apply")?;
    let build: &[&str] = match mutant.detector {
        Detector::Trial(_) => &["build", "--bin=order", "--bin=payment", "--bin=stock"],
        Detector::Test(_) => &["test", "--lib", "--no-run"],
    };
    let built = worktree.cargo(build).await;
    let ran = match (built, mutant.detector) {
        (Err(broken), _) => Err(broken.context("the patched checkout does not compile")),
        (Ok(_), Detector::Trial(trial)) => {
            let programs = worktree.programs_directory();
            let programs = TestedPrograms { directory: &programs, service: mutant.service };
            trial.run(Some(programs)).await.map(|proof| proof.findings)
        }
        (Ok(_), Detector::Test(test)) => run_test(worktree, mutant, test).await,
    };
    worktree.patch(&patch, true).await?;
    ran
}

/// Runs a test of the chassis on its own infrastructure. A failed test is a finding.
async fn run_test(worktree: &Worktree, mutant: &Mutant, test: &str) -> Result<Findings> {
    let cargo = format!("cargo test --workspace --profile ci --locked --lib -- {test}");
    let ran = worktree
        .run(programs_directory()?.join("e2e"), &["with-infrastructure", "--", "sh", "-c", &cargo])
        .await;
    let mut findings = Findings::default();
    if let Err(failed) = ran {
        let output = format!("{failed:#}");
        ensure!(output.contains(&format!("{test} ... FAILED")), "{output}");
        findings.add(mutant.violates, "test", || format!("{test} failed"));
    }
    Ok(findings)
}

impl MutantResult {
    fn verdict(&self) -> String {
        if self.expected.is_none() {
            return "nothing found".to_string();
        }
        let mut named: Vec<Invariant> = self.expected.into_iter().collect();
        named.extend(self.violated.iter().filter(|violated| Some(**violated) != self.expected));
        let named: Vec<String> = named.iter().map(Invariant::to_string).collect();
        format!("caught by {}", named.join(", "))
    }
}

/// The table, in Markdown.
fn markdown_table(rows: &[MutantResult]) -> Vec<String> {
    let mut lines = vec![
        "| mutant | what | detected by | verdict | s |".into(),
        "| --- | --- | --- | --- | --- |".into(),
    ];
    for row in rows {
        let verdict = match row.problem {
            Some(_) => "**RED**".to_string(),
            None => row.verdict(),
        };
        let MutantResult { id, description: what, detector: catcher, duration: took, .. } = row;
        lines
            .push(format!("| {id} | {what} | {catcher} | {verdict} | {:.0} |", took.as_secs_f64()));
    }
    lines
}
