//! The stack as `docker compose` runs it, for `STACK=compose`: the same components by the same names, each a container.
//! Readiness is checked over the network, as on the native stack. For `STACK=k8s` the components are reached at the same
//! ports, which another tool forwards, and kubectl manages them.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::component::Component;
use crate::components::{of_stack, port_offsets};
use crate::description::StackDescription;
use crate::directories::remove_directory;
use crate::environment::variable;
use crate::ports::{BASE_VARIABLE, Ports};
use crate::processes::exit_journal::Exit;
use crate::readiness::{READY_TIMEOUT, Readiness};
use crate::secrets::Secrets;
use crate::state::StackState;
use crate::status::{ComponentState, ComponentStatus, StopOutcome};

/// The beginning of a generated file that docker compose merges over another.
pub const GENERATED_OVERRIDE: &str = "# `make schema` ";

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Longer than the stop grace period of any container.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(120);

/// The project of `docker-compose.yml`.
#[derive(Clone, Debug)]
pub struct Compose {
    description: StackDescription,
    pub state: StackState,
    /// Whether other tools, such as kubectl, start and stop the components.
    pub is_external: bool,
}

/// The state of a container, from Docker.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    id: String,
    restart_count: u32,
    state: ContainerState,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerState {
    running: bool,
    paused: bool,
    pid: u32,
    exit_code: i32,
    started_at: DateTime<Utc>,
}

impl Compose {
    /// The project, if `STACK` selects one. `docker compose` also reads the variables that move
    /// ports and set the password; it alone reads a file `.env`.
    pub fn from_environment(description: &StackDescription) -> Result<Option<Self>> {
        let is_external = match variable("STACK").as_deref() {
            None | Some("native") => return Ok(None),
            Some("compose") => false,
            Some("k8s") => true,
            Some(other) => bail!("STACK is `{other}`: it must be native, compose or k8s"),
        };
        // Its file cannot calculate.
        let is_moved = variable(BASE_VARIABLE).is_some();
        ensure!(!is_moved, "{BASE_VARIABLE} moves the native stack: move single ports of this one");
        let description = description.of_stack(|_| false);
        let password = variable("POSTGRES_PASSWORD").unwrap_or_else(|| description.project.clone());
        let ports = Ports::from_environment(&port_offsets(&description), None)?;
        let secure = description.secure && !is_external;
        let secrets = description.state_directory()?.join("compose-secrets");
        let state = StackState {
            secure,
            secrets: secure.then(|| Secrets::copied_to(secrets)),
            database_password: (!secure).then_some(password),
            ..StackState::new(ports)
        };
        Ok(Some(Self { description, state, is_external }))
    }

    /// Builds what has changed, starts what does not run, and returns when every container is
    /// healthy.
    pub async fn up(&self) -> Result<()> {
        let up = ["up", "--detach", "--wait", "--wait-timeout", "600"];
        self.run_with_visible_output(&up).await?;
        self.fetch_secrets().await
    }

    /// Copies the secrets of a secured project, so that the tools on this machine prove their names with them.
    async fn fetch_secrets(&self) -> Result<()> {
        let Some(secrets) = &self.state.secrets else { return Ok(()) };
        let directory = secrets.path("");
        remove_directory(&directory)?;
        secrets.create()?;
        let into = directory.display().to_string();
        let copy = self.compose_arguments(&["cp", "secrets:/secrets/.", &into])?;
        docker(&copy.iter().map(String::as_str).collect::<Vec<_>>()).await.map(drop)
    }

    /// Stops and removes every container; the volumes stay.
    pub async fn down(&self) -> Result<()> {
        self.run_with_visible_output(&["--profile", "*", "down"]).await
    }

    /// Applies topics and schemas, with the container that applied them at the start and its
    /// settings.
    pub async fn apply_contracts(&self, container: &str) -> Result<()> {
        self.run_with_visible_output(&["run", "--rm", "--no-deps", "-T", container]).await
    }

    /// Removes the volumes as well.
    pub async fn clean(&self) -> Result<()> {
        self.run_with_visible_output(&["--profile", "*", "down", "--volumes"]).await?;
        let secrets = self.state.secrets.as_ref();
        secrets.map_or(Ok(()), |secrets| remove_directory(&secrets.path("")))
    }

    pub async fn logs(&self, name: &str, follow: bool) -> Result<()> {
        let follow: &[&str] = if follow { &["--follow"] } else { &[] };
        self.run_with_visible_output(
            &[&["logs", "--tail", "200", "--no-log-prefix"], follow, &[name]].concat(),
        )
        .await
    }

