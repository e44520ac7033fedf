//! The process of a service: `serve | migrate | health | erase | end-erasure`, from the first line of `main` to the
//! exit code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::Migrator;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::config::Config;
use crate::config::env::{self, BadConfiguration, ServiceSettings};
use crate::db::erasure::{self, ErasureRequest};
use crate::db::migrate;
use crate::service::{Service, open_files};
use crate::telemetry::{self, LogFlush};

const COMMANDS: [&str; 5] = ["serve", "migrate", "health", "erase", "end-erasure"];

const EXIT_BAD_CONFIGURATION: u8 = 64;
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// The `main` of a service. Its spans have `version`, which is `env!("CARGO_PKG_VERSION")` of its own crate. `serve`
/// is given what the service alone reads from its environment (`()` for nothing), makes the service's parts and ends
/// in [`Service::run`].
pub fn main<S, F, R>(
    name: &'static str,
    version: &'static str,
    migrator: Migrator,
    serve: F,
) -> ExitCode
where
    S: clap::Args,
    F: FnOnce(Service, S) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    run_command::<Config, S, _>(name, &COMMANDS, |command| async move {
        let config = Config::from_env()?;
        if command == "health" {
            return check_health(config.probe_addr).await;
        }
        config.check_database_keys()?;
        match &*command {
            "serve" => run_serve((name, version), config, migrator, serve).await,
            "migrate" => {
                config.kafka.validate()?;
                telemetry::init_logs(config.log_format)?;
                migrate::migrate(name, &config, migrator).await
            }
            "erase" => {
                let erased = erasure::erase(name, &config, &read_erasure_request()?).await?;
                println!("{}", serde_json::to_string(&erased)?);
                Ok(())
            }
            _ => erasure::end(name, &config, &read_erasure_request()?).await,
        }
    })
}

/// Runs the command that the one argument of the process names, to the exit code of the process. The usage of the
/// program lists the variables of `C`, and of `S` for what the program alone reads.
pub(super) fn run_command<C, S, R>(
    name: &str,
    commands: &[&str],
    run: impl FnOnce(String) -> R,
) -> ExitCode
where
    C: clap::Parser,
    S: clap::Args,
    R: Future<Output = anyhow::Result<()>>,
{
    let usage = || {
        let variables =
            env::describe_variables::<C>() + &env::describe_variables::<ServiceSettings<S>>();
        format!("usage: {name} {}\n\nThe environment:\n{variables}", commands.join(" | "))
    };
    let mut args = std::env::args().skip(1);
    let command = match (args.next().as_deref(), args.next()) {
        (Some(command), None) if commands.contains(&command) => command.to_owned(),
        (Some("help" | "--help" | "-h"), None) => {
            println!("{}", usage());
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{}", usage());
            return ExitCode::from(EXIT_BAD_CONFIGURATION);
        }
    };
    // Declared before all that logs, so that it is dropped at the end.
    let _log_flush = LogFlush;
    let ended = build_runtime().and_then(|runtime| {
        let ended = runtime.block_on(run(command));
        // A blocked thread would keep the runtime, and with it the process, without a limit.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report_failure(name, &error),
    }
}

/// Tokio itself would panic at an invalid number of threads.
fn build_runtime() -> anyhow::Result<Runtime> {
    const THREADS: &str = "TOKIO_WORKER_THREADS";
    if let Some(threads) = std::env::var_os(THREADS) {
        let number = threads.to_str().and_then(|threads| threads.parse::<usize>().ok());
        number.filter(|number| *number > 0).ok_or_else(|| {
            BadConfiguration::new(format!(
                "{THREADS} is {threads:?}, which is not a number above 0."
            ))
        })?;
    }
    Ok(Runtime::new()?)
}

/// Reads one JSON object from standard input, to its end.
fn read_erasure_request() -> anyhow::Result<ErasureRequest> {
    let request = std::io::read_to_string(std::io::stdin())?;
    serde_json::from_str(&request).context("standard input is not an erasure request")
}

async fn run_serve<S, F, R>(
    (name, version): (&'static str, &'static str),
    config: Config,
    migrator: Migrator,
    serve: F,
) -> anyhow::Result<()>
where
    S: clap::Args,
    F: FnOnce(Service, S) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    config.check_serving()?;
    let ServiceSettings { settings } = env::read()?;
    config.kafka.validate()?;
    let telemetry = telemetry::init(name, version, &config)?;
    telemetry::metrics::record_process(version);
    open_files::raise_limit();
    let mut service = Service::new(name, config, migrator, telemetry.metrics.clone())?;
    service.read_config = Arc::new(Config::from_env);
    let ended = serve(service, settings).await;
    telemetry.shutdown().await;
    ended
}

fn report_failure(name: &str, error: &anyhow::Error) -> ExitCode {
    // Without logs, as before they are set up or after a bad configuration of them, the error goes to stderr.
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{name} failed: {error:#}");
    } else {
        eprintln!("{name}: {error:#}");
    }
    match error.is::<BadConfiguration>() {
        true => ExitCode::from(EXIT_BAD_CONFIGURATION),
        false => ExitCode::FAILURE,
    }
}

/// The health check of a container: whether the service beside it is ready.
pub(crate) async fn check_health(probe_addr: SocketAddr) -> anyhow::Result<()> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, probe_addr.port()));
    let addresses = match probe_addr.ip() {
        ip if !ip.is_unspecified() => vec![probe_addr],
        // It listens on both loopback addresses; a machine may have only one of them.
        IpAddr::V6(_) => vec![(Ipv6Addr::LOCALHOST, probe_addr.port()).into(), loopback],
        IpAddr::V4(_) => vec![loopback],
    };
    let exchange = async {
        let mut stream = TcpStream::connect(&*addresses).await?;
        let request =
            format!("GET /readyz HTTP/1.1\r\nhost: {probe_addr}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        std::io::Result::Ok(response)
    };
    let response = timeout(HEALTH_TIMEOUT, exchange)
        .await
        .with_context(|| format!("{probe_addr} did not answer within {HEALTH_TIMEOUT:?}"))?
        .with_context(|| format!("{probe_addr} cannot be reached"))?;
    let status = response.lines().next().unwrap_or_default();
    anyhow::ensure!(status.starts_with("HTTP/1.1 200 "), "not ready: {status}");
    Ok(())
}
