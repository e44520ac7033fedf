//! The stacks of a project: that of its checkout, that of its tests, one of each kind of run, and
//! temporary ones.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::components::{port_offsets, programs};
use crate::description::StackDescription;
use crate::directories::{TEST_STACK_VARIABLE, remove_directory};
use crate::environment::path;
use crate::ports::Ports;
use crate::processes::kill_until_gone;
use crate::processes::proc_fs::processes_in;
use crate::stack::Stack;
use crate::stack::compose::Compose;

/// Selects and opens a stack of a project. Each of these functions fails if a name of the description
/// cannot be the name of a service.
impl Stack {
    /// The stack of this checkout, on the default ports or those in environment variables. With
    /// `STACK=compose` docker compose runs it, and with `STACK=k8s` another tool.
    ///
    /// # Errors
    /// If a variable is invalid, the stack runs on other ports, or its directory cannot be created.
    pub fn for_checkout(description: &StackDescription) -> Result<Self> {
        let stack = Self::of_checkout(description)?;
        if stack.compose.is_some() {
            return Ok(stack);
        }
        // While a component runs, ports without a variable stay unchanged. A state that cannot be read is not replaced.
        let is_there = stack.directory().join("state.json").exists();
        let running = is_there.then(|| stack.ports()).transpose()?;
        let running = running.filter(|_| stack.is_any_running());
        let ports = Ports::from_environment(&port_offsets(stack.description()), running)?;
        Self::new(description, stack.directory(), ports)
    }

    /// The stack of this checkout as it was last started, or as it would be started.
    ///
    /// # Errors
    /// As [`Stack::for_checkout`].
    pub fn open_for_checkout(description: &StackDescription) -> Result<Self> {
        let stack = Self::of_checkout(description)?;
        if stack.state().is_ok() { Ok(stack) } else { Self::for_checkout(description) }
    }

    /// The stack of this checkout, also if there is none or its state cannot be read.
    pub(crate) fn of_checkout(description: &StackDescription) -> Result<Self> {
        let compose = Compose::from_environment(description)?;
        Self::at(description, description.state_directory()?.join("stack"), compose)
    }

    /// The stack whose infrastructure [`run_with_infrastructure`] runs for the tests.
    ///
    /// [`run_with_infrastructure`]: crate::run_with_infrastructure
    ///
    /// # Errors
    /// If this process was not started by that function.
    pub fn for_tests(description: &StackDescription) -> Result<Self> {
        let directory = path(TEST_STACK_VARIABLE).with_context(|| {
            format!(
                "{TEST_STACK_VARIABLE} names no stack with Kafka, the registry and the databases"
            )
        })?;
        Self::open(description, directory)
    }

    /// The stack of a kind of run, of which one runs at a time, for as long as the returned lock is
    /// held. It has free ports, and the remains of an interrupted run are removed first.
    ///
    /// # Errors
    /// If the remains cannot be removed, or the stack cannot be created.
    pub async fn for_exclusive_run(
        description: &StackDescription,
        kind: &str,
    ) -> Result<(Self, File)> {
        let lock = description.lock_exclusive_run(kind).await?;
        let directory = description.state_directory()?.join(kind);
        Self::at(description, &directory, None)?.clean().await?;
        Ok((Self::on_free_ports(description, directory)?, lock))
    }

    /// A temporary native stack on free ports, without output of progress. When it is dropped, its
    /// components are killed and its directory is deleted.
    ///
    /// # Errors
    /// If there are not enough free ports, or the directory cannot be created.
    pub fn ephemeral(description: &StackDescription) -> Result<Self> {
        let name = format!("{:08x}", rand::random::<u32>());
        let directory = description.own_temp_directory(&name);
        let mut stack = Self::on_free_ports(description, directory)?;
        stack.ephemeral = true;
        Ok(stack)
    }
}

/// The remains of killed processes.
impl StackDescription {
    /// Kills the components of every stack in a directory or below it. Blocks for at most ten
    /// seconds, usually for a few milliseconds.
    ///
    /// # Errors
    /// If a process survives SIGKILL.
    pub fn kill_all_in(&self, directory: &Path) -> Result<()> {
        let programs = programs(self);
        let programs: Vec<&str> = programs.iter().map(String::as_str).collect();
        kill_until_gone(|| processes_in(directory, &programs))
    }

    /// Ends and deletes the stacks of killed processes, and the directories of such processes that
    /// contain stacks.
    ///
    /// # Errors
    /// If a process survives SIGKILL, or a directory cannot be deleted.
    pub async fn clean_orphans(&self) -> Result<()> {
        let own = rustix::process::geteuid().as_raw();
        let prefix = format!("{}-", self.project);
        for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            let pid = rest.and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
            let is_left = pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
            let is_own = entry.metadata().is_ok_and(|of| of.is_dir() && of.uid() == own);
            if is_left && is_own {
                self.kill_all_in(&entry.path())?;
                remove_directory(&entry.path())?;
            }
        }
        Ok(())
    }
}
