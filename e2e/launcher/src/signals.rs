//! Signals to a component of the stack: those that end its first process, and those that freeze it.

use anyhow::{Context, Result, ensure};

use crate::exit_journal::ExitCause;
use crate::process::{self, Signal};
use crate::stack::Stack;
use crate::status::STOP_TIMEOUT;

impl Stack {
    /// SIGKILL to its first process alone: the children must notice by themselves.
    ///
    /// # Errors
    /// If it does not run, or the stack is not native.
    pub async fn kill_main_process(&self, name: &str) -> Result<()> {
        self.signal_main_process(name, Signal::KILL, ExitCause::Kill).await
    }

    /// An immediate stop, in PostgreSQL's terms: without a checkpoint, so the next start recovers.
    ///
    /// # Errors
    /// If it does not run, or the stack is not native.
    pub async fn stop_immediately(&self, name: &str) -> Result<()> {
        self.signal_main_process(name, Signal::QUIT, ExitCause::Stop).await
    }

    async fn signal_main_process(
        &self,
        name: &str,
        signal: Signal,
        cause: ExitCause,
    ) -> Result<()> {
        ensure!(self.is_native(), "only the native stack can signal single processes");
        let component = self.component(name)?;
        let _lock = self.lock_component(&component).await?;
        let process = self.process(&component);
        let living = process.running().with_context(|| format!("{name} does not run"))?;
        process.record_planned_exit(cause)?;
        process::send_signal(signal, &[living])?;
        ensure!(living.wait_for_exit(STOP_TIMEOUT).await, "{name} survives {signal:?}");
        Ok(())
    }

    /// Freezes all its processes: their connections stay open, and nothing responds.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn pause(&self, name: &str) -> Result<()> {
        match &self.compose {
            Some(compose) => compose.set_paused(&self.component(name)?, true).await,
            None => self.signal_all(name, Signal::STOP),
        }
    }

    /// Lets a frozen component continue.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn resume(&self, name: &str) -> Result<()> {
        match &self.compose {
            Some(compose) => compose.set_paused(&self.component(name)?, false).await,
            None => self.signal_all(name, Signal::CONT),
        }
    }

    fn signal_all(&self, name: &str, signal: Signal) -> Result<()> {
        let process = self.process(&self.component(name)?);
        let living = process.running().with_context(|| format!("{name} does not run"))?;
        // The first process is frozen first, so that it starts no child that would be missed.
        process::send_signal(signal, &[living])?;
        process::send_signal(signal, &process.all_processes())
    }
}
