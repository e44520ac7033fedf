//! Crash points: every place in a service's life where dying could hurt, hit on purpose. SIGKILL at
//! each of them, at its 1st, 2nd and 7th hit, under load, and the proof that nothing was lost.
//!
//! The programs are the services' own, built once more with the feature `crash-points` of the
//! chassis; `make` puts them beside the ordinary ones, which hold none of it. The points of a round
//! are armed together in all services, so that one run takes minutes: after a kill the service is
//! started again at once, and goes on to the next.

pub mod armed;
mod brought;
mod letters;
pub mod points;
mod rounds;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::Instant;

use self::armed::Row;
use self::rounds::{ARMED, Round, SOON, Site};
use crate::client::Client;
use crate::ends::End;
use crate::figures::grouped;
use crate::invariants::Invariant;
use crate::load::seconds;
use crate::narration::{as_found, say, step};
use crate::{Stack, sabotage, seed, stack, verify, witness};

/// Which hits of a point kill.
const HITS: [u32; 3] = [1, 2, 7];
const ONCE: [u32; 1] = [1];

/// A killed process ends with this status, as a shell has it.
const KILLED: i32 = 128 + 9;

/// A run in which hardly anything ended proves nothing: so many orders a minute of load, at least.
const ENDED_A_MINUTE: [(&str, f64); 3] =
    [("confirmed", 100.0), ("cancelled", 10.0), ("rejected", 4.0)];

/// A run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Each point at its first hit only
    #[arg(long)]
    pub once: bool,
    /// What the load's clients want is drawn with this seed; it is said, so that it can be given again
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long each round may wait for its points to be hit
    #[arg(long = "within-seconds", value_parser = seconds, default_value = "900")]
    pub within: Duration,
}

/// What came of a run.
pub struct Report {
    pub rows: Vec<Row>,
    /// Whatever was not as promised, in sentences.
    pub faults: Vec<String>,
    kills: usize,
    orders: u64,
    seed: u64,
    took: Duration,
}

/// Where the programs with crash points are: beside the directory of the ordinary ones.
pub fn programs() -> Result<PathBuf> {
    let ordinary = stack::programs()?;
    let (target, profile) = (ordinary.parent(), ordinary.file_name());
    let profile = profile.context("programs lie in the directory of a profile")?;
    Ok(target.context("a profile lies in a target")?.join("crash-points").join(profile))
}

/// What `e2e crash-points` does: a run on a stack of its own, of which nothing is left if it held.
pub async fn command(options: &Options) -> Result<bool> {
    let (stack, _lock) = Stack::of_one_run("crash-points").await?;
    let report = as_found(&stack, false, run(&stack, options)).await?;
    report.table().iter().for_each(|line| say(line));
    say(&format!("\nVERDICT  {}", report.verdict()));
    if report.holds() {
        stack.clean().await?;
    } else {
        say(&format!("Logs and data are left in {}.", stack.directory().display()));
    }
    Ok(report.holds())
}

