//! A server on loopback that shows the components of a native stack, and kills and starts them: for the page of the
//! demo. Only a client with the token of the stack's secrets gets an answer, so no other program on this machine and no
//! page in a browser can use it. It runs as a process of its own, because the launcher ends when the stack is up.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::process::{LaunchCommand, Process};
use crate::stack::Stack;
use crate::status::ComponentState;
use crate::topology::{Component, HOST};

/// The name of its process and of its log.
const NAME: &str = "control";

/// The name of the secret with its token.
pub(crate) const CONTROL_SECRET: &str = "control.token";

/// The command of the launcher that runs it.
pub(crate) const COMMAND: &str = "control-server";

/// The size of a request, which has no body, and the time in which it has to arrive.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl Stack {
    fn control_process(&self) -> Result<Process> {
        let program = std::env::current_exe()?;
        let program = program.file_name().context("a program has a name")?.to_string_lossy();
        Ok(Process {
            name: NAME.to_string(),
            home: self.directory().join(NAME),
            program: program.into_owned(),
            log: self.directory().join("log").join(format!("{NAME}.log")),
            pid_file: self.directory().join("run").join(format!("{NAME}.pid")),
            ..self.process(&Component::Console)
        })
    }

    /// Starts the server, unless it runs. This program must have the commands of the launcher.
    pub(crate) async fn start_control_server(&self) -> Result<()> {
        let process = self.control_process()?;
        if process.running().is_some() {
            return Ok(());
        }
        std::fs::create_dir_all(&process.home)?;
        let state = self.description().state_directory()?.display().to_string();
        let launch = LaunchCommand {
            program: std::env::current_exe()?,
            arguments: vec![COMMAND.to_string()],
            environment: vec![("HOLDFAST_STATE".to_string(), state)],
            unprivileged: false,
        };
        process.spawn(&launch).await.map(drop)
    }

    /// Ends the server, if it runs.
    pub(crate) fn stop_control_server(&self) -> Result<()> {
        let process = self.control_process()?;
        if process.running().is_some() { process.kill_all() } else { Ok(()) }
    }

    /// Answers requests until the process is killed.
    pub(crate) async fn serve_control(&self) -> Result<()> {
        let state = self.state()?;
        let listener = TcpListener::bind((HOST, state.console_ports()?.control)).await?;
        let token = state.secrets()?.password(CONTROL_SECRET)?;
        let mut answers = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => answers.push(self.answer(accepted?.0, &token)),
                Some(answered) = answers.next(), if !answers.is_empty() => {
                    if let Err(error) = answered {
                        self.print_progress(&format!("a request got no answer: {error:#}"));
                    }
                }
            }
        }
    }

    async fn answer(&self, mut client: TcpStream, token: &str) -> Result<()> {
        let request = timeout(REQUEST_TIMEOUT, read_request(&mut client)).await??;
        let answered = self.execute(&request, token).await;
        let (status, body) = match answered {
            Ok(body) => ("200 OK", body.to_string()),
            Err(error) => ("409 Conflict", format!("{error:#}")),
        };
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        client.write_all((head + &body).as_bytes()).await?;
        client.shutdown().await.map_err(anyhow::Error::from)
    }

    async fn execute(&self, request: &ControlRequest, token: &str) -> Result<Value> {
        ensure!(request.token.as_deref() == Some(token), "the token of the stack is missing");
        let component = |name: &str| -> Result<String> {
            let component = self.component(name)?;
            ensure!(component != Component::Console, "the control room does not end itself");
            Ok(component.to_string())
        };
        match (&*request.method, request.path.trim_start_matches('/').split_once('/')) {
            ("GET", None) => self.list_components().await,
            ("POST", Some(("kill", name))) => Ok(json!(self.kill(&component(name)?).await?)),
            ("POST", Some(("start", name))) => Ok(json!(self.start(&component(name)?).await?)),
            _ => anyhow::bail!("there is no such request"),
        }
    }

    async fn list_components(&self) -> Result<Value> {
        let components = self.status().await?.into_iter();
        let others = components.filter(|it| it.name != Component::Console.to_string());
        let state = |state| match state {
            ComponentState::Stopped => "stopped",
            ComponentState::Starting => "starting",
            ComponentState::Ready => "ready",
            ComponentState::Paused => "paused",
        };
        Ok(others.map(|it| json!({"name": it.name, "state": state(it.state)})).collect())
    }
}

/// What a client wants.
struct ControlRequest {
    method: String,
    path: String,
    token: Option<String>,
}

async fn read_request(client: &mut TcpStream) -> Result<ControlRequest> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        ensure!(bytes.len() < REQUEST_BYTES_MAX, "the request is too long");
        ensure!(client.read_buf(&mut bytes).await? > 0, "the request ended early");
    }
    parse_request(&String::from_utf8(bytes)?)
}

fn parse_request(text: &str) -> Result<ControlRequest> {
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_string);
    let (method, path) = words.next().zip(words.next()).context("there is no request line")?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let mut tokens = headers.filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    let token = tokens.next().and_then(|(_, value)| value.trim().strip_prefix("Bearer "));
    Ok(ControlRequest { method, path, token: token.map(str::to_string) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_method_a_path_and_perhaps_a_token() {
        let text = "POST /kill/stock HTTP/1.1\r\nHost: a\r\nauthorization: Bearer abc\r\n\r\n";
        let request = parse_request(text).unwrap();
        assert_eq!((&*request.method, &*request.path), ("POST", "/kill/stock"));
        assert_eq!(request.token.as_deref(), Some("abc"));
        let without = parse_request("GET / HTTP/1.1\r\nauthorization: Basic abc\r\n\r\n").unwrap();
        assert_eq!(without.token, None);
        assert!(parse_request("\r\n\r\n").is_err());
    }
}
