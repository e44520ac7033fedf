//! Crash points: SIGKILL at each place in a service's life where an exit could do harm, at its 1st,
//! 2nd and 7th hit, under load, and a run of the checker. They prove that a crash at any point
//! loses and duplicates nothing. A new place with two writes needs a new point.
//!
//! The programs are those of the services, built with the feature `crash-points` of the chassis.
//! `make` puts them beside the ordinary programs, which contain no crash points. The points of a
//! round are armed together in all services, so that a run takes minutes: a killed service is
//! started at once and continues to its next point.

pub mod list;
pub mod armed_service;
mod background_commands;
mod rounds;
mod dead_letters;
mod report;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use launcher::{Exit, Stack, directories};
use tokio::time::Instant;

use self::armed_service::{PointResult, programs};
use self::report::CrashPointReport;
use self::rounds::{ARMED_SERVICES, CrashPointContext, CrashPointRound, STEP_TIMEOUT};
use crate::checker::invariants::Invariant;
use crate::checker::{change_log, run};
use crate::client::http_client::Client;
use crate::console::print_line;
use crate::console::print_step;
use crate::console::seconds;
use crate::scenarios::order_faults;
use crate::scenarios::proof::with_stack_restored;
use crate::stack_description::stack_description;
use crate::workload::seed;

/// The hits of a point that kill.
const HITS: [u32; 3] = [1, 2, 7];

const FIRST_HIT: [u32; 1] = [1];

/// The exit status of a killed process, as in a shell.
const KILLED_STATUS: i32 = 128 + 9;

/// The orders that a conclusive run needs at least, a minute of load.
const OUTCOMES_PER_MINUTE_MIN: [(&str, f64); 3] =
    [("confirmed", 100.0), ("cancelled", 10.0), ("rejected", 4.0)];

/// Options of a run.
#[derive(Clone, Debug, clap::Args)]
pub struct CrashPointOptions {
    /// Each point at its first hit only
    #[arg(long)]
    pub once: bool,
    /// The seed of the workload; it is printed, so that it can be given again
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long each round may wait for its points to be hit
    #[arg(long = "within-seconds", value_parser = seconds, default_value = "900")]
    pub timeout: Duration,
}

/// Runs `e2e crash-points` on a stack of its own, which is deleted if the run held.
pub async fn command(options: &CrashPointOptions) -> Result<bool> {
    let (stack, _lock) = Stack::for_exclusive_run(&stack_description(), "crash-points").await?;
    let report = with_stack_restored(&stack, false, run(&stack, options)).await?;
    print_line("");
    report.table().iter().for_each(|line| print_line(line));
    print_line(&format!("\nVERDICT  {}", report.verdict()));
    if report.holds() {
        stack.clean().await?;
    } else {
        print_line(&format!("Logs and data are kept in {}.", stack.directory().display()));
    }
    Ok(report.holds())
}

/// One run on a new stack.
pub async fn run(stack: &Stack, options: &CrashPointOptions) -> Result<CrashPointReport> {
    let began = Instant::now();
    let seed = options.seed.unwrap_or_else(rand::random);
    let (ordinary, programs) = (directories::programs_directory()?, programs()?);
    for service in ARMED_SERVICES {
        let built = |directory: &Path| directory.join(service).metadata().ok()?.modified().ok();
        ensure!(
            built(&programs) >= built(&ordinary),
            "{} is older than the ordinary program, or missing: `make crash-programs` builds it",
            programs.join(service).display()
        );
        stack.set_programs(service, &programs)?;
    }
    let hits: &[u32] = if options.once { &FIRST_HIT } else { &HITS };
    let client = Client::for_stack(stack)?;
    let context = CrashPointContext { stack, client, hits, seed, timeout: options.timeout };

    print_line(&format!("Crash points, hits {hits:?}, seed {seed}"));
    print_step(1, "migrate is killed");
    stack.up_infrastructure().await?;
    let mut rounds = vec![rounds::migrations(&context).await?];
    stack.up().await?;
    seed::run(&context.client).await?;
    change_log::install(&context.client).await?;
    let mut failure = None;
    if let Err(error) = run_rounds(&context, &mut rounds).await {
        failure = Some(format!("the run was interrupted: {error:#}"));
        restore(stack).await?;
    }
    print_step(7, "No event may be lost, no effect may happen twice (make verify)");
    let options = run::CheckOptions { timeout: STEP_TIMEOUT };
    let expected = rounds::expected_dead_letters(&rounds);
    let verdict = run::run_expecting(&context.client, &options, &expected).await?;
    verdict.lines().iter().for_each(|line| print_line(line));

    let mut failures = find_failures(stack, &rounds).await?;
    failures.extend(failure);
    if !verdict.holds() {
        let violated: Vec<String> =
            verdict.findings.violated().iter().map(Invariant::to_string).collect();
        failures.push(format!("the checker found violations (step 7): {}", violated.join(", ")));
    }
    let rows: Vec<PointResult> = rounds.iter().flat_map(|round| round.rows.clone()).collect();
    let kills = rows.iter().map(|row| row.kills.len()).sum();
    let summaries = rounds.iter().filter_map(|round| round.summary.as_ref());
    let orders = summaries.map(|summary| summary.accepted).sum();
    Ok(CrashPointReport { rows, failures, kills, orders, seed, duration: began.elapsed() })
}

