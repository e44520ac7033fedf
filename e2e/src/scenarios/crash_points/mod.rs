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

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use checker::group_digits;
use launcher::program::format_table;
use launcher::{Exit, Stack, directories};
use tokio::time::Instant;

use self::armed_service::{PointResult, programs};
use self::rounds::{ARMED_SERVICES, CrashPointRun, MIGRATIONS_ROUND, STEP_TIMEOUT};
use crate::checker::change_log;
use crate::checker::run::CheckOptions;
use crate::client::http_client::Client;
use crate::console::{print_line, print_lines, seconds};
use crate::scenarios::order_faults::DEADLINE_VARIABLE;
use crate::scenarios::runner::{Report, Run, on_own_stack};
use crate::stack_description::{SHIPPING, ships, with_shipping};
use crate::workload::load_summary::LoadSummary;
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
    /// Only the loops of the services are killed, not their stops, sweeps and what settles dead letters.
    #[arg(skip)]
    pub loops_only: bool,
}

/// The result of a run.
pub struct CrashPointReport {
    pub report: Report,
    /// What a run that held has shown.
    pub held: String,
    /// Each point with the hits that killed each service.
    pub table: Vec<String>,
}

/// Runs `e2e crash-points` on a stack of its own, which is deleted if the run held.
pub async fn command(options: &CrashPointOptions) -> Result<bool> {
    on_own_stack(&with_shipping(), "crash-points", async |stack| {
        let CrashPointReport { report, held, table } = run(stack, options).await?;
        print_line("");
        print_lines(&table);
        Ok((report, held))
    })
    .await
}

/// One run on a new stack.
pub async fn run(stack: &Stack, options: &CrashPointOptions) -> Result<CrashPointReport> {
    let (began, seed) = (Instant::now(), options.seed.unwrap_or_else(rand::random));
    let (ordinary, programs) = (directories::programs_directory()?, programs()?);
    for service in services(stack) {
        let built = |directory: &Path| directory.join(service).metadata().ok()?.modified().ok();
        ensure!(
            built(&programs) >= built(&ordinary),
            "{} is older than the ordinary program, or missing: `make crash-programs` builds it",
            programs.join(service).display()
        );
        stack.set_programs(service, &programs)?;
    }
    let hits: &[u32] = if options.once { &FIRST_HIT } else { &HITS };
    let run = Run::new(stack, Client::for_stack(stack)?).await?;
    let mut crashing = CrashPointRun::new(run, hits, seed, options.timeout);
    print_line(&format!("Crash points, hits {hits:?}, seed {seed}"));
    crashing.run.step("migrate is killed");
    stack.up_infrastructure().await?;
    crashing.kill_migrations().await?;
    stack.up().await?;
    seed::run(&crashing.run.client).await?;
    change_log::install(&crashing.run.client).await?;
    if let Err(error) = run_rounds(&mut crashing, options.loops_only).await {
        crashing.run.report.violations.push(format!("the run was interrupted: {error:#}"));
        restore(stack).await?;
    }
    let CrashPointRun { mut run, rows, summaries, expected_dead_letters, .. } = crashing;
    let options = CheckOptions { timeout: STEP_TIMEOUT };
    run.check(&options, Some(&expected_dead_letters)).await?;
    run.report.inconclusive.extend(missing_outcomes(&summaries));
    // The exit of `migrate` is observed by its caller; no supervisor records it.
    let served = rows.iter().filter(|row| row.round != MIGRATIONS_ROUND);
    let pids = served.flat_map(|row| &row.kills).map(|kill| kill.pid);
    run.report.violations.extend(unexpected_exits(pids, &run.exits().await?));
    let points: BTreeSet<&str> = rows.iter().map(|row| row.point).collect();
    let held = format!(
        ": {} crash points, {} kills, {} orders accepted; every point was hit, no event was lost, no effect \
         happened twice, no other process exited ({:.1} minutes, seed {seed})",
        points.len(),
        rows.iter().map(|row| row.kills.len()).sum::<usize>(),
        group_digits(summaries.iter().map(|summary| summary.accepted).sum::<u64>()),
        began.elapsed().as_secs_f64() / 60.0
    );
    Ok(CrashPointReport { report: run.report, held, table: table(&rows) })
}

