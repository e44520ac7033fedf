//! One member of the stack, by its name: `order`, `order-2`, `kafka`, `registry`, `order-db`.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, sleep};

use crate::ends::Cause;
use crate::parts::{self, Parts, create_open_directory};
use crate::preparation::{self, use_if_there};
use crate::process::{self, Identity, Launch, Process, Signal};
use crate::readiness::answers;
use crate::settings;
use crate::stack::{Stack, programs};
use crate::topology::{HOST, Member};
use crate::wait::eventually;

pub const READY_WITHIN: Duration = Duration::from_secs(120);
pub const STOP_WITHIN: Duration = Duration::from_secs(30);
/// How long its supervisor may take to write down how it ended.
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
const PORT_FREE_WITHIN: Duration = Duration::from_secs(3);
const MIGRATE_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// How a graceful stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    WasNotRunning,
    /// It ended by itself after this long.
    Gracefully(Duration),
    /// It had to be killed when its time was up.
    Killed,
}

/// What can be done with it.
impl Stack {
    /// Starts it unless it runs, and returns when it is ready. An instance that is not known yet,
    /// such as `order-2`, is given free ports.
    pub async fn start(&self, name: &str) -> Result<()> {
        let member: Member = name.parse()?;
        if let Some(compose) = &self.compose {
            return compose.start(&member).await;
        }
        if !matches!(member, Member::Service { .. }) || self.layout()?.of_instance(name).is_ok() {
            return self.start_member(&member).await;
        }
        let ports = self.layout()?.ports_for(&member)?;
        self.change(|layout| {
            layout.instances.insert(name.to_string(), ports);
        })?;
        let started = self.start_member(&member).await;
        if started.is_err() {
            self.remove(name).await?;
        }
        started
    }

