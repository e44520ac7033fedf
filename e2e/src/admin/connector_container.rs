//! The container of docker compose that applies the connectors, and is healthy while they run.

use anyhow::{Context, Result, bail, ensure};
use launcher::{ConnectorConfig, Stack};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::connectors::{self, Carrier};
use crate::admin::reporting;
use crate::stack_description::{SERVICES, stack_description};

/// The password of the role of each database, as the worker reads it from its variables.
const PASSWORD: &str = "${env:CONNECTOR_PASSWORD}";

/// Options of the command that applies the connectors.
#[derive(Debug, clap::Args)]
pub struct ConnectorOptions {
    /// URL of the worker, such as http://connect:8083; the native stack's by default
    #[arg(long)]
    worker: Option<String>,
    /// Who carries the outboxes
    #[arg(long, requires = "worker", default_value = "service")]
    relay: Carrier,
    /// URL of the reporting database, for the role that owns its tables; the password is in PGPASSWORD
    #[arg(long, requires = "worker")]
    reporting: Option<String>,
    /// Apply nothing; exit with 0 only if all connectors run
    #[arg(long, requires = "worker")]
    check: bool,
    /// Run until SIGTERM, for tools that wait for a container to be healthy
    #[arg(long, requires = "worker", conflicts_with = "check")]
    stay: bool,
}

/// Runs `e2e connectors`.
///
/// # Errors
/// If a connector does not run.
pub async fn command(options: &ConnectorOptions) -> Result<()> {
    let Some(worker) = &options.worker else {
        return connectors::apply(&Stack::open_for_checkout(&stack_description())?).await;
    };
    if options.check {
        return ensure_running(worker, options.relay).await;
    }
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        applied = apply(worker, options) => applied?,
        _ = terminated.recv() => bail!("stopped before the connectors were applied"),
    }
    println!("the connectors run");
    if options.stay {
        terminated.recv().await;
    }
    Ok(())
}

async fn apply(worker: &str, options: &ConnectorOptions) -> Result<()> {
    if let Some(database) = &options.reporting {
        reporting::create_tables(database).await.context("the tables of the reports")?;
    }
    for (name, config) in wanted(options.relay)? {
        Stack::apply_connector_at(worker, &name, &config).await.with_context(|| name.clone())?;
    }
    Ok(())
}

/// The connectors by their names. What a file leaves to a deployment is in variables of the worker.
fn wanted(relay: Carrier) -> Result<Vec<(String, ConnectorConfig)>> {
    let mut all = Vec::new();
    if relay == Carrier::Cdc {
        for service in SERVICES {
            let config = connectors::outbox(service, outbox_database(service)?)?;
            all.push((connectors::outbox_name(service), config));
        }
    }
    for (name, text) in reporting::CONNECTORS {
        let config = serde_json::from_str(text).with_context(|| format!("{name} is no object"))?;
        all.push((name.to_string(), config));
    }
    Ok(all)
}

/// How a connector reaches the database of a service: both names are those of docker compose.
fn outbox_database(service: &str) -> Result<ConnectorConfig> {
    let settings = json!({
        "database.hostname": format!("{service}-db"),
        "database.port": "5432",
        "database.user": format!("{service}_connector"),
        "database.password": PASSWORD,
        "database.dbname": service,
    });
    Ok(serde_json::from_value(settings)?)
}

/// Fails if one of the connectors is absent, or it or one of its tasks does not run.
async fn ensure_running(worker: &str, relay: Carrier) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let answer = http.get(format!("{worker}/connectors?expand=status")).send().await?;
    let all: Value = answer.error_for_status()?.json().await?;
    for (name, _) in wanted(relay)? {
        ensure!(is_running(&all[&name]["status"]), "{name} does not run: {}", all[&name]);
    }
    Ok(())
}

/// Whether a connector and its tasks run, by the answer of the worker.
fn is_running(status: &Value) -> bool {
    let tasks = status["tasks"].as_array().map_or(&[][..], Vec::as_slice);
    let mut states = tasks.iter().chain([&status["connector"]]).map(|it| &it["state"]);
    !tasks.is_empty() && states.all(|state| state == "RUNNING")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outboxes_have_connectors_only_if_they_are_carried_so() {
        let names = |relay| -> Vec<String> {
            wanted(relay).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        let reports = names(Carrier::Service);
        assert_eq!(reports, ["reporting-orders", "reporting-sales", "reporting-outcomes"]);
        let all = names(Carrier::Cdc);
        assert_eq!(all[SERVICES.len()..], reports);
        assert!(
            SERVICES.iter().zip(&all).all(|(service, name)| *name == format!("{service}-outbox"))
        );
    }

    #[test]
    fn a_connector_without_a_running_task_does_not_run() {
        let status = |connector: &str, tasks: Value| json!({"connector": {"state": connector}, "tasks": tasks});
        assert!(is_running(&status("RUNNING", json!([{"state": "RUNNING"}]))));
        assert!(!is_running(&status("RUNNING", json!([]))));
        assert!(!is_running(&status("RUNNING", json!([{"state": "FAILED"}]))));
        assert!(!is_running(&status("PAUSED", json!([{"state": "RUNNING"}]))));
        assert!(!is_running(&Value::Null));
    }
}
