//! One stack: a directory with every component's data, log and pid file. All state is in that
//! directory and in `/proc`. So any number of launchers, tests and shells can work on one stack,
//! and a launcher may crash.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::component::Component;
use crate::components::{of_stack, port_offsets};
use crate::description::StackDescription;
use crate::directories::{create_closed_directory, remove_directory};
use crate::ports::Ports;
use crate::processes::Process;
use crate::processes::exit_journal::{self, Exit, ExitCause};
use crate::secrets::{Secrets, write_private};
use crate::stack::compose::Compose;
use crate::state::StackState;

mod addresses;
pub(crate) mod compose;
mod logs;
mod project_stacks;
mod settings;

/// A stack, by its directory. The handle holds no state of the stack, so any number of them may exist
/// in any number of processes.
///
/// A component has a name: `kafka`, `registry`, `console`, `<service>-db`, `<service>`, or `<service>-2` for a
/// second instance.
///
/// Every method that returns a result fails if the stack was deleted, and if it has no component or service of a name
/// that the method takes.
#[derive(Debug)]
pub struct Stack {
    description: StackDescription,
    directory: PathBuf,
    quiet: bool,
    /// Whether the stack is killed and its directory deleted when it is dropped.
    pub(crate) ephemeral: bool,
    /// The compose project, if the stack is not native.
    pub(crate) compose: Option<Compose>,
}

/// Opens a stack by its directory. Each of these functions fails if a name of the description cannot be
/// the name of a service.
impl Stack {
    /// The native stack in `directory`, on these ports. It is created if it does not exist, and
    /// nothing is started.
    ///
    /// # Errors
    /// If a component of it runs on other ports, or the directory cannot be created.
    pub(crate) fn new(
        description: &StackDescription,
        directory: impl Into<PathBuf>,
        ports: Ports,
    ) -> Result<Self> {
        let stack = Self::at(description, directory, None)?;
        let state = stack.state();
        if !stack.is_any_running() {
            stack.create(ports)?;
        } else if state?.secure != description.secure {
            bail!(
                "the stack in {} is running with another value of SECURE: stop it first",
                stack.directory().display()
            );
        } else if let Some(further) = stack.further_service() {
            bail!(
                "the stack in {} is running without {further}: stop it first",
                stack.directory().display()
            );
        } else if let Some(moved) = stack.state()?.ports.first_difference(&ports) {
            bail!(
                "the stack in {} is running with another value than {moved}: stop it first",
                stack.directory().display()
            );
        }
        Ok(stack)
    }

    /// The native stack in `directory`, on free ports, without output of progress.
    ///
    /// # Errors
    /// If a component of it runs, there are not enough free ports, or the directory cannot be created.
    pub fn on_free_ports(
        description: &StackDescription,
        directory: impl Into<PathBuf>,
    ) -> Result<Self> {
        let stack = Self::at(description, directory, None)?;
        let ports = Ports::free(&port_offsets(stack.description()))?;
        Ok(Self::new(description, stack.directory(), ports)?.quiet())
    }

    /// A native stack that was created before, without output of progress.
    ///
    /// # Errors
    /// If there is none in `directory`.
    pub fn open(description: &StackDescription, directory: impl Into<PathBuf>) -> Result<Self> {
        let stack = Self::at(description, directory, None)?.quiet();
        stack.state()?;
        Ok(stack)
    }

    pub(crate) fn at(
        description: &StackDescription,
        directory: impl Into<PathBuf>,
        compose: Option<Compose>,
    ) -> Result<Self> {
        let directory = directory.into();
        let saved = saved_ports(&directory).filter(|_| compose.is_none()).unwrap_or_default();
        let description = description.of_stack(|name| saved.get(name).is_ok());
        description.check()?;
        Ok(Self { description, directory, quiet: false, ephemeral: false, compose })
    }

    /// Prints no progress.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// An optional service that the stack is to have, and was created without.
    fn further_service(&self) -> Option<String> {
        let saved = saved_ports(self.directory())?;
        let mut optional = self.description.optional_parts().map(|(it, _)| it.name.clone());
        optional.find(|name| saved.get(name).is_err())
    }

    /// What the stack consists of, with the optional services that it has.
    pub fn description(&self) -> &StackDescription {
        &self.description
    }

    /// Whether its components are processes on this machine that the launcher starts.
    pub fn is_native(&self) -> bool {
        self.compose.is_none()
    }