    /// Stops a further instance of a service and forgets its ports.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.stop(name).await?;
        self.change(|layout| {
            layout.instances.remove(name);
        })
    }

    /// Asks it to stop, and kills it when its time is up.
    pub async fn stop(&self, name: &str) -> Result<Stopped> {
        match &self.compose {
            Some(compose) => compose.stop(&name.parse()?).await,
            None => self.stop_member(&name.parse()?).await,
        }
    }

    /// Stops a member that has to end by itself, in time, and say that all is well.
    pub async fn stop_well(&self, name: &str) -> Result<Duration> {
        let living = self.process(&name.parse()?).living();
        let living = living.with_context(|| format!("{name} does not run"))?;
        let stopped = self.stop(name).await?;
        let Stopped::Gracefully(took) = stopped else {
            bail!("{name} was stopped: {stopped:?}");
        };
        // Its supervisor writes that down a moment later.
        let end = eventually("its end to be written down", WRITTEN_WITHIN, async || {
            let ends = self.ends().await?;
            let end = ends.into_iter().rfind(|end| end.name == name && end.pid == living.pid);
            end.with_context(|| format!("nothing is written of the end of {name}"))
        });
        let status = end.await?.status;
        ensure!(status == 0, "{name} was stopped and ended with {status} after {took:?}");
        Ok(took)
    }

    /// SIGKILL to all its processes. Returns when they are gone; false if none was there.
    pub async fn kill(&self, name: &str) -> Result<bool> {
        let member = name.parse()?;
        if let Some(compose) = &self.compose {
            return compose.kill(&member).await;
        }
        let _lock = self.lock(&member).await?;
        let process = self.process(&member);
        let was_there = !process.family().is_empty();
        process.kill_family()?;
        Ok(was_there)
    }

    /// SIGKILL to the first of its processes alone: its children are left to notice.
    pub async fn kill_first(&self, name: &str) -> Result<()> {
        self.end_first(name, Signal::Kill, Cause::Kill).await
    }

    /// What PostgreSQL calls an immediate stop: without a checkpoint, and so with a recovery at the
    /// next start.
    pub async fn stop_at_once(&self, name: &str) -> Result<()> {
        self.end_first(name, Signal::Quit, Cause::Stop).await
    }

    async fn end_first(&self, name: &str, signal: Signal, cause: Cause) -> Result<()> {
        ensure!(self.is_native(), "single processes are reached on the native stack only");
        let member = name.parse()?;
        let _lock = self.lock(&member).await?;
        let process = self.process(&member);
        let living = process.living().with_context(|| format!("{name} does not run"))?;
        process.announce_end(cause)?;
        process::send(signal, &[living])?;
        ensure!(living.ended(STOP_WITHIN).await, "{name} survives {signal:?}");
        Ok(())
    }

    /// Freezes all its processes.
    pub async fn pause(&self, name: &str) -> Result<()> {
        match &self.compose {
            Some(compose) => compose.freeze(&name.parse()?, true).await,
            None => self.signal_family(name, Signal::Stop),
        }
    }

    pub async fn resume(&self, name: &str) -> Result<()> {
        match &self.compose {
            Some(compose) => compose.freeze(&name.parse()?, false).await,
            None => self.signal_family(name, Signal::Continue),
        }
    }

    pub async fn is_running(&self, name: &str) -> Result<bool> {
        match &self.compose {
            Some(compose) => compose.is_running(&name.parse()?).await,
            None => Ok(self.process(&name.parse()?).living().is_some()),
        }
    }

    pub(crate) fn process(&self, member: &Member) -> Process {
        let name = member.to_string();
        let program = match member {
            Member::Database(_) => "postgres",
            Member::Kafka | Member::Registry => "java",
            Member::Service { service, .. } => service,
        };
        Process {
            home: self.directory().join(&name),
            program: program.to_string(),
            log: self.directory().join("log").join(format!("{name}.log")),
            pid_file: self.directory().join("run").join(format!("{name}.pid")),
            journal: self.journal(),
            name,
        }
    }

    fn signal_family(&self, name: &str, signal: Signal) -> Result<()> {
        let process = self.process(&name.parse()?);
        let living = process.living().with_context(|| format!("{name} does not run"))?;
        // The first of the family first, so that it starts no child that is missed.
        process::send(signal, &[living])?;
        process::send(signal, &process.family())
    }

    pub(crate) async fn start_member(&self, member: &Member) -> Result<()> {
        let begun = Instant::now();
        let process = self.process(member);
        let log_from = process.log_length();
        let (started, identity) = {
            let _lock = self.lock(member).await?;
            match process.living() {
                Some(living) => (false, living),
                None => {
                    process.kill_family()?;
                    (true, self.launch(member, &process).await?)
                }
            }
        };
        if identity.is_paused() {
            self.resume(&member.to_string()).await?;
        }
        self.ready(member, identity, log_from).await?;
        if let Member::Database(service) = member {
            preparation::make_roles(&self.layout()?, service).await?;
        }
        if started {
            self.say(&format!("{member} is ready ({:.1} s)", begun.elapsed().as_secs_f64()));
        }
        Ok(())
    }

    async fn launch(&self, member: &Member, process: &Process) -> Result<Identity> {
        let layout = self.layout()?;
        self.claim_ports(std::slice::from_ref(member)).await?;
        create_open_directory(&process.home)?;
        let launch = match member {
            Member::Database(service) => {
                let parts = self.parts().await?;
                preparation::prepare_postgres(&parts, process).await?;
                settings::postgres(&parts, &process.home, &layout, service)?
            }
            Member::Kafka => {
                let parts = self.parts().await?;
                preparation::prepare_java(&process.home)?;
                preparation::prepare_kafka(&parts, &layout, process).await?;
                let archive =
                    parts.class_archive("kafka", &settings::java_options("KAFKA_JAVA_OPTS"));
                settings::kafka(&parts, &process.home, use_if_there(&archive), &archive)
            }
            Member::Registry => {
                let parts = self.parts().await?;
                preparation::prepare_java(&process.home)?;
                let archive =
                    parts.class_archive("registry", &settings::java_options("REGISTRY_JAVA_OPTS"));
                let port = layout.ports.registry;
                settings::registry(&parts, &process.home, port, use_if_there(&archive), &archive)
            }
            Member::Service { service, .. } => {
                let own = layout.programs.get(&member.to_string()).cloned();
                let programs = own.map_or_else(programs, Ok)?;
                settings::service(&programs, service, "serve", &layout, member)?
            }
        };
        process.spawn(&launch).await
    }

    pub(crate) async fn stop_member(&self, member: &Member) -> Result<Stopped> {
        let _lock = self.lock(member).await?;
        let process = self.process(member);
        let Some(living) = process.living() else {
            process.kill_family()?;
            return Ok(Stopped::WasNotRunning);
        };
        let begun = Instant::now();
        // What PostgreSQL calls smart, on SIGTERM, waits for its clients to go.
        let graceful =
            if matches!(member, Member::Database(_)) { Signal::Int } else { Signal::Term };
        process.announce_end(Cause::Stop)?;
        process::send(graceful, &[living])?;
        process::send(Signal::Continue, &process.family())?;
        let by_itself = living.ended(STOP_WITHIN).await;
        process.kill_family()?;
        Ok(if by_itself { Stopped::Gracefully(begun.elapsed()) } else { Stopped::Killed })
    }

    /// Migrates a service's database, as `up` does.
    pub async fn migrate_own(&self, service: &str) -> Result<()> {
        self.migrate(&programs()?, service).await
    }

    /// Migrates it with the programs in this directory.
    pub async fn migrate(&self, programs: &Path, service: &str) -> Result<()> {
        let member = Member::service(service);
        let launch = settings::service(programs, service, "migrate", &self.layout()?, &member)?;
        self.run_to_end(&format!("{service} migrate"), &launch, service).await
    }

    pub(crate) async fn run_to_end(
        &self,
        what: &str,
        launch: &Launch,
        log_name: &str,
    ) -> Result<()> {
        let log = self.directory().join("log").join(format!("{log_name}.log"));
        let process = Process { log: log.clone(), ..self.process(&Member::Kafka) };
        let from = process.log_length();
        let succeeded = launch.run(self.directory(), &log, MIGRATE_WITHIN).await?;
        ensure!(
            succeeded,
            "`{what}` failed; {} ends with:\n{}",
            log.display(),
            process.log_tail(from)
        );
        Ok(())
    }

    async fn lock(&self, member: &Member) -> Result<File> {
        let path = self.directory().join("run").join(format!("{member}.lock"));
        parts::lock(&path, &|| {
            self.say(&format!("waiting for another launcher, busy with {member} …"))
        })
        .await
    }

    pub(crate) async fn parts(&self) -> Result<Parts> {
        Parts::obtain(&|line| eprintln!("{line}")).await
    }

    /// Makes sure that nobody else listens where members that do not run yet will listen. Waits a
    /// little: a client that keeps asking for a dead server can for a moment be given its very port.
    pub(crate) async fn claim_ports(&self, members: &[Member]) -> Result<()> {
        let layout = self.layout()?;
        let deadline = Instant::now() + PORT_FREE_WITHIN;
        for member in members {
            if self.process(member).living().is_some() {
                continue;
            }
            // What no pid file names must not be taken for a stranger.
            self.process(member).kill_family()?;
            for (port, moved_by) in layout.listens_on(member)? {
                while let Err(error) = TcpListener::bind((HOST, port)) {
                    if Instant::now() > deadline {
                        let set = moved_by
                            .map_or(String::new(), |set| format!("set {set} to move it, or "));
                        bail!(
                            "{member} cannot have port {port} ({error}): {set}stop the program that uses it"
                        );
                    }
                    sleep(POLL).await;
                }
            }
        }
        Ok(())
    }
}

/// Readiness.
impl Stack {
    pub(crate) async fn ready(
        &self,
        member: &Member,
        identity: Identity,
        log_from: u64,
    ) -> Result<()> {
        let layout = self.layout()?;
        let process = self.process(member);
        let begun = Instant::now();
        let mut said = begun;
        while !answers(&layout, member).await {
            if !identity.lives() {
                bail!(
                    "{member} ended while it started; {} ends with:\n{}",
                    process.log.display(),
                    process.log_tail(log_from)
                );
            }
            if begun.elapsed() > READY_WITHIN {
                bail!(
                    "{member} was not ready after {} s; {} ends with:\n{}",
                    READY_WITHIN.as_secs(),
                    process.log.display(),
                    process.log_tail(log_from)
                );
            }
            if said.elapsed() > PROGRESS_EVERY {
                said = Instant::now();
                self.say(&format!(
                    "{member} is starting ({:.0} s) …",
                    begun.elapsed().as_secs_f64()
                ));
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}