/// One run on a stack that was never started.
pub async fn run(stack: &Stack, options: &Options) -> Result<Report> {
    let began = Instant::now();
    let seed = options.seed.unwrap_or_else(rand::random);
    let (ordinary, programs) = (stack::programs()?, programs()?);
    for service in ARMED {
        let built = |directory: &Path| directory.join(service).metadata().ok()?.modified().ok();
        ensure!(
            built(&programs) >= built(&ordinary),
            "{} is older than the ordinary program, or not there: `make crash-programs` builds it",
            programs.join(service).display()
        );
        stack.set_programs(service, &programs)?;
    }
    let hits: &[u32] = if options.once { &ONCE } else { &HITS };
    let client = Client::of(stack)?;
    let site = Site { stack, client, hits, seed, within: options.within };

    say(&format!("Crash points, hits {hits:?}, seed {seed}"));
    step(1, "migrate is killed");
    stack.up_parts().await?;
    let mut rounds = vec![rounds::migrations(&site).await?];
    stack.up().await?;
    seed::run(&site.client).await?;
    witness::install(&site.client).await?;
    let mut broken = None;
    if let Err(error) = kill_everywhere(&site, &mut rounds).await {
        broken = Some(format!("it broke off: {error:#}"));
        heal(stack).await?;
    }
    step(7, "Nothing may be lost or done twice (make verify)");
    let options = verify::Options { within: SOON };
    let spoiled = rounds::spoiled(&rounds);
    let verdict = verify::knowing(&site.client, &options, &spoiled).await?;
    verdict.lines().iter().for_each(|line| say(line));

    let mut faults = judge(stack, &rounds).await?;
    faults.extend(broken);
    if !verdict.holds() {
        let violated: Vec<String> =
            verdict.findings.violated().iter().map(Invariant::to_string).collect();
        faults.push(format!("verify found something (step 7): {}", violated.join(", ")));
    }
    let rows: Vec<Row> = rounds.iter().flat_map(|round| round.rows.clone()).collect();
    let kills = rows.iter().map(|row| row.kills.len()).sum();
    let summaries = rounds.iter().filter_map(|round| round.summary.as_ref());
    let orders = summaries.map(|summary| summary.accepted).sum();
    Ok(Report { rows, faults, kills, orders, seed, took: began.elapsed() })
}

/// The rounds, one after the other, up to one in which a promise was broken: what follows would only
/// stumble over that.
async fn kill_everywhere(site: &Site<'_>, rounds: &mut Vec<Round>) -> Result<()> {
    step(2, "The loops of every service are killed under load");
    if !enter(rounds, rounds::loops(site).await?) {
        return Ok(());
    }
    step(3, "Services are killed over dead letters, and while they are settled");
    let (set_aside, settled) = letters::set_aside_and_settled(site).await?;
    let held = [enter(rounds, set_aside), enter(rounds, settled)];
    if held.contains(&false) {
        return Ok(());
    }
    step(4, "The deadline's sweep is killed");
    enter(rounds, rounds::deadline(site).await?);
    step(5, "Services are killed while they stop");
    if !enter(rounds, rounds::stops(site).await?) {
        return Ok(());
    }
    step(6, "Services are killed while partitions move");
    enter(rounds, rounds::revocations(site).await?);
    Ok(())
}

/// Answers whether the clients of a round were kept what they were promised.
fn enter(rounds: &mut Vec<Round>, round: Round) -> bool {
    round.summary.iter().flat_map(|summary| summary.lines()).for_each(|line| say(&line));
    let holds = round.summary.as_ref().is_none_or(|summary| summary.holds());
    rounds.push(round);
    holds
}

/// Everybody runs, and nothing is armed.
async fn heal(stack: &Stack) -> Result<()> {
    for service in ARMED {
        stack.set_environment(service, points::POINTS, None)?;
        stack.set_environment(service, sabotage::DEADLINE, None)?;
        stack.stop(service).await?;
    }
    stack.set_instances(1).await?;
    stack.up().await
}

/// Whatever is wrong but what the checker found.
async fn judge(stack: &Stack, rounds: &[Round]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for Round { rows, summary, faults: own, .. } in rounds {
        faults.extend(own.iter().cloned());
        for Row { round, service, point, missing, .. } in rows {
            for hit in missing {
                faults.push(format!("{point} of {service} ({round}) never came to its hit {hit}"));
            }
        }
        if summary.as_ref().is_some_and(|summary| !summary.holds()) {
            faults.push("the promise to a client was broken (see the figures above)".to_string());
        }
    }
    let spans = rounds.iter().filter_map(|round| Some(round.summary.as_ref()?.took));
    let minutes = spans.sum::<Duration>().as_secs_f64() / 60.0;
    let ended = rounds::ended(rounds);
    for (how, a_minute) in ENDED_A_MINUTE {
        let (count, least) = (ended.get(how).copied().unwrap_or(0), a_minute * minutes);
        if (count as f64) < least {
            faults.push(format!("void: only {count} orders were {how}, of {least:.0} at least"));
        }
    }
    // Each `migrate` was seen to end by whoever ran it; no supervisor writes that down.
    let served = rounds.iter().flat_map(|round| &round.rows);
    let served = served.filter(|row| row.round != rounds::MIGRATIONS);
    let pids = served.flat_map(|row| &row.kills).map(|kill| kill.pid);
    faults.extend(wrong_ends(pids, &stack.ends().await?));
    Ok(faults)
}

