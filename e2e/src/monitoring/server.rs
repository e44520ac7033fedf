//! A Prometheus on this machine that scrapes a native stack, with the exporters beside it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::{HOST, Stack, eventually, free_port};
use reqwest::Url;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::stack_description::checkout;

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Far shorter than in production, so that a test waits for seconds.
const SCRAPE_INTERVAL: &str = "1s";

/// The directory of the files of these programs, in that of the stack.
const DIRECTORY: &str = "monitoring";

/// Prometheus and the exporters, which end when this is dropped.
pub struct Prometheus {
    url: String,
    http: reqwest::Client,
    _processes: Vec<Child>,
}

impl Prometheus {
    /// Starts a Prometheus with these rules that scrapes the services, and waits until each was scraped. The services
    /// must run.
    pub async fn start(stack: &Stack, rule_file: &Value) -> Result<Prometheus> {
        let jobs = vec![services(stack)?];
        Prometheus::start_with_jobs(stack, rule_file, jobs, Vec::new()).await
    }

    /// The same with the exporters beside it.
    pub async fn start_with_exporters(stack: &Stack, rule_file: &Value) -> Result<Prometheus> {
        let directory = create_directory(stack)?;
        let (lag, lag_address) = start_lag_exporter(stack, &directory).await?;
        let mut exporters = vec![lag];
        let mut jobs = vec![services(stack)?, job("lag", vec![target(&lag_address, "")])];
        let mut databases = Vec::new();
        for service in &stack.description().services {
            let (exporter, address) = start_postgres_exporter(stack, service, &directory).await?;
            exporters.push(exporter);
            databases.push(target(&address, service));
        }
        jobs.push(job("postgres", databases));
        Prometheus::start_with_jobs(stack, rule_file, jobs, exporters).await
    }

    async fn start_with_jobs(
        stack: &Stack,
        rule_file: &Value,
        jobs: Vec<Value>,
        mut processes: Vec<Child>,
    ) -> Result<Prometheus> {
        let directory = create_directory(stack)?;
        let wanted: usize = jobs.iter().map(target_count).sum();
        let (rules, config) = (directory.join("rules.yml"), directory.join("prometheus.yml"));
        let intervals =
            json!({"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL});
        let settings = json!({"global": intervals, "rule_files": [rules], "scrape_configs": jobs});
        // Each JSON document is one of YAML too.
        std::fs::write(&rules, rule_file.to_string())?;
        std::fs::write(&config, settings.to_string())?;
        let port = free_port()?;
        let data = directory.join("data");
        let arguments = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", data.display()),
            format!("--web.listen-address={HOST}:{port}"),
        ];
        processes.push(spawn("prometheus", &arguments, &[], &directory).await?);
        let url = format!("http://{HOST}:{port}");
        let started = Prometheus { url, http: reqwest::Client::new(), _processes: processes };
        eventually("every target to be scraped", START_TIMEOUT, async || {
            let missing = started.query("up == 0").await?;
            let up = started.query("up == 1").await?;
            ensure!(missing.is_empty() && up.len() >= wanted, "{missing:?}, {up:?}");
            Ok(())
        })
        .await?;
        Ok(started)
    }

    /// The series that a query returns now.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>> {
        let url = format!("{}/api/v1/query", self.url);
        let url = Url::parse_with_params(&url, [("query", query)])?;
        let answer = self.http.get(url).send().await?;
        let answer: Value = answer.json().await?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    /// The alerts that fire now, with the service that each concerns.
    pub async fn firing(&self) -> Result<BTreeSet<(String, String)>> {
        let answer = self.http.get(format!("{}/api/v1/alerts", self.url)).send().await?;
        let answer: Value = answer.json().await?;
        let alerts = answer["data"]["alerts"].as_array().context("no alerts")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing
            .map(|alert| (text(&alert["labels"]["alertname"]), text(&alert["labels"]["service"])))
            .collect())
    }
}

/// The path of a program, which is built or fetched if it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let script = checkout().join("e2e/monitoring/build.sh");
    let output = std::process::Command::new("bash").arg(script).arg(name).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", error.lines().last().unwrap_or("no reason was given"));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

fn create_directory(stack: &Stack) -> Result<PathBuf> {
    let directory = stack.directory().join(DIRECTORY);
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn services(stack: &Stack) -> Result<Value> {
    let mut targets = Vec::new();
    for service in &stack.description().services {
        for instance in stack.instances_of(service)? {
            let url = stack.probe_url(&instance)?;
            let (_, address) = url.split_once("://").context("no scheme")?;
            targets.push(target(address, service));
        }
    }
    Ok(job("holdfast", targets))
}

fn job(name: &str, targets: Vec<Value>) -> Value {
    json!({"job_name": name, "static_configs": targets})
}

fn target_count(job: &Value) -> usize {
    job["static_configs"].as_array().map_or(0, Vec::len)
}

fn target(address: &str, service: &str) -> Value {
    match service {
        "" => json!({"targets": [address]}),
        service => json!({"targets": [address], "labels": {"service": service}}),
    }
}

/// The exporter with the settings of docker compose, but for the addresses.
async fn start_lag_exporter(stack: &Stack, directory: &Path) -> Result<(Child, String)> {
    let port = free_port()?;
    let settings = super::read("lag-exporter.toml")?
        .replace("http_port = 8000", &format!("http_port = {port}"))
        .replace("0.0.0.0", HOST)
        .replace("kafka:9092", &stack.kafka_bootstrap()?);
    let file = directory.join("lag-exporter.toml");
    std::fs::write(&file, settings)?;
    let arguments = ["--config".to_string(), file.display().to_string()];
    Ok((spawn("lag-exporter", &arguments, &[], directory).await?, format!("{HOST}:{port}")))
}

async fn start_postgres_exporter(
    stack: &Stack,
    service: &str,
    directory: &Path,
) -> Result<(Child, String)> {
    let address = format!("{HOST}:{}", free_port()?);
    let arguments = [format!("--web.listen-address={address}")];
    let separator = if stack.database_url(service)?.contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}sslmode=disable", stack.database_url(service)?);
    let environment = [("DATA_SOURCE_NAME", url)];
    Ok((spawn("postgres-exporter", &arguments, &environment, directory).await?, address))
}

/// Starts a program whose log is in the directory.
async fn spawn(
    name: &str,
    arguments: &[String],
    environment: &[(&str, String)],
    directory: &Path,
) -> Result<Child> {
    let wanted = name.to_string();
    let program = tokio::task::spawn_blocking(move || program(&wanted)).await??;
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(directory.join(format!("{name}.log")))?;
    let started = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn();
    started.with_context(|| format!("{name} cannot be started"))
}
