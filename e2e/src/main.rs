//! `e2e` starts, stops and shows the native stack, and runs scenarios and tests on it.

use std::process::ExitCode;

use anyhow::Result;
use chassis::event::Event;
use clap::{Parser, Subcommand};
use e2e::admin::connector_container;
use e2e::admin::connectors::{self, Carrier};
use e2e::admin::dead_letters::{self, by_hand};
use e2e::admin::erasure;
use e2e::admin::hanging_transactions;
use e2e::admin::order_timeline;
use e2e::admin::rebuild;
use e2e::admin::reporting;
use e2e::admin::republish::{self, RepublishOptions};
use e2e::admin::rewind::{self, RewindOptions};
use e2e::checker::run;
use e2e::client::http_client::Client;
use e2e::client::operator::Operator;
use e2e::console::{print_lines, printable_lines};
use e2e::image_pins;
use e2e::mutants::run as mutants;
use e2e::new_repository::{self, RepositoryOptions};
use e2e::new_service;
use e2e::port_forward;
use e2e::scenarios::alerts;
use e2e::scenarios::chaos;
use e2e::scenarios::crash_points;
use e2e::scenarios::demo;
use e2e::scenarios::hostile;
use e2e::scenarios::outage;
use e2e::scenarios::outage::options::OutageOptions;
use e2e::scenarios::runner::Outcome;
use e2e::stack_description::{stack_description, with_console};
use e2e::workload::load;
use e2e::workload::options::Load;
use e2e::workload::seed;
use events::orders::OrderCreated;
use launcher::Stack;
use launcher::program::{self, StackCommand};
use uuid::Uuid;