/// Each kill at a crash point, by its pid, was the end of a process, and no other one died. Within a run
/// pids come again, on machines that have only 32,768 of them.
fn wrong_ends(killed: impl Iterator<Item = u32>, ends: &[End]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut kills = BTreeMap::<u32, usize>::new();
    killed.for_each(|pid| *kills.entry(pid).or_default() += 1);
    for end in ends {
        match kills.get_mut(&end.pid) {
            Some(left) if *left > 0 && end.status == KILLED => *left -= 1,
            _ if end.is_death() => faults.push(format!("{} died by itself: it {end}", end.name)),
            _ => {}
        }
    }
    let outlived = kills.iter().filter(|(_, left)| **left > 0);
    faults.extend(outlived.map(|(pid, _)| format!("process {pid} outlived a crash point")));
    faults
}

impl Report {
    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    /// Every point with the hits that killed each service.
    pub fn table(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "\n  {:<12} {:<20} {:<10} {:<10} {:<10}",
            "ROUND", "POINT", ARMED[0], ARMED[1], ARMED[2]
        )];
        let mut seen = BTreeSet::new();
        for Row { round, point, .. } in &self.rows {
            if !seen.insert((round, point)) {
                continue;
            }
            let of = |service: &str| {
                let same = |row: &&Row| (&row.round, &row.point) == (round, point);
                let row = self.rows.iter().filter(same).find(|row| row.service == service);
                row.map_or("-".to_string(), Row::cell)
            };
            let [first, second, third] = ARMED.map(of);
            let line = format!("  {round:<12} {point:<20} {first:<10} {second:<10} {third}");
            lines.push(line.trim_end().to_string());
        }
        lines
    }

    pub fn verdict(&self) -> String {
        if !self.holds() {
            return format!("BROKEN, seed {}: {}.", self.seed, self.faults.join("; "));
        }
        let points: BTreeSet<&str> = self.rows.iter().map(|row| row.point).collect();
        format!(
            "held: {} crash points, {} kills, {} orders accepted; every point was hit, nothing was lost \
             or done twice, nobody died otherwise ({:.1} minutes, seed {}).",
            points.len(),
            self.kills,
            grouped(self.orders),
            self.took.as_secs_f64() / 60.0,
            self.seed
        )
    }
}

impl Row {
    fn cell(&self) -> String {
        let kills = self.kills.iter().map(|kill| kill.hit.to_string());
        let missing = self.missing.iter().map(|hit| format!("NOT {hit}"));
        kills.chain(missing).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn each_kill_is_one_end_though_pids_come_again_and_nobody_else_died() {
        let wrong = |kills: &[u32], ends: &[(u32, i32)]| {
            let name = "stock".to_string();
            let end = |(pid, status)| End {
                name: name.clone(),
                pid,
                at: Utc::now(),
                status,
                cause: None,
            };
            let ends: Vec<_> = ends.iter().copied().map(end).collect();
            wrong_ends(kills.iter().copied(), &ends).len()
        };
        assert_eq!(wrong(&[7, 8], &[(7, KILLED), (8, KILLED)]), 0);
        assert_eq!(wrong(&[7, 7], &[(7, KILLED), (7, KILLED)]), 0);
        assert_eq!(wrong(&[7, 7], &[(7, KILLED)]), 1, "one outlived it");
        assert_eq!(wrong(&[7], &[(7, KILLED), (8, 1)]), 1, "another one died");
        assert_eq!(wrong(&[7], &[(7, 139)]), 2, "it died of something else");
    }
}
