//! The three ports of a service: the API for clients, the probes with metrics, and the admin port with the books.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use messaging::telemetry::refusals;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::{AdminHosts, reject_browser_requests};
use crate::config::Config;
use crate::config::env::BadConfiguration;
use crate::http::callers::identify::Callers;
use crate::http::health::{self, Phase, ProbeState};
use crate::http::limits::Limits;
use crate::http::listeners::{self, Listeners};
use crate::http::login_retry::retry_refused_login;
use crate::http::problem::Problem;
use crate::http::server;
use crate::http::tls::TlsAcceptor;
use crate::service::tasks::Tasks;
use crate::service::{Routers, Service, admin_port, open_files};

pub(super) const API_TASK: &str = "API";
pub(super) const PROBES_TASK: &str = "probes";
pub(super) const ADMIN_TASK: &str = "admin port";

/// How long the ports that clients do not use may take to end their requests.
pub(super) const INTERNAL_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Service {
    /// Binds all three ports, so that a port in use is reported at once, and serves them from then on.
    pub(super) fn listen(
        &self,
        routers: Routers,
        tls: Option<TlsAcceptor>,
        phase: watch::Receiver<Phase>,
        stop_internal_ports: &CancellationToken,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        let probes = ProbeState {
            db: self.db.clone(),
            phase: phase.clone(),
            heartbeats: self.heartbeats.clone(),
            metrics: self.metrics.clone(),
            kafka_denies_access: refusals::kafka_denies_access,
        };
        let probes = health::router(probes);
        let gate = Gate { callers: self.callers.clone(), phase: Some(phase) };
        let api = routers.api.layer(from_fn_with_state(gate.clone(), pass_gate));
        let admin = admin_port(self.name, routers.admin, routers.books);
        // Operators may use it before the database is migrated.
        let admin = admin.layer(from_fn_with_state(Gate { phase: None, ..gate }, pass_gate));
        let names = AdminHosts::new(self.config.admin_hosts.as_deref());
        let admin = admin.layer(from_fn_with_state(names, reject_browser_requests));
        let connections = open_files::connection_limits(self.config.database_pool_size)?;
        let idle_timeout = self.config.http_idle_timeout;
        let limits = Limits { connections_max: connections.internal, ..Limits::default() };
        let api_limits = Limits { connections_max: connections.api, idle_timeout, ..limits };

        let mut serve = |task, variable, addr, router, limits, stop: &CancellationToken, drain| {
            let listener = bind(variable, addr)?;
            let stop = stop.clone();
            // The kubelet and Prometheus read the probes, which hold nothing of a customer.
            let tls = tls.clone().filter(|_| task != PROBES_TASK);
            tasks.spawn(task, server::serve(listener, tls, router, limits, stop, drain));
            anyhow::Ok(())
        };
        let Config { http_addr, probe_addr, admin_addr, shutdown_timeout, .. } = self.config;
        let (stop, drain) = (stop_internal_ports, INTERNAL_DRAIN_TIMEOUT);
        let (api_stop, api_drain) = (&self.draining, shutdown_timeout / 2);
        serve(API_TASK, "HTTP_ADDR", http_addr, api, api_limits, api_stop, api_drain)?;
        serve(PROBES_TASK, "PROBE_ADDR", probe_addr, probes, limits, stop, drain)?;
        serve(ADMIN_TASK, "ADMIN_ADDR", admin_addr, admin, limits, stop, drain)
    }
}

pub(super) fn bind(variable: &str, addr: SocketAddr) -> anyhow::Result<Listeners> {
    let message = format!("{variable} is {addr}, where nothing can listen");
    listeners::listen(addr).map_err(|error| match error.kind() {
        // Another process may end and free its port.
        ErrorKind::AddrInUse => anyhow::Error::new(error).context(message),
        _ => BadConfiguration::new(format!("{message}: {error}")).into(),
    })
}

#[derive(Clone)]
struct Gate {
    callers: Callers,
    /// Until the service has started it rejects requests, if the port has this: the loops that would run them do not run
    /// before the database is migrated.
    phase: Option<watch::Receiver<Phase>>,
}

async fn pass_gate(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if gate.phase.is_some_and(|phase| *phase.borrow() == Phase::Starting) {
        let detail = "The service is starting and waits for its database; nothing was stored.";
        return Problem::unavailable(detail).into_response();
    }
    request.extensions_mut().insert(gate.callers);
    retry_refused_login(request, next).await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_reported_with_the_variable_that_moves_it() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let failure = bind("HTTP_ADDR", taken.local_addr().unwrap()).unwrap_err();
        let failure = format!("{failure:#}");
        assert!(failure.starts_with("HTTP_ADDR is 127.0.0.1:"), "{failure}");
        assert!(failure.contains("Address already in use"), "{failure}");
    }
}
