//! The stack as a whole: start, stop and status. The life cycle knows no component by its name: what differs is in the
//! value of each.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join_all};

use crate::artifacts;
use crate::component::{Component, Stage};
use crate::components::service::program;
use crate::description::instance_name;
use crate::directories::programs_directory;
use crate::lifecycle::class_archives::create_class_archives;
use crate::processes::exit_journal::Exit;
use crate::processes::proc_fs::ProcessIdentity;
use crate::processes::{LaunchCommand, Process, Variables, variables};
use crate::readiness::{Readiness, wait_for_free_ports};
use crate::stack::Stack;
use crate::status::{ComponentState, ComponentStatus, STOP_TIMEOUT, StopOutcome};

mod class_archives;
mod start;
mod stop;

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
        let components = self.components();
        self.wait_for_ports_of(&components).await?;
        self.start_infrastructure().await?;

        let services = self.description().services.iter();
        let idle = services.filter(|service| matches!(self.main_process(service), Ok(None)));
        let migrations = idle.map(|service| self.migrate_with(&programs, service));
        tokio::try_join!(self.apply_contracts(&programs), try_join_all(migrations))?;
        for stage in [Stage::Service, Stage::Flow, Stage::Console] {
            let group: Vec<Component> =
                components.iter().filter(|component| component.stage == stage).cloned().collect();
            self.stop_outdated(&group).await?;
            try_join_all(group.iter().map(|component| self.start_component(component))).await?;
        }
        Ok(())
    }

    /// Starts the databases, Kafka and the registry only.
    ///
    /// # Errors
    /// If a port is taken, or a component exits during its start or is not ready after two minutes.
    pub async fn up_infrastructure(&self) -> Result<()> {
        self.wait_for_ports_of(&self.description().infrastructure()).await?;
        self.start_infrastructure().await
    }

    async fn wait_for_ports_of(&self, components: &[Component]) -> Result<()> {
        let process = |component: &Component| (component.clone(), self.process(component));
        let processes: Vec<_> = components.iter().map(process).collect();
        wait_for_free_ports(&self.state()?, &processes).await
    }

    async fn start_infrastructure(&self) -> Result<()> {
        create_class_archives(self.description(), &artifacts::fetched().await?).await?;
        let components = self.description().infrastructure();
        self.stop_outdated(&components).await?;
        try_join_all(components.iter().map(|component| self.start_component(component))).await?;
        Ok(())
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
        let mut command = program(programs, name, "apply")?;
        command.environment = self.environment_of_contracts()?;
        self.run_command(&format!("{name} apply"), &command, name).await
    }

    /// The variables with which [`Stack::apply_contracts`] runs its program.
    pub fn environment_of_contracts(&self) -> Result<Variables> {
        let state = self.state()?;
        let mut own = variables([
            ("KAFKA_BOOTSTRAP_SERVERS", self.kafka_bootstrap()?),
            ("SCHEMA_REGISTRY_URL", self.registry_url()?),
            ("STACK_NAME", self.name()?),
        ]);
        own.extend(state.credentials_of_contracts()?);
        let copies = state.replication_factor;
        own.extend(copies.map(|copies| ("REPLICATION_FACTOR".to_string(), copies.to_string())));
        Ok(own)
    }

    /// Stops everything and keeps all data. Nothing of the stack runs afterwards.
    ///
    /// # Errors
    /// If a process survives SIGKILL.
    pub async fn down(&self) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.down().await;
        }
        let is_infrastructure = |component: &Component| component.stage == Stage::Infrastructure;
        let (infrastructure, others): (Vec<_>, Vec<_>) =
            self.components().into_iter().partition(is_infrastructure);
        for group in [others, infrastructure] {
            let stopped = join_all(group.iter().map(|it| self.stop_component(it))).await;
            for (component, stopped) in group.iter().zip(stopped) {
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
        let command = self.service_command(programs, service, "migrate")?;
        self.run_command(&format!("{service} migrate"), &command, service).await
    }

    /// A command of a service's program with the variables of its first instance.
    fn service_command(&self, programs: &Path, service: &str, word: &str) -> Result<LaunchCommand> {
        let mut command = program(programs, service, word)?;
        command.environment =
            self.component(&instance_name(service, 1))?.variables(&self.state()?)?;
        Ok(command)
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
        let program = self.service_command(&programs_directory()?, service, command)?;
        let output = program.run_with_input(self.directory(), input).await;
        output.with_context(|| format!("`{service} {command}` failed"))
    }

    async fn run_command(&self, what: &str, command: &LaunchCommand, log: &str) -> Result<()> {
        let home = self.directory().to_path_buf();
        let process = Process { home, ..Process::new(self.directory(), log, "") };
        process.run(&format!("`{what}`"), command, MIGRATION_TIMEOUT).await
    }

    /// The status of every component.
    ///
    /// # Errors
    /// If the stack was deleted, or docker cannot be asked.
    pub async fn status(&self) -> Result<Vec<ComponentStatus>> {
        let components = self.components();
        if let Some(compose) = &self.compose {
            return try_join_all(components.iter().map(|it| compose.status_of(it))).await;
        }
        let (state, exits) = (self.state()?, self.exits().await?);
        let readiness = Readiness::new(&state)?;
        let status = components.iter().map(|it| self.status_of(it, &readiness, &exits));
        Ok(join_all(status).await)
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
    pub fn memory_bytes(&self, name: &str) -> Result<u64> {
        let family = self.process(&self.component(name)?).all_processes();
        Ok(family.iter().map(ProcessIdentity::memory_bytes).sum())
    }

    async fn status_of(
        &self,
        component: &Component,
        readiness: &Readiness<'_>,
        exits: &[Exit],
    ) -> ComponentStatus {
        let name = component.name.clone();
        let process = self.process(component);
        let living = process.running();
        let state = match living {
            None => ComponentState::Stopped,
            Some(living) if living.is_paused() => ComponentState::Paused,
            Some(_) if readiness.of(component).await => ComponentState::Ready,
            Some(_) => ComponentState::Starting,
        };
        ComponentStatus {
            last_exit: exits.iter().rfind(|exit| exit.name == name).cloned(),
            name,
            pid: living.map(|living| living.pid),
            port: readiness.client_port(component),
            state,
            memory_bytes: process.all_processes().iter().map(ProcessIdentity::memory_bytes).sum(),
            uptime: living.map_or(Duration::ZERO, |living| living.uptime()),
        }
    }
}
