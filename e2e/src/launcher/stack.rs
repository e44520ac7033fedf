//! One stack: a directory with every component's data, log and pid file. All state is in that
//! directory and in `/proc`. So any number of launchers, tests and shells can work on one stack,
//! and a launcher may crash.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::launcher::compose::Compose;
use crate::launcher::directories::{
    TEST_STACK_VARIABLE, create_public_directory, kill_all_in, lock_exclusive_run,
    own_temp_directory, remove_directory, state_directory,
};
use crate::launcher::exit_journal::{self, Exit, ExitCause};
use crate::launcher::ports::Ports;
use crate::launcher::process::Process;
use crate::launcher::stack_state::StackState;
use crate::launcher::topology::Component;

#[derive(Debug)]
pub struct Stack {
    directory: PathBuf,
    quiet: bool,
    /// Whether the stack is killed and its directory deleted when it is dropped.
    ephemeral: bool,
    /// The compose project, if the stack is not native.
    pub(crate) compose: Option<Compose>,
}

/// Selects and opens a stack.
impl Stack {
    /// The stack in `directory`, on these ports unless it already runs on others.
    pub fn new(directory: impl Into<PathBuf>, ports: Ports) -> Result<Self> {
        let stack =
            Self { directory: directory.into(), quiet: false, ephemeral: false, compose: None };
        if !stack.is_any_running() {
            stack.create(ports)?;
        } else if let Some(moved) = stack.state()?.ports.first_difference(ports) {
            bail!("the stack is running, and not with {moved}: stop it first (`make down`)");
        }
        Ok(stack)
    }

    /// A stack that was created before.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let stack =
            Self { directory: directory.into(), quiet: true, ephemeral: false, compose: None };
        stack.state()?;
        Ok(stack)
    }

    /// The stack of this checkout, on the default ports or those in environment variables.
    pub fn for_checkout() -> Result<Self> {
        let directory = state_directory()?.join("stack");
        let compose = Compose::from_environment()?;
        if compose.is_some() {
            return Ok(Self { directory, quiet: false, ephemeral: false, compose });
        }
        let stack = Self { directory, quiet: false, ephemeral: false, compose: None };
        // While a component runs, ports without a variable stay unchanged.
        let ports = if stack.is_any_running() { stack.state()?.ports } else { Ports::default() };
        Self::new(stack.directory.clone(), ports.with_environment_overrides()?)
    }

    /// The stack of this checkout as it was last started, or as it would be started.
    pub fn open_for_checkout() -> Result<Self> {
        let compose = Compose::from_environment()?;
        let directory = state_directory()?.join("stack");
        let stack = Self { directory, quiet: false, ephemeral: false, compose };
        if stack.state().is_ok() { Ok(stack) } else { Self::for_checkout() }
    }

    /// The infrastructure that `e2e with-infrastructure` runs for the tests.
    pub fn for_tests() -> Result<Self> {
        let directory = std::env::var(TEST_STACK_VARIABLE).context(
            "this test needs Kafka, the registry and the databases: run it with `make test`, or with \
             `target/ci/e2e with-infrastructure -- cargo test --workspace --profile ci`",
        )?;
        Self::open(directory)
    }

    /// The stack of a kind of run, of which one runs at a time, for as long as the lock is held.
    /// The remains of an interrupted run are removed first.
    pub async fn for_exclusive_run(kind: &str) -> Result<(Self, File)> {
        let lock = lock_exclusive_run(kind).await?;
        let directory = state_directory()?.join(kind);
        if let Ok(left_behind) = Self::open(&directory) {
            left_behind.clean().await?;
        }
        Ok((Self::new(directory, Ports::free()?)?.quiet(), lock))
    }

    /// A temporary stack on free ports, deleted when it is dropped.
    pub fn ephemeral() -> Result<Self> {
        let directory = own_temp_directory(&format!("{:08x}", rand::random::<u32>()));
        let mut stack = Self::new(directory, Ports::free()?)?;
        stack.ephemeral = true;
        stack.quiet = true;
        Ok(stack)
    }

    /// Prints no progress.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Whether its components are processes of this launcher.
    pub fn is_native(&self) -> bool {
        self.compose.is_none()
    }

    /// Whether other tools start and stop its components, so that this launcher can only use them.
    pub fn is_external(&self) -> bool {
        self.compose.as_ref().is_some_and(|compose| compose.is_external)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The saved state of the stack.
impl Stack {
    pub(crate) fn state(&self) -> Result<StackState> {
        if let Some(compose) = &self.compose {
            return Ok(compose.stack_state.clone());
        }
        let file = self.directory().join("state.json");
        let text = fs::read(&file).with_context(|| {
            format!("there is no stack in {}: `make up` starts one", self.directory().display())
        })?;
        let stack_state: StackState = serde_json::from_slice(&text)
            .with_context(|| format!("cannot read {}", file.display()))?;
        Ok(stack_state.with_current_services())
    }

    /// Creates the stack on these ports, unless it exists.
    pub(crate) fn create(&self, ports: Ports) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml defines this stack");
        for directory in ["", "run", "log"] {
            create_public_directory(&self.directory().join(directory)).with_context(|| {
                format!("cannot create {} (HOLDFAST_STATE moves it)", self.directory().display())
            })?;
        }
        self.write_state(|stack_state| {
            let fresh = || StackState {
                name: Some(format!("holdfast-{:08x}", rand::random::<u32>())),
                ..StackState::default()
            };
            Ok(StackState { ports, ..stack_state.unwrap_or_else(|_| fresh()) })
        })
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
        let lock = File::create(self.directory().join("state.lock"))?;
        lock.lock()?;
        let stack_state = stack_state(self.state())?;
        let fresh = self.directory().join("state.json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(&stack_state)?)?;
        fs::rename(fresh, self.directory().join("state.json"))?;
        Ok(())
    }
}

/// The processes of the stack.
impl Stack {
    /// Kills everything and deletes all data.
    pub async fn clean(&self) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.clean().await;
        }
        self.kill_all()?;
        remove_directory(&self.directory)
    }

    pub(crate) fn components(&self) -> Vec<Component> {
        self.state().unwrap_or_default().components()
    }

    fn is_any_running(&self) -> bool {
        self.components().iter().any(|component| self.process(component).running().is_some())
    }

    /// This also finds processes without a pid file.
    pub fn kill_all(&self) -> Result<()> {
        let components: Vec<_> =
            self.components().iter().map(|component| self.process(component)).collect();
        for component in &components {
            component.record_planned_exit(ExitCause::Kill)?;
        }
        kill_all_in(&self.directory)?;
        components.iter().for_each(|component| component.remove_pid_file());
        Ok(())
    }

    /// The exit of every process of this stack, in order.
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
            Component::Kafka | Component::Registry => "java",
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
