//! Outages: a load, a victim that is killed again and again, and a run of the checker. It proves
//! that an outage of any component loses no order and duplicates none. Each step prints what it
//! does, and the last line is the verdict.

pub mod plan;
pub mod report;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use launcher::Stack;
use tokio::time::{Instant, sleep, sleep_until};

use crate::checker::run;
use crate::client::http_client::Client;
use crate::console::print_line;
use crate::console::print_step;
use crate::scenarios::outage::plan::{INSTANCES, Outage, OutageOptions};
use crate::scenarios::outage::report::{OutageReport, stall_lines, table, times};
use crate::scenarios::proof::{is_stack_up, with_stack_restored};
use crate::stack_description::SERVICES;
use crate::workload::load;
use crate::workload::load_summary::LoadSummary;
use crate::workload::options::Load;
use crate::workload::seed;
use crate::workload::stall_detector::StallDetector;

/// Runs the outages, and returns whether all of them held. The stack is stopped again if it was not
/// up before.
pub async fn run(stack: &Stack, options: &OutageOptions) -> Result<bool> {
    let was_up = is_stack_up(stack).await?;
    let began = Instant::now();
    let reports = with_stack_restored(stack, was_up, async {
        print_line("Starting the components that do not run …");
        let before = stack.instances_of(SERVICES[0])?.len();
        if options.victim == INSTANCES && before < 2 {
            stack.set_instances(2).await?;
        }
        let reports = run_all(stack, options).await;
        if options.victim == INSTANCES && before < 2 {
            stack.set_instances(1).await?;
        }
        reports
    })
    .await?;
    let holds = reports.iter().all(OutageReport::holds);
    if reports.len() > 1 {
        print_line("");
        table(&reports).iter().for_each(|line| print_line(line));
        let verdict = if holds { "every outage held" } else { "NOT every outage held" };
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        print_line(&format!(
            "\nVERDICT  {verdict} ({} of them, {minutes:.0} minutes).",
            reports.len()
        ));
    }
    Ok(holds)
}

async fn run_all(stack: &Stack, options: &OutageOptions) -> Result<Vec<OutageReport>> {
    let outages = options.plan(stack)?;
    let mut reports = Vec::new();
    for outage in outages {
        stack.up().await?;
        let client = Client::for_stack(stack)?;
        seed::run(&client).await?;
        // An outage that fails to complete does not stop the others.
        let report = run_one(stack, &client, &outage).await;
        let report = report.unwrap_or_else(|error| OutageReport {
            victims: outage.victims.join(", "),
            kills: outage.kills,
            summary: LoadSummary::default(),
            verify_holds: false,
            violated: BTreeSet::new(),
            stalls: Vec::new(),
            failures: vec![format!("the outage was interrupted: {error:#}")],
        });
        print_line(&format!("\nVERDICT  {}", report.verdict()));
        reports.push(report);
    }
    Ok(reports)
}

/// Runs one outage on a stack where every component runs.
pub async fn run_one(stack: &Stack, client: &Client, outage: &Outage) -> Result<OutageReport> {
    let Outage { rate, load_duration, kills, downtime, drain_timeout, .. } = *outage;
    let victims = outage.victims.join(", ");
    let times = times(kills);
    let each = if outage.is_redundant { "killed in turn" } else { "killed" };
    print_line(&format!(
        "\nOutage: {victims}, {each} {times}, for {} s each time",
        downtime.as_secs_f64()
    ));
    print_step(1, &format!("{rate} orders a second for {} s", load_duration.as_secs_f64()));
    let exits_before = stack.exits().await?;
    let load = Load { rate, duration: load_duration, drain_timeout, ..Load::default() };
    let mut stall_detector = StallDetector::connect(client).await?;
    // No poison is sent here: any new dead letter is a finding.
    let expected = run::dead_letter_positions(client).await?;
    let loaded = load::run(client, &load, kill_repeatedly(stack, outage));
    let (summary, failures) = if outage.is_redundant {
        tokio::select! {
            loaded = loaded => loaded?,
            ended = stall_detector.run() => return Err(ended.err().context("the watch ended")?),
        }
    } else {
        loaded.await?
    };
    print_step(2, "Every order is settled and must have ended");
    summary.lines().iter().for_each(|line| print_line(line));
    let stalls = if outage.is_redundant { stall_detector.stalls() } else { Vec::new() };
    if outage.is_redundant {
        stall_lines(&stalls, &summary).iter().for_each(|line| print_line(line));
    }
    print_step(3, "No event may be lost, no effect may happen twice (make verify)");
    let verdict = run::run_expecting(client, &run::CheckOptions::default(), &expected).await?;
    verdict.lines().iter().for_each(|line| print_line(line));
    let mut report = OutageReport {
        victims: if outage.is_redundant { INSTANCES.to_string() } else { victims },
        kills,
        verify_holds: verdict.holds(),
        violated: verdict
            .findings
            .violated()
            .union(&summary.findings.violated())
            .copied()
            .collect(),
        summary,
        stalls,
        failures,
    };
    let mut exits = stack.exits().await?;
    exits.retain(|exit| !exits_before.contains(exit));
    report.evaluate(outage, &exits);
    Ok(report)
}

/// Kills and starts the victims in turn during the load, at regular intervals. Returns the victims
/// that did not run when their turn came.
async fn kill_repeatedly(stack: &Stack, outage: &Outage) -> Result<Vec<String>> {
    let began = Instant::now();
    let mut found_dead = Vec::new();
    let at = |began: Instant| format!("{:>6.1} s ", began.elapsed().as_secs_f64());
    ensure!(!outage.victims.is_empty(), "an outage has a victim");
    for (nth, victim) in (0..outage.kills).zip(outage.victims.iter().cycle()) {
        let every = outage.load_duration / outage.kills;
        ensure!(outage.downtime < every, "{} kills do not fit into the load", outage.kills);
        // The first kill comes after half of its interval, so the load continues after the last
        // one.
        sleep_until(began + every * nth + (every - outage.downtime) / 2).await;
        if !stack.kill(victim).await? {
            found_dead.push(format!("{victim} did not run when its turn came"));
        }
        print_line(&format!("{} SIGKILL to {victim}", at(began)));
        sleep(outage.downtime).await;
        let start = Instant::now();
        stack.start(victim).await.with_context(|| format!("starting {victim} again"))?;
        print_line(&format!(
            "{} {victim} is ready, {:.1} s after its start",
            at(began),
            start.elapsed().as_secs_f64()
        ));
    }
    Ok(found_dead)
}
