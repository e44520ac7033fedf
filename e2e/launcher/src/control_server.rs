//! A server on loopback that shows the components of a native stack, and kills and starts them: for the page of the
//! demo. Only a client with the token of the stack's secrets gets an answer, so no other program on this machine and no
//! page in a browser can use it. It runs as a process of its own, because the launcher ends when the stack is up.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use openssl::memcmp;
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

/// The status of an action that the stack does not allow.
const CONFLICT: &str = "409 Conflict";

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
        let answered = match request.action(token) {
            Ok(action) => self.execute(action).await,
            Err((status, reason)) => Err((status, anyhow::anyhow!(reason))),
        };
        let (status, body) = match answered {
            Ok(body) => ("200 OK", body.to_string()),
            Err((status, error)) => (status, format!("{error:#}")),
        };
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        client.write_all((head + &body).as_bytes()).await?;
        client.shutdown().await.map_err(anyhow::Error::from)
    }

    /// Answers, or refuses with a status.
    async fn execute(&self, action: Action<'_>) -> Result<Value, (&'static str, anyhow::Error)> {
        let component = |name: &str| {
            let component = self.component(name).map_err(|error| ("404 Not Found", error))?;
            match component {
                Component::Console => {
                    Err((CONFLICT, anyhow::anyhow!("the control room does not end itself")))
                }
                other => Ok(other.to_string()),
            }
        };
        let done = match action {
            Action::List => self.list_components().await,
            Action::Kill(name) => self.kill(&component(name)?).await.map(Value::from),
            Action::Start(name) => self.start(&component(name)?).await.map(Value::from),
        };
        done.map_err(|error| (CONFLICT, error))
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

/// What a client sent.
#[derive(Default)]
struct ControlRequest {
    method: String,
    path: String,
    host: String,
    token: Option<String>,
}

/// What it wants.
#[derive(Debug, PartialEq, Eq)]
enum Action<'a> {
    List,
    Kill(&'a str),
    Start(&'a str),
}

impl ControlRequest {
    /// What the client may have done, or the status of the refusal and its reason.
    fn action(&self, token: &str) -> Result<Action<'_>, (&'static str, &'static str)> {
        // A page that lets its own name resolve to this address has that name here.
        let name = self.host.rsplit_once(':').map_or(&*self.host, |(name, _)| name);
        if name != HOST && name != "localhost" {
            return Err(("403 Forbidden", "this server has another name"));
        }
        let given = self.token.as_deref().unwrap_or_default();
        if given.len() != token.len() || !memcmp::eq(given.as_bytes(), token.as_bytes()) {
            return Err(("401 Unauthorized", "the token of the stack is missing"));
        }
        match (&*self.method, self.path.trim_start_matches('/').split_once('/')) {
            ("GET", None) => Ok(Action::List),
            ("POST", Some(("kill", name))) => Ok(Action::Kill(name)),
            ("POST", Some(("start", name))) => Ok(Action::Start(name)),
            (_, None | Some(("kill" | "start", _))) => {
                Err(("405 Method Not Allowed", "GET lists, and POST changes"))
            }
            _ => Err(("404 Not Found", "there is no such request")),
        }
    }
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
    let mut request = ControlRequest { method, path, ..ControlRequest::default() };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => request.host = value.to_string(),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_string),
            _ => {}
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_method_a_path_and_perhaps_a_token() {
        let text = "POST /kill/stock HTTP/1.1\r\nHost: a\r\nauthorization: Bearer abc\r\n\r\n";
        let request = parse_request(text).unwrap();
        assert_eq!((&*request.method, &*request.path), ("POST", "/kill/stock"));
        assert_eq!((&*request.host, request.token.as_deref()), ("a", Some("abc")));
        let without = parse_request("GET / HTTP/1.1\r\nauthorization: Basic abc\r\n\r\n").unwrap();
        assert_eq!(without.token, None);
        assert!(parse_request("\r\n\r\n").is_err());
    }

    #[test]
    fn only_a_post_with_the_token_and_the_own_name_changes_something() {
        let send = |method: &str, path: &str, host: &str, token: Option<&str>| {
            let (method, path, host) = (method.into(), path.into(), host.into());
            let request = ControlRequest { method, path, host, token: token.map(str::to_string) };
            match request.action("abc") {
                Ok(action) => format!("{action:?}"),
                Err((status, _)) => status[..3].to_string(),
            }
        };
        let (host, token) = ("127.0.0.1:9", Some("abc"));
        assert_eq!(send("GET", "/", host, token), "List");
        assert_eq!(send("POST", "/kill/stock", host, token), "Kill(\"stock\")");
        assert_eq!(send("POST", "/start/stock", "localhost:9", token), "Start(\"stock\")");
        for other in ["", "rebound.example.com:9", "127.0.0.1.example.com", "[::1]:9"] {
            assert_eq!(send("POST", "/kill/stock", other, token), "403", "{other}");
        }
        for other in [None, Some(""), Some("ab"), Some("abd"), Some("abcd")] {
            assert_eq!(send("POST", "/kill/stock", host, other), "401", "{other:?}");
            assert_eq!(send("GET", "/", host, other), "401", "{other:?}");
        }
        assert_eq!(send("GET", "/kill/stock", host, token), "405");
        assert_eq!(send("PUT", "/start/stock", host, token), "405");
        assert_eq!(send("POST", "/", host, token), "405");
        assert_eq!(send("POST", "/stop/stock", host, token), "404");
    }
}