/// Runs the rounds one after the other, and ends after a round that broke a promise to a client:
/// later rounds would only repeat it.
async fn run_rounds(crashing: &mut CrashPointRun<'_>, loops_only: bool) -> Result<()> {
    crashing.run.step("The loops of every service are killed under load");
    crashing.kill_loops().await?;
    if loops_only {
        return Ok(());
    }
    if crashing.clients_were_served() {
        crashing.run.step("Services are killed while they store and settle dead letters");
        crashing.kill_at_dead_letters().await?;
    }
    if crashing.clients_were_served() {
        crashing.run.step("The scheduler is killed");
        crashing.kill_deadline().await?;
        crashing.run.step("Services are killed while they stop");
        crashing.kill_stops().await?;
    }
    if crashing.clients_were_served() && ships(crashing.run.stack) {
        crashing.run.step("Shipping is killed while it calls, hears and asks");
        crashing.kill_outside().await?;
    }
    if crashing.clients_were_served() {
        crashing.run.step("Services are killed while partitions move");
        crashing.kill_revocations().await?;
    }
    Ok(())
}

/// The services that are armed in a round.
fn services(stack: &Stack) -> impl Iterator<Item = &'static str> {
    ARMED_SERVICES.into_iter().chain([SHIPPING].into_iter().filter(|_| ships(stack)))
}

/// Starts every component with no point armed.
async fn restore(stack: &Stack) -> Result<()> {
    for service in services(stack) {
        stack.set_environment(service, list::POINTS_VARIABLE, None)?;
        stack.set_environment(service, DEADLINE_VARIABLE, None)?;
        stack.stop(service).await?;
    }
    stack.set_instances(1).await?;
    stack.up().await
}

/// The outcomes that too few orders had, over all rounds.
fn missing_outcomes(summaries: &[LoadSummary]) -> Vec<String> {
    let mut ended = BTreeMap::<&str, u64>::new();
    for summary in summaries {
        *ended.entry("confirmed").or_default() += summary.confirmed;
        for (reason, count) in &summary.cancelled {
            let is_rejected = ["payment_declined", "stock_rejected"].contains(&&**reason);
            *ended.entry(if is_rejected { "rejected" } else { "cancelled" }).or_default() += count;
        }
    }
    let minutes =
        summaries.iter().map(|summary| summary.duration.as_secs_f64()).sum::<f64>() / 60.0;
    let few = OUTCOMES_PER_MINUTE_MIN.into_iter().filter_map(|(how, a_minute)| {
        let (count, least) = (ended.get(how).copied().unwrap_or(0), a_minute * minutes);
        let sentence = || format!("only {count} orders were {how}, of {least:.0} at least");
        ((count as f64) < least).then(sentence)
    });
    few.collect()
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

const COLUMNS: [&str; 4] = [ARMED_SERVICES[0], ARMED_SERVICES[1], ARMED_SERVICES[2], SHIPPING];

/// Every point with the hits that killed each service.
fn table(all: &[PointResult]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let firsts = all.iter().filter(|row| seen.insert((row.round, row.point)));
    let rows = firsts.map(|PointResult { round, point, .. }| {
        let [first, second, third, fourth] = COLUMNS.map(|service| {
            let is =
                |row: &&PointResult| (row.round, row.point, row.service) == (round, point, service);
            all.iter().find(is).map_or("-".to_string(), PointResult::cell)
        });
        [round.to_string(), point.to_string(), first, second, third, fourth]
    });
    let [first, second, third, fourth] = COLUMNS;
    format_table(["ROUND", "POINT", first, second, third, fourth], &[], rows)
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
