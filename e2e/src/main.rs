//! `e2e` starts, stops and shows the native stack, and runs scenarios and tests on it.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::admin::dead_letters;
use e2e::admin::order_timeline;
use e2e::admin::rebuild;
use e2e::admin::republish::{self, RepublishOptions};
use e2e::checker::run;
use e2e::client::http_client::Client;
use e2e::format::format_table;
use e2e::mutants::run as mutants;
use e2e::new_service;
use e2e::scenarios::chaos;
use e2e::scenarios::crash_points;
use e2e::scenarios::demo;
use e2e::scenarios::hostile;
use e2e::scenarios::long_outage;
use e2e::scenarios::outage;
use e2e::stack_description::{SERVICES, require_name, stack_description};
use e2e::workload::load;
use e2e::workload::options::Load;
use e2e::workload::seed;
use launcher::{ComponentState, Stack, StopOutcome, run_with_infrastructure};
use uuid::Uuid;

/// The native stack: Kafka, a schema registry, the services, and a PostgreSQL cluster for each.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start what does not run, and return when everything is ready
    Up {
        /// Number of instances of each service; unchanged by default
        #[arg(long)]
        instances: Option<u16>,
    },
    /// Stop everything and keep all data
    Down,
    /// Stop everything and forget all data
    Clean,
    /// Show every component: process, port, state, memory, uptime
    Status,
    /// Show the last lines of a log
    Logs {
        name: String,
        /// Go on printing new lines
        #[arg(short, long)]
        follow: bool,
    },
    /// Kill a component with SIGKILL
    Kill { name: String },
    /// Stop a component gracefully
    Stop { name: String },
    /// Start a component; a further instance of a service has a name such as order-2
    Start { name: String },
    /// The demo: orders go through, stock is killed and comes back, nothing is lost
    Demo,
    /// Create the missing demo items and accounts
    Seed(seed::SeedOptions),
    /// Place orders, kill a component again and again, and prove that nothing was lost
    Outage(outage::plan::OutageOptions),
    /// Kill the services at every crash point, on a stack of its own, and prove that nothing was lost
    CrashPoints(crash_points::CrashPointOptions),
    /// Rounds of load and faults drawn from a seed, on a stack of its own, and a report
    Chaos(chaos::ChaosOptions),
    /// Stop stock for minutes while orders go on; it has to catch up beside new orders
    LongOutage(long_outage::LongOutageOptions),
    /// Slow, large and many hostile clients; regular clients must not notice them
    Hostile(hostile::HostileOptions),
    /// Place orders at a fixed rate, and wait until every one has ended
    Load {
        #[command(flatten)]
        load: Load,
        /// Run the checker afterwards
        #[arg(long)]
        verify: bool,
    },
    /// Let the services republish their events; starts Kafka if it is down
    Republish(RepublishOptions),
    /// Kill Kafka and delete its log, like a lost disk
    LoseDisk,
    /// Rebuild the order service's read model of items from its topic
    Rebuild,
    /// Show the timeline of an order: every event across the services
    Timeline { order_id: Uuid },
    /// Check that nothing was lost or applied twice and that the books balance
    Verify(run::CheckOptions),
    /// Put each mutant into a worktree, and show that the suite detects it (forty minutes)
    Mutants(mutants::MutantOptions),
    /// Generate a new service, from stock and a template
    Service { name: String },
    #[command(flatten)]
    DeadLetters(dead_letters::DeadLetterCommand),
    /// Run a command while databases, Kafka and registry run on free ports
    WithInfrastructure {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up { instances } => up(instances).await?,
        Command::Down => open_stack()?.down().await?,
        Command::Clean => open_stack()?.clean().await?,
        Command::Status => print_status(&open_stack()?).await?,
        Command::Logs { name, follow } => named(&name)?.print_log(&name, follow).await?,
        Command::Kill { name } => kill(&name).await?,
        Command::Stop { name } => stop(&name).await?,
        Command::Start { name } => named(&name)?.start(&name).await?,
        Command::Demo => demo::run(&create_stack()?).await?,
        Command::Outage(options) => {
            let stack = create_stack()?.quiet();
            return Ok(exit_code_if(outage::run(&stack, &options).await?));
        }
        Command::CrashPoints(options) => {
            return Ok(exit_code_if(crash_points::command(&options).await?));
        }
        Command::Chaos(options) => {
            return Ok(match chaos::run(&options).await? {
                chaos::outcome::ChaosOutcome::Held => ExitCode::SUCCESS,
                chaos::outcome::ChaosOutcome::Violated => ExitCode::FAILURE,
                chaos::outcome::ChaosOutcome::Inconclusive => ExitCode::from(2),
            });
        }
        Command::LongOutage(options) => {
            let stack = create_stack()?.quiet();
            return Ok(exit_code_if(long_outage::run(&stack, &options).await?));
        }
        Command::Hostile(options) => {
            let stack = create_stack()?.quiet();
            return Ok(exit_code_if(hostile::run(&stack, &options).await?));
        }
        Command::Seed(options) => seed::command(&options).await?,
        Command::Load { load, verify } => return place_load(&load, verify).await,
        Command::Verify(options) => return check(&open_client()?, &options).await,
        Command::Mutants(options) => return Ok(exit_code_if(mutants::run(&options).await?)),
        Command::Service { name } => new_service::run(&name)?,
        Command::Republish(options) => {
            republish::print(&republish::run(&open_stack()?, &options).await?)
        }
        Command::DeadLetters(command) => {
            let stack = open_stack()?;
            return dead_letters::run(&stack, &command, &mut std::io::stdout()).await;
        }
        Command::LoseDisk => republish::lose_disk(&open_stack()?).await?,
        Command::Rebuild => rebuild::print(&rebuild::run(&open_client()?).await?),
        Command::Timeline { order_id } => {
            let lines = order_timeline::run(&open_client()?, order_id).await?;
            lines.iter().for_each(|line| println!("{line}"))
        }
        Command::WithInfrastructure { command } => {
            return run_with_infrastructure(&stack_description(), &command).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Success if what the command had to show holds.
fn exit_code_if(holds: bool) -> ExitCode {
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The stack of this checkout, created if it does not exist.
fn create_stack() -> Result<Stack> {
    Stack::for_checkout(&stack_description())
}

/// The stack of this checkout as it was last started.
fn open_stack() -> Result<Stack> {
    Stack::open_for_checkout(&stack_description())
}

/// A client of that stack.
fn open_client() -> Result<Client> {
    Client::for_stack(&open_stack()?)
}

/// The stack of this checkout, for a command on the component of this name.
fn named(name: &str) -> Result<Stack> {
    require_name(name)?;
    open_stack()
}

async fn kill(name: &str) -> Result<()> {
    let killed = named(name)?.kill(name).await?;
    println!("{name} {}", if killed { "is killed" } else { "did not run" });
    Ok(())
}

async fn stop(name: &str) -> Result<()> {
    match named(name)?.stop(name).await? {
        StopOutcome::NotRunning => println!("{name} did not run"),
        StopOutcome::Graceful(after) => {
            println!("{name} stopped after {:.1} s", after.as_secs_f64())
        }
        StopOutcome::Killed => println!("{name} did not stop in time and was killed"),
    }
    Ok(())
}

async fn up(instances: Option<u16>) -> Result<()> {
    let begun = Instant::now();
    let stack = create_stack()?;
    if let Some(instances) = instances {
        stack.set_instances(instances).await?;
    }
    stack.up().await?;
    seed::run(&Client::for_stack(&stack)?).await?;
    eprintln!("everything is ready ({:.1} s)", begun.elapsed().as_secs_f64());
    for service in SERVICES {
        for name in stack.instances_of(service)? {
            println!("{name:<9} {}", stack.url(&name)?);
        }
    }
    Ok(())
}

async fn place_load(load: &Load, verify: bool) -> Result<ExitCode> {
    let client = open_client()?;
    let (summary, ()) = load::run(&client, load, async { Ok(()) }).await?;
    summary.lines().iter().for_each(|line| println!("{line}"));
    let checked = if verify {
        check(&client, &run::CheckOptions::default()).await?
    } else {
        ExitCode::SUCCESS
    };
    Ok(if summary.holds() && summary.answered_all() { checked } else { ExitCode::FAILURE })
}

async fn check(client: &Client, options: &run::CheckOptions) -> Result<ExitCode> {
    let verdict = run::run(client, options).await?;
    verdict.lines().iter().for_each(|line| println!("{line}"));
    Ok(exit_code_if(verdict.holds()))
}

async fn print_status(stack: &Stack) -> Result<()> {
    let rows = stack.status().await?.into_iter().map(|component| {
        let state = match component.state {
            ComponentState::Stopped => "stopped",
            ComponentState::Starting => "starting",
            ComponentState::Ready => "ready",
            ComponentState::Paused => "paused",
        };
        let pid = component.pid.map_or("-".to_string(), |pid| pid.to_string());
        let memory = format!("{} MB", component.memory_bytes / 1_000_000);
        let seconds = component.uptime.as_secs();
        let uptime = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let ended = component.last_exit.map_or("-".to_string(), |end| end.to_string());
        let (memory, uptime) = component.pid.map_or(("-".into(), ended), |_| (memory, uptime));
        [component.name, pid, component.port.to_string(), state.to_string(), memory, uptime]
    });
    let header = ["NAME", "PID", "PORT", "STATE", "MEMORY", "UPTIME"];
    format_table(header, &[1, 2, 4], rows).iter().for_each(|line| println!("{line}"));
    Ok(())
}
