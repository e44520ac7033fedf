//! A frontend is a program that serves pages to people: it has neither a database nor loops, and asks the services
//! over HTTP. It shares with them the server and its limits, TLS, logs, exit codes and the subcommands
//! `serve | health`. Promise: a stop takes a bounded time, and a certificate that changes is used by new connections.
//! A page that keeps its own state loses it at a restart.

use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::FrontendConfig;
use crate::config::env::{self, ServiceSettings};
use crate::config::reload::fingerprint;
use crate::http::limits::Limits;
use crate::http::server;
use crate::http::tls::TlsAcceptor;
use crate::service::open_files;
use crate::service::ports::{INTERNAL_DRAIN_TIMEOUT, PROBES_TASK, bind};
use crate::service::process::{check_health, run_command};
use crate::service::tasks::{Tasks, shutdown_signal};
use crate::telemetry;

const PAGES_TASK: &str = "pages";
const CERTIFICATE_TASK: &str = "certificate";

const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);

/// A frontend that is about to serve.
pub struct Frontend {
    config: FrontendConfig,
    /// Cancelled at a stop: a stream that lasts has to end then.
    pub stopping: CancellationToken,
}

/// The `main` of a frontend. `serve` is given what the frontend alone reads from its environment (`()` for nothing),
/// makes its pages and ends in [`Frontend::run`].
pub fn main<S, F, R>(name: &'static str, serve: F) -> ExitCode
where
    S: clap::Args,
    F: FnOnce(Frontend, S) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    run_command::<FrontendConfig, S, _>(name, &["serve", "health"], |command| async move {
        let config = FrontendConfig::from_env()?;
        if command == "health" {
            return check_health(config.probe_addr).await;
        }
        let ServiceSettings { settings } = env::read()?;
        telemetry::init_logs(config.log_format)?;
        open_files::raise_limit();
        serve(Frontend { config, stopping: CancellationToken::new() }, settings).await
    })
}

impl Frontend {
    /// Whether browsers reach the pages over HTTPS, here or at a gateway in front.
    pub fn is_encrypted(&self) -> bool {
        let tls = &self.config.http_tls;
        tls.certificate().is_some() || tls.http_tls_ends_at_gateway
    }

    /// Serves the pages until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// If it can't listen, or a task of it ends by itself.
    pub async fn run(self, pages: Router) -> anyhow::Result<()> {
        let Frontend { config, stopping } = self;
        let shutdown_signal = shutdown_signal()?;
        let tls = TlsAcceptor::from_config(&config.http_tls)?;
        let mut tasks = Tasks::default();
        if let (Some(tls), Some((certificate, key))) = (&tls, config.http_tls.certificate()) {
            let files = (certificate.to_owned(), key.to_owned());
            tasks.spawn(CERTIFICATE_TASK, renew_certificate(tls.clone(), files, stopping.clone()));
        }
        let probes = Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(async || "ok\n"));
        let limits = Limits::default();
        let (listener, stop) = (bind("HTTP_ADDR", config.http_addr)?, stopping.clone());
        let drain = config.shutdown_timeout / 2;
        tasks.spawn(PAGES_TASK, server::serve(listener, tls, pages, limits, stop, drain));
        let (listener, stop) = (bind("PROBE_ADDR", config.probe_addr)?, stopping.clone());
        let drain = INTERNAL_DRAIN_TIMEOUT;
        tasks.spawn(PROBES_TASK, server::serve(listener, None, probes, limits, stop, drain));
        tracing::info!("serving on {}", config.http_addr);
        let ended = tokio::select! {
            () = shutdown_signal => Ok(()),
            failure = tasks.join_first() => Err(failure),
        };
        stopping.cancel();
        let names = [PAGES_TASK, PROBES_TASK, CERTIFICATE_TASK];
        ended.and(tasks.join(&names, Instant::now() + config.shutdown_timeout).await)
    }
}

/// Presents the certificate in these files as it is now, whenever they change.
async fn renew_certificate(
    tls: TlsAcceptor,
    (certificate, key): (String, String),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let read = || fingerprint(&[], &[Some(&certificate), Some(&key)]);
    let mut in_use = read();
    while stop.run_until_cancelled(sleep(CERTIFICATE_INTERVAL)).await.is_some() {
        let present = read();
        if present == in_use {
            continue;
        }
        match tls.replace(&certificate, &key) {
            Ok(()) => {
                tracing::info!("reloaded the HTTPS certificate: new connections use it");
                in_use = present;
            }
            Err(error) => tracing::warn!("the HTTPS certificate was not reloaded: {error}"),
        }
    }
    Ok(())
}
