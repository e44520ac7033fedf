//! `e2e` starts, stops and looks at the native stack, and runs tests on its parts.

use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use e2e::announce::{self, Announce};
use e2e::client::Client;
use e2e::compose::Compose;
use e2e::load::{self, Load};
use e2e::member::Stopped;
use e2e::process::{self, Signal};
use e2e::stack::{State, TEST_STACK};
use e2e::topology::{HOST, SERVICES};
use e2e::{
    Stack, bugs, chaos, crash_points, demo, hostile, letters, long_outage, outage, rebuild, seed,
    template, trail, verify,
};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

/// How long a command that was asked to end may take, with all that it started.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

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
        /// So many of each service; as many as before if not named
        #[arg(long)]
        instances: Option<u16>,
    },
    /// Stop everything and keep all data
    Down,
    /// Stop everything and forget all data
    Clean,
    /// Show every member: process, port, state, memory, uptime
    Status,
    /// Show the last lines of a log
    Logs {
        name: String,
        /// Go on showing what is written
        #[arg(short, long)]
        follow: bool,
    },
    /// Kill a member with SIGKILL
    Kill { name: String },
    /// Stop a member gracefully
    Stop { name: String },
    /// Start a member; a further instance of a service is called order-2
    Start { name: String },
    /// Tell the story: orders go through, stock is killed and comes back, nothing is lost
    Demo,
    /// Make the demo items and accounts that are missing
    Seed(seed::Options),
    /// A load, a victim that is killed again and again, and the proof that nothing was lost
    Outage(outage::Options),
    /// Kill the services at every crash point, on a stack of its own, and prove that nothing was lost
    CrashPoints(crash_points::Options),
    /// Rounds of load and faults drawn from a seed, on a stack of its own, and a report
    Chaos(chaos::Options),
    /// Stock is away for minutes while orders go on, and has to catch up beside new ones
    LongOutage(long_outage::Options),
    /// Clients that mean no good: slow ones, large ones, very many; others must not notice
    Hostile(hostile::Options),
    /// Place orders at a fixed rate, and wait until every one has ended
    Load {
        #[command(flatten)]
        load: Load,
        /// Check everything afterwards
        #[arg(long)]
        verify: bool,
    },
    /// Have the services announce again what they published; starts Kafka if it is down
    Announce(Announce),
    /// Kill Kafka and delete its log, as a lost disk would
    LoseDisk,
    /// Make the order service's read model of items anew from its topic
    Rebuild,
    /// Show a saga: every event of one order across the services
    Order { order_id: Uuid },
    /// Check that nothing was lost or applied twice and that the books balance
    Verify(verify::Options),
    /// Put each seeded bug into a scratch copy, and show that the suite catches it (forty minutes)
    Bugs(bugs::Options),
    /// Write a service of your own, from stock and a template
    Service { name: String },
    #[command(flatten)]
    Letters(letters::Command),
    /// Run a command while databases, Kafka and registry run on free ports
    WithParts {
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
        Command::Down => Stack::of_checkout_as_it_is()?.down().await?,
        Command::Clean => Stack::of_checkout_as_it_is()?.clean().await?,
        Command::Status => print_status(&Stack::of_checkout_as_it_is()?).await?,
        Command::Logs { name, follow } => return print_log(&name, follow).await,
        Command::Kill { name } => {
            let killed = Stack::of_checkout_as_it_is()?.kill(&name).await?;
            println!("{name} {}", if killed { "is killed" } else { "did not run" });
        }
        Command::Stop { name } => match Stack::of_checkout_as_it_is()?.stop(&name).await? {
            Stopped::WasNotRunning => println!("{name} did not run"),
            Stopped::Gracefully(after) => {
                println!("{name} stopped after {:.1} s", after.as_secs_f64())
            }
            Stopped::Killed => println!("{name} did not stop in time and was killed"),
        },
        Command::Start { name } => Stack::of_checkout_as_it_is()?.start(&name).await?,
        Command::Demo => demo::run(&Stack::of_checkout()?).await?,
        Command::Outage(options) => {
            let stack = Stack::of_checkout()?.quiet();
            let held = outage::run(&stack, &options).await?;
            return Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::CrashPoints(options) => {
            let held = crash_points::command(&options).await?;
            return Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Chaos(options) => {
            return Ok(match chaos::run(&options).await? {
                chaos::Outcome::Held => ExitCode::SUCCESS,
                chaos::Outcome::Violated => ExitCode::FAILURE,
                chaos::Outcome::Inconclusive => ExitCode::from(2),
            });
        }
        Command::LongOutage(options) => {
            let held = long_outage::run(&Stack::of_checkout()?.quiet(), &options).await?;
            return Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Hostile(options) => {
            let held = hostile::run(&Stack::of_checkout()?.quiet(), &options).await?;
            return Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Seed(options) => seed::command(&options).await?,
        Command::Load { load, verify } => return place_load(&load, verify).await,
        Command::Verify(options) => {
            let client = Client::of(&Stack::of_checkout_as_it_is()?)?;
            return check(&client, &options).await;
        }
        Command::Bugs(options) => {
            let caught = bugs::run(&options).await?;
            return Ok(if caught { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Service { name } => template::run(&name)?,
        Command::Announce(wish) => {
            announce::print(&announce::run(&Stack::of_checkout_as_it_is()?, &wish).await?)
        }
        Command::Letters(command) => {
            let stack = Stack::of_checkout_as_it_is()?;
            return letters::run(&stack, &command, &mut std::io::stdout()).await;
        }
        Command::LoseDisk => announce::lose_the_disk(&Stack::of_checkout_as_it_is()?).await?,
        Command::Rebuild => {
            let client = Client::of(&Stack::of_checkout_as_it_is()?)?;
            rebuild::print(&rebuild::run(&client).await?)
        }
        Command::Order { order_id } => {
            let client = Client::of(&Stack::of_checkout_as_it_is()?)?;
            trail::run(&client, order_id).await?.iter().for_each(|line| println!("{line}"))
        }
        Command::WithParts { command } => return with_parts(&command).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(instances: Option<u16>) -> Result<()> {
    let begun = Instant::now();
    let stack = Stack::of_checkout()?;
    if let Some(instances) = instances {
        stack.set_instances(instances).await?;
    }
    stack.up().await?;
    seed::run(&Client::of(&stack)?).await?;
    eprintln!("everything is ready ({:.1} s)", begun.elapsed().as_secs_f64());
    for service in SERVICES {
        for name in stack.instances_of(service)? {
            println!("{name:<9} {}", stack.url(&name)?);
        }
    }
    Ok(())
}

async fn place_load(load: &Load, verify: bool) -> Result<ExitCode> {
    let client = Client::of(&Stack::of_checkout_as_it_is()?)?;
    let (summary, ()) = load::run(&client, load, async { Ok(()) }).await?;
    summary.lines().iter().for_each(|line| println!("{line}"));
    let checked =
        if verify { check(&client, &verify::Options::default()).await? } else { ExitCode::SUCCESS };
    Ok(if summary.holds() && summary.answered_all() { checked } else { ExitCode::FAILURE })
}

async fn check(client: &Client, options: &verify::Options) -> Result<ExitCode> {
    let verdict = verify::run(client, options).await?;
    verdict.lines().iter().for_each(|line| println!("{line}"));
    Ok(if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn print_status(stack: &Stack) -> Result<()> {
    println!("{:<12} {:>8} {:>6}  {:<9} {:>8}  UPTIME", "NAME", "PID", "PORT", "STATE", "MEMORY");
    for member in stack.status().await? {
        let state = match member.state {
            State::Stopped => "stopped",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Paused => "paused",
        };
        let pid = member.pid.map_or("-".to_string(), |pid| pid.to_string());
        let memory = format!("{} MB", member.memory_bytes / 1_000_000);
        let seconds = member.uptime.as_secs();
        let uptime = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let ended = member.end.map_or("-".to_string(), |end| end.to_string());
        let (memory, uptime) = member.pid.map_or(("-".into(), ended), |_| (memory, uptime));
        println!(
            "{:<12} {pid:>8} {:>6}  {state:<9} {memory:>8}  {uptime}",
            member.name, member.port
        );
    }
    Ok(())
}

async fn print_log(name: &str, follow: bool) -> Result<ExitCode> {
    if let Some(compose) = Compose::from_environment()? {
        compose.logs(name, follow).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let log = Stack::of_checkout_as_it_is()?.log_file(name)?;
    let mut tail = tokio::process::Command::new("tail");
    tail.args(["-n", "200"]).args(follow.then_some("-F")).arg(log);
    Ok(exit_code(tail.status().await?))
}

/// One run of the tests at a time: its directory is always the same, so that what a broken-off run
/// left behind is found and removed.
async fn with_parts(command: &[String]) -> Result<ExitCode> {
    let (stack, _lock) = Stack::of_one_run("test").await?;
    Stack::clean_left_behind().await?;
    let ended = run_on(&stack, command).await;
    stack.clean().await?;
    // The tests' further stages.
    Stack::clean_left_behind().await?;
    ended
}

async fn run_on(stack: &Stack, command: &[String]) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    eprintln!("starting databases, Kafka and registry for the tests …");
    tokio::select! {
        up = stack.up_parts() => up?,
        _ = interrupt.recv() => return Ok(ExitCode::from(130)),
        _ = terminate.recv() => return Ok(ExitCode::from(143)),
        _ = hangup.recv() => return Ok(ExitCode::from(129)),
    }
    // In a group of its own: whoever ends only us gets all that it started ended too, and cargo
    // passes no signal on. What reads a terminal from such a group is stopped, so there is none.
    // Tests ask members on loopback, where no proxy of the user's environment leads.
    let no_proxy = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy"));
    let no_proxy = format!("{HOST},{}", no_proxy.unwrap_or_default());
    let mut child = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .env("NO_PROXY", no_proxy)
        .env(TEST_STACK, stack.directory())
        .env("TEST_DATABASE_URL", stack.cluster_url(SERVICES[0])?)
        .env("TEST_KAFKA_BOOTSTRAP_SERVERS", stack.kafka_bootstrap()?)
        .env("TEST_SCHEMA_REGISTRY_URL", stack.registry_url()?)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", command[0]))?;
    let group = child.id().context("nobody has waited for it yet")?;
    let signal = tokio::select! {
        status = child.wait() => return Ok(exit_code(status?)),
        _ = interrupt.recv() => Signal::Int,
        _ = terminate.recv() => Signal::Term,
        _ = hangup.recv() => Signal::Term,
    };
    process::send_to_group(signal, group)?;
    let asked = Instant::now();
    while !process::in_group(group).is_empty() && asked.elapsed() < ENDED_WITHIN {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process::kill_until_gone(|| process::in_group(group))?;
    Ok(exit_code(child.wait().await?))
}

/// As a shell has it: 128 and the signal's number for what a signal ended.
fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let signal = status.signal().map(|signal| 128 + signal);
    ExitCode::from(status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
