//! Runs a command, such as the tests, while the databases, Kafka and the registry run.

use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::description::{HOST, StackDescription};
use crate::directories::TEST_STACK_VARIABLE;
use crate::environment::variable;
use crate::processes::proc_fs::processes_in_group;
use crate::processes::{Signal, kill_until_gone, send_signal_to_group};
use crate::stack::Stack;

/// How long a command, with all that it started, may take to exit after SIGTERM.
const EXIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a command, such as `cargo test`, while the databases, Kafka and the registry run on free
/// ports. When the command exits, or a signal ends it, every process that it started ends too, and
/// the stack is deleted. Returns its exit status as a shell reports it: 128 plus the signal's number
/// after a signal.
///
/// The command gets `HOLDFAST_TEST_STACK`, with which [`Stack::for_tests`] opens the stack, and for
/// tests that need no launcher the addresses `TEST_DATABASE_URL` (the maintenance database of the
/// first service, as its superuser), `TEST_KAFKA_BOOTSTRAP_SERVERS` and `TEST_SCHEMA_REGISTRY_URL`.
///
/// One run of the tests at a time: it always has the same directory, so that the remains of a
/// killed run are found and removed.
///
/// # Errors
/// If the stack does not start, the command cannot be run, or something remains of either.
pub async fn run_with_infrastructure(
    description: &StackDescription,
    command: &[String],
) -> Result<ExitCode> {
    let (stack, _lock) = Stack::for_exclusive_run(description, "test").await?;
    description.clean_orphans().await?;
    let ended = run_on(&stack, command).await;
    stack.clean().await?;
    // The further stacks of the tests.
    description.clean_orphans().await?;
    ended
}

async fn run_on(stack: &Stack, command: &[String]) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    eprintln!("starting databases, Kafka and registry for the tests …");
    tokio::select! {
        up = stack.up_infrastructure() => up?,
        _ = interrupt.recv() => return Ok(ExitCode::from(130)),
        _ = terminate.recv() => return Ok(ExitCode::from(143)),
        _ = hangup.recv() => return Ok(ExitCode::from(129)),
    }
    // A process group of its own, so that a signal to this process can be sent to everything that
    // the command started: cargo does not forward signals. The system stops a background group that
    // reads a terminal, so standard input is closed. Tests reach components on loopback, without
    // the proxy of the user's environment.
    let no_proxy = variable("NO_PROXY").or_else(|| variable("no_proxy"));
    let no_proxy = format!("{HOST},{}", no_proxy.unwrap_or_default());
    let (program, arguments) = command.split_first().context("there is no command to run")?;
    let service = stack.description().services.first();
    let service = service.context("the stack has no service, and so no database")?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env("NO_PROXY", no_proxy)
        .env(TEST_STACK_VARIABLE, stack.directory())
        .env("TEST_DATABASE_URL", stack.maintenance_database_url(service)?)
        .env("TEST_KAFKA_BOOTSTRAP_SERVERS", stack.kafka_bootstrap()?)
        .env("TEST_SCHEMA_REGISTRY_URL", stack.registry_url()?)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let group = child.id().context("the command has not ended yet")?;
    let signal = tokio::select! {
        status = child.wait() => return Ok(exit_code(status?)),
        _ = interrupt.recv() => Signal::INT,
        _ = terminate.recv() => Signal::TERM,
        _ = hangup.recv() => Signal::TERM,
    };
    send_signal_to_group(signal, group)?;
    let asked = Instant::now();
    while !processes_in_group(group).is_empty() && asked.elapsed() < EXIT_TIMEOUT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kill_until_gone(|| processes_in_group(group))?;
    Ok(exit_code(child.wait().await?))
}

/// The status as a shell reports it.
fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let signal = status.signal().map(|signal| 128 + signal);
    ExitCode::from(status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
