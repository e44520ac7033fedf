//! The report of a chaos run, in Markdown.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use checker::group_digits;

use crate::checker::coverage::Situation;
use crate::scenarios::chaos::classes::CLASSES;
use crate::scenarios::chaos::fault::FaultClass;
use crate::scenarios::chaos::nemesis::{FaultRecord, FaultResult};
use crate::scenarios::chaos::outcome::ChaosRun;
use crate::scenarios::chaos::round::{ChaosRound, FaultCounts};

/// Writes the report as `<seed>.md`, and returns its path.
pub fn write(run: &ChaosRun, minutes: u64, into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    let file = into.join(format!("{}.md", run.seed));
    fs::write(&file, render(run, minutes)?)?;
    Ok(file)
}

pub fn render(run: &ChaosRun, minutes: u64) -> Result<String> {
    let mut text = String::new();
    let out = &mut text;
    writeln!(out, "# Chaos, seed {}\n", run.seed)?;
    writeln!(out, "{}\n", run.summary(minutes))?;
    writeln!(out, "Again: `make chaos MINUTES={minutes} SEED={}`.", run.seed)?;
    writeln!(
        out,
        "Version {}; {} instances of each service; interrupted and resumed {} times.\n",
        version(),
        run.instances,
        run.resumptions
    )?;
    render_rounds(run, out)?;
    render_classes(run, out)?;
    if let Some(ChaosRound { coverage, .. }) = run.rounds.last() {
        writeln!(out, "\n## What happened at least once\n\n| | times |\n| --- | ---: |")?;
        for situation in Situation::all() {
            let count = group_digits(coverage.count(situation));
            writeln!(out, "| {} | {count} |", situation.name())?;
        }
    }
    writeln!(out, "\n## Violations\n")?;
    let violations = run.report(minutes).violations;
    for violation in &violations {
        writeln!(out, "```text\n{violation}\n```\n")?;
    }
    if violations.is_empty() {
        writeln!(
            out,
            "None: every order ended in one state, on which all three services agree; every response \
             to a client is true; every event is in its topic and had its effect once; money and \
             stock balance; no process exited unless the run killed it."
        )?;
    }
    render_schedule(run, out)?;
    Ok(text)
}

fn render_rounds(run: &ChaosRun, out: &mut String) -> Result<()> {
    writeln!(
        out,
        "| round | kills | other faults | accepted | refused | unknown at first | confirmed | \
         cancelled | drained | records | verified | verdict |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    )?;
    for round in &run.rounds {
        let ChaosRound { accepted, refused, unknown, confirmed, records, .. } = round;
        let cancelled = round.cancelled.values().sum();
        let counts = [*accepted, *refused, *unknown, *confirmed, cancelled].map(group_digits);
        writeln!(
            out,
            "| {} | {} | {} | {} | {:.1} s | {} | {:.1} s | {} |",
            round.nth + 1,
            round.kills(),
            round.other_faults(),
            counts.join(" | "),
            round.drained_in.as_secs_f64(),
            group_digits(*records),
            round.verified_in.as_secs_f64(),
            round.word()
        )?;
    }
    let sum = |of: fn(&ChaosRound) -> u64| run.rounds.iter().map(of).sum::<u64>();
    writeln!(
        out,
        "\n{} kills; {} orders accepted, {} confirmed.",
        run.kills(),
        group_digits(sum(|round| round.accepted)),
        group_digits(sum(|round| round.confirmed))
    )?;
    Ok(())
}

fn render_classes(run: &ChaosRun, out: &mut String) -> Result<()> {
    writeln!(
        out,
        "\n## Faults\n\n| fault | in the matrix | scheduled | injected | had an effect | with \
         orders in flight |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )?;
    let classes = run.counts_by_class();
    for (FaultClass { description, number, .. }, counts) in &classes {
        let FaultCounts { scheduled, injected, effective, overlapping } = counts;
        writeln!(
            out,
            "| {description} | {number} | {scheduled} | {injected} | {effective} | {overlapping} |"
        )?;
    }
    let not_drawn = CLASSES.iter().filter(|class| !classes.iter().any(|(there, _)| there == class));
    let not_drawn: Vec<&str> = not_drawn.map(|class| class.description).collect();
    if !not_drawn.is_empty() {
        writeln!(out, "\nNot scheduled in this run: {}.", not_drawn.join("; "))?;
    }
    Ok(())
}

fn render_schedule(run: &ChaosRun, out: &mut String) -> Result<()> {
    writeln!(out, "\n## Schedule")?;
    for round in &run.rounds {
        writeln!(out, "\nRound {}:\n\n```text", round.nth + 1)?;
        for FaultRecord { fault, at, began, ended, result, orders_in_flight } in &round.faults {
            let result = match result {
                FaultResult::Skipped => "skipped: it came too late".to_string(),
                FaultResult::Violated(problem) => format!("VIOLATED: {problem}"),
                FaultResult::Failed(problem) => format!("failed: {problem}"),
                FaultResult::Affected(0) => "had no effect".to_string(),
                FaultResult::Affected(count) => {
                    let (count, orders) = (group_digits(*count), group_digits(*orders_in_flight));
                    format!("affected {count}; {orders} orders in flight")
                }
            };
            writeln!(
                out,
                "{:>5.1} s  (due {:>4.1} s)  {fault}; {:.1} s, healed after {:.1} s; {result}",
                at.as_secs_f64(),
                fault.at.as_secs_f64(),
                fault.duration.as_secs_f64(),
                (*ended - *began).num_milliseconds() as f64 / 1_000.0
            )?;
        }
        writeln!(out, "```")?;
    }
    Ok(())
}

/// The version of the checkout, from git.
fn version() -> String {
    let output =
        std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let output = output.ok().filter(|output| output.status.success());
    let version = output.and_then(|output| String::from_utf8(output.stdout).ok());
    let version = version.unwrap_or_default();
    if version.trim().is_empty() { "unknown".to_string() } else { version.trim().to_string() }
}
