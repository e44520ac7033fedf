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

use anyhow::Result;
use clap::{Parser, ValueEnum};
use e2e::stack_description::stack_description;

use crate::cases::Experiment;
use crate::environment::BenchEnvironment;
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
    #[command(flatten)]
    plan: MeasurementPlan,
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
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    report.environment.extend(machine::describe_environment(environment).await?);
    report.environment.insert("Yardstick".to_string(), environment.yardstick.describe());
    report.environment.insert("Measured".to_string(), plan.describe());
    eprintln!("{}", report.environment_lines());
    let warmed_up = environment.warm_up(plan.first_warm_up).await?;
    eprintln!("- Warmed up: {warmed_up}");
    report.environment.insert("Warmed up".to_string(), warmed_up);
    Ok(())
}

/// Measures stacks that run at the same time, and closes them.
async fn measure_and_close(
    mut stacks: Vec<BenchEnvironment>,
    arguments: &Arguments,
    report: &mut Report,
    measure: impl AsyncFnOnce(&mut [BenchEnvironment], &mut Report) -> Result<()>,
) -> Result<()> {
    let measured = async {
        for stack in &stacks {
            warm_up(stack, &arguments.plan, report).await?;
        }
        measure(&mut stacks, report).await
    };
    let measured = measured.await;
    if !arguments.stay {
        for stack in stacks {
            stack.close().await?;
        }
    }
    measured
}

async fn run(arguments: Arguments) -> Result<()> {
    let mut report = Report::default();
    Report::delete_previous(&arguments.into)?;
    measure_stacks(&arguments, &mut report).await?;
    println!("{}", report.markdown());
    println!("{} and bench.json beside it", arguments.into.join("bench.md").display());
    Ok(())
}

/// Measures on stacks that the benchmark starts: one without preloaded orders and one with them, or one for each commit.
async fn measure_stacks(arguments: &Arguments, report: &mut Report) -> Result<()> {
    if !arguments.against.is_empty() {
        return against::measure(arguments, report).await;
    }
    let parts = match &arguments.parts[..] {
        [] => Experiment::value_variants(),
        parts => parts,
    };
    let plan = &arguments.plan;
    for is_old in [false, true] {
        let parts: Vec<Experiment> =
            parts.iter().copied().filter(|part| (*part == Experiment::Old) == is_old).collect();
        if parts.is_empty() {
            continue;
        }
        let (old, pgbench) = (is_old.then_some(plan.old_orders), !arguments.without_pgbench);
        let stack =
            BenchEnvironment::open(&stack_description(), "bench", old, pgbench, None).await?;
        measure_and_close(vec![stack], arguments, report, async |stacks, report| {
            for part in parts {
                part.run(&mut stacks[0], plan, report).await?;
                // A later part may fail.
                report.write(&arguments.into)?;
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}
