//! The report of a chaos run, in Markdown.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::chaos::Run;
use crate::fault::Class;
use crate::figures::grouped;
use crate::round::Times;
use crate::sights::Sight;

/// Writes it as `<seed>.md`; answers where.
pub fn write(run: &Run, minutes: u64, into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    let file = into.join(format!("{}.md", run.seed));
    fs::write(&file, text(run, minutes)?)?;
    Ok(file)
}

pub fn text(run: &Run, minutes: u64) -> Result<String> {
    let mut text = String::new();
    let out = &mut text;
    writeln!(out, "# Chaos, seed {}\n", run.seed)?;
    writeln!(out, "{}\n", run.says(minutes))?;
    writeln!(out, "Again: `make chaos MINUTES={minutes} SEED={}`.", run.seed)?;
    writeln!(
        out,
        "Version {}; {} of each service; broken off and resumed {} times.\n",
        version(),
        run.instances,
        run.resumed
    )?;
    rounds(run, out)?;
    classes(run, out)?;
    if let Some(last) = run.rounds.last() {
        writeln!(out, "\n## What happened at least once\n\n| | times |\n| --- | ---: |")?;
        for sight in Sight::ALL {
            writeln!(out, "| {} | {} |", sight.name(), grouped(last.seen.count(sight)))?;
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
            "None: every order ended in one state, agreed on by all three services; every answer \
             that a client was given is true; every event is in its topic and had its effect once; \
             money and stock balance; nobody died but by a kill."
        )?;
    }
    schedule(run, out)?;
    Ok(text)
}

fn rounds(run: &Run, out: &mut String) -> Result<()> {
    writeln!(
        out,
        "| round | kills | other faults | accepted | refused | unknown at first | confirmed | \
         cancelled | drained | records | verified | verdict |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    )?;
    for round in &run.rounds {
        let verdict = match (round.violations.len(), round.void.len()) {
            (0, 0) => "held",
            (0, _) => "void",
            _ => "VIOLATED",
        };
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.1} s | {} | {:.1} s | {verdict} |",
            round.nth + 1,
            round.kills(),
            round.other_faults(),
            grouped(round.accepted),
            grouped(round.refused),
            grouped(round.unknown),
            grouped(round.confirmed),
            grouped(round.cancelled.values().sum::<u64>()),
            round.drained_in.as_secs_f64(),
            grouped(round.records),
            round.verified_in.as_secs_f64(),
        )?;
    }
    let sum = |of: fn(&crate::round::Round) -> u64| run.rounds.iter().map(of).sum::<u64>();
    writeln!(
        out,
        "\n{} kills; {} orders accepted, {} confirmed.",
        run.kills(),
        grouped(sum(|round| round.accepted)),
        grouped(sum(|round| round.confirmed))
    )?;
    Ok(())
}

fn classes(run: &Run, out: &mut String) -> Result<()> {
    writeln!(
        out,
        "\n## Faults\n\n| fault | in the matrix | drawn | came about | struck something | while \
         orders were on their way |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )?;
    let classes = run.classes();
    for (class, Times { drawn, befell, struck, overlapping }) in &classes {
        let (what, number) = class.says();
        writeln!(out, "| {what} | {number} | {drawn} | {befell} | {struck} | {overlapping} |")?;
    }
    let left = Class::all().filter(|class| !classes.iter().any(|(there, ..)| there == class));
    let left: Vec<&str> = left.map(|class| class.says().0).collect();
    if !left.is_empty() {
        writeln!(out, "\nNot drawn in this run: {}.", left.join("; "))?;
    }
    Ok(())
}

fn schedule(run: &Run, out: &mut String) -> Result<()> {
    writeln!(out, "\n## Schedule")?;
    for round in &run.rounds {
        writeln!(out, "\nRound {}:\n\n```text", round.nth + 1)?;
        for struck in &round.faults {
            let happened = &struck.happened;
            let fault = &happened.fault;
            let went = match (&happened.broken, &happened.failed) {
                _ if happened.left_out => "left out: it came too late".to_string(),
                (Some(broken), _) => format!("BROKEN: {broken}"),
                (_, Some(failed)) => format!("failed: {failed}"),
                _ if happened.struck == 0 => "struck nothing".to_string(),
                _ => format!(
                    "struck {}; {} orders on their way",
                    grouped(happened.struck),
                    grouped(struck.orders_in_flight)
                ),
            };
            let took = happened.ended - happened.began;
            writeln!(
                out,
                "{:>5.1} s  (due {:>4.1} s)  {fault}; {:.1} s, over after {:.1} s; {went}",
                happened.at.as_secs_f64(),
                fault.at.as_secs_f64(),
                fault.lasting.as_secs_f64(),
                took.num_milliseconds() as f64 / 1_000.0
            )?;
        }
        writeln!(out, "```")?;
    }
    Ok(())
}

/// Of the checkout, as git has it.
fn version() -> String {
    let said = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let said = said.ok().filter(|said| said.status.success());
    let said = said.and_then(|said| String::from_utf8(said.stdout).ok()).unwrap_or_default();
    if said.trim().is_empty() { "unknown".to_string() } else { said.trim().to_string() }
}
