//! What the life cycle knows about a component: one value.

use std::fmt::{self, Debug, Display};
use std::sync::Arc;

use anyhow::Result;
use futures::future::{BoxFuture, ready};

use crate::description::StackDescription;
use crate::ports::{PortOffset, Ports};
use crate::processes::{LaunchCommand, Process, Signal, Variables};
use crate::state::StackState;

/// A component that can be started, stopped and killed by its name.
#[derive(Clone)]
pub struct Component {
    /// Such as `kafka`, `order-db` or `order-2`.
    pub(crate) name: String,
    /// The file name of its program, as `/proc/<pid>/exe` shows it.
    pub(crate) program: String,
    pub(crate) stage: Stage,
    /// Whether a stack in this state has it.
    pub(crate) belongs_to: fn(&StackState) -> bool,
    /// Its ports, and Kafka's listener for it.
    pub(crate) ports: Vec<PortOffset>,
    /// Whether it listens for each of its clients at another port, which has the client's name before its own.
    pub(crate) has_listeners: bool,
    pub(crate) ready: Ready,
    /// The names for which a user sets variables of it; a later one goes before an earlier one.
    pub(crate) names_in_settings: Vec<String>,
    /// The signal that asks it to stop.
    pub(crate) stop_signal: Signal,
    /// The folder of its data in its home: what to wipe.
    pub(crate) data: &'static str,
    /// Whether it runs as another user if this one is root.
    pub(crate) has_own_user: bool,
    /// The name of Java's options and of the archive of the classes that it loads, if it has one.
    pub(crate) class_archive: Option<&'static str>,
    pub(crate) kind: Arc<dyn Kind>,
}

/// When `up` starts a component. `down` stops the infrastructure last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Infrastructure,
    Service,
    /// What moves records between the others.
    Flow,
    Console,
}

/// How a component shows that it serves.
#[derive(Clone, Copy)]
pub enum Ready {
    /// It answers `GET /readyz` on its probe port with 2xx.
    Probe,
    /// It answers this request on its port for clients with 2xx.
    Api(&'static str),
    /// [`Kind::check_ready`] succeeds.
    Asked,
}

/// Where and with what a component is about to start.
pub struct Context<'a> {
    pub description: &'a StackDescription,
    pub state: &'a StackState,
    pub process: &'a Process,
    /// Whether Java is to write the archive of its classes when this run ends.
    pub archives_classes: bool,
}

/// What a component does. Each file of `components/` has one kind.
pub trait Kind: Send + Sync {
    /// The variables that it gets, without those of its user.
    fn environment(&self, _state: &StackState) -> Result<Variables> {
        Ok(Variables::new())
    }

    /// Makes what it needs in its home, and returns its command line.
    fn command<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>>;

    /// Succeeds once it serves.
    fn check_ready<'a>(&'a self, _state: &'a StackState) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    /// What has to be done whenever it is ready, also if that was done before.
    fn complete<'a>(&'a self, _state: &'a StackState) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    /// Why it has to start again although it runs, if it has to: it started with other settings.
    fn outdated<'a>(
        &'a self,
        _context: &'a Context,
    ) -> BoxFuture<'a, Result<Option<&'static str>>> {
        Box::pin(ready(Ok(None)))
    }
}

impl Component {
    /// A component of every stack, without ports.
    pub(crate) fn new(name: &str, program: &str, stage: Stage, kind: impl Kind + 'static) -> Self {
        Self {
            name: name.to_string(),
            program: program.to_string(),
            stage,
            belongs_to: |_| true,
            ports: Vec::new(),
            has_listeners: false,
            ready: Ready::Probe,
            names_in_settings: vec![name.to_string()],
            stop_signal: Signal::TERM,
            data: "data",
            has_own_user: false,
            class_archive: None,
            kind: Arc::new(kind),
        }
    }

    /// The names of the ports that it listens on, that for clients first.
    pub(crate) fn listens_on(&self, ports: &Ports) -> Vec<String> {
        let ends = ["", "-probe", "-admin", "-controller"];
        let own = ends.map(|end| format!("{}{end}", self.name)).into_iter();
        let own = own.filter(|name| ports.get(name).is_ok());
        let end = format!("-{}", self.name);
        let listeners = ports.iter().filter(|(name, _)| self.has_listeners && name.ends_with(&end));
        own.chain(listeners.map(|(name, _)| name.to_string())).collect()
    }

    /// Its variables: those that it gets from the stack, and those that a user has set for it.
    pub(crate) fn variables(&self, state: &StackState) -> Result<Variables> {
        let mut variables = self.kind.environment(state)?;
        for name in &self.names_in_settings {
            for (key, value) in state.environment.get(name).into_iter().flatten() {
                variables.remove(&format!("{key}_FILE"));
                variables.insert(key.clone(), value.clone());
            }
        }
        Ok(variables)
    }

    /// Its command line, with its variables.
    pub(crate) async fn command(&self, context: &Context<'_>) -> Result<LaunchCommand> {
        let mut command = self.kind.command(context).await?;
        command.environment.extend(self.variables(context.state)?);
        Ok(command)
    }
}

impl Display for Component {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(&self.name)
    }
}

impl Debug for Component {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(&self.name)
    }
}
