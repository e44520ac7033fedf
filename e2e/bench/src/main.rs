//! `make bench`: how many sagas a second, how long one takes, and what it costs.
//!
//! The native stack with full durability, a load on the same machine, and the yardstick at the same
//! time: a plain transaction of two inserts. Only committed decisions count as completed. A part
//! that lost an order is not reported.
//!
//! - `experiments`, `cases`: what is measured; `plan`: how often and for how long; `environment`: the stack;
//!   `measurement`: one measurement on it.
//! - `loads`, `caller`, `workload`: which orders are placed, and when; `access`: what callers present to
//!   a secured stack; `completion_watch`: when orders end.
//! - `against`: this checkout beside other commits; `other_commit`: their programs, and what is different about them.
//! - `preload`: old orders; `machine`: the machine and its settings; `books`: whether all orders have ended.
//! - `cpu_costs`: what the machine spends; `yardstick`: tx4; `report`: tables and JSON.

mod access;
mod against;
mod books;
mod caller;
mod cases;
mod completion_watch;
mod cpu_costs;
mod environment;
mod experiments;
mod loads;
mod machine;
mod measurement;
mod other_commit;
mod plan;
mod preload;
mod report;
mod workload;
mod yardstick;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use e2e::stack_description::stack_description;

use crate::environment::BenchEnvironment;
use crate::experiments::Experiment;
use crate::loads::CONNECTIONS_MAX;
use crate::plan::MeasurementPlan;
use crate::report::Report;

#[derive(Parser)]
struct Arguments {
    /// The experiments; all by default
    #[arg(value_enum)]
    parts: Vec<Experiment>,
    /// Commits whose services are measured beside those of this checkout, in turn and with a closed loop alone;
    /// `reference` is the one that the file e2e/bench/reference names
    #[arg(long, value_delimiter = ' ', conflicts_with = "parts")]
    against: Vec<String>,
    #[arg(long, default_value_t = 3)]
    repeats: u32,
    /// The duration of each measurement
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// The duration of the load before each measurement
    #[arg(long, default_value_t = 4)]
    warm_seconds: u64,
    /// The longest load before all measurements, until Java's compilers have settled
    #[arg(long, default_value_t = 240)]
    warm_first_seconds: u64,
    /// The numbers of callers in closed loops, one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024", value_parser = callers)]
    callers: Vec<usize>,
    /// The number of preloaded orders for the experiment `old`; ten million take 13 GB of disk, and
    /// are kept
    #[arg(long, default_value_t = 10_000_000)]
    old_orders: i64,
    /// The directory of bench.md and bench.json
    #[arg(long, default_value = "target/bench")]
    into: PathBuf,
    /// Run the yardstick without pgbench even if it is installed
    #[arg(long)]
    without_pgbench: bool,
    /// Leave the stack running for inspection
    #[arg(long)]
    stay: bool,
}

fn callers(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|_| "it is not a number".to_string())?;
    if (1..=CONNECTIONS_MAX).contains(&count) {
        return Ok(count);
    }
    Err(format!(
        "from 1 to {CONNECTIONS_MAX}: the order service keeps no more connections open, so additional \
         callers would only take turns"
    ))
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Describes the stack and the machine, and places orders until the compilers of Java have settled.
async fn warm_up(
    environment: &BenchEnvironment,
    arguments: &Arguments,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    report.environment.extend(machine::describe_environment(environment).await?);
    report.environment.insert("Yardstick".to_string(), environment.yardstick.describe());
    report.environment.insert("Measured".to_string(), plan.describe());
    eprintln!("{}", report.environment_lines());
    let at_most = Duration::from_secs(arguments.warm_first_seconds);
    let warmed_up = environment.warm_up(at_most).await?;
    eprintln!("- Warmed up: {warmed_up}");
    report.environment.insert("Warmed up".to_string(), warmed_up);
    Ok(())
}

/// Measures stacks that run at the same time, in turns, and closes them. `turn` gets the number of its turn.
async fn measure_side_by_side(
    stacks: Vec<BenchEnvironment>,
    arguments: &Arguments,
    plan: &MeasurementPlan,
    report: &mut Report,
    turn: impl AsyncFn(&[BenchEnvironment], u32, &mut Report) -> Result<()>,
) -> Result<()> {
    let measured = async {
        for stack in &stacks {
            warm_up(stack, arguments, plan, report).await?;
        }
        for nth in 0..plan.repeats {
            eprintln!("turn {} of {}", nth + 1, plan.repeats);
            turn(&stacks, nth, report).await?;
            // A later turn may fail.
            report.write(&arguments.into)?;
        }
        anyhow::Ok(())
    };
    let measured = measured.await;
    if !arguments.stay {
        for stack in stacks {
            stack.close().await?;
        }
    }
    measured
}

/// Measures some experiments on one stack, and closes it.
async fn measure_on(
    mut environment: BenchEnvironment,
    parts: Vec<Experiment>,
    arguments: &Arguments,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    let measured = async {
        warm_up(&environment, arguments, plan, report).await?;
        for part in parts {
            part.run(&mut environment, plan, report).await?;
            // A later part may fail.
            report.write(&arguments.into)?;
        }
        anyhow::Ok(())
    };
    let measured = measured.await;
    if !arguments.stay {
        environment.close().await?;
    }
    measured
}

async fn run(arguments: Arguments) -> Result<()> {
    let plan = MeasurementPlan {
        repeats: arguments.repeats,
        warm_up: Duration::from_secs(arguments.warm_seconds),
        duration: Duration::from_secs(arguments.seconds),
        callers: arguments.callers.clone(),
        old_orders: arguments.old_orders,
    };
    let mut report = Report::default();
    Report::delete_previous(&arguments.into)?;
    measure_stacks(&arguments, &plan, &mut report).await?;
    println!("{}", report.markdown());
    println!("{} and bench.json beside it", arguments.into.join("bench.md").display());
    Ok(())
}

/// Measures on stacks that the benchmark starts: one without preloaded orders and one with them, or one for each commit.
async fn measure_stacks(
    arguments: &Arguments,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    if !arguments.against.is_empty() {
        return against::measure(arguments, plan, report).await;
    }
    let parts = match &arguments.parts[..] {
        [] => Experiment::value_variants(),
        parts => parts,
    };
    let (old, others): (Vec<Experiment>, Vec<Experiment>) =
        parts.iter().partition(|part| **part == Experiment::Old);
    for (old, parts) in [(false, others), (true, old)] {
        if parts.is_empty() {
            continue;
        }
        let old = old.then_some(plan.old_orders);
        let pgbench = !arguments.without_pgbench;
        let environment =
            BenchEnvironment::open(&stack_description(), "bench", old, pgbench, None).await?;
        measure_on(environment, parts, arguments, plan, report).await?;
    }
    Ok(())
}
