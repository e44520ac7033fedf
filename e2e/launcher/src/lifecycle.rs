//! The stack as a whole: start, stop and status.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join_all};

use crate::class_archives::create_class_archives;
use crate::directories::programs_directory;
use crate::exit_journal::Exit;
use crate::launch_config;
use crate::proc_fs::ProcessIdentity;
use crate::process::{LaunchCommand, Process};
use crate::provision;
use crate::readiness::{is_ready, wait_for_free_ports};
use crate::stack::Stack;
use crate::stack_state::StackState;
use crate::status::{ComponentState, ComponentStatus, STOP_TIMEOUT, StopOutcome};
use crate::topology::Component;

const MIGRATION_TIMEOUT: Duration = Duration::from_secs(120);

impl Stack {
    /// Starts what does not run: the infrastructure, then the services, Kafka Connect, stream processors and the control
    /// room. In between it applies the contracts, and migrates each service whose first instance does not run. Returns
    /// when all are ready.
    ///
    /// # Errors
    /// If a port is taken, a migration or the contracts fail, or a component exits during its start
    /// or is not ready after two minutes.
    pub async fn up(&self) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.up().await;
        }
        let programs = self.state()?.all_programs.map_or_else(programs_directory, Ok)?;
        let services: Vec<Component> = self
            .components()
            .into_iter()
            .filter(|component| matches!(component, Component::Service { .. }))
            .collect();
        wait_for_free_ports(&self.state()?, &self.components(), |of| self.process(of)).await?;
        if provision::kafka_config_changed(&self.state()?, &self.process(&Component::Kafka))? {
            self.print_progress("Kafka's settings have changed: restarting it …");
            self.stop_component(&Component::Kafka).await?;
        }
        self.start_infrastructure().await?;

        let idle: Vec<&Component> = services
            .iter()
            .filter(|component| self.process(component).running().is_none())
            .collect();
        let migrations = self
            .description()
            .services
            .iter()
            .filter(|service| {
                idle.iter().any(|component| **component == Component::service(service))
            })
            .map(|service| self.migrate_with(&programs, service));
        tokio::try_join!(self.apply_contracts(&programs), try_join_all(migrations))?;
        try_join_all(services.iter().map(|component| self.start_component(component))).await?;
        let flows = self.components().into_iter();
        let flows: Vec<Component> = flows
            .filter(|component| matches!(component, Component::Connect | Component::Streams(_)))
            .collect();
        try_join_all(flows.iter().map(|component| self.start_component(component))).await?;
        if self.description().console {
            self.refresh_console().await?;
            self.start_component(&Component::Console).await?;
        }
        Ok(())
    }

    /// Starts the databases, Kafka and the registry only.
    ///
    /// # Errors
    /// If a port is taken, or a component exits during its start or is not ready after two minutes.
    pub async fn up_infrastructure(&self) -> Result<()> {
        let infrastructure = self.description().infrastructure();
        wait_for_free_ports(&self.state()?, &infrastructure, |of| self.process(of)).await?;
        self.start_infrastructure().await
    }

    /// Applies topics and schemas, as `up` does, with the program in this directory. Does nothing if
    /// the description names no program for it.
    ///
    /// # Errors
    /// If there is no such program, or it fails; the error has the end of its log.
    pub async fn apply_contracts(&self, programs: &Path) -> Result<()> {
        let Some(name) = &self.description().contracts_program else { return Ok(()) };
        if let Some(compose) = &self.compose {
            return compose.apply_contracts(name).await;
        }
        let mut launch = LaunchCommand { program: programs.join(name), ..LaunchCommand::default() };
        ensure!(launch.program.is_file(), "there is no program {}", launch.program.display());
        launch.arguments.push("apply".to_string());
        launch.environment = self.environment_of_contracts()?;
        self.run_command(&format!("{name} apply"), &launch, name).await
    }

    /// The variables with which [`Stack::apply_contracts`] runs its program.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn environment_of_contracts(&self) -> Result<Vec<(String, String)>> {
        let state = self.state()?;
        let mut environment = vec![
            ("KAFKA_BOOTSTRAP_SERVERS".to_string(), self.kafka_bootstrap()?),
            ("SCHEMA_REGISTRY_URL".to_string(), self.registry_url()?),
            ("STACK_NAME".to_string(), self.name()?),
        ];
        environment.extend(state.credentials_of_contracts()?);
        let copies = state.replication_factor;
        let copies = copies.map(|copies| ("REPLICATION_FACTOR".to_string(), copies.to_string()));
        environment.extend(copies);
        Ok(environment)
    }

    /// Stops everything and keeps all data. Nothing of the stack runs afterwards.
    ///
    /// # Errors
    /// If a process survives SIGKILL.
    pub async fn down(&self) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.down().await;
        }
        let components = self.components();
        let (services, infrastructure): (Vec<_>, Vec<_>) =
            components.iter().partition(|component| {
                matches!(
                    component,
                    Component::Service { .. }
                        | Component::Console
                        | Component::Connect
                        | Component::Streams(_)
                )
            });
        for group in [services, infrastructure] {
            for (component, stopped) in group
                .iter()
                .zip(join_all(group.iter().map(|component| self.stop_component(component))).await)
            {
                if stopped? == StopOutcome::Killed {
                    self.print_progress(&format!(
                        "{component} did not stop in {STOP_TIMEOUT:?} and was killed"
                    ));
                }
            }
        }
        self.kill_all()
    }

    /// Migrates a service's database, as `up` does.
    ///
    /// # Errors
    /// If the migration fails or takes more than two minutes; the error has the end of its log.
    pub async fn migrate(&self, service: &str) -> Result<()> {
        self.migrate_with(&programs_directory()?, service).await
    }

    /// Migrates a service's database with the programs in this directory.
    ///
    /// # Errors
    /// As [`Stack::migrate`].
    pub async fn migrate_with(&self, programs: &Path, service: &str) -> Result<()> {
        let component = Component::service(service);
        let launch =
            launch_config::service(programs, service, "migrate", &self.state()?, &component)?;
        self.run_command(&format!("{service} migrate"), &launch, service).await
    }

    /// Runs a further command of a service's program, with the environment of `migrate` and this standard input, and
    /// returns its standard output. Nothing of either is logged.
    ///
    /// # Errors
    /// If another system manages the stack, or the command fails; the error has what it wrote to standard error.
    pub async fn run_service_command(
        &self,
        service: &str,
        command: &str,
        input: &str,
    ) -> Result<String> {
        ensure!(self.is_native(), "only the programs of a native stack can be run from here");
        let component = Component::service(service);
        let programs = programs_directory()?;
        let launch =
            launch_config::service(&programs, service, command, &self.state()?, &component)?;
        let output = launch.run_with_input(self.directory(), input).await;
        output.with_context(|| format!("`{service} {command}` failed"))
    }

    async fn run_command(&self, what: &str, launch: &LaunchCommand, log_name: &str) -> Result<()> {
        let log = self.directory().join("log").join(format!("{log_name}.log"));
        let process = Process { log: log.clone(), ..self.process(&Component::Kafka) };
        let from = process.log_length();
        let succeeded = launch.run(self.directory(), &log, MIGRATION_TIMEOUT).await?;
        ensure!(
            succeeded,
            "`{what}` failed; {} ends with:\n{}",
            log.display(),
            process.log_tail(from)
        );
        Ok(())
    }

    /// The status of every component.
    ///
    /// # Errors
    /// If the stack was deleted, or docker cannot be asked.
    pub async fn status(&self) -> Result<Vec<ComponentStatus>> {
        let stack_state = self.state()?;
        if let Some(compose) = &self.compose {
            let components = stack_state.components(self.description());
            return try_join_all(components.iter().map(|component| compose.status_of(component)))
                .await;
        }
        let components = stack_state.components(self.description());
        let ends = self.exits().await?;
        join_all(components.iter().map(|component| self.status_of(&stack_state, component, &ends)))
            .await
            .into_iter()
            .collect()
    }

    /// The processor time that the living processes of each native component have used, by its name.
    pub fn cpu_times(&self) -> Vec<(String, Duration)> {
        let taken = |component: &Component| {
            self.process(component).all_processes().iter().map(ProcessIdentity::cpu_time).sum()
        };
        self.components()
            .iter()
            .map(|component| (component.to_string(), taken(component)))
            .collect()
    }

    /// The memory of a native component, in bytes: its own, and its share of what it shares with
    /// others.
    ///
    /// # Errors
    /// If the stack has no such component.
    pub fn memory_bytes(&self, name: &str) -> Result<u64> {
        let family = self.process(&self.component(name)?).all_processes();
        Ok(family.iter().map(ProcessIdentity::memory_bytes).sum())
    }

    async fn status_of(
        &self,
        stack_state: &StackState,
        component: &Component,
        ends: &[Exit],
    ) -> Result<ComponentStatus> {
        let name = component.to_string();
        let process = self.process(component);
        let living = process.running();
        let state = match living {
            None => ComponentState::Stopped,
            Some(living) if living.is_paused() => ComponentState::Paused,
            Some(_) if is_ready(stack_state, component).await => ComponentState::Ready,
            Some(_) => ComponentState::Starting,
        };
        Ok(ComponentStatus {
            last_exit: ends.iter().rfind(|end| end.name == name).cloned(),
            name,
            pid: living.map(|living| living.pid),
            port: stack_state.listening_ports(component)?.first().map_or(0, |(port, _)| *port),
            state,
            memory_bytes: self.memory_bytes(&component.to_string())?,
            uptime: living.map_or(Duration::ZERO, |living| living.uptime()),
        })
    }

    /// The databases of a stack that got Kafka Connect while they ran have to start again.
    async fn stop_databases_without_logical_log(&self) -> Result<()> {
        let state = self.state()?;
        for service in self.description().services.iter().filter(|_| state.connect) {
            let database = Component::Database(service.clone());
            let runs = self.process(&database).running().is_some();
            if runs && !provision::has_logical_log(&state, service).await? {
                self.print_progress(&format!(
                    "{database} needs a log for connectors: restarting it …"
                ));
                self.stop_component(&database).await?;
            }
        }
        Ok(())
    }

    async fn start_infrastructure(&self) -> Result<()> {
        let artifacts = self.artifacts().await?;
        create_class_archives(self.description(), &artifacts).await;
        self.stop_databases_without_logical_log().await?;
        let components = self.description().infrastructure();
        try_join_all(components.iter().map(|component| self.start_component(component))).await?;
        Ok(())
    }
}
