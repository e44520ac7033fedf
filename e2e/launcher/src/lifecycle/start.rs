//! Starts one component of any kind.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

use crate::component::{Component, Context, Stage};
use crate::components::service::ports_of_instance;
use crate::directories::{create_closed_directory, create_public_directory, lock_file};
use crate::processes::Process;
use crate::processes::proc_fs::ProcessIdentity;
use crate::readiness::{Readiness, wait_for_free_ports, wait_until_ready};
use crate::stack::Stack;

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
        let is_known = component.stage != Stage::Service || self.state()?.ports.get(name).is_ok();
        if is_known {
            return self.start_component(&component).await;
        }
        self.add_instance(name)?;
        let started = self.start_component(&component).await;
        if started.is_err() {
            self.remove(name).await?;
        }
        self.refresh_console().await.and(started)
    }

    /// Gives ports to a further instance of a service.
    pub(crate) fn add_instance(&self, name: &str) -> Result<()> {
        let (service, instance) = name.split_once('-').context("no further instance")?;
        let ports = ports_of_instance(&self.state()?, service, instance.parse()?)?;
        self.update_state(|state| {
            state.instances.insert(name.to_string());
            state.ports.extend(ports);
        })
    }

    /// Stops a further instance of a service and forgets its ports.
    ///
    /// # Errors
    /// If it cannot be stopped.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.stop(name).await?;
        let ports = self.component(name)?.listens_on(&self.state()?.ports);
        self.update_state(|state| {
            if state.instances.remove(name) {
                state.ports.retain(|port| !ports.iter().any(|own| own == port));
            }
        })?;
        self.refresh_console().await
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
            self.resume(&component.name).await?;
        }
        let state = self.state()?;
        let progress = |line: &str| self.print_progress(line);
        let readiness = Readiness::new(&state)?;
        wait_until_ready(&readiness, component, &process, (identity, log_from), &progress).await?;
        component.kind.complete(&state).await?;
        if started {
            let seconds = begun.elapsed().as_secs_f64();
            self.print_progress(&format!("{component} is ready ({seconds:.1} s)"));
        }
        Ok(())
    }

    async fn launch(&self, component: &Component, process: &Process) -> Result<ProcessIdentity> {
        let state = self.state()?;
        wait_for_free_ports(&state, &[(component.clone(), process.clone())]).await?;
        create_home(component, &process.home)?;
        let description = self.description();
        let context = Context { description, state: &state, process, archives_classes: false };
        process.spawn(&component.command(&context).await?).await
    }

    /// Stops those of these components that run and have to start again.
    pub(crate) async fn stop_outdated(&self, components: &[Component]) -> Result<()> {
        for component in components {
            let (state, process) = (self.state()?, self.process(component));
            if process.running().is_none() {
                continue;
            }
            let description = self.description();
            let context =
                Context { description, state: &state, process: &process, archives_classes: false };
            if let Some(reason) = component.kind.outdated(&context).await? {
                self.print_progress(&format!("{component} {reason}: restarting it …"));
                self.stop_component(component).await?;
            }
        }
        Ok(())
    }

    /// Starts the control room again if it runs and does not know an instance, or knows one too many.
    pub(crate) async fn refresh_console(&self) -> Result<()> {
        let mut components = self.components();
        components.retain(|it| it.stage == Stage::Console && self.process(it).running().is_some());
        self.stop_outdated(&components).await?;
        for component in &components {
            self.start_component(component).await?;
        }
        Ok(())
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
}

/// Creates the working directory of a component. That of another user must be open to it.
pub fn create_home(component: &Component, home: &Path) -> Result<()> {
    if component.has_own_user {
        create_public_directory(home)
    } else {
        create_closed_directory(home)
    }
}
