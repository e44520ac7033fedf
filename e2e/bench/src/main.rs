//! `make bench`: how many sagas a second, how long one takes, and what it costs.
//!
//! The native stack with all durability on, a load on the same machine, and beside it, in the same
//! minutes, the yardstick: what a plain transaction of two inserts does. What counts as completed is
//! what the decider committed. Nothing is reported of a run that lost an order.
//!
//! - `parts`: what is measured; `site`: the stack, and one measurement on it.
//! - `loads`, `caller`, `wishes`: who orders what, and when; `ends`: when orders end.
//! - `costs`: what the machine spends; `yardstick`: tx4; `report`: tables and JSON.

mod caller;
mod costs;
mod ends;
mod loads;
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
    /// How long each measurement takes, and the load before it
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    #[arg(long, default_value_t = 4)]
    warm_seconds: u64,
    /// So many callers in closed loops, one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024")]
    callers: Vec<usize>,
    /// Where bench.md and bench.json are written
    #[arg(long, default_value = "target/bench")]
    into: PathBuf,
    /// Leave the stack running, for who wants to look at it
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

async fn run(arguments: Arguments) -> Result<()> {
    let all = || Part::value_variants().to_vec();
    let parts = if arguments.parts.is_empty() { all() } else { arguments.parts };
    let plan = Plan {
        repeats: arguments.repeats,
        warm: Duration::from_secs(arguments.warm_seconds),
        lasting: Duration::from_secs(arguments.seconds),
        callers: arguments.callers,
    };
    let mut report = Report::default();
    for (what, variable) in [("Kafka's Java", "KAFKA_JAVA_OPTS"), ("Postgres", "POSTGRES_OPTS")] {
        let set = std::env::var(variable).unwrap_or_else(|_| "as for development".to_string());
        eprintln!("{what}: {set}");
        report.on.insert(what.to_string(), set);
    }
    let cores = std::thread::available_parallelism()?;
    report.on.insert(
        "Machine".to_string(),
        format!("{cores} cores, shared by everything, the load too"),
    );
    let mut site = Site::open("bench", 10_000).await?;
    let mut ended = Ok(());
    for part in parts {
        ended = part.run(&mut site, &plan, &mut report).await;
        if ended.is_err() {
            break;
        }
        report.write(&arguments.into)?;
    }
    if !arguments.stay {
        site.stack.clean().await?;
    }
    ended?;
    println!("{}", report.markdown());
    println!("{} and bench.json beside it", arguments.into.join("bench.md").display());
    Ok(())
}
