//! The process of a service: `serve | migrate | health`, from the first line of `main` to the exit
//! code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::Migrator;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::config::Config;
use crate::environment::{self, BadConfiguration, Own};
use crate::service::Service;
use crate::{kafka, open_files, schema, telemetry};

/// Of every program that links the chassis. Not of what cargo-fuzz builds: a sanitizer, where one is asked
/// for, replaces malloc itself.
#[cfg(not(fuzzing))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BAD_CONFIGURATION: u8 = 64;
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// The `main` of a service. `serve` is given what the service alone reads from its environment
/// (`()` for nothing), makes the service's parts and ends in [`Service::run`].
pub fn main<S, F, R>(name: &'static str, migrator: Migrator, serve: F) -> ExitCode
where
    S: clap::Args,
    F: FnOnce(Service, S) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let mut args = std::env::args().skip(1);
    let command = match (args.next().as_deref(), args.next()) {
        (Some(command @ ("serve" | "migrate" | "health")), None) => command.to_owned(),
        (Some("help" | "--help" | "-h"), None) => {
            println!("{}", usage::<S>(name));
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{}", usage::<S>(name));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(name, &error),
    };
    let ended = runtime.block_on(async {
        let config = Config::read()?;
        match &*command {
            "serve" => started(name, config, migrator, serve).await,
            "migrate" => {
                kafka::check(&config.kafka)?;
                telemetry::init_logs(config.log_format)?;
                schema::migrate(name, &config, migrator).await
            }
            _ => health(config.probe_addr).await,
        }
    });
    // A thread that blocks would keep the runtime, and so the process, for as long as it likes.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(name, &error),
    }
}

/// Tokio itself would panic at a number of threads that is none.
fn runtime() -> anyhow::Result<Runtime> {
    const THREADS: &str = "TOKIO_WORKER_THREADS";
    if let Some(threads) = std::env::var_os(THREADS) {
        let number = threads.to_str().and_then(|threads| threads.parse::<usize>().ok());
        number.filter(|number| *number > 0).ok_or_else(|| {
            BadConfiguration::new(format!("{THREADS} is {threads:?}, which is no number above 0."))
        })?;
    }
    Ok(Runtime::new()?)
}

async fn started<S, F, R>(
    name: &'static str,
    config: Config,
    migrator: Migrator,
    serve: F,
) -> anyhow::Result<()>
where
    S: clap::Args,
    F: FnOnce(Service, S) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let Own { own } = environment::read()?;
    kafka::check(&config.kafka)?;
    let telemetry = telemetry::init(name, &config)?;
    open_files::raise();
    let service = Service::new(name, config, migrator, telemetry.metrics())?;
    let ended = serve(service, own).await;
    telemetry.shutdown().await;
    ended
}

fn usage<S: clap::Args>(name: &str) -> String {
    let variables = environment::variables::<Config>() + &environment::variables::<Own<S>>();
    format!("usage: {name} serve | migrate | health\n\nThe environment:\n{variables}")
}

fn failed(name: &str, error: &anyhow::Error) -> ExitCode {
    // Before there are logs, and of a configuration that may keep them from being, people are told
    // directly.
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{name} ends: {error:#}");
    } else {
        eprintln!("{name}: {error:#}");
    }
    match error.is::<BadConfiguration>() {
        true => ExitCode::from(BAD_CONFIGURATION),
        false => ExitCode::FAILURE,
    }
}

fn loopbacks(port: u16) -> [SocketAddr; 2] {
    [(Ipv6Addr::LOCALHOST, port).into(), (Ipv4Addr::LOCALHOST, port).into()]
}

/// What a container's health check runs: is the service beside it ready?
pub(crate) async fn health(probe_addr: SocketAddr) -> anyhow::Result<()> {
    let addresses: Vec<SocketAddr> = match probe_addr.ip() {
        ip if !ip.is_unspecified() => vec![probe_addr],
        // It listens on both loopbacks, of which a machine may have one only.
        IpAddr::V6(_) => loopbacks(probe_addr.port()).to_vec(),
        IpAddr::V4(_) => loopbacks(probe_addr.port())[1..].to_vec(),
    };
    let ask = async {
        let mut stream = TcpStream::connect(&*addresses).await?;
        let request =
            format!("GET /readyz HTTP/1.1\r\nhost: {probe_addr}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(HEALTH_TIMEOUT, ask)
        .await
        .with_context(|| format!("{probe_addr} did not answer within {HEALTH_TIMEOUT:?}"))?
        .with_context(|| format!("{probe_addr} cannot be asked"))?;
    let status = answer.lines().next().unwrap_or_default();
    anyhow::ensure!(status.starts_with("HTTP/1.1 200 "), "not ready: {status}");
    Ok(())
}
