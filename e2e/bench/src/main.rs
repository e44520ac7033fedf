//! `make bench`: how many sagas a second, how long one takes, and what it costs.
//!
//! The native stack with all durability on, a load on the same machine, and beside it, in the same
//! minutes, the yardstick: what a plain transaction of two inserts does. What counts as completed is
//! what the decider committed. Nothing is reported of a run that lost an order.
//!
//! - `parts`: what is measured; `site`: the stack, and one measurement on it.
//! - `loads`, `caller`, `wishes`: who orders what, and when; `ends`: when orders end.
//! - `old`: orders of long ago; `machine`: what it all ran on.
//! - `costs`: what the machine spends; `yardstick`: tx4; `report`: tables and JSON.

mod caller;
mod costs;
mod ends;
mod loads;
mod machine;
mod old;
mod parts;
mod report;
mod site;
mod wishes;
mod yardstick;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::loads::CONNECTIONS;
use crate::parts::{Part, Plan};
use crate::report::Report;
use crate::site::Site;

#[derive(Parser)]
struct Arguments {
    /// Which parts, if not all
    #[arg(value_enum)]
    parts: Vec<Part>,
    #[arg(long, default_value_t = 3)]
    repeats: u32,
    /// How long each measurement takes
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// The load before each measurement
    #[arg(long, default_value_t = 4)]
    warm_seconds: u64,
    /// The load before all of them, until Java's compilers have settled, at most
    #[arg(long, default_value_t = 240)]
    warm_first_seconds: u64,
    /// So many callers in closed loops, one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024", value_parser = callers)]
    callers: Vec<usize>,
    /// So many of long ago, for the part `old`; ten million take 13 GB of disk, and are kept
    #[arg(long, default_value_t = 10_000_000)]
    old_orders: i64,
    /// Where bench.md and bench.json are written
    #[arg(long, default_value = "target/bench")]
    into: PathBuf,
    /// Measure the yardstick by hand even where pgbench is at hand
    #[arg(long)]
    without_pgbench: bool,
    /// Leave the stack running, for who wants to look at it
    #[arg(long)]
    stay: bool,
}

fn callers(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|_| "that is no number".to_string())?;
    if (1..=CONNECTIONS).contains(&count) {
        return Ok(count);
    }
    Err(format!(
        "from 1 to {CONNECTIONS}: the order service keeps no more connections open, so that more \
         callers would measure how they take turns"
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

async fn run(arguments: Arguments) -> Result<()> {
    let all = || Part::value_variants().to_vec();
    let parts = if arguments.parts.is_empty() { all() } else { arguments.parts };
    let plan = Plan {
        repeats: arguments.repeats,
        warm: Duration::from_secs(arguments.warm_seconds),
        lasting: Duration::from_secs(arguments.seconds),
        callers: arguments.callers,
        old_orders: arguments.old_orders,
    };
    let mut report = Report::default();
    Report::forget(&arguments.into)?;
    // Old orders need a stack that has them.
    let (old, others): (Vec<Part>, Vec<Part>) =
        parts.into_iter().partition(|part| *part == Part::Old);
    for (old, parts) in [(false, others), (true, old)] {
        if parts.is_empty() {
            continue;
        }
        let mut site =
            Site::open("bench", old.then_some(plan.old_orders), !arguments.without_pgbench).await?;
        let measured = async {
            report.on.extend(machine::surroundings(&site.stack).await?);
            report.on.insert("Yardstick".to_string(), site.yardstick.described());
            report.on.insert("Measured".to_string(), plan.described());
            eprintln!("{}", report.surroundings());
            let warmed_up = site.warm_up(Duration::from_secs(arguments.warm_first_seconds)).await?;
            eprintln!("- Warmed up: {warmed_up}");
            report.on.insert("Warmed up".to_string(), warmed_up);
            for part in parts {
                part.run(&mut site, &plan, &mut report).await?;
            }
            anyhow::Ok(())
        };
        let measured = measured.await;
        if !arguments.stay {
            site.close().await?;
        }
        measured?;
    }
    report.write(&arguments.into)?;
    println!("{}", report.markdown());
    println!("{} and bench.json beside it", arguments.into.join("bench.md").display());
    Ok(())
}