    /// Whether other tools start and stop its components, so that the launcher can only use them.
    pub fn is_external(&self) -> bool {
        self.compose.as_ref().is_some_and(|compose| compose.is_external)
    }

    /// The directory of its data, logs and pid files. Each component has its data in the directory
    /// with its name.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn component(&self, name: &str) -> Result<Component> {
        self.description.component(name)
    }
}

/// The ports of a stack as they were saved, if there is one.
fn saved_ports(directory: &Path) -> Option<Ports> {
    let text = fs::read(directory.join("state.json")).ok()?;
    Some(serde_json::from_slice::<StackState>(&text).ok()?.ports)
}

/// The saved state of the stack.
impl Stack {
    pub(crate) fn state(&self) -> Result<StackState> {
        if let Some(compose) = &self.compose {
            return Ok(compose.state.clone());
        }
        let file = self.directory().join("state.json");
        let text = fs::read(&file)
            .with_context(|| format!("there is no stack in {}", self.directory().display()))?;
        let state: StackState = serde_json::from_slice(&text).with_context(|| {
            format!("{} is of another version: `make clean` deletes the stack", file.display())
        })?;
        let secrets = Some(Secrets::in_directory(self.directory().join("secrets")));
        Ok(StackState { secrets, ..state.with_ports_of(&port_offsets(&self.description)) })
    }

    /// Creates the stack on these ports, unless it exists.
    pub(crate) fn create(&self, ports: Ports) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml defines this stack");
        for directory in ["run", "log"] {
            create_closed_directory(&self.directory().join(directory)).with_context(|| {
                format!("cannot create {} (HOLDFAST_STATE moves it)", self.directory().display())
            })?;
        }
        self.write_state(|state| {
            let mut state = state.unwrap_or_else(|_| {
                let project = &self.description.project;
                let name = Some(format!("{project}-{:08x}", rand::random::<u32>()));
                StackState { name, ..StackState::new(ports.clone()) }
            });
            state.ports.extend(ports);
            state.secure = self.description.secure;
            Ok(state)
        })?;
        Secrets::in_directory(self.directory().join("secrets")).create()
    }

    /// Changes the saved state. A deleted stack is not created again: a command that still works on
    /// it would leave a directory without data.
    pub(crate) fn update_state(&self, change: impl FnOnce(&mut StackState)) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml defines this stack");
        self.state()?;
        self.write_state(|state| {
            let mut state = state?;
            change(&mut state);
            Ok(state)
        })
    }

    fn write_state(
        &self,
        change: impl FnOnce(Result<StackState>) -> Result<StackState>,
    ) -> Result<()> {
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(self.directory().join("state.lock"))?;
        lock.lock()?;
        let text = serde_json::to_vec_pretty(&change(self.state())?)?;
        Ok(write_private(&self.directory().join("state.json"), &text)?)
    }
}

/// The processes of the stack.
impl Stack {
    /// Kills everything and deletes all data.
    ///
    /// # Errors
    /// If a process survives SIGKILL, or the directory cannot be deleted.
    pub async fn clean(&self) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.clean().await;
        }
        self.kill_all()?;
        remove_directory(&self.directory)
    }

    pub(crate) fn components(&self) -> Vec<Component> {
        of_stack(&self.description, &self.state().unwrap_or_default())
    }

    pub(crate) fn is_any_running(&self) -> bool {
        self.components().iter().any(|component| self.process(component).running().is_some())
    }

    /// Kills everything and keeps all data. This also finds processes without a pid file.
    ///
    /// # Errors
    /// If a process survives SIGKILL.
    pub fn kill_all(&self) -> Result<()> {
        let components: Vec<_> =
            self.components().iter().map(|component| self.process(component)).collect();
        for component in &components {
            component.record_planned_exit(ExitCause::Kill)?;
        }
        self.stop_control_server()?;
        self.description.kill_all_in(&self.directory)?;
        components.iter().for_each(|component| component.remove_pid_file());
        Ok(())
    }

    /// The exit of every process of this stack, in order; on docker compose, of every container that
    /// was restarted.
    ///
    /// # Errors
    /// If the journal of the exits cannot be read.
    pub async fn exits(&self) -> Result<Vec<Exit>> {
        if let Some(compose) = &self.compose {
            return compose.exits().await;
        }
        exit_journal::read(&exit_journal::of_stack(&self.directory))
    }

    pub(crate) fn print_progress(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    pub(crate) fn process(&self, component: &Component) -> Process {
        Process::new(&self.directory, &component.name, &component.program)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.ephemeral {
            let _ = self.kill_all();
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}
