//! The stack as a whole: one directory that holds every member's data, log and pid file.
//! Whatever is known about it is read from that directory and from `/proc`, so that any number of
//! launchers, tests and shells can work on one stack, and a launcher that crashed is not missed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::{join_all, try_join_all};
use sha2::{Digest, Sha256};

use crate::compose::Compose;
use crate::ends::{self, Cause, End};
use crate::member::{STOP_WITHIN, Stopped};
use crate::parts::{self, create_open_directory, is_root};
use crate::ports::Ports;
use crate::preparation;
use crate::process::{self, Identity, Launch};
use crate::readiness::answers;
use crate::topology::{HOST, Layout, Member, SERVICES};

#[derive(Debug)]
pub struct Stack {
    directory: PathBuf,
    quiet: bool,
    /// Kills everything and deletes the directory at the end of its life.
    ephemeral: bool,
    /// Where it is not native.
    pub(crate) compose: Option<Compose>,
}

#[derive(Clone, Debug)]
pub struct Status {
    pub name: String,
    pub pid: Option<u32>,
    /// Where clients reach it.
    pub port: u16,
    pub state: State,
    pub memory_bytes: u64,
    pub uptime: Duration,
    /// How it ended the last time.
    pub end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Stopped,
    Starting,
    Ready,
    Paused,
}

/// Tells tests where the stack lies that they share.
pub const TEST_STACK: &str = "HOLDFAST_TEST_STACK";

/// Which stack is meant and where it is.
impl Stack {
    /// The stack in `directory`, on these ports unless it already runs on others.
    pub fn at(directory: impl Into<PathBuf>, ports: Ports) -> Result<Self> {
        let stack =
            Self { directory: directory.into(), quiet: false, ephemeral: false, compose: None };
        if !stack.runs() {
            stack.make(ports)?;
        } else if let Some(moved) = stack.layout()?.ports.moved_in(ports) {
            bail!("the stack is running, and not with {moved}: stop it first (`make down`)");
        }
        Ok(stack)
    }

