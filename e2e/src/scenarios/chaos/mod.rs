//! The chaos run: a stack of its own with a proxy on each link, rounds of load and faults drawn
//! from a seed, and a run of the checker after each round. An interrupted run continues with its
//! next round when the same command is given again. It proves I1 to I16 under overlapping faults. A
//! seed draws the same faults on every run, so a fault drawn from another source breaks it.

mod fault;
mod inject;
mod classes;
mod schedule;
mod nemesis;
mod round;
mod outcome;
mod report;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use faults::links::Links;
use launcher::{Stack, StackDescription};
use rand::Rng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::checker::change_log;
use crate::console::print_line;
use crate::scenarios::chaos::outcome::ChaosRun;
use crate::scenarios::chaos::round::ChaosContext;
use crate::scenarios::order_faults;
use crate::scenarios::runner::Outcome;
use crate::stack_description::stack_description;
use crate::workload::resource_usage::ResourceUsage;
use crate::workload::seed;

/// How long the registry may be behind: poison becomes a dead letter within a round.
const REGISTRY_LAG_SECONDS: u32 = 10;

/// A chaos run.
#[derive(Clone, Debug, clap::Args)]
pub struct ChaosOptions {
    /// For how long new rounds begin; each takes two to three minutes
    #[arg(long, default_value_t = 30)]
    pub minutes: u64,
    /// The seed of all faults and loads; random and printed by default
    #[arg(long)]
    pub seed: Option<u64>,
    /// Directory of the report
    #[arg(long, default_value = "target/chaos")]
    pub into: PathBuf,
}

/// Runs rounds until the time is up or an invariant is violated.
pub async fn run(options: &ChaosOptions) -> Result<Outcome> {
    let seed = options.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    let name = format!("chaos-{seed}");
    let description = stack_description();
    let _lock = description.lock_exclusive_run(&name).await?;
    let stack = open_stopped(&description, &description.state_directory()?.join(name))?;
    let file = stack.directory().join("rounds.json");
    let mut run = load_run(&file, seed)?;
    print_line(&format!(
        "Chaos with SEED={seed}: {} instances of each service, {} orders a second, a proxy on each of nine links.",
        run.instances,
        round::RATE
    ));
    if !run.rounds.is_empty() {
        run.resumptions += 1;
        print_line(&format!(
            "The run was interrupted after {} rounds, and continues.",
            run.rounds.len()
        ));
    }
    let mut terminated = signal(SignalKind::terminate())?;
    let result = tokio::select! {
        result = run_rounds(&stack, &mut run, options.minutes, &file) => Some(result),
        _ = tokio::signal::ctrl_c() => None,
        _ = terminated.recv() => None,
    };
    let Some(result) = result else {
        stack.kill_all()?;
        bail!("interrupted: the same command with SEED={seed} continues with the next round");
    };
    run.error = result.err().map(|error| format!("{error:#}"));
    let outcome = run.report(options.minutes).outcome();
    let report = report::write(&run, options.minutes, &options.into)?;
    print_line(&format!("\nVERDICT  {}", run.summary(options.minutes)));
    print_line(&format!("The report is in {}.", report.display()));
    if outcome == Outcome::Held {
        stack.clean().await?;
    } else {
        stack.down().await?;
        print_line(&format!("All data and logs are kept in {}.", stack.directory().display()));
    }
    Ok(outcome)
}

/// The saved state of an interrupted run, or a new run.
fn load_run(file: &Path, seed: u64) -> Result<ChaosRun> {
    if file.exists() {
        let text = fs::read(file)?;
        return serde_json::from_slice(&text).with_context(|| format!("{}", file.display()));
    }
    let instances = schedule::rng(seed, 0, 0).random_range(1..=2);
    Ok(ChaosRun { seed, instances, ..ChaosRun::default() })
}

async fn run_rounds(stack: &Stack, run: &mut ChaosRun, minutes: u64, file: &Path) -> Result<()> {
    if run.is_finished(minutes) {
        return Ok(());
    }
    let links = Links::install(stack).await?;
    stack.set_instances(run.instances).await?;
    let began = Instant::now();
    // A run interrupted during a fault left the fault in place.
    order_faults::repair_all(stack).await.context("repairing the stack")?;
    let client = seed::start(stack).await.context("starting the stack")?;
    change_log::install(&client).await?;
    let baseline = ResourceUsage::measure(stack, &client).await?;
    print_line(&format!("Everything runs after {:.1} s.", began.elapsed().as_secs_f64()));
    while !run.is_finished(minutes) {
        let nth = run.rounds.len() as u64;
        print_line(&format!(
            "\nRound {}, {:.0} of {minutes} minutes",
            nth + 1,
            run.duration().as_secs_f64() / 60.0
        ));
        let (instances, seed) = (run.instances, run.seed);
        let (client, links, baseline) = (&client, &links, &baseline);
        let context = ChaosContext { stack, client, links, instances, seed, baseline };
        let round = round::run(&context, nth).await;
        let round = round.with_context(|| format!("round {} could not be run", nth + 1))?;
        print_line(&round.verdict());
        for violation in &round.report.violations {
            print_line(&format!("  VIOLATED  {violation}"));
        }
        run.rounds.push(round);
        let fresh = file.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(run)?)?;
        fs::rename(fresh, file)?;
    }
    Ok(())
}

/// A stopped stack in this directory, on free ports. Processes of an interrupted run are killed, and
/// its data is kept.
fn open_stopped(description: &StackDescription, directory: &Path) -> Result<Stack> {
    if let Ok(left_behind) = Stack::open(description, directory) {
        left_behind.kill_all()?;
    }
    let stack = Stack::on_free_ports(description, directory)?;
    stack.set_registry_lag(REGISTRY_LAG_SECONDS)?;
    Ok(stack)
}
