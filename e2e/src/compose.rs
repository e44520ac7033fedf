//! The stack as `docker compose` runs it, for `STACK=compose`: the same members by the same names, each
//! a container. What a member answers, and whether it is ready, is asked of it over the wire as ever.
//! For `STACK=k8s` it is reached at the same ports, which `k8s/forward.sh` opens, and managed by kubectl.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::ends::End;
use crate::member::{READY_WITHIN, Stopped};
use crate::ports::Ports;
use crate::readiness::answers;
use crate::stack::{State, Status};
use crate::template::checkout;
use crate::topology::{Layout, Member};

const POLL: Duration = Duration::from_millis(50);

/// Longer than any container is given to stop.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// What `docker-compose.yml` gives the databases, unless the environment says otherwise.
const PASSWORD: &str = "holdfast";

/// The project of `docker-compose.yml`.
#[derive(Clone, Debug)]
pub struct Compose {
    pub layout: Layout,
    /// Somebody else starts and stops it.
    pub is_only_reached: bool,
}

/// What Docker knows of a container.
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
    /// Whether `STACK` asks for it. The variables that move ports and set the password are read by
    /// `docker compose` as well; it alone reads a file `.env`.
    pub fn from_environment() -> Result<Option<Self>> {
        let of = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
        let is_only_reached = match of("STACK").as_deref() {
            None | Some("native") => return Ok(None),
            Some("compose") => false,
            Some("k8s") => true,
            Some(other) => bail!("STACK is `{other}`: say native, compose or k8s"),
        };
        let database_password = Some(of("POSTGRES_PASSWORD").unwrap_or(PASSWORD.to_string()));
        let ports = Ports::from_environment()?;
        let layout = Layout { ports, database_password, ..Layout::default() };
        Ok(Some(Self { layout, is_only_reached }))
    }

    /// Builds what has changed, starts what does not run, and returns when all of it is healthy.
    pub async fn up(&self) -> Result<()> {
        self.shown(&["up", "--detach", "--wait", "--wait-timeout", "600"]).await
    }

    /// Stops and removes every container; the volumes stay.
    pub async fn down(&self) -> Result<()> {
        self.shown(&["--profile", "*", "down"]).await
    }

    /// Topics and schemas, by the container that applied them at the start and with its settings.
    pub async fn apply_contracts(&self) -> Result<()> {
        self.shown(&["run", "--rm", "--no-deps", "-T", "contracts"]).await
    }

    /// Removes the volumes as well.
    pub async fn clean(&self) -> Result<()> {
        self.shown(&["--profile", "*", "down", "--volumes"]).await
    }

    pub async fn logs(&self, name: &str, follow: bool) -> Result<()> {
        let follow: &[&str] = if follow { &["--follow"] } else { &[] };
        self.shown(&[&["logs", "--tail", "200", "--no-log-prefix"], follow, &[name]].concat()).await
    }

    pub async fn start(&self, member: &Member) -> Result<()> {
        let container = self.container(member).await?;
        docker(&["start", &container.id]).await?;
        if container.state.paused {
            docker(&["unpause", &container.id]).await?;
        }
        let deadline = Instant::now() + READY_WITHIN;
        while !answers(&self.layout, member).await {
            let late = Instant::now() > deadline;
            ensure!(
                !late,
                "{member} was not ready after {READY_WITHIN:?}: `docker compose logs {member}`"
            );
            sleep(POLL).await;
        }
        Ok(())
    }

    pub async fn stop(&self, member: &Member) -> Result<Stopped> {
        let container = self.container(member).await?;
        if !container.state.running {
            return Ok(Stopped::WasNotRunning);
        }
        let began = Instant::now();
        docker(&["stop", &container.id]).await?;
        // What Docker does when the grace is over.
        let killed = self.container(member).await?.state.exit_code == 128 + 9;
        Ok(if killed { Stopped::Killed } else { Stopped::Gracefully(began.elapsed()) })
    }

    /// SIGKILL. Docker takes that for a wish: it does not start the container again.
    pub async fn kill(&self, member: &Member) -> Result<bool> {
        let Container { id, state, .. } = self.container(member).await?;
        if state.running {
            docker(&["kill", &id]).await?;
            docker(&["wait", &id]).await?;
        }
        Ok(state.running)
    }

    /// Freezes it, or lets it go on.
    pub async fn freeze(&self, member: &Member, frozen: bool) -> Result<()> {
        let word = if frozen { "pause" } else { "unpause" };
        docker(&[word, &self.container(member).await?.id]).await.map(drop)
    }

    pub async fn is_running(&self, member: &Member) -> Result<bool> {
        Ok(self.found(member).await?.is_some_and(|container| container.state.running))
    }

    pub async fn status_of(&self, member: &Member) -> Result<Status> {
        let found = self.found(member).await?.filter(|container| container.state.running);
        let state = match &found {
            None => State::Stopped,
            Some(container) if container.state.paused => State::Paused,
            Some(_) if answers(&self.layout, member).await => State::Ready,
            Some(_) => State::Starting,
        };
        let age = |container: &Container| (Utc::now() - container.state.started_at).to_std();
        let memory = match &found {
            Some(container) => memory_bytes(container.state.pid),
            None => 0,
        };
        Ok(Status {
            name: member.to_string(),
            pid: found.as_ref().map(|container| container.state.pid),
            port: self.layout.listens_on(member)?.first().map_or(0, |(port, _)| *port),
            state,
            memory_bytes: memory,
            uptime: found.as_ref().and_then(|it| age(it).ok()).unwrap_or_default(),
            end: None,
        })
    }

    /// Who died by itself, so that Docker had to start it again.
    pub async fn ends(&self) -> Result<Vec<End>> {
        let mut ends = Vec::new();
        for member in self.layout.members() {
            let Some(container) = self.found(&member).await? else { continue };
            let Container { restart_count, state, .. } = container;
            if restart_count > 0 {
                ends.push(End {
                    name: member.to_string(),
                    pid: state.pid,
                    at: state.started_at,
                    status: state.exit_code,
                    cause: None,
                });
            }
        }
        Ok(ends)
    }

    async fn container(&self, member: &Member) -> Result<Container> {
        let found = self.found(member).await?;
        found
            .with_context(|| format!("{member} has no container yet: `docker compose up` makes it"))
    }

    async fn found(&self, member: &Member) -> Result<Option<Container>> {
        let named = self.arguments(&["ps", "--all", "--quiet", &member.to_string()])?;
        let ids = docker(&named.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let Some(id) = ids.lines().next() else { return Ok(None) };
        let containers: Vec<Container> = serde_json::from_str(&docker(&["inspect", id]).await?)?;
        Ok(containers.into_iter().next())
    }

    fn arguments(&self, words: &[&str]) -> Result<Vec<String>> {
        ensure!(!self.is_only_reached, "what runs in Kubernetes is started and stopped by kubectl");
        let file = checkout()?.join("docker-compose.yml").display().to_string();
        let compose = ["compose", "--file", &file];
        Ok(compose.iter().chain(words).map(|word| word.to_string()).collect())
    }

    /// A command whose progress people see.
    async fn shown(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("docker");
        command.args(self.arguments(words)?).stdin(Stdio::null());
        let status = command.status().await.context("docker cannot be run")?;
        ensure!(status.success(), "`docker compose {}` failed", words.join(" "));
        Ok(())
    }
}

async fn docker(words: &[&str]) -> Result<String> {
    let what = format!("docker {}", words.join(" "));
    let output = Command::new("docker").args(words).stdin(Stdio::null()).output();
    let output = tokio::time::timeout(ANSWER_WITHIN, output).await;
    let output = output.with_context(|| format!("`{what}` takes too long"))?;
    let output = output.context("docker cannot be run")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{what}` failed: {}", error.trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// Of a container's first process; none where Docker runs on another machine.
fn memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::SERVICES;

    #[test]
    fn every_member_is_a_container_of_the_same_name() {
        let file = checkout().unwrap().join("docker-compose.yml");
        let text = std::fs::read_to_string(file).unwrap();
        for member in Member::all() {
            assert!(text.contains(&format!("\n  {member}:\n")), "{member}");
        }
        assert!(SERVICES.iter().all(|service| text.contains(&format!("SERVICE: {service} "))));
    }
}