    /// A stack that was made before.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let stack =
            Self { directory: directory.into(), quiet: true, ephemeral: false, compose: None };
        stack.layout()?;
        Ok(stack)
    }

    /// The stack of this checkout, on the default ports or where the environment moves them.
    pub fn of_checkout() -> Result<Self> {
        let directory = state_directory()?.join("stack");
        let compose = Compose::from_environment()?;
        if compose.is_some() {
            return Ok(Self { directory, quiet: false, ephemeral: false, compose });
        }
        let stack = Self { directory, quiet: false, ephemeral: false, compose: None };
        // While something runs, ports that nobody names stay where they are.
        let ports = if stack.runs() { stack.layout()?.ports } else { Ports::default() };
        Self::at(stack.directory.clone(), ports.moved_by_environment()?)
    }

    /// The stack of this checkout as it was last started, or as it would be started.
    pub fn of_checkout_as_it_is() -> Result<Self> {
        let compose = Compose::from_environment()?;
        let directory = state_directory()?.join("stack");
        let stack = Self { directory, quiet: false, ephemeral: false, compose };
        if stack.layout().is_ok() { Ok(stack) } else { Self::of_checkout() }
    }

    /// The parts that `e2e with-parts` runs for the tests.
    pub fn of_tests() -> Result<Self> {
        let directory = std::env::var(TEST_STACK).context(
            "this test needs Kafka, the registry and the databases: run it by `make test`, or by \
             `target/ci/e2e with-parts -- cargo test --workspace --profile ci`",
        )?;
        Self::open(directory)
    }

    /// The stack of a kind of run of which there is one at a time, for as long as the lock is held.
    /// What a run left behind that broke off is removed before.
    pub async fn of_one_run(kind: &str) -> Result<(Self, File)> {
        let lock = lock_run(kind).await?;
        let directory = state_directory()?.join(kind);
        if let Ok(left_behind) = Self::open(&directory) {
            left_behind.clean().await?;
        }
        Ok((Self::at(directory, Ports::free()?)?.quiet(), lock))
    }

    /// A stack of its own on free ports, gone when it is dropped.
    pub fn ephemeral() -> Result<Self> {
        let directory = own_directory(&format!("{:08x}", rand::random::<u32>()));
        let mut stack = Self::at(directory, Ports::free()?)?;
        stack.ephemeral = true;
        stack.quiet = true;
        Ok(stack)
    }

    /// Ends and removes what processes left that were killed, and could not do so themselves: such
    /// stacks, and directories of the same name that hold stacks.
    pub async fn clean_left_behind() -> Result<()> {
        let own = fs::metadata("/proc/self").map(|own| own.uid()).ok();
        for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
            let name = entry.file_name();
            let pid =
                name.to_str().and_then(|name| name.strip_prefix("holdfast-")?.split_once('-'));
            let pid = pid.and_then(|(pid, _)| pid.parse::<u32>().ok());
            let is_left = pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
            let is_own = entry.metadata().is_ok_and(|of| of.is_dir() && Some(of.uid()) == own);
            if is_left && is_own {
                end_all_in(&entry.path())?;
                remove_directory(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Says nothing of its progress.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Whether its members are processes of this launcher's.
    pub fn is_native(&self) -> bool {
        self.compose.is_none()
    }

    /// Whether somebody else starts and stops its members, so that they can only be asked.
    pub fn is_only_reached(&self) -> bool {
        self.compose.as_ref().is_some_and(|compose| compose.is_only_reached)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `http://127.0.0.1:8001` of a service or one of its instances.
    pub fn url(&self, name: &str) -> Result<String> {
        Ok(format!("http://{HOST}:{}", self.layout()?.of_instance(name)?.api))
    }

    pub fn probe_url(&self, name: &str) -> Result<String> {
        Ok(format!("http://{HOST}:{}", self.layout()?.of_instance(name)?.probe))
    }

    pub fn operator_url(&self, name: &str) -> Result<String> {
        Ok(format!("http://{HOST}:{}", self.layout()?.of_instance(name)?.operator))
    }

    /// The service's own database, as its superuser.
    pub fn database_url(&self, service: &str) -> Result<String> {
        self.layout()?.database_url(service, "postgres", service)
    }

    /// The same cluster's maintenance database, for those who make databases of their own.
    pub fn cluster_url(&self, service: &str) -> Result<String> {
        self.layout()?.database_url(service, "postgres", "postgres")
    }

    /// Kafka's listener that belongs to no service.
    pub fn kafka_bootstrap(&self) -> Result<String> {
        Ok(format!("{HOST}:{}", self.layout()?.ports.kafka))
    }

    /// Kafka's listener of one service, where it really listens.
    pub fn kafka_listener(&self, service: &str) -> Result<String> {
        Ok(format!("{HOST}:{}", self.layout()?.of_service(service)?.kafka))
    }

    /// As which it claims its Kafka cluster.
    pub fn name(&self) -> Result<String> {
        Ok(self.layout()?.stack_name())
    }

    pub fn registry_url(&self) -> Result<String> {
        Ok(self.layout()?.registry_url())
    }

    /// The names of a service's instances: `order`, `order-2`.
    pub fn instances_of(&self, service: &str) -> Result<Vec<String>> {
        Ok(self.layout()?.instances_of(service))
    }

    pub fn log_file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.process(&name.parse()?).log)
    }
}

/// All of it.
impl Stack {
    /// Starts what does not run: parts, contracts, migrations, services. Returns when all is ready.
    pub async fn up(&self) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.up().await;
        }
        self.layout()?;
        let programs = programs()?;
        let services: Vec<Member> = self
            .members()
            .into_iter()
            .filter(|member| matches!(member, Member::Service { .. }))
            .collect();
        self.claim_ports(&self.members()).await?;
        if preparation::kafka_runs_with_other_settings(
            &self.layout()?,
            &self.process(&Member::Kafka),
        )? {
            self.say("Kafka's settings have changed: starting it again …");
            self.stop_member(&Member::Kafka).await?;
        }
        self.start_parts().await?;

        let idle: Vec<&Member> =
            services.iter().filter(|member| self.process(member).living().is_none()).collect();
        let migrations = SERVICES
            .iter()
            .filter(|service| idle.iter().any(|member| **member == Member::service(service)))
            .map(|service| self.migrate(&programs, service));
        tokio::try_join!(self.apply_contracts(&programs), try_join_all(migrations))?;
        try_join_all(services.iter().map(|member| self.start_member(member))).await?;
        Ok(())
    }

    /// Starts the databases, Kafka and the registry only.
    pub async fn up_parts(&self) -> Result<()> {
        self.claim_ports(&Member::parts()).await?;
        self.start_parts().await
    }

    /// Applies topics and schemas, as `up` does.
    pub async fn apply_contracts(&self, programs: &Path) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.apply_contracts().await;
        }
        let mut launch = Launch { program: programs.join("contracts"), ..Launch::default() };
        ensure!(launch.program.is_file(), "there is no program {}", launch.program.display());
        launch.arguments.push("apply".to_string());
        launch.environment = vec![
            ("KAFKA_BOOTSTRAP_SERVERS".to_string(), self.kafka_bootstrap()?),
            ("SCHEMA_REGISTRY_URL".to_string(), self.registry_url()?),
            ("STACK_NAME".to_string(), self.name()?),
        ];
        let copies = self.layout()?.replication_factor;
        let copies = copies.map(|copies| ("REPLICATION_FACTOR".to_string(), copies.to_string()));
        launch.environment.extend(copies);
        self.run_to_end("contracts apply", &launch, "contracts").await
    }

    /// Stops everything and keeps all data. Nothing of the stack runs afterwards.
    pub async fn down(&self) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.down().await;
        }
        let members = self.members();
        let (services, parts): (Vec<_>, Vec<_>) =
            members.iter().partition(|member| matches!(member, Member::Service { .. }));
        for group in [services, parts] {
            for (member, stopped) in group
                .iter()
                .zip(join_all(group.iter().map(|member| self.stop_member(member))).await)
            {
                if stopped? == Stopped::Killed {
                    self.say(&format!("{member} did not stop in {STOP_WITHIN:?} and was killed"));
                }
            }
        }
        self.kill_everything()
    }

    /// Kills everything and forgets all data.
    pub async fn clean(&self) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.clean().await;
        }
        self.kill_everything()?;
        remove_directory(&self.directory)
    }

    /// Every member with what can be seen of it.
    pub async fn status(&self) -> Result<Vec<Status>> {
        let layout = self.layout()?;
        if let Some(compose) = &self.compose {
            let members = layout.members();
            return try_join_all(members.iter().map(|member| compose.status_of(member))).await;
        }
        let (members, ends) = (layout.members(), self.ends().await?);
        join_all(members.iter().map(|member| self.status_of(&layout, member, &ends)))
            .await
            .into_iter()
            .collect()
    }

    /// Processor time that the processes of each native member have taken so far.
    pub fn cpu_times(&self) -> Vec<(String, Duration)> {
        let taken =
            |member: &Member| self.process(member).family().iter().map(Identity::cpu_time).sum();
        self.members().iter().map(|member| (member.to_string(), taken(member))).collect()
    }

    /// Memory of a native member: its own, and its share of what it shares with others.
    pub fn memory_bytes(&self, name: &str) -> Result<u64> {
        let family = self.process(&name.parse()?).family();
        Ok(family.iter().map(Identity::memory_bytes).sum())
    }

    async fn status_of(&self, layout: &Layout, member: &Member, ends: &[End]) -> Result<Status> {
        let name = member.to_string();
        let process = self.process(member);
        let living = process.living();
        let state = match living {
            None => State::Stopped,
            Some(living) if living.is_paused() => State::Paused,
            Some(_) if answers(layout, member).await => State::Ready,
            Some(_) => State::Starting,
        };
        Ok(Status {
            end: ends.iter().rfind(|end| end.name == name).cloned(),
            name,
            pid: living.map(|living| living.pid),
            port: layout.listens_on(member)?.first().map_or(0, |(port, _)| *port),
            state,
            memory_bytes: self.memory_bytes(&member.to_string())?,
            uptime: living.map_or(Duration::ZERO, |living| living.age()),
        })
    }

    async fn start_parts(&self) -> Result<()> {
        let parts = self.parts().await?;
        preparation::make_class_archives(&parts).await;
        let members = Member::parts();
        try_join_all(members.iter().map(|member| self.start_member(member))).await?;
        Ok(())
    }

    fn members(&self) -> Vec<Member> {
        self.layout().unwrap_or_default().members()
    }

    fn runs(&self) -> bool {
        self.members().iter().any(|member| self.process(member).living().is_some())
    }

    /// Also finds what no pid file names.
    pub fn kill_everything(&self) -> Result<()> {
        let members: Vec<_> = self.members().iter().map(|member| self.process(member)).collect();
        for member in &members {
            member.announce_end(Cause::Kill)?;
        }
        end_all_in(&self.directory)?;
        members.iter().for_each(|member| member.forget());
        Ok(())
    }

    /// How every process of this stack ended, in order.
    pub async fn ends(&self) -> Result<Vec<End>> {
        if let Some(compose) = &self.compose {
            return compose.ends().await;
        }
        ends::read(&self.journal())
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.directory.join("run").join("ends")
    }

    pub(crate) fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.ephemeral {
            let _ = self.kill_everything();
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// A lock that one run of a kind has at a time: its stack lies where that of the last one did.
pub async fn lock_run(kind: &str) -> Result<File> {
    let state = state_directory()?;
    create_open_directory(&state)?;
    let waiting = || eprintln!("waiting for another run of {kind} …");
    parts::lock(&state.join(format!("{kind}.lock")), &waiting).await
}

/// A directory for this process alone, of one stack or of several; where the process is killed, the
/// next run of the tests ends what runs there, and removes it.
pub fn own_directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("holdfast-{}-{name}", std::process::id()))
}

