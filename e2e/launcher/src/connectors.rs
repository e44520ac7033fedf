//! The connectors of a stack with Kafka Connect, by the REST API of its worker.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Client, ClientBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use crate::eventually::eventually;
use crate::secrets::connector_role;
use crate::stack::Stack;
use crate::topology::HOST;

/// How long a connector and its tasks may take to run.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The characters of a stack trace that an error shows.
const TRACE_LENGTH_MAX: usize = 600;

/// The settings of a connector.
pub type ConnectorConfig = Map<String, Value>;

#[derive(Deserialize)]
struct ConnectorStatus {
    connector: RunStatus,
    tasks: Vec<RunStatus>,
}

/// How a connector or one of its tasks runs.
#[derive(Deserialize)]
struct RunStatus {
    state: String,
    #[serde(default)]
    trace: String,
}

impl ConnectorStatus {
    fn is_running(&self) -> bool {
        let mut all = self.tasks.iter().chain([&self.connector]);
        !self.tasks.is_empty() && all.all(|it| it.state == "RUNNING")
    }

    /// Why the connector or one of its tasks has failed.
    fn failure(&self) -> Option<String> {
        let mut all = self.tasks.iter().chain([&self.connector]);
        let failed = all.find(|it| it.state == "FAILED")?;
        Some(failed.trace.chars().take(TRACE_LENGTH_MAX).collect())
    }
}

impl Stack {
    /// The REST API of the worker of Kafka Connect, in a stack that has one.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn connect_url(&self) -> Result<Option<String>> {
        let state = self.state()?;
        Ok(state.connect.then(|| state.connect_url()))
    }

    /// The file with the key and the certificate that a client of that API presents, in a secured stack.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn connect_certificate(&self) -> Result<Option<PathBuf>> {
        self.state()?.connect_certificate()
    }

    /// The settings with which a connector reads the log of the database of a service. The password is a reference, which
    /// the worker resolves.
    ///
    /// # Errors
    /// If the stack has no such service.
    pub fn connector_database(&self, service: &str) -> Result<ConnectorConfig> {
        let (state, role) = (self.state()?, connector_role(service));
        let port = state.service_ports(service)?.database;
        let mut settings = vec![
            ("database.hostname", HOST.to_string()),
            ("database.port", port.to_string()),
            ("database.password", state.connect_password(service, &role)?),
            ("database.user", role),
            ("database.dbname", service.to_string()),
        ];
        if state.secure {
            let ca = state.secrets()?.ca()?.display().to_string();
            settings.push(("database.sslmode", "verify-full".to_string()));
            settings.push(("database.sslrootcert", ca));
        }
        let settings = settings.into_iter();
        Ok(settings.map(|(key, value)| (key.to_string(), Value::String(value))).collect())
    }

    /// Creates the connector of this name, or changes it to this configuration, and waits until all of it runs. Its
    /// failed tasks start again. In a secured stack it is the user of Kafka with its name, if a feature of the stack has
    /// one, and else that of the worker.
    ///
    /// # Errors
    /// If the stack has no Kafka Connect, the worker refuses the configuration, or the connector does not run after a
    /// minute.
    pub async fn apply_connector(&self, name: &str, config: &ConnectorConfig) -> Result<()> {
        let url = self.connect_url()?.context("the stack has no Kafka Connect")?;
        let state = self.state()?;
        let mut config = config.clone();
        config.extend(state.connector_credentials(name)?);
        apply(state.connect_client()?, &url, name, &config).await
    }

    /// Removes the connector of this name with its positions, after it has stopped. Nothing happens if there is none.
    ///
    /// # Errors
    /// If the stack has no Kafka Connect, or the connector does not stop within a minute.
    pub async fn remove_connector(&self, name: &str) -> Result<()> {
        let url = self.connect_url()?.context("the stack has no Kafka Connect")?;
        let http = self.state()?.connect_client()?.timeout(REQUEST_TIMEOUT).build()?;
        let url = format!("{url}/connectors/{name}");
        if http.get(&url).send().await?.status() == StatusCode::NOT_FOUND {
            return Ok(());
        }
        http.put(format!("{url}/stop")).send().await?.error_for_status()?;
        // The positions can be removed once no task is left.
        let what = format!("{name} to stop");
        eventually(&what, RUNNING_TIMEOUT, async || {
            let removed = http.delete(format!("{url}/offsets")).send().await?;
            removed.error_for_status().map(drop).map_err(Into::into)
        })
        .await?;
        http.delete(&url).send().await?.error_for_status()?;
        Ok(())
    }

    /// The same, by the URL of a worker that need not be one of the launcher. It is asked over HTTP without a password.
    ///
    /// # Errors
    /// If the worker refuses the configuration, or the connector does not run after a minute.
    pub async fn apply_connector_at(url: &str, name: &str, config: &ConnectorConfig) -> Result<()> {
        apply(Client::builder().no_proxy(), url, name, config).await
    }
}

async fn apply(
    client: ClientBuilder,
    url: &str,
    name: &str,
    config: &ConnectorConfig,
) -> Result<()> {
    let url = format!("{url}/connectors/{name}");
    let http = client.timeout(REQUEST_TIMEOUT).build()?;
    let deadline = Instant::now() + RUNNING_TIMEOUT;
    loop {
        let answer = http.put(format!("{url}/config")).json(config).send().await?;
        match answer.status() {
            status if status.is_success() => break,
            // The worker is joining its group.
            StatusCode::CONFLICT | StatusCode::INTERNAL_SERVER_ERROR
                if Instant::now() < deadline => {}
            status => bail!("{name} was refused with {status}: {}", answer.text().await?),
        }
        sleep(POLL_INTERVAL).await;
    }
    let restart = format!("{url}/restart?includeTasks=true&onlyFailed=true");
    http.post(restart).send().await?;
    loop {
        let answer = http.get(format!("{url}/status")).send().await?;
        // It is unknown until the worker has read the configuration back from Kafka.
        let status = match answer.status() {
            StatusCode::NOT_FOUND => None,
            _ => Some(answer.error_for_status()?.json::<ConnectorStatus>().await?),
        };
        if status.as_ref().is_some_and(ConnectorStatus::is_running) {
            return Ok(());
        }
        let failure = status.and_then(|status| status.failure());
        ensure!(
            Instant::now() < deadline,
            "{name} does not run after {RUNNING_TIMEOUT:?}: {}",
            failure.unwrap_or_default()
        );
        sleep(POLL_INTERVAL).await;
    }
}
