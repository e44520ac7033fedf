//! The report of a chaos run, in Markdown.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use checker::group_digits;

use crate::checker::coverage::Situation;
use crate::scenarios::chaos::fault::FaultClass;
use crate::scenarios::chaos::impact::FaultCounts;
use crate::scenarios::chaos::outcome::ChaosRun;

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
    if let Some(last) = run.rounds.last() {
        writeln!(out, "\n## What happened at least once\n\n| | times |\n| --- | ---: |")?;
        for situation in Situation::ALL {
            writeln!(
                out,
                "| {} | {} |",
                situation.name(),
                group_digits(last.coverage.count(situation))
            )?;
        }
    }
    let violations = run.rounds.iter().flat_map(|round| &round.violations);
    writeln!(out, "\n## Violations\n")?;
    let mut any = false;
    for violation in violations {
        any = true;
        writeln!(out, "```text\n{violation}\n```\n")?;
    }
    if !any {
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
        let verdict = match (round.violations.len(), round.inconclusive.len()) {
            (0, 0) => "held",
            (0, _) => "inconclusive",
            _ => "VIOLATED",
        };
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.1} s | {} | {:.1} s | {verdict} |",
            round.nth + 1,
            round.kills(),
            round.other_faults(),
            group_digits(round.accepted),
            group_digits(round.refused),
            group_digits(round.unknown),
            group_digits(round.confirmed),
            group_digits(round.cancelled.values().sum::<u64>()),
            round.drained_in.as_secs_f64(),
            group_digits(round.records),
            round.verified_in.as_secs_f64(),
        )?;
    }
    let sum = |of: fn(&crate::scenarios::chaos::round::ChaosRound) -> u64| {
        run.rounds.iter().map(of).sum::<u64>()
    };
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
    for (class, FaultCounts { scheduled, injected, effective, overlapping }) in &classes {
        let (what, number) = class.describe();
        writeln!(
            out,
            "| {what} | {number} | {scheduled} | {injected} | {effective} | {overlapping} |"
        )?;
    }
    let not_drawn =
        FaultClass::all().filter(|class| !classes.iter().any(|(there, ..)| there == class));
    let not_drawn: Vec<&str> = not_drawn.map(|class| class.describe().0).collect();
    if !not_drawn.is_empty() {
        writeln!(out, "\nNot scheduled in this run: {}.", not_drawn.join("; "))?;
    }
    Ok(())
}

fn render_schedule(run: &ChaosRun, out: &mut String) -> Result<()> {
    writeln!(out, "\n## Schedule")?;
    for round in &run.rounds {
        writeln!(out, "\nRound {}:\n\n```text", round.nth + 1)?;
        for impact in &round.faults {
            let record = &impact.record;
            let fault = &record.fault;
            let result = match (&record.violation, &record.failed) {
                _ if record.skipped => "skipped: it came too late".to_string(),
                (Some(broken), _) => format!("BROKEN: {broken}"),
                (_, Some(failed)) => format!("failed: {failed}"),
                _ if record.affected == 0 => "had no effect".to_string(),
                _ => format!(
                    "affected {}; {} orders in flight",
                    group_digits(record.affected),
                    group_digits(impact.orders_in_flight)
                ),
            };
            let duration = record.ended - record.began;
            writeln!(
                out,
                "{:>5.1} s  (due {:>4.1} s)  {fault}; {:.1} s, healed after {:.1} s; {result}",
                record.at.as_secs_f64(),
                fault.at.as_secs_f64(),
                fault.duration.as_secs_f64(),
                duration.num_milliseconds() as f64 / 1_000.0
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