    pub async fn start(&self, component: &Component) -> Result<()> {
        let container = self.container(component).await?;
        docker(&["start", &container.id]).await?;
        if container.state.paused {
            docker(&["unpause", &container.id]).await?;
        }
        let readiness = Readiness::new(&self.state)?;
        let deadline = Instant::now() + READY_TIMEOUT;
        while !readiness.of(component).await {
            ensure!(
                Instant::now() <= deadline,
                "{component} was not ready after {READY_TIMEOUT:?}: `docker compose logs {component}`"
            );
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    pub async fn stop(&self, component: &Component) -> Result<StopOutcome> {
        let container = self.container(component).await?;
        if !container.state.running {
            return Ok(StopOutcome::NotRunning);
        }
        let began = Instant::now();
        docker(&["stop", &container.id]).await?;
        // Docker sends SIGKILL after the grace period.
        let killed = self.container(component).await?.state.exit_code == 128 + 9;
        Ok(if killed { StopOutcome::Killed } else { StopOutcome::Graceful(began.elapsed()) })
    }

    /// SIGKILL. Docker treats it as intended, and does not restart the container.
    pub async fn kill(&self, component: &Component) -> Result<bool> {
        let Container { id, state, .. } = self.container(component).await?;
        if state.running {
            docker(&["kill", &id]).await?;
            docker(&["wait", &id]).await?;
        }
        Ok(state.running)
    }

    /// Freezes a container, or resumes it.
    pub async fn set_paused(&self, component: &Component, frozen: bool) -> Result<()> {
        let word = if frozen { "pause" } else { "unpause" };
        docker(&[word, &self.container(component).await?.id]).await.map(drop)
    }

    pub async fn is_running(&self, component: &Component) -> Result<bool> {
        Ok(self.find_container(component).await?.is_some_and(|container| container.state.running))
    }

    pub async fn status_of(&self, component: &Component) -> Result<ComponentStatus> {
        let found =
            self.find_container(component).await?.filter(|container| container.state.running);
        let readiness = Readiness::new(&self.state)?;
        let state = match &found {
            None => ComponentState::Stopped,
            Some(container) if container.state.paused => ComponentState::Paused,
            Some(_) if readiness.of(component).await => ComponentState::Ready,
            Some(_) => ComponentState::Starting,
        };
        let age = |container: &Container| (Utc::now() - container.state.started_at).to_std();
        let memory = match &found {
            Some(container) => memory_bytes(container.state.pid),
            None => 0,
        };
        Ok(ComponentStatus {
            name: component.to_string(),
            pid: found.as_ref().map(|container| container.state.pid),
            port: readiness.client_port(component),
            state,
            memory_bytes: memory,
            uptime: found.as_ref().and_then(|it| age(it).ok()).unwrap_or_default(),
            last_exit: None,
        })
    }

    /// Containers that exited by themselves, so that Docker restarted them.
    pub async fn exits(&self) -> Result<Vec<Exit>> {
        let mut ends = Vec::new();
        for component in of_stack(&self.description, &self.state) {
            let Some(container) = self.find_container(&component).await? else { continue };
            let Container { restart_count, state, .. } = container;
            if restart_count > 0 {
                ends.push(Exit {
                    name: component.to_string(),
                    pid: state.pid,
                    at: state.started_at,
                    status: state.exit_code,
                    cause: None,
                });
            }
        }
        Ok(ends)
    }

    async fn container(&self, component: &Component) -> Result<Container> {
        let found = self.find_container(component).await?;
        found.with_context(|| {
            format!("{component} has no container yet: `docker compose up` creates it")
        })
    }

    async fn find_container(&self, component: &Component) -> Result<Option<Container>> {
        let named = self.compose_arguments(&["ps", "--all", "--quiet", &component.to_string()])?;
        let ids = docker(&named.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let Some(id) = ids.lines().next() else { return Ok(None) };
        let containers: Vec<Container> = serde_json::from_str(&docker(&["inspect", id]).await?)?;
        Ok(containers.into_iter().next())
    }

    fn compose_arguments(&self, words: &[&str]) -> Result<Vec<String>> {
        ensure!(!self.is_external, "kubectl starts and stops what runs in Kubernetes");
        let secured = self.state.secure.then_some("docker-compose.secure.yml");
        let files = ["docker-compose.yml"].into_iter().chain(secured);
        let root = &self.description.root;
        // Compose by itself would only merge the override of a file that it was not told. That of a user stays out.
        let files = files.flat_map(|file| {
            let over = root.join(file.replace(".yml", ".override.yml"));
            let text = std::fs::read_to_string(&over);
            let is_generated = text.is_ok_and(|text| text.starts_with(GENERATED_OVERRIDE));
            [root.join(file)].into_iter().chain(is_generated.then_some(over))
        });
        let files = files.flat_map(|file| ["--file".to_string(), file.display().to_string()]);
        let words = words.iter().map(|word| word.to_string());
        Ok(["compose".to_string()].into_iter().chain(files).chain(words).collect())
    }

    /// A command whose progress the user sees.
    async fn run_with_visible_output(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("docker");
        command.args(self.compose_arguments(words)?).stdin(Stdio::null());
        let status = command.status().await.context("docker cannot be run")?;
        ensure!(status.success(), "`docker compose {}` failed", words.join(" "));
        Ok(())
    }
}

async fn docker(words: &[&str]) -> Result<String> {
    let what = format!("docker {}", words.join(" "));
    let output = Command::new("docker").args(words).stdin(Stdio::null()).output();
    let output = tokio::time::timeout(DOCKER_TIMEOUT, output).await;
    let output = output.with_context(|| format!("`{what}` takes too long"))?;
    let output = output.context("docker cannot be run")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{what}` failed: {}", error.trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// The memory of a container's first process; zero if Docker runs on another machine.
fn memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
