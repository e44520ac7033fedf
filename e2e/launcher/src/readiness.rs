//! Whether a component is ready. The launcher sends it a request over the network, and does not read
//! its log.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Result, bail};
use reqwest::Client;
use tokio::time::{Instant, sleep};

use crate::component::{Component, Ready};
use crate::description::HOST;
use crate::ports::{BASE_VARIABLE, variable_of};
use crate::processes::Process;
use crate::processes::proc_fs::ProcessIdentity;
use crate::state::StackState;

pub const READY_TIMEOUT: Duration = Duration::from_secs(120);
const PORT_FREE_TIMEOUT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
const READINESS_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks components whether they are ready. Each new client reads the certificates of the system, so one asks again and
/// again.
pub struct Readiness<'a> {
    state: &'a StackState,
    http: Client,
}

impl<'a> Readiness<'a> {
    pub fn new(state: &'a StackState) -> Result<Self> {
        // An open connection would delay the stop of its server.
        let http = state.http_client()?.pool_max_idle_per_host(0).build()?;
        Ok(Self { state, http })
    }

    pub async fn of(&self, component: &Component) -> bool {
        matches!(tokio::time::timeout(READINESS_TIMEOUT, self.check(component)).await, Ok(Ok(())))
    }

    async fn check(&self, component: &Component) -> Result<()> {
        let url = match component.ready {
            Ready::Asked => return component.kind.check_ready(self.state).await,
            Ready::Api(path) => self.state.url(&component.name)? + path,
            Ready::Probe => self.state.probe_url(&component.name)? + "/readyz",
        };
        self.http.get(url).send().await?.error_for_status()?;
        Ok(())
    }

    /// The port of a component for clients.
    pub fn client_port(&self, component: &Component) -> u16 {
        let ports = &self.state.ports;
        let first = component.listens_on(ports).into_iter().next();
        first.and_then(|name| ports.get(&name).ok()).unwrap_or_default()
    }
}

/// Waits until a component that was just started is ready. `identity` is its process, and the log
/// of this start begins at `log_from`. `progress` gets one line every ten seconds.
pub(crate) async fn wait_until_ready(
    readiness: &Readiness<'_>,
    component: &Component,
    process: &Process,
    (identity, log_from): (ProcessIdentity, u64),
    progress: &impl Fn(&str),
) -> Result<()> {
    let begun = Instant::now();
    let mut last_progress = begun;
    while !readiness.of(component).await {
        let is_alive = identity.is_alive();
        if !is_alive || begun.elapsed() > READY_TIMEOUT {
            let failure = if is_alive { "was not ready" } else { "exited during its start" };
            let (log, tail) = (process.log.display(), process.log_tail(log_from));
            let seconds = begun.elapsed().as_secs();
            bail!("{component} {failure} after {seconds} s; {log} ends with:\n{tail}");
        }
        if last_progress.elapsed() > PROGRESS_INTERVAL {
            last_progress = Instant::now();
            progress(&format!("{component} is starting ({} s) …", begun.elapsed().as_secs()));
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Checks that the ports of stopped components are free. Waits a few seconds for each: a client
/// that keeps connecting to a stopped server can have the server's port for a moment.
pub(crate) async fn wait_for_free_ports(
    state: &StackState,
    components: &[(Component, Process)],
) -> Result<()> {
    let deadline = Instant::now() + PORT_FREE_TIMEOUT;
    for (component, process) in components {
        if process.running().is_some() {
            continue;
        }
        // A process of this component without a pid file may hold the port.
        process.kill_all()?;
        for name in component.listens_on(&state.ports) {
            let port = state.ports.get(&name)?;
            while let Err(error) = TcpListener::bind((HOST, port)) {
                if Instant::now() > deadline {
                    // No variable moves the ports of a further instance.
                    let base = Some(BASE_VARIABLE.to_string());
                    let base = base.filter(|_| !state.instances.contains(&component.name));
                    let set = variable_of(&name).or(base).map_or(String::new(), |variable| {
                        format!("set {variable} to move it, or ")
                    });
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
