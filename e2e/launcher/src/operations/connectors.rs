//! The connectors of a stack with Kafka Connect, by the REST API of its worker.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Client, ClientBuilder, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::components::connect_credentials::ConnectorConfig;
use crate::description::{CONNECT, HOST};
use crate::eventually::{eventually, retry_while};
use crate::secrets::connector_role;
use crate::stack::Stack;

/// How long a connector and its tasks may take to run.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The characters of a stack trace that an error shows.
const TRACE_LENGTH_MAX: usize = 600;

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
    fn failure(&self) -> String {
        let all = self.tasks.iter().chain([&self.connector]);
        let failed = all.filter(|it| it.state == "FAILED").take(1);
        failed.flat_map(|it| it.trace.chars().take(TRACE_LENGTH_MAX)).collect()
    }
}

impl Stack {
    /// The REST API of the worker of Kafka Connect, in a stack that has one.
    pub fn connect_url(&self) -> Result<Option<String>> {
        let state = self.state()?;
        state.connect.then(|| state.url(CONNECT)).transpose()
    }

    /// The file with the key and the certificate that a client of that API presents, in a secured stack.
    pub fn connect_certificate(&self) -> Result<Option<PathBuf>> {
        self.state()?.connect_certificate()
    }

    /// The settings with which a connector reads the log of the database of a service. The password is a reference, which
    /// the worker resolves.
    pub fn connector_database(&self, service: &str) -> Result<ConnectorConfig> {
        let (state, role) = (self.state()?, connector_role(service));
        let port = state.ports.get(&format!("{service}-db"))?;
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
        apply(state.http_client()?, &url, name, &config).await
    }

    /// Removes the connector of this name with its positions, after it has stopped. Nothing happens if there is none.
    ///
    /// # Errors
    /// If the stack has no Kafka Connect, or the connector does not stop within a minute.
    pub async fn remove_connector(&self, name: &str) -> Result<()> {
        let url = self.connect_url()?.context("the stack has no Kafka Connect")?;
        let http = self.state()?.http_client()?.timeout(REQUEST_TIMEOUT).build()?;
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
    // The worker refuses while it joins its group.
    let joining = [StatusCode::CONFLICT, StatusCode::INTERNAL_SERVER_ERROR];
    let answer = retry_while(
        RUNNING_TIMEOUT,
        async || http.put(format!("{url}/config")).json(config).send().await,
        |answer| answer.as_ref().is_ok_and(|answer| joining.contains(&answer.status())),
    );
    let answer = answer.await?;
    let status = answer.status();
    if !status.is_success() {
        bail!("{name} was refused with {status}: {}", answer.text().await?);
    }
    let restart = format!("{url}/restart?includeTasks=true&onlyFailed=true");
    http.post(restart).send().await?;
    eventually(&format!("{name} to run"), RUNNING_TIMEOUT, async || {
        // It is unknown until the worker has read the configuration back from Kafka.
        let answer = http.get(format!("{url}/status")).send().await?.error_for_status()?;
        let status: ConnectorStatus = answer.json().await?;
        ensure!(status.is_running(), "{name} does not run: {}", status.failure());
        Ok(())
    })
    .await
}