/// Kills the members of every stack in a directory or below it.
pub fn end_all_in(directory: &Path) -> Result<()> {
    let programs: Vec<&str> = ["java", "postgres"].into_iter().chain(SERVICES).collect();
    process::kill_until_gone(|| process::processes_in(directory, &programs))
}

/// What was just killed is still written down as ended: where that comes in between, once more.
pub fn remove_directory(directory: &Path) -> Result<()> {
    let mut removed = fs::remove_dir_all(directory);
    for _ in 0..10 {
        if removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty) {
            removed = fs::remove_dir_all(directory);
        }
    }
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Where the services' programs are: beside the launcher, or beside the test that uses it.
pub fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("a program lies in a directory")?;
    let beside = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
    Ok(beside.context("a program lies in a directory")?.to_path_buf())
}

/// Where everything is that this checkout's stacks leave behind.
pub fn state_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("HOLDFAST_STATE").filter(|value| !value.is_empty()) {
        return Ok(std::path::absolute(directory)?);
    }
    let checkout =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("e2e lies in a checkout")?;
    if !is_root() {
        return Ok(checkout.join(".holdfast"));
    }
    // Not in the checkout: `nobody`, as whom PostgreSQL runs, need not be able to enter it.
    let name = checkout.file_name().unwrap_or_default().to_string_lossy();
    let hash = Sha256::digest(checkout.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok(PathBuf::from("/var/lib/holdfast").join(format!("{name}-{hash}")))
}
