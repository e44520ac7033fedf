//! Whether a component is ready. The launcher sends it a request over the network, and does not read
//! its log.

use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Result, bail};
use openssl::ssl::{SslConnector, SslFiletype, SslMethod};
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_openssl::SslStream;

use crate::proc_fs::ProcessIdentity;
use crate::process::Process;
use crate::secrets::{ADMINISTRATOR, SUPERUSER};
use crate::stack_state::StackState;
use crate::topology::{Component, HOST};

pub const READY_TIMEOUT: Duration = Duration::from_secs(120);
const PORT_FREE_TIMEOUT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

const REGISTRY_SUBJECTS_PATH: &str = "/apis/ccompat/v7/subjects";
/// The worker answers this once it has joined its group.
const CONNECTORS_PATH: &str = "/connectors";
const READINESS_TIMEOUT: Duration = Duration::from_secs(5);

/// A database executes statements, Kafka is in its own metadata, registry and services respond with
/// 2xx.
pub async fn is_ready(stack_state: &StackState, component: &Component) -> bool {
    let answer = async {
        match component {
            Component::Database(service) => {
                let url = stack_state.database_url(service, SUPERUSER, "postgres").ok()?;
                connect_database(&url).await.ok()?.ping().await.ok()
            }
            Component::Kafka => kafka_is_ready(stack_state).await,
            Component::Registry => {
                server_is_ready(stack_state, stack_state.ports.registry, REGISTRY_SUBJECTS_PATH)
                    .await
            }
            Component::Console => {
                let probe = stack_state.console_ports().ok()?.probe;
                http_is_ready(probe, "/readyz", None).await
            }
            Component::Connect => {
                let tls = Tls::for_connect(stack_state).ok()?;
                http_is_ready(stack_state.ports.connect.rest, CONNECTORS_PATH, tls.as_ref()).await
            }
            Component::Streams(name) => {
                let probe = stack_state.streams_ports(name).ok()?.probe;
                http_is_ready(probe, "/readyz", None).await
            }
            Component::Service { .. } => {
                let probe = stack_state.instance_ports(&component.to_string()).ok()?.probe;
                http_is_ready(probe, "/readyz", None).await
            }
        }
    };
    matches!(tokio::time::timeout(READINESS_TIMEOUT, answer).await, Ok(Some(())))
}

/// A request to a server that speaks TLS in a secured stack.
async fn server_is_ready(stack_state: &StackState, port: u16, path: &str) -> Option<()> {
    http_is_ready(port, path, Tls::for_stack(stack_state).ok()?.as_ref()).await
}

/// What a request trusts, and what it presents to a server that asks for a certificate.
struct Tls {
    ca: PathBuf,
    certificate: Option<PathBuf>,
}

impl Tls {
    /// None in a stack that is not secured.
    fn for_stack(stack_state: &StackState) -> Result<Option<Tls>> {
        let ca = || Ok(Tls { ca: stack_state.secrets()?.ca()?, certificate: None });
        stack_state.secure.then(ca).transpose()
    }

    fn for_connect(stack_state: &StackState) -> Result<Option<Tls>> {
        let certificate = stack_state.connect_certificate()?;
        Ok(Tls::for_stack(stack_state)?.map(|tls| Tls { certificate, ..tls }))
    }
}

/// A plain request over TCP: it is sent many times a second, and every new client would read the
/// certificates of the system.
async fn http_is_ready(port: u16, path: &str, tls: Option<&Tls>) -> Option<()> {
    let connection = TcpStream::connect((HOST, port)).await.ok()?;
    match tls {
        None => answers_ok(connection, path).await,
        Some(tls) => answers_ok(connect_tls(connection, tls).await.ok()?, path).await,
    }
}

async fn connect_tls(connection: TcpStream, tls: &Tls) -> Result<SslStream<TcpStream>> {
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    connector.set_ca_file(&tls.ca)?;
    if let Some(file) = &tls.certificate {
        connector.set_certificate_file(file, SslFiletype::PEM)?;
        connector.set_private_key_file(file, SslFiletype::PEM)?;
    }
    let mut stream = SslStream::new(connector.build().configure()?.into_ssl(HOST)?, connection)?;
    Pin::new(&mut stream).connect().await?;
    Ok(stream)
}

async fn answers_ok(mut connection: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> Option<()> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut status = [0; 10];
    connection.read_exact(&mut status).await.ok()?;
    (&status == b"HTTP/1.1 2").then_some(())
}

/// The broker is in its own metadata as soon as it can serve.
async fn kafka_is_ready(stack_state: &StackState) -> Option<()> {
    // The port is tried first: after a refused connection, Kafka's client waits before its next
    // attempt.
    TcpStream::connect((HOST, stack_state.ports.kafka)).await.ok()?;
    let mut client = stack_state.kafka_client_as(ADMINISTRATOR).ok()?;
    let fetch_metadata = move || {
        let client: BaseConsumer = client
            .set("reconnect.backoff.max.ms", "100")
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
            .create()
            .ok()?;
        let metadata = client.fetch_metadata(None, Duration::from_secs(2)).ok()?;
        (!metadata.brokers().is_empty()).then_some(())
    };
    tokio::task::spawn_blocking(fetch_metadata).await.ok()?
}

pub async fn connect_database(url: &str) -> Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging().connect().await?)
}

/// Waits until a component that was just started is ready. `identity` is its process, and the log
/// of this start begins at `log_from`. `progress` gets one line every ten seconds.
pub(crate) async fn wait_until_ready(
    stack_state: &StackState,
    component: &Component,
    process: &Process,
    (identity, log_from): (ProcessIdentity, u64),
    progress: &impl Fn(&str),
) -> Result<()> {
    let begun = Instant::now();
    let mut last_progress = begun;
    while !is_ready(stack_state, component).await {
        if !identity.is_alive() {
            bail!(
                "{component} exited during its start; {} ends with:\n{}",
                process.log.display(),
                process.log_tail(log_from)
            );
        }
        if begun.elapsed() > READY_TIMEOUT {
            bail!(
                "{component} was not ready after {} s; {} ends with:\n{}",
                READY_TIMEOUT.as_secs(),
                process.log.display(),
                process.log_tail(log_from)
            );
        }
        if last_progress.elapsed() > PROGRESS_INTERVAL {
            last_progress = Instant::now();
            progress(&format!(
                "{component} is starting ({:.0} s) …",
                begun.elapsed().as_secs_f64()
            ));
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Checks that the ports of stopped components are free. Waits a few seconds for each: a client
/// that keeps connecting to a stopped server can have the server's port for a moment.
pub(crate) async fn wait_for_free_ports(
    stack_state: &StackState,
    components: &[Component],
    process_of: impl Fn(&Component) -> Process,
) -> Result<()> {
    let deadline = Instant::now() + PORT_FREE_TIMEOUT;
    for component in components {
        if process_of(component).running().is_some() {
            continue;
        }
        // A process of this component without a pid file may hold the port.
        process_of(component).kill_all()?;
        for (port, moved_by) in stack_state.listening_ports(component)? {
            while let Err(error) = TcpListener::bind((HOST, port)) {
                if Instant::now() > deadline {
                    let set =
                        moved_by.map_or(String::new(), |set| format!("set {set} to move it, or "));
                    bail!(
                        "{component} cannot listen on port {port} ({error}): {set}stop the program that uses it"
                    );
                }
                sleep(POLL_INTERVAL).await;
            }
        }
    }
    Ok(())
}
