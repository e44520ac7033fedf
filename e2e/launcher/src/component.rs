//! One component of the stack, by its name, such as `kafka`, `registry` or a service: start, stop and
//! kill.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::Instant;

use crate::artifacts::Artifacts;
use crate::class_archives::class_archive_mode;
use crate::connect_worker;
use crate::directories::{
    create_closed_directory, create_public_directory, lock_file, programs_directory,
};
use crate::eventually::eventually;
use crate::exit_journal::ExitCause;
use crate::java::java_options;
use crate::kafka_config;
use crate::launch_config;
use crate::maven_project;
use crate::proc_fs::ProcessIdentity;
use crate::process::{self, Process, Signal};
use crate::provision;
use crate::readiness::{wait_for_free_ports, wait_until_ready};
use crate::stack::Stack;
use crate::status::{STOP_TIMEOUT, StopOutcome};
use crate::topology::Component;

/// How long the supervisor of a process may take to record its exit.
const EXIT_RECORD_TIMEOUT: Duration = Duration::from_secs(5);

impl Stack {
    /// Starts the component unless it runs, and returns when it is ready. A new instance, such as
    /// the second of a service, gets free ports. A paused component is resumed. A service is not
    /// migrated: [`Stack::up`] and [`Stack::migrate`] do that.
    ///
    /// # Errors
    /// If it exits during its start, with the end of its log, or is not ready after two minutes.
    pub async fn start(&self, name: &str) -> Result<()> {
        let component = self.component(name)?;
        if let Some(compose) = &self.compose {
            return compose.start(&component).await;
        }
        if !matches!(component, Component::Service { .. })
            || self.state()?.instance_ports(name).is_ok()
        {
            return self.start_component(&component).await;
        }
        let ports = self.state()?.ports_for_new_instance(&component)?;
        self.update_state(|stack_state| {
            stack_state.instances.insert(name.to_string(), ports);
        })?;
        let started = self.start_component(&component).await;
        if started.is_err() {
            self.remove(name).await?;
        }
        self.refresh_console().await.and(started)
    }

    /// Stops a further instance of a service and forgets its ports.
    ///
    /// # Errors
    /// If it cannot be stopped.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.stop(name).await?;
        self.update_state(|stack_state| {
            stack_state.instances.remove(name);
        })?;
        self.refresh_console().await
    }

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
    ///
    /// # Errors
    /// If the stack has no such component.
    pub fn main_process(&self, name: &str) -> Result<Option<ProcessIdentity>> {
        Ok(self.process(&self.component(name)?).running())
    }

    pub(crate) async fn start_component(&self, component: &Component) -> Result<()> {
        let begun = Instant::now();
        let process = self.process(component);
        let log_from = process.log_length();
        let (started, identity) = {
            let _lock = self.lock_component(component).await?;
            match process.running() {
                Some(living) => (false, living),
                None => {
                    process.kill_all()?;
                    (true, self.launch(component, &process).await?)
                }
            }
        };
        if identity.is_paused() {
            self.resume(&component.to_string()).await?;
        }
        let progress = |line: &str| self.print_progress(line);
        wait_until_ready(&self.state()?, component, &process, (identity, log_from), &progress)
            .await?;
        if let Component::Database(service) = component {
            provision::create_roles(&self.state()?, service, service).await?;
            if self.state()?.connect {
                provision::create_connector_role(&self.state()?, service).await?;
            }
        }
        if started {
            self.print_progress(&format!(
                "{component} is ready ({:.1} s)",
                begun.elapsed().as_secs_f64()
            ));
        }
        Ok(())
    }

    async fn launch(&self, component: &Component, process: &Process) -> Result<ProcessIdentity> {
        let stack_state = self.state()?;
        wait_for_free_ports(&stack_state, std::slice::from_ref(component), |component| {
            self.process(component)
        })
        .await?;
        create_home(component, &process.home)?;
        let launch = match component {
            Component::Database(service) => {
                let artifacts = self.artifacts().await?;
                provision::provision_postgres(&artifacts, &stack_state, process, service).await?;
                launch_config::postgres(&artifacts, &process.home, &stack_state, service)?
            }
            Component::Kafka => {
                let artifacts = self.artifacts().await?;
                provision::provision_java(&process.home)?;
                provision::provision_kafka(&artifacts, &stack_state, process).await?;
                let archive = artifacts.class_archive("kafka", &java_options("KAFKA_JAVA_OPTS"));
                kafka_config::kafka(
                    &artifacts,
                    &process.home,
                    class_archive_mode(&archive),
                    &archive,
                )
            }
            Component::Registry => {
                let artifacts = self.artifacts().await?;
                provision::provision_java(&process.home)?;
                let archive =
                    artifacts.class_archive("registry", &java_options("REGISTRY_JAVA_OPTS"));
                launch_config::registry(
                    &artifacts,
                    &process.home,
                    &stack_state,
                    class_archive_mode(&archive),
                    &archive,
                )?
            }
            Component::Console => {
                let (programs, name) = (programs_directory()?, "console");
                let launch =
                    launch_config::service(&programs, name, "serve", &stack_state, component)?;
                self.note_console_settings(&launch)?;
                launch
            }
            Component::Connect => connect_worker::prepare(self, process, &stack_state).await?,
            Component::Streams(name) => {
                let environment = stack_state.environment_of(component)?;
                maven_project::launch_command(self, name, &process.home, environment).await?
            }
            Component::Service { service, .. } => {
                let programs = stack_state.programs_of(component)?;
                launch_config::service(&programs, service, "serve", &stack_state, component)?
            }
        };
        process.spawn(&launch).await
    }

    pub(crate) async fn stop_component(&self, component: &Component) -> Result<StopOutcome> {
        let _lock = self.lock_component(component).await?;
        let process = self.process(component);
        let Some(living) = process.running() else {
            process.kill_all()?;
            return Ok(StopOutcome::NotRunning);
        };
        let begun = Instant::now();
        // On SIGTERM PostgreSQL waits for its clients to disconnect (a smart shutdown).
        let graceful =
            if matches!(component, Component::Database(_)) { Signal::INT } else { Signal::TERM };
        process.record_planned_exit(ExitCause::Stop)?;
        process::send_signal(graceful, &[living])?;
        process::send_signal(Signal::CONT, &process.all_processes())?;
        let by_itself = living.wait_for_exit(STOP_TIMEOUT).await;
        process.kill_all()?;
        Ok(if by_itself { StopOutcome::Graceful(begun.elapsed()) } else { StopOutcome::Killed })
    }

    pub(crate) async fn lock_component(&self, component: &Component) -> Result<File> {
        let path = self.directory().join("run").join(format!("{component}.lock"));
        lock_file(&path, &|| {
            self.print_progress(&format!(
                "waiting for another launcher that works on {component} …"
            ))
        })
        .await
    }

    pub(crate) async fn artifacts(&self) -> Result<Artifacts> {
        Artifacts::fetch_missing(&|line| eprintln!("{line}")).await
    }
}

/// Creates the directory of a component. Only a database runs as another user if this one is root.
fn create_home(component: &Component, home: &Path) -> Result<()> {
    match component {
        Component::Database(_) => create_public_directory(home),
        _ => create_closed_directory(home),
    }
}
