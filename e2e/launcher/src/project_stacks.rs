//! The stacks of a project: that of its checkout, that of its tests, one of each kind of run, and
//! temporary ones.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::compose::Compose;
use crate::directories::TEST_STACK_VARIABLE;
use crate::ports::Ports;
use crate::stack::Stack;
use crate::topology::StackDescription;

/// Selects and opens a stack of a project. Each of these functions fails if a name of the description
/// cannot be the name of a service.
impl Stack {
    /// The stack of this checkout, on the default ports or those in environment variables. With
    /// `STACK=compose` docker compose runs it, and with `STACK=k8s` another tool.
    ///
    /// # Errors
    /// If a variable is invalid, the stack runs on other ports, or its directory cannot be created.
    pub fn for_checkout(description: &StackDescription) -> Result<Self> {
        let compose = Compose::from_environment(description)?;
        let stack = Self::at(description, Self::checkout_directory(description)?, compose)?;
        if stack.compose.is_some() {
            return Ok(stack);
        }
        // While a component runs, ports without a variable stay unchanged.
        let ports =
            if stack.is_any_running() { stack.state()?.ports } else { Ports::new(description) };
        Self::new(description, stack.directory(), ports.with_environment_overrides()?)
    }

    /// The stack of this checkout as it was last started, or as it would be started.
    ///
    /// # Errors
    /// As [`Stack::for_checkout`].
    pub fn open_for_checkout(description: &StackDescription) -> Result<Self> {
        let compose = Compose::from_environment(description)?;
        let stack = Self::at(description, Self::checkout_directory(description)?, compose)?;
        if stack.state().is_ok() { Ok(stack) } else { Self::for_checkout(description) }
    }

    fn checkout_directory(description: &StackDescription) -> Result<PathBuf> {
        Ok(description.state_directory()?.join("stack"))
    }

    /// The stack whose infrastructure [`run_with_infrastructure`] runs for the tests.
    ///
    /// [`run_with_infrastructure`]: crate::run_with_infrastructure
    ///
    /// # Errors
    /// If this process was not started by that function.
    pub fn for_tests(description: &StackDescription) -> Result<Self> {
        let directory = std::env::var(TEST_STACK_VARIABLE).with_context(|| {
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
        if let Ok(left_behind) = Self::open(description, &directory) {
            left_behind.clean().await?;
        }
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
