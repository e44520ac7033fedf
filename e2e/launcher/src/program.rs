//! The program of a stack: the commands of the launcher for a terminal.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::description::StackDescription;
use crate::environment::is_on;
use crate::run_with_infrastructure::run_with_infrastructure;
use crate::secrets::Secrets;
use crate::stack::Stack;
use crate::status::StopOutcome;

/// A command on the stack of a project. A program with further commands flattens these into its own.
#[derive(Clone, Debug, Subcommand)]
pub enum StackCommand {
    /// Start what does not run, and return when everything is ready
    Up {
        /// Number of instances of each service; unchanged by default
        #[arg(long)]
        instances: Option<u16>,
    },
    /// Stop everything and keep all data
    Down,
    /// Stop everything and delete all data
    Clean,
    /// Show every component: process, port, state, memory, uptime
    Status,
    /// Show the last lines of a log
    Logs {
        /// The name of a component
        name: String,
        /// Keep printing new lines
        #[arg(short, long)]
        follow: bool,
    },
    /// Kill a component with SIGKILL
    Kill {
        /// The name of a component
        name: String,
    },
    /// Stop a component gracefully
    Stop {
        /// The name of a component
        name: String,
    },
    /// Start a component; a further instance of a service has a name such as shop-2
    Start {
        /// The name of a component
        name: String,
    },
    /// Print an access token for a caller of a secured stack
    Token {
        /// The caller, by the name that the services know
        who: String,
        /// What the caller may do, such as "shop:read shop:write"
        #[arg(long)]
        scope: String,
        /// How long the token is valid
        #[arg(long, default_value_t = 60)]
        minutes: u32,
    },
    /// Renew the passwords, the certificates and the key of the tokens of a secured stack while it works
    Rotate {
        /// Also renew the superusers' passwords and the certificate authority, which running tools keep (takes two
        /// minutes)
        #[arg(long)]
        everything: bool,
    },
    /// Give each container of a secured docker compose its secrets; a container runs it
    #[command(hide = true)]
    DistributeSecrets {
        /// The directory of all secrets
        from: PathBuf,
        /// The directory with one directory for each container
        into: PathBuf,
    },
    /// Serve the page of the demo on loopback; `up` starts it in the background
    #[command(hide = true)]
    ControlServer,
    /// Run a command while databases, Kafka and registry run on free ports
    WithInfrastructure {
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: StackCommand,
}

/// The `main` of a program that has these commands and no others.
pub fn main(description: StackDescription) -> ExitCode {
    let command = Arguments::parse().command;
    let ended = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(command.run(&description)));
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

impl StackCommand {
    /// Runs the command on the stack of the project's checkout, and prints what it did.
    ///
    /// # Errors
    /// If there is no such component, or the stack does not do what the command asks for.
    pub async fn run(self, description: &StackDescription) -> Result<ExitCode> {
        let open = || Stack::open_for_checkout(description);
        let named = |name: &str| {
            description.require_name(name)?;
            open()
        };
        match self {
            StackCommand::Up { instances } => drop(up(description, instances).await?),
            StackCommand::Down => open()?.down().await?,
            StackCommand::Clean => Stack::of_checkout(description)?.clean().await?,
            StackCommand::Status => print_status(&open()?).await?,
            StackCommand::Logs { name, follow } => named(&name)?.print_log(&name, follow).await?,
            StackCommand::Kill { name } => {
                let killed = named(&name)?.kill(&name).await?;
                println!("{name} {}", if killed { "is killed" } else { "did not run" });
            }
            StackCommand::Stop { name } => print_stop(&name, named(&name)?.stop(&name).await?),
            StackCommand::Start { name } => named(&name)?.start(&name).await?,
            StackCommand::Token { who, scope, minutes } => {
                let issuer = open()?.token_issuer()?;
                let issuer = issuer.context("the services know no callers: start with SECURE=1")?;
                let lifetime = Duration::from_secs(u64::from(minutes) * 60);
                println!("{}", issuer.sign(&who, &scope, lifetime)?);
            }
            StackCommand::Rotate { everything } => open()?.rotate(everything).await?,
            StackCommand::DistributeSecrets { from, into } => {
                Secrets::in_directory(from).distribute(description, &into)?;
            }
            StackCommand::ControlServer => open()?.serve_control().await?,
            StackCommand::WithInfrastructure { command } => {
                return run_with_infrastructure(description, &command).await;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Starts the stack and prints the addresses of its services. With `STREAMS=1` the stack gets its
/// stream processors, and with `CONNECT=1` Kafka Connect. A program with an `up` of its own calls this.
///
/// # Errors
/// If a component does not become ready.
pub async fn up(description: &StackDescription, instances: Option<u16>) -> Result<Stack> {
    let begun = Instant::now();
    let stack = Stack::for_checkout(description)?;
    if let Some(instances) = instances {
        stack.set_instances(instances).await?;
    }
    if is_on("STREAMS") && stack.is_native() {
        stack.process_streams()?;
    }
    if is_on("CONNECT") && stack.is_native() {
        stack.connect()?;
    }
    stack.up().await?;
    eprintln!("everything is ready ({:.1} s)", begun.elapsed().as_secs_f64());
    for service in &stack.description().services {
        for name in stack.instances_of(service)? {
            println!("{name:<9} {}   admin {}", stack.url(&name)?, stack.admin_url(&name)?);
        }
    }
    if description.console {
        if stack.is_native() && !description.secure {
            stack.start_control_server().await?;
        }
        println!("{:<9} {}", "console", stack.console_url()?);
    }
    for (name, url) in stack.streams_urls()? {
        println!("{name:<9} {url}");
    }
    if let Some(connect) = stack.connect_url()? {
        println!("{:<9} {connect}", "connect");
    }
    if let Some(ca) = stack.ca_certificate()? {
        println!("{:<9} {}", "CA", ca.display());
    }
    Ok(stack)
}

fn print_stop(name: &str, stopped: StopOutcome) {
    match stopped {
        StopOutcome::NotRunning => println!("{name} did not run"),
        StopOutcome::Graceful(after) => {
            println!("{name} stopped after {:.1} s", after.as_secs_f64());
        }
        StopOutcome::Killed => println!("{name} did not stop in time and was killed"),
    }
}

async fn print_status(stack: &Stack) -> Result<()> {
    let rows = stack.status().await?.into_iter().map(|component| {
        let state = component.state.to_string();
        let pid = component.pid.map_or("-".to_string(), |pid| pid.to_string());
        let memory = format!("{} MB", component.memory_bytes / 1_000_000);
        let seconds = component.uptime.as_secs();
        let uptime = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let ended = component.last_exit.map_or("-".to_string(), |end| end.to_string());
        let (memory, uptime) = component.pid.map_or(("-".into(), ended), |_| (memory, uptime));
        [component.name, pid, component.port.to_string(), state, memory, uptime]
    });
    let header = ["NAME", "PID", "PORT", "STATE", "MEMORY", "UPTIME"];
    format_table(header, &[1, 2, 4], rows).iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// A table without borders, each line indented by two blanks. The columns `right` are aligned to the
/// right.
pub fn format_table<const N: usize>(
    header: [&str; N],
    right: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Vec<String> {
    let rows: Vec<[String; N]> = [header.map(str::to_string)].into_iter().chain(rows).collect();
    let width = |nth: usize| rows.iter().map(|row| row[nth].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).enumerate().map(|(nth, (cell, width))| {
            if right.contains(&nth) {
                format!("  {cell:>width$}")
            } else {
                format!("  {cell:width$}")
            }
        });
        cells.collect::<String>().trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let rows = [["a", "1"], ["long name", "1,000"]].map(|row| row.map(str::to_string));
        let lines = format_table(["NAME", "COUNT"], &[1], rows);
        assert_eq!(lines, ["  NAME       COUNT", "  a              1", "  long name  1,000"]);
    }
}
