//! One stack: a directory with every component's data, log and pid file. All state is in that
//! directory and in `/proc`. So any number of launchers, tests and shells can work on one stack,
//! and a launcher may crash.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::compose::Compose;
use crate::directories::{create_closed_directory, remove_directory};
use crate::exit_journal::{self, Exit, ExitCause};
use crate::ports::Ports;
use crate::process::Process;
use crate::secrets::{Secrets, write_private};
use crate::stack_state::StackState;
use crate::topology::{Component, StackDescription};

/// A stack, by its directory. The handle holds no state of the stack, so any number of them may exist
/// in any number of processes.
///
/// A component has a name: `kafka`, `registry`, `console`, `<service>-db`, `<service>`, or `<service>-2` for a
/// second instance. A method that takes a name fails if the stack has no such component.
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
    pub fn new(
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
        } else if let Some(moved) = stack.state()?.ports.first_difference(ports) {
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
        Ok(Self::new(description, directory, Ports::free(description)?)?.quiet())
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
        description.check()?;
        Ok(Self {
            description: description.clone(),
            directory: directory.into(),
            quiet: false,
            ephemeral: false,
            compose,
        })
    }

    /// Prints no progress.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// What the stack consists of.
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

/// The saved state of the stack.
impl Stack {
    pub(crate) fn state(&self) -> Result<StackState> {
        if let Some(compose) = &self.compose {
            return Ok(compose.stack_state.clone());
        }
        let file = self.directory().join("state.json");
        let text = fs::read(&file)
            .with_context(|| format!("there is no stack in {}", self.directory().display()))?;
        let stack_state: StackState = serde_json::from_slice(&text)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let secrets = Some(Secrets::in_directory(self.directory().join("secrets")));
        Ok(StackState { secrets, ..stack_state.with_services_of(&self.description) })
    }

    /// Creates the stack on these ports, unless it exists.
    pub(crate) fn create(&self, ports: Ports) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml defines this stack");
        for directory in ["run", "log"] {
            create_closed_directory(&self.directory().join(directory)).with_context(|| {
                format!("cannot create {} (HOLDFAST_STATE moves it)", self.directory().display())
            })?;
        }
        self.write_state(|stack_state| {
            let mut stack_state = stack_state.unwrap_or_else(|_| {
                let project = &self.description.project;
                let name = Some(format!("{project}-{:08x}", rand::random::<u32>()));
                StackState { name, ..StackState::new(ports.clone()) }
            });
            stack_state.ports = ports;
            stack_state.secure = self.description.secure;
            Ok(stack_state)
        })?;
        Secrets::in_directory(self.directory().join("secrets")).create()
    }

    /// Changes the saved state. A deleted stack is not created again: a command that still works on
    /// it would leave a directory without data.
    pub(crate) fn update_state(&self, change: impl FnOnce(&mut StackState)) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml defines this stack");
        self.state()?;
        self.write_state(|stack_state| {
            let mut stack_state = stack_state?;
            change(&mut stack_state);
            Ok(stack_state)
        })
    }

    fn write_state(
        &self,
        stack_state: impl FnOnce(Result<StackState>) -> Result<StackState>,
    ) -> Result<()> {
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(self.directory().join("state.lock"))?;
        lock.lock()?;
        let stack_state = stack_state(self.state())?;
        let text = serde_json::to_vec_pretty(&stack_state)?;
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
        let fresh = || StackState::new(Ports::new(&self.description));
        self.state().unwrap_or_else(|_| fresh()).components(&self.description)
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
        exit_journal::read(&self.exit_journal())
    }

    pub(crate) fn exit_journal(&self) -> PathBuf {
        self.directory.join("run").join("exits")
    }

    pub(crate) fn print_progress(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    pub(crate) fn process(&self, component: &Component) -> Process {
        let name = component.to_string();
        let program = match component {
            Component::Database(_) => "postgres",
            Component::Kafka | Component::Registry | Component::Connect | Component::Streams(_) => {
                "java"
            }
            Component::Console => "console",
            Component::Service { service, .. } => service,
        };
        Process {
            home: self.directory().join(&name),
            program: program.to_string(),
            log: self.directory().join("log").join(format!("{name}.log")),
            pid_file: self.directory().join("run").join(format!("{name}.pid")),
            journal: self.exit_journal(),
            name,
        }
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
