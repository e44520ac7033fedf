//! One stack: a directory that holds every component's data, log and pid file. All that is known about it is
//! read from that directory and from `/proc`, so that any number of launchers, tests and shells can work on
//! one stack, and a launcher may crash.

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
    /// Kills everything and deletes the directory at the end of its life.
    ephemeral: bool,
    /// Where it is not native.
    pub(crate) compose: Option<Compose>,
}

/// Which stack is meant and where it is.
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

    /// A stack that was made before.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let stack =
            Self { directory: directory.into(), quiet: true, ephemeral: false, compose: None };
        stack.state()?;
        Ok(stack)
    }

    /// The stack of this checkout, on the default ports or where the environment moves them.
    pub fn for_checkout() -> Result<Self> {
        let directory = state_directory()?.join("stack");
        let compose = Compose::from_environment()?;
        if compose.is_some() {
            return Ok(Self { directory, quiet: false, ephemeral: false, compose });
        }
        let stack = Self { directory, quiet: false, ephemeral: false, compose: None };
        // While something runs, ports that the environment does not move stay where they are.
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
            "this test needs Kafka, the registry and the databases: run it by `make test`, or by \
             `target/ci/e2e with-infrastructure -- cargo test --workspace --profile ci`",
        )?;
        Self::open(directory)
    }

    /// The stack of a kind of run of which there is one at a time, for as long as the lock is held.
    /// What a run left behind that broke off is removed before.
    pub async fn for_exclusive_run(kind: &str) -> Result<(Self, File)> {
        let lock = lock_exclusive_run(kind).await?;
        let directory = state_directory()?.join(kind);
        if let Ok(left_behind) = Self::open(&directory) {
            left_behind.clean().await?;
        }
        Ok((Self::new(directory, Ports::free()?)?.quiet(), lock))
    }

    /// A stack of its own on free ports, gone when it is dropped.
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

    /// Whether its components are processes of this launcher's.
    pub fn is_native(&self) -> bool {
        self.compose.is_none()
    }

    /// Whether its components are started and stopped by other tools, so that this launcher can only use them.
    pub fn is_external(&self) -> bool {
        self.compose.as_ref().is_some_and(|compose| compose.is_external)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// What it remembers.
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

    /// Makes it, unless it is there, on these ports.
    pub(crate) fn create(&self, ports: Ports) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml says how this stack is made");
        for directory in ["", "run", "log"] {
            create_public_directory(&self.directory().join(directory)).with_context(|| {
                format!("cannot make {} (HOLDFAST_STATE moves it)", self.directory().display())
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

    /// A stack that was deleted is not created again: a command that still works on it would leave a directory
    /// without its data.
    pub(crate) fn update_state(&self, change: impl FnOnce(&mut StackState)) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml says how this stack is made");
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

/// Its processes.
impl Stack {
    /// Kills everything and forgets all data.
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

    /// Also finds what no pid file names.
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

    /// How every process of this stack ended, in order.
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
