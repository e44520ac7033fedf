//! The control room of a stack: the program `console`, with pages for operators. It asks the services over HTTP, and
//! nothing depends on it.

use std::fs;

use anyhow::Result;
use futures::future::BoxFuture;

use crate::component::{Component, Context, Kind, Stage};
use crate::components::service::program;
use crate::description::StackDescription;
use crate::directories::programs_directory;
use crate::processes::{LaunchCommand, Variables, variables};
use crate::secrets::{CONSOLE, CONTROL_SECRET};
use crate::state::StackState;

const PROBE_PORT: &str = "console-probe";

/// The port of the launcher's control server, which the page of the demo uses.
pub const CONTROL_PORT: &str = "console-control";

/// The file with the variables with which it was started, in its directory.
const SETTINGS_FILE: &str = "settings";

struct Console {
    services: Vec<String>,
    stream_processors: Vec<String>,
}

pub fn components(description: &StackDescription) -> Vec<Component> {
    let StackDescription { services, stream_processors, console, .. } = description.clone();
    let kind = Console { services, stream_processors };
    let ports = [(CONSOLE, 0), (PROBE_PORT, 1000), (CONTROL_PORT, 1010)];
    let component = Component {
        ports: ports.map(|(name, offset)| (name.to_string(), offset)).to_vec(),
        ..Component::new(CONSOLE, CONSOLE, Stage::Console, kind)
    };
    console.then_some(component).into_iter().collect()
}

impl Console {
    /// One URL of every instance, as in `a=http://127.0.0.1:9001,a=http://127.0.0.1:9101`.
    fn urls(&self, state: &StackState, url: impl Fn(&str) -> Result<String>) -> Result<String> {
        let mut urls = Vec::new();
        for service in &self.services {
            for name in state.instances_of(service) {
                urls.push(format!("{service}={}", url(&name)?));
            }
        }
        Ok(urls.join(","))
    }

    fn settings(&self, state: &StackState) -> Result<String> {
        let own = state.environment.get(CONSOLE).cloned().unwrap_or_default();
        Ok(format!("{:?} {own:?}", self.environment(state)?))
    }
}

impl Kind for Console {
    /// Its ports, the ports of every instance, and the stream processors.
    fn environment(&self, state: &StackState) -> Result<Variables> {
        let mut own = variables([
            ("HTTP_ADDR", state.address(CONSOLE)?),
            ("PROBE_ADDR", state.address(PROBE_PORT)?),
            ("API_URLS", self.urls(state, |name| state.url(name))?),
            ("ADMIN_URLS", self.urls(state, |name| state.url(&format!("{name}-admin")))?),
            ("PROBE_URLS", self.urls(state, |name| state.probe_url(name))?),
        ]);
        for name in self.stream_processors.iter().filter(|_| state.streams) {
            own.insert(format!("{}_URL", name.to_uppercase()), state.url(name)?);
        }
        if state.secure {
            own.extend(state.variables_of_server(CONSOLE)?);
            own.insert("SIGN_IN".to_string(), "1".to_string());
        } else {
            let token = state.secrets()?.password_file(CONTROL_SECRET)?;
            own.extend(variables([
                ("DEMO", "1".to_string()),
                ("LAUNCHER_URL", format!("http://{}", state.address(CONTROL_PORT)?)),
                ("LAUNCHER_TOKEN_FILE", token.display().to_string()),
            ]));
        }
        Ok(own)
    }

    fn command<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>> {
        Box::pin(async move {
            let file = context.process.home.join(SETTINGS_FILE);
            fs::write(file, self.settings(context.state)?)?;
            program(&programs_directory()?, CONSOLE, "serve")
        })
    }

    /// It does not know an instance, knows one too many, or a user has changed a variable.
    fn outdated<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Option<&'static str>>> {
        Box::pin(async move {
            let now = self.settings(context.state)?;
            let then = fs::read_to_string(context.process.home.join(SETTINGS_FILE));
            Ok((!then.is_ok_and(|then| then == now)).then_some("runs with other settings"))
        })
    }
}