/// Runs the rounds one after the other, and ends after a round with a violation: later rounds would
/// only repeat it.
async fn run_rounds(
    context: &CrashPointContext<'_>,
    rounds: &mut Vec<CrashPointRound>,
) -> Result<()> {
    print_step(2, "The loops of every service are killed under load");
    if !add_round(rounds, rounds::loops(context).await?) {
        return Ok(());
    }
    print_step(3, "Services are killed while they store and settle dead letters");
    let (created, settled) = dead_letters::create_and_settle(context).await?;
    let held = [add_round(rounds, created), add_round(rounds, settled)];
    if held.contains(&false) {
        return Ok(());
    }
    print_step(4, "The deadline's sweep is killed");
    add_round(rounds, rounds::deadline(context).await?);
    print_step(5, "Services are killed while they stop");
    if !add_round(rounds, rounds::stops(context).await?) {
        return Ok(());
    }
    print_step(6, "Services are killed while partitions move");
    add_round(rounds, rounds::revocations(context).await?);
    Ok(())
}

/// Returns whether every promise to the clients of the round was kept.
fn add_round(rounds: &mut Vec<CrashPointRound>, round: CrashPointRound) -> bool {
    round.summary.iter().flat_map(|summary| summary.lines()).for_each(|line| print_line(&line));
    let holds = round.summary.as_ref().is_none_or(|summary| summary.holds());
    rounds.push(round);
    holds
}

/// Starts every component with no point armed.
async fn restore(stack: &Stack) -> Result<()> {
    for service in ARMED_SERVICES {
        stack.set_environment(service, list::POINTS_VARIABLE, None)?;
        stack.set_environment(service, order_faults::DEADLINE_VARIABLE, None)?;
        stack.stop(service).await?;
    }
    stack.set_instances(1).await?;
    stack.up().await
}

/// The failures other than findings of the checker.
async fn find_failures(stack: &Stack, rounds: &[CrashPointRound]) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for CrashPointRound { rows, summary, failures: own, .. } in rounds {
        failures.extend(own.iter().cloned());
        for PointResult { round, service, point, missing, .. } in rows {
            for hit in missing {
                failures.push(format!(
                    "{point} of {service} ({round}) was not hit for the {hit}. time"
                ));
            }
        }
        if summary.as_ref().is_some_and(|summary| !summary.holds()) {
            failures.push("a promise to a client was broken (see the summary above)".to_string());
        }
    }
    let spans = rounds.iter().filter_map(|round| Some(round.summary.as_ref()?.duration));
    let minutes = spans.sum::<Duration>().as_secs_f64() / 60.0;
    let ended = rounds::count_outcomes(rounds);
    for (how, a_minute) in OUTCOMES_PER_MINUTE_MIN {
        let (count, least) = (ended.get(how).copied().unwrap_or(0), a_minute * minutes);
        if (count as f64) < least {
            failures.push(format!(
                "inconclusive: only {count} orders were {how}, of {least:.0} at least"
            ));
        }
    }
    // The exit of `migrate` is observed by its caller; no supervisor records it.
    let served = rounds.iter().flat_map(|round| &round.rows);
    let served = served.filter(|row| row.round != rounds::MIGRATIONS_ROUND);
    let pids = served.flat_map(|row| &row.kills).map(|kill| kill.pid);
    failures.extend(unexpected_exits(pids, &stack.exits().await?));
    Ok(failures)
}

/// Each kill at a crash point, by its pid, is the exit of one process, and no other process died.
/// Pids repeat within a run on machines that have only 32,768 of them.
fn unexpected_exits(killed: impl Iterator<Item = u32>, exits: &[Exit]) -> Vec<String> {
    let mut failures = Vec::new();
    let mut kills = BTreeMap::<u32, usize>::new();
    killed.for_each(|pid| *kills.entry(pid).or_default() += 1);
    for exit in exits {
        match kills.get_mut(&exit.pid) {
            Some(left) if *left > 0 && exit.status == KILLED_STATUS => *left -= 1,
            _ if exit.is_unexpected() => {
                failures.push(format!("{} exited by itself: it {exit}", exit.name))
            }
            _ => {}
        }
    }
    let survivors = kills.iter().filter(|(_, left)| **left > 0);
    failures.extend(survivors.map(|(pid, _)| format!("process {pid} survived a crash point")));
    failures
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn each_kill_is_one_exit_although_pids_repeat_and_no_other_process_died() {
        let wrong = |kills: &[u32], exits: &[(u32, i32)]| {
            let name = "stock".to_string();
            let exit = |(pid, status)| Exit {
                name: name.clone(),
                pid,
                at: Utc::now(),
                status,
                cause: None,
            };
            let exits: Vec<_> = exits.iter().copied().map(exit).collect();
            unexpected_exits(kills.iter().copied(), &exits).len()
        };
        assert_eq!(wrong(&[7, 8], &[(7, KILLED_STATUS), (8, KILLED_STATUS)]), 0);
        assert_eq!(wrong(&[7, 7], &[(7, KILLED_STATUS), (7, KILLED_STATUS)]), 0);
        assert_eq!(
            wrong(&[7, 7], &[(7, KILLED_STATUS)]),
            1,
            "one process survived its crash point"
        );
        assert_eq!(wrong(&[7], &[(7, KILLED_STATUS), (8, 1)]), 1, "another process exited");
        assert_eq!(wrong(&[7], &[(7, 139)]), 2, "it exited for another reason");
    }
}
