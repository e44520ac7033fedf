//! A server on loopback that shows the components of a native stack, and kills and starts them: for the page of the
//! demo. Only a client with the token of the stack's secrets gets an answer, so no other program on this machine and no
//! page in a browser can use it. It runs as a process of its own, because the launcher ends when the stack is up.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, HOST as HOST_HEADER};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use openssl::memcmp;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::components::console::CONTROL_PORT;
use crate::description::HOST;
use crate::processes::{LaunchCommand, Process, variables};
use crate::secrets::{CONSOLE, CONTROL_SECRET};
use crate::stack::Stack;

/// The name of its process and of its log.
const NAME: &str = "control";

/// The command of the launcher that runs it.
pub(crate) const COMMAND: &str = "control-server";

type Refusal = (StatusCode, String);

/// What the server knows.
struct Control {
    stack: Stack,
    token: String,
}

impl Stack {
    fn control_process(&self) -> Result<Process> {
        let program = std::env::current_exe()?;
        let program = program.file_name().context("a program has a name")?.to_string_lossy();
        Ok(Process::new(self.directory(), NAME, &program))
    }

    /// Starts the server, unless it runs. This program must have the commands of the launcher.
    pub(crate) async fn start_control_server(&self) -> Result<()> {
        let process = self.control_process()?;
        if process.running().is_some() {
            return Ok(());
        }
        std::fs::create_dir_all(&process.home)?;
        let state = self.description().state_directory()?.display().to_string();
        let mut launch = LaunchCommand::new(std::env::current_exe()?, [COMMAND]);
        launch.environment = variables([("HOLDFAST_STATE", state)]);
        process.spawn(&launch).await.map(drop)
    }

    /// Ends the server, if it runs.
    pub(crate) fn stop_control_server(&self) -> Result<()> {
        let process = self.control_process()?;
        if process.running().is_some() { process.kill_all() } else { Ok(()) }
    }

    /// Answers requests until the process is killed.
    pub(crate) async fn serve_control(self) -> Result<()> {
        let state = self.state()?;
        let listener = TcpListener::bind(state.address(CONTROL_PORT)?).await?;
        let token = state.secrets()?.password(CONTROL_SECRET)?;
        let control = Arc::new(Control { stack: self, token });
        let routes = Router::new()
            .route("/", get(list))
            .route("/kill/{name}", post(kill))
            .route("/start/{name}", post(start))
            .layer(from_fn_with_state(control.clone(), authorize))
            .with_state(control);
        Ok(axum::serve(listener, routes).await?)
    }
}

async fn list(State(control): State<Arc<Control>>) -> Result<Json<Value>, Refusal> {
    let components = control.stack.status().await.map_err(conflict)?.into_iter();
    let others = components.filter(|it| it.name != CONSOLE);
    Ok(Json(others.map(|it| json!({"name": it.name, "state": it.state.to_string()})).collect()))
}

async fn kill(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let name = component(&control.stack, &name)?;
    Ok(Json(control.stack.kill(&name).await.map_err(conflict)?.into()))
}

async fn start(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let name = component(&control.stack, &name)?;
    Ok(Json(control.stack.start(&name).await.map_err(conflict)?.into()))
}

/// The name of a component that may be killed and started.
fn component(stack: &Stack, name: &str) -> Result<String, Refusal> {
    let found = stack.component(name);
    let name = found.map_err(|error| (StatusCode::NOT_FOUND, format!("{error:#}")))?.name;
    if name == CONSOLE {
        return Err(conflict(anyhow::anyhow!("the control room cannot stop itself")));
    }
    Ok(name)
}

/// An action that the stack does not allow.
fn conflict(error: anyhow::Error) -> Refusal {
    (StatusCode::CONFLICT, format!("{error:#}"))
}

async fn authorize(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    match refusal(request.headers(), &control.token) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

/// Why a request is refused, if it is.
fn refusal(headers: &HeaderMap, token: &str) -> Option<(StatusCode, &'static str)> {
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    // A page that lets its own name resolve to this address has that name here.
    let host = header(HOST_HEADER).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if name != HOST && name != "localhost" {
        return Some((StatusCode::FORBIDDEN, "the header Host does not name this server"));
    }
    let given = header(AUTHORIZATION).and_then(|given| given.strip_prefix("Bearer "));
    let is_known = given.is_some_and(|given| {
        given.len() == token.len() && memcmp::eq(given.as_bytes(), token.as_bytes())
    });
    (!is_known).then_some((StatusCode::UNAUTHORIZED, "the token of the stack is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_with_the_token_and_the_own_name_is_answered() {
        let send = |host: &str, authorization: Option<&str>| {
            let mut headers = HeaderMap::from_iter([(HOST_HEADER, host.parse().unwrap())]);
            headers.extend(authorization.map(|it| (AUTHORIZATION, it.parse().unwrap())));
            refusal(&headers, "abc").map(|(status, _)| status.as_u16())
        };
        for host in ["127.0.0.1:9", "localhost:9", "127.0.0.1"] {
            assert_eq!(send(host, Some("Bearer abc")), None, "{host}");
        }
        for other in ["", "rebound.example.com:9", "127.0.0.1.example.com", "[::1]:9"] {
            assert_eq!(send(other, Some("Bearer abc")), Some(403), "{other}");
        }
        for other in [None, Some(""), Some("abc"), Some("Bearer ab"), Some("Bearer abd")] {
            assert_eq!(send("127.0.0.1:9", other), Some(401), "{other:?}");
        }
    }
}