/// The native stack: Kafka, a schema registry, the services, and a PostgreSQL cluster for each.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Stack(StackCommand),
    /// The demo: orders go through, stock is killed and comes back, nothing is lost
    Demo,
    /// Create the connectors of a stack with Kafka Connect, or change them to what their files say
    Connectors(connector_container::ConnectorOptions),
    /// Switch between the relays and the connectors, while the stack runs
    Relay { carrier: Carrier },
    /// Create the missing demo items and accounts
    Seed(seed::SeedOptions),
    /// Place orders, kill a component again and again, and prove that nothing was lost
    Outage(OutageOptions),
    /// Kill the services at every crash point, on a stack of its own, and prove that nothing was lost
    CrashPoints(crash_points::CrashPointOptions),
    /// Rounds of load and faults drawn from a seed, on a stack of its own, and a report
    Chaos(chaos::ChaosOptions),
    /// Make the fault of each alert, and show that it fires and resolves (ten minutes)
    Alerts(alerts::AlertOptions),
    /// Pass the connections of some ports to the instances of a service, until SIGTERM
    Forward(port_forward::ForwardOptions),
    /// Run slow, oversized and numerous hostile clients; regular clients must not notice them
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
    /// Move the consumer of a service to an earlier or a later place
    Rewind(RewindOptions),
    /// Kill Kafka and delete its log, like a lost disk
    LoseDisk,
    /// Abort the Kafka transactions that a crash of the broker left open
    EndTransactions,
    /// Rebuild the order service's read model of items from its topic
    Rebuild,
    /// Rebuild the row of an order from its history
    RebuildOrder { order_id: uuid::Uuid },
    /// Print the report of the reporting database
    Report,
    /// Erase a customer in all services; the id is read from CUSTOMER or from standard input
    Erase,
    /// Show the timeline of an order: every event across the services
    Timeline { order_id: Uuid },
    /// Check that nothing was lost or applied twice and that the books balance
    Verify(run::CheckOptions),
    /// Put each mutant into a worktree, and show that the suite detects it (forty minutes)
    Mutants(mutants::MutantOptions),
    /// Write the digest of every image that is pulled into the files that name it
    Pin,
    /// Generate a repository of your own with one service, which depends on the crates
    New(RepositoryOptions),
    /// Generate a new service from the template
    Service { name: String },
    /// Generate a participant of the saga: a service whose yes an order needs
    Participant {
        name: String,
        #[command(flatten)]
        words: new_service::participant::Words,
    },
    /// Write what docker compose has of services that docker-compose.yml does not name
    ComposeOverride,
    #[command(flatten)]
    DeadLetters(dead_letters::DeadLetterCommand),
    /// Put a record that is not an event into orders.created
    Poison,
    /// Run a statement in a service's database, as its superuser
    Sql {
        service: String,
        #[arg(env = "SQL")]
        statement: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", printable_lines(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    let out = &mut std::io::stdout();
    match command {
        Command::Stack(StackCommand::Up { instances }) => up(instances).await?,
        Command::Stack(command) => return command.run(&with_console()).await,
        Command::Connectors(options) => connector_container::command(&options).await?,
        Command::Relay { carrier } => connectors::switch(&open_stack()?, carrier).await?,
        Command::Demo => demo::run(&Stack::for_checkout(&with_console())?).await?,
        Command::Outage(options) => {
            let stack = create_stack()?.quiet();
            return Ok(exit_code_if(outage::run(&stack, &options).await?));
        }
        Command::CrashPoints(it) => return Ok(exit_code_if(crash_points::command(&it).await?)),
        Command::Chaos(options) => {
            return Ok(match chaos::run(&options).await? {
                Outcome::Held => ExitCode::SUCCESS,
                Outcome::Violated => ExitCode::FAILURE,
                Outcome::Inconclusive => ExitCode::from(2),
            });
        }
        Command::Hostile(options) => {
            let stack = create_stack()?.quiet();
            return Ok(exit_code_if(hostile::run(&stack, &options).await?));
        }
        Command::Alerts(options) => return Ok(exit_code_if(alerts::command(&options).await?)),
        Command::Forward(options) => port_forward::run(&options).await?,
        Command::Seed(options) => seed::command(&options).await?,
        Command::Load { load, verify } => return place_load(&load, verify).await,
        Command::Verify(options) => return check(&open_client()?, &options).await,
        Command::Mutants(options) => return Ok(exit_code_if(mutants::run(&options).await?)),
        Command::Pin => image_pins::run()?,
        Command::New(options) => new_repository::run(&options)?,
        Command::Service { name } => new_service::run(&name, None)?,
        Command::Participant { name, words } => new_service::run(&name, Some(&words))?,
        Command::ComposeOverride => new_service::write_compose_overrides()?,
        Command::Republish(options) => {
            republish::print(&republish::run(&open_stack()?, &options).await?)
        }
        Command::DeadLetters(command) => {
            return Ok(exit_code_if(dead_letters::run(&operator()?, &command, out).await?));
        }
        Command::Poison => {
            by_hand::produce_poison(&open_stack()?, OrderCreated::topic(), out).await?
        }
        Command::Sql { service, statement } => {
            by_hand::run_sql(&open_stack()?, &service, &statement, out).await?
        }
        Command::Rewind(options) => rewind::run(&operator()?, &options).await?,
        Command::LoseDisk => republish::lose_disk(&open_stack()?).await?,
        Command::EndTransactions => hanging_transactions::command(&open_stack()?).await?,
        Command::Rebuild => rebuild::print(&rebuild::run(&operator()?).await?),
        Command::RebuildOrder { order_id } => rebuild::order(&operator()?, order_id).await?,
        Command::Report => reporting::print(&reporting::report(&open_stack()?).await?),
        Command::Erase => {
            let (customer_id, replacement) =
                (erasure::read_customer()?, erasure::read_replacement()?);
            erasure::print(&erasure::run(&open_stack()?, customer_id, replacement).await?);
        }
        Command::Timeline { order_id } => {
            print_lines(&order_timeline::run(&operator()?, order_id).await?)
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the stack, with its connectors if it has any, and with items and accounts to try it.
async fn up(instances: Option<u16>) -> Result<()> {
    // In docker compose, containers do the same.
    let stack = Stack::for_checkout(&with_console())?;
    let reports = stack.is_native() && reporting::is_wanted();
    if let Some(carrier) = Carrier::from_environment()?.filter(|_| stack.is_native()) {
        connectors::choose(&stack, carrier)?;
    }
    if reports {
        reporting::add(&stack).await?;
    }
    let stack = program::up(&with_console(), instances).await?;
    connectors::apply(&stack).await?;
    if reports {
        reporting::apply(&stack).await?;
    }
    seed::run(&Client::for_stack(&stack)?).await
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

/// The operator of that stack, or of another deployment that variables name.
fn operator() -> Result<Operator> {
    Operator::from_environment()?.map_or_else(|| Operator::for_stack(&open_stack()?), Ok)
}

async fn place_load(load: &Load, verify: bool) -> Result<ExitCode> {
    let client = open_client()?;
    let (summary, ()) = load::run(&client, load, async { Ok(()) }).await?;
    print_lines(&summary.lines());
    let checked = if verify {
        check(&client, &run::CheckOptions::default()).await?
    } else {
        ExitCode::SUCCESS
    };
    Ok(if summary.holds() && summary.answered_all() { checked } else { ExitCode::FAILURE })
}

async fn check(client: &Client, options: &run::CheckOptions) -> Result<ExitCode> {
    let verdict = run::run(client, options).await?;
    print_lines(&verdict.lines());
    Ok(exit_code_if(verdict.holds()))
}
