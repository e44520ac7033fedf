//! Ends or freezes one component of any kind.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::Instant;

use crate::component::Component;
use crate::directories::remove_directory;
use crate::eventually::eventually;
use crate::processes::exit_journal::ExitCause;
use crate::processes::proc_fs::ProcessIdentity;
use crate::processes::{Signal, send_signal};
use crate::stack::Stack;
use crate::status::{STOP_TIMEOUT, StopOutcome};

/// How long the supervisor of a process may take to record its exit.
const EXIT_RECORD_TIMEOUT: Duration = Duration::from_secs(5);

impl Stack {
    /// Asks the component to stop, and kills it after 30 seconds.
    ///
    /// # Errors
    /// If it survives SIGKILL.
    pub async fn stop(&self, name: &str) -> Result<StopOutcome> {
        match &self.compose {
            Some(compose) => compose.stop(&self.component(name)?).await,
            None => self.stop_component(&self.component(name)?).await,
        }
    }

    /// Stops a component of the native stack, which must exit by itself, in time, with status 0.
    /// Returns how long that took.
    ///
    /// # Errors
    /// If it did not run, was killed after the timeout, or exited with another status.
    pub async fn stop_gracefully(&self, name: &str) -> Result<Duration> {
        let living = self.process(&self.component(name)?).running();
        let living = living.with_context(|| format!("{name} does not run"))?;
        let stopped = self.stop(name).await?;
        let StopOutcome::Graceful(took) = stopped else {
            bail!("{name} was stopped: {stopped:?}");
        };
        // Its supervisor records the exit a moment later.
        let end = eventually("its exit to be recorded", EXIT_RECORD_TIMEOUT, async || {
            let ends = self.exits().await?;
            let end = ends.into_iter().rfind(|end| end.name == name && end.pid == living.pid);
            end.with_context(|| format!("the exit of {name} is not recorded"))
        });
        let status = end.await?.status;
        ensure!(status == 0, "{name} was stopped and exited with {status} after {took:?}");
        Ok(took)
    }

    /// SIGKILL to all its processes. Returns when they are gone, and false if none ran.
    ///
    /// # Errors
    /// If a process survives.
    pub async fn kill(&self, name: &str) -> Result<bool> {
        let component = self.component(name)?;
        if let Some(compose) = &self.compose {
            return compose.kill(&component).await;
        }
        let _lock = self.lock_component(&component).await?;
        let process = self.process(&component);
        let was_there = !process.all_processes().is_empty();
        process.kill_all()?;
        Ok(was_there)
    }

    /// Whether its first process lives, even if it is frozen or not ready.
    ///
    /// # Errors
    /// If docker cannot be asked.
    pub async fn is_running(&self, name: &str) -> Result<bool> {
        match &self.compose {
            Some(compose) => compose.is_running(&self.component(name)?).await,
            None => Ok(self.main_process(name)?.is_some()),
        }
    }

    /// The first process of a component of the native stack, if it lives.
    pub fn main_process(&self, name: &str) -> Result<Option<ProcessIdentity>> {
        Ok(self.process(&self.component(name)?).running())
    }

    /// Kills the component and deletes its data: its next start begins with none.
    ///
    /// # Errors
    /// If the stack is not native, a process survives, or there is no data or it cannot be deleted.
    pub async fn wipe(&self, name: &str) -> Result<()> {
        ensure!(self.is_native(), "only a component of the native stack can lose its data");
        self.kill(name).await?;
        let component = self.component(name)?;
        let data = self.process(&component).home.join(component.data);
        ensure!(data.exists(), "{name} has no data in {}", data.display());
        remove_directory(&data)
    }

    pub(crate) async fn stop_component(&self, component: &Component) -> Result<StopOutcome> {
        let _lock = self.lock_component(component).await?;
        let process = self.process(component);
        let Some(living) = process.running() else {
            process.kill_all()?;
            return Ok(StopOutcome::NotRunning);
        };
        let begun = Instant::now();
        process.record_planned_exit(ExitCause::Stop)?;
        send_signal(component.stop_signal, &[living])?;
        send_signal(Signal::CONT, &process.all_processes())?;
        let by_itself = living.wait_for_exit(STOP_TIMEOUT).await;
        process.kill_all()?;
        Ok(if by_itself { StopOutcome::Graceful(begun.elapsed()) } else { StopOutcome::Killed })
    }

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
        send_signal(signal, &[living])?;
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
        send_signal(signal, &[living])?;
        send_signal(signal, &process.all_processes())
    }
}
