//! What the stack consists of, on which ports, and with which settings each member runs.
//! The settings that decide what survives a crash (`fsync`, `synchronous_commit`, `acks`) are left
//! as they are; the others make a small, quick stack.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::parts::{self, Parts};
use crate::process::Launch;

pub const HOST: &str = "127.0.0.1";
/// All services there are. A further one is one more name here, and one more to their number: its
/// ports, its database and Kafka's listener for it follow from its place.
pub const SERVICES: [&str; 3] = ["order", "payment", "stock"];

/// Enough for a quick start; a benchmark wants a larger heap and the second compiler.
const JAVA_OPTIONS: &str = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";

/// Whatever can be started, stopped and killed by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// The cluster of one service: `order-db`.
    Database(String),
    Kafka,
    Registry,
    /// One instance of a service: `order`, or `order-2`.
    Service {
        service: String,
        instance: u16,
    },
}

impl Member {
    /// The parts: everything but the services.
    pub fn parts() -> Vec<Member> {
        let databases = SERVICES.map(|service| Member::Database(service.to_string()));
        databases.into_iter().chain([Member::Kafka, Member::Registry]).collect()
    }

    pub fn service(service: &str) -> Member {
        Member::Service { service: service.to_string(), instance: 1 }
    }

    /// What a stack of one instance a service consists of, services first.
    pub fn all() -> Vec<Member> {
        let (databases, others): (Vec<_>, Vec<_>) =
            Member::parts().into_iter().partition(|part| matches!(part, Member::Database(_)));
        SERVICES.map(Member::service).into_iter().chain(others).chain(databases).collect()
    }

    /// `order, payment, … or stock-db`, for people.
    pub fn names() -> String {
        let mut names: Vec<String> = Member::all().iter().map(Member::to_string).collect();
        let last = names.pop().unwrap_or_default();
        format!("{} or {last}", names.join(", "))
    }
}

impl FromStr for Member {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let (service, rest) = name.split_once('-').unwrap_or((name, ""));
        let known = SERVICES.contains(&service);
        Ok(match (name, rest) {
            ("kafka", _) => Member::Kafka,
            ("registry", _) => Member::Registry,
            (_, "db") if known => Member::Database(service.to_string()),
            (_, "") if known && service == name => Member::service(service),
            (_, number) if known && number.parse::<u16>().is_ok_and(|instance| instance >= 2) => {
                Member::Service { service: service.to_string(), instance: number.parse()? }
            }
            ("", _) => bail!("name one by SERVICE=…: {}", Member::names()),
            _ => bail!(
                "there is no `{name}`: say {} ({}-2 is a second instance)",
                Member::names(),
                SERVICES[0]
            ),
        })
    }
}

impl Display for Member {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Member::Database(service) => write!(out, "{service}-db"),
            Member::Kafka => write!(out, "kafka"),
            Member::Registry => write!(out, "registry"),
            Member::Service { service, instance: 1 } => write!(out, "{service}"),
            Member::Service { service, instance } => write!(out, "{service}-{instance}"),
        }
    }
}

/// The three ports of one instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePorts {
    pub api: u16,
    pub probe: u16,
    pub operator: u16,
}

impl InstancePorts {
    pub fn free() -> Result<Self> {
        Ok(Self {
            api: free_port(FREE_PORTS)?,
            probe: free_port(FREE_PORTS)?,
            operator: free_port(FREE_PORTS)?,
        })
    }
}

/// What a service has for itself, however many instances of it run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePorts {
    /// Of its first instance.
    pub first: InstancePorts,
    pub database: u16,
    /// Kafka's listener for this service alone, so that its traffic can be sent through a proxy.
    pub kafka: u16,
}

/// Every port of the stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub services: BTreeMap<String, ServicePorts>,
    pub kafka: u16,
    pub kafka_controller: u16,
    pub registry: u16,
}

impl Default for Ports {
    fn default() -> Self {
        let services = SERVICES.iter().zip(1..).map(|(service, n)| {
            let first = InstancePorts { api: 8000 + n, probe: 9000 + n, operator: 9010 + n };
            let ports = ServicePorts { first, database: 54320 + n, kafka: 9093 + n };
            (service.to_string(), ports)
        });
        Self { services: services.collect(), kafka: 9092, kafka_controller: 9093, registry: 8081 }
    }
}

impl Ports {
    /// The default ports, moved by the environment.
    pub fn from_environment() -> Result<Self> {
        Self::default().moved_by_environment()
    }

    /// `ORDER_PORT`, `KAFKA_PORT` and so on move single ports.
    pub fn moved_by_environment(mut self) -> Result<Self> {
        for (variable, port) in self.settings() {
            if let Ok(value) = std::env::var(&variable) {
                *port =
                    value.parse().with_context(|| format!("{variable}={value} is not a port"))?;
            }
        }
        let mut taken = BTreeMap::new();
        for (variable, port) in self.settings() {
            if let Some(other) = taken.insert(*port, variable.clone()) {
                bail!("{variable} and {other} are both {port}: move one of them");
            }
        }
        Ok(self)
    }

    /// The first setting that is different in `other`, as in `KAFKA_PORT=19092`.
    pub fn moved_in(&self, mut other: Ports) -> Option<String> {
        let mut own = self.clone();
        let mut pairs = own.settings().into_iter().zip(other.settings());
        let (_, (variable, port)) = pairs.find(|((_, own), (_, other))| own != other)?;
        Some(format!("{variable}={port}"))
    }

    /// Ports that nobody uses now, for a stack beside others.
    pub fn free() -> Result<Self> {
        Self::free_in(FREE_PORTS)
    }

    /// Ports that no stack of `free` ports is given: the tests' parts run beside many of those.
    pub fn free_for_tests() -> Result<Self> {
        Self::free_in(FREE_TEST_PORTS)
    }

    fn free_in(range: Range<u16>) -> Result<Self> {
        let mut ports = Self::default();
        for (_, port) in ports.settings() {
            *port = free_port(range.clone())?;
        }
        Ok(ports)
    }

    /// Each port with the variable that moves it.
    pub fn settings(&mut self) -> Vec<(String, &mut u16)> {
        let mut settings = vec![
            ("KAFKA_PORT".to_string(), &mut self.kafka),
            ("KAFKA_CONTROLLER_PORT".to_string(), &mut self.kafka_controller),
            ("REGISTRY_PORT".to_string(), &mut self.registry),
        ];
        for (service, ports) in &mut self.services {
            let name = service.to_uppercase();
            settings.push((format!("{name}_PORT"), &mut ports.first.api));
            settings.push((format!("{name}_PROBE_PORT"), &mut ports.first.probe));
            settings.push((format!("{name}_OPERATOR_PORT"), &mut ports.first.operator));
            settings.push((format!("{name}_DB_PORT"), &mut ports.database));
            settings.push((format!("{name}_KAFKA_PORT"), &mut ports.kafka));
        }
        settings
    }
}

/// Below the range from which Linux takes the ports of outgoing connections: a client that keeps
/// asking for a dead server there can be given the server's own port.
const FREE_PORTS: Range<u16> = 14_000..32_000;
const FREE_TEST_PORTS: Range<u16> = 10_240..14_000;

/// A port that nobody listens on and that this process has not given away yet.
fn free_port(range: Range<u16>) -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = rand::rng().random_range(range.clone());
        if !given.contains(&port) && TcpListener::bind((HOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("found no free port in {range:?} on {HOST}")
}

/// All that a stack remembers between two commands, beside its data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    pub ports: Ports,
    /// Further instances of services, by name.
    pub instances: BTreeMap<String, InstancePorts>,
    /// Where Kafka tells a service's clients to find it, if not at its own listener.
    pub kafka_advertised: BTreeMap<String, String>,
    /// Extra environment, by name of service or of instance.
    pub environment: BTreeMap<String, BTreeMap<String, String>>,
    /// Where the program is, by name of instance, if it is another version than the others'.
    #[serde(default)]
    pub programs: BTreeMap<String, PathBuf>,
}

impl Layout {
    /// A layout that was written down before a service was added, or taken away.
    pub fn of_today(mut self) -> Self {
        self.ports.services.retain(|service, _| SERVICES.contains(&service.as_str()));
        for (service, ports) in Ports::default().services {
            self.ports.services.entry(service).or_insert(ports);
        }
        self
    }

    pub fn members(&self) -> Vec<Member> {
        let first = SERVICES.map(Member::service);
        let further = self.instances.keys().filter_map(|name| name.parse().ok());
        Member::parts().into_iter().chain(first).chain(further).collect()
    }

    pub fn of_service(&self, service: &str) -> Result<&ServicePorts> {
        self.ports.services.get(service).with_context(|| format!("there is no service `{service}`"))
    }

    pub fn of_instance(&self, name: &str) -> Result<&InstancePorts> {
        let further = self.instances.get(name);
        further
            .or_else(|| self.ports.services.get(name).map(|ports| &ports.first))
            .with_context(|| format!("there is no instance `{name}`"))
    }

    /// The ports that a member listens on, each with the variable that moves it.
    pub fn listens_on(&self, member: &Member) -> Result<Vec<(u16, Option<String>)>> {
        let moved_by = |port: u16| {
            let mut ports = self.ports.clone();
            let mut settings = ports.settings().into_iter();
            let setting = settings.find(|(_, set)| **set == port).map(|(variable, _)| variable);
            (port, setting)
        };
        let ports = match member {
            Member::Database(service) => vec![self.of_service(service)?.database],
            Member::Registry => vec![self.ports.registry],
            Member::Kafka => {
                let listeners = self.ports.services.values().map(|ports| ports.kafka);
                [self.ports.kafka, self.ports.kafka_controller]
                    .into_iter()
                    .chain(listeners)
                    .collect()
            }
            Member::Service { .. } => {
                let ports = self.of_instance(&member.to_string())?;
                vec![ports.api, ports.probe, ports.operator]
            }
        };
        Ok(ports.into_iter().map(moved_by).collect())
    }

    /// Kafka's address for one service.
    pub fn kafka_of(&self, service: &str) -> Result<String> {
        let own = format!("{HOST}:{}", self.of_service(service)?.kafka);
        Ok(self.kafka_advertised.get(service).cloned().unwrap_or(own))
    }

    pub fn registry_url(&self) -> String {
        format!("http://{HOST}:{}/apis/ccompat/v7", self.ports.registry)
    }

    pub fn database_url(&self, service: &str, role: &str, database: &str) -> Result<String> {
        let port = self.of_service(service)?.database;
        Ok(format!("postgres://{role}@{HOST}:{port}/{database}"))
    }

    /// The environment of one instance: its addresses, then what was set for its service, then what
    /// was set for itself.
    pub fn environment_of(&self, member: &Member) -> Result<Vec<(String, String)>> {
        let Member::Service { service, .. } = member else {
            return Ok(Vec::new());
        };
        let name = member.to_string();
        let ports = self.of_instance(&name)?;
        let at = |port: u16| format!("{HOST}:{port}");
        let mut environment = BTreeMap::from(
            [
                ("DATABASE_URL", self.database_url(service, service, service)?),
                (
                    "MIGRATION_DATABASE_URL",
                    self.database_url(service, &format!("{service}_migrator"), service)?,
                ),
                ("HTTP_ADDR", at(ports.api)),
                ("PROBE_ADDR", at(ports.probe)),
                ("OPERATOR_ADDR", at(ports.operator)),
                ("KAFKA_BOOTSTRAP_SERVERS", self.kafka_of(service)?),
                ("SCHEMA_REGISTRY_URL", self.registry_url()),
            ]
            .map(|(key, value)| (key.to_string(), value)),
        );
        for name in [service, &name] {
            environment.extend(self.environment.get(name).cloned().unwrap_or_default());
        }
        Ok(environment.into_iter().collect())
    }
}

/// PostgreSQL on `home/data`.
pub fn postgres(parts: &Parts, home: &Path, port: u16) -> Launch {
    let settings = [
        format!("listen_addresses={HOST}"),
        format!("port={port}"),
        "unix_socket_directories=".to_string(),
        "max_connections=200".to_string(),
        "shared_buffers=64MB".to_string(),
        // Tables that are emptied as fast as they fill, outbox and inbox, bloat within a minute.
        "autovacuum_naptime=5s".to_string(),
        "shared_preload_libraries=pg_stat_statements".to_string(),
    ];
    let mut arguments = vec!["-D".to_string(), home.join("data").display().to_string()];
    for setting in settings {
        arguments.extend(["-c".to_string(), setting]);
    }
    Launch {
        program: parts.postgres_bin.join("postgres"),
        arguments,
        environment: Vec::new(),
        unprivileged: parts::is_root(),
    }
}

/// Makes a new cluster; only `postgres`, its superuser, can log in, and only from this machine.
pub fn initdb(parts: &Parts, into: &Path) -> Launch {
    let into = into.display().to_string();
    let arguments = [
        "-D",
        &into,
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale-provider=builtin",
        "--locale=C.UTF-8",
        "--no-sync",
    ];
    Launch {
        program: parts.postgres_bin.join("initdb"),
        arguments: arguments.map(String::from).to_vec(),
        environment: Vec::new(),
        unprivileged: parts::is_root(),
    }
}

/// How a Java process uses the archive of preloaded classes, which halves its start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ClassArchive {
    Use,
    Make,
    Without,
}

pub fn kafka(parts: &Parts, home: &Path, archive: ClassArchive, into: &Path) -> Launch {
    let mut launch = java(parts, home, "KAFKA_JAVA_OPTS", archive, into);
    let config = home.join("server.properties").display().to_string();
    let logging =
        format!("-Dlog4j2.configurationFile={}", home.join("log4j2.properties").display());
    let words = [&logging, "-cp", &parts.kafka_classpath, "kafka.Kafka", &config];
    launch.arguments.extend(words.map(String::from));
    launch
}

/// Writes the identity of a new cluster into the log directory that `config` names.
pub fn kafka_format(parts: &Parts, home: &Path, config: &Path) -> Launch {
    // 128 random bits in base64: the last of 22 characters holds only two of them.
    let mut id: String =
        (0..21).map(|_| char::from(rand::rng().sample(rand::distr::Alphanumeric))).collect();
    id.push('A');
    let mut launch = java(parts, home, "KAFKA_JAVA_OPTS", ClassArchive::Without, Path::new(""));
    let logging =
        format!("-Dlog4j2.configurationFile={}", home.join("log4j2.properties").display());
    let config = config.display().to_string();
    let words = ["kafka.tools.StorageTool", "format", "-t", &id, "-c", &config];
    launch.arguments.extend([&logging, "-cp", &parts.kafka_classpath].map(String::from));
    launch.arguments.extend(words.map(String::from));
    launch
}

pub fn kafka_logging() -> String {
    "appender.console.type = Console\n\
     appender.console.name = console\n\
     appender.console.layout.type = PatternLayout\n\
     appender.console.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n\n\
     rootLogger.level = info\n\
     rootLogger.appenderRef.console.ref = console\n"
        .to_string()
}

/// Kafka's `server.properties`, with its log in `data`.
pub fn kafka_config(layout: &Layout, data: &Path) -> Result<String> {
    let ports = &layout.ports;
    let mut listeners = vec![format!("CLIENTS://{HOST}:{}", ports.kafka)];
    let mut advertised = listeners.clone();
    for (service, ports) in &ports.services {
        let name = service.to_uppercase();
        listeners.push(format!("{name}://{HOST}:{}", ports.kafka));
        advertised.push(format!("{name}://{}", layout.kafka_of(service)?));
    }
    listeners.push(format!("CONTROLLER://{HOST}:{}", ports.kafka_controller));
    let names = listeners.iter().filter_map(|listener| listener.split(':').next());
    let protocols: Vec<String> = names.map(|name| format!("{name}:PLAINTEXT")).collect();
    let lines = [
        "process.roles=broker,controller".to_string(),
        "node.id=1".to_string(),
        // Named here and not in the log directory, so that the ports can move.
        format!("controller.quorum.voters=1@{HOST}:{}", ports.kafka_controller),
        "controller.listener.names=CONTROLLER".to_string(),
        "inter.broker.listener.name=CLIENTS".to_string(),
        format!("listeners={}", listeners.join(",")),
        format!("advertised.listeners={}", advertised.join(",")),
        format!("listener.security.protocol.map={}", protocols.join(",")),
        format!("log.dirs={}", data.display()),
        // After a SIGKILL the new broker may register when the old one's session is over.
        "broker.heartbeat.interval.ms=500".to_string(),
        "broker.session.timeout.ms=3000".to_string(),
        "auto.create.topics.enable=false".to_string(),
        "log.message.timestamp.type=LogAppendTime".to_string(),
        // 21 days: longer than topics are kept, so that a consumer that was down keeps its place.
        "offsets.retention.minutes=30240".to_string(),
        "default.replication.factor=1".to_string(),
        "offsets.topic.replication.factor=1".to_string(),
        "offsets.topic.num.partitions=4".to_string(),
        "transaction.state.log.replication.factor=1".to_string(),
        "transaction.state.log.min.isr=1".to_string(),
        "transaction.state.log.num.partitions=4".to_string(),
        "share.coordinator.state.topic.replication.factor=1".to_string(),
        "share.coordinator.state.topic.min.isr=1".to_string(),
        "group.initial.rebalance.delay.ms=0".to_string(),
        // The default of 128 MB does not fit into a small heap.
        "log.cleaner.dedupe.buffer.size=8388608".to_string(),
        "num.network.threads=2".to_string(),
        "num.io.threads=4".to_string(),
    ];
    Ok(lines.join("\n") + "\n")
}

pub fn registry(
    parts: &Parts,
    home: &Path,
    port: u16,
    archive: ClassArchive,
    into: &Path,
) -> Launch {
    let mut launch = java(parts, home, "REGISTRY_JAVA_OPTS", archive, into);
    let jar = parts.registry_jar.display().to_string();
    let words = [
        &format!("-Dquarkus.http.host={HOST}"),
        &format!("-Dquarkus.http.port={port}"),
        "-jar",
        &jar,
    ];
    launch.arguments.extend(words.map(String::from));
    // A commit reaches the disk before it is answered; H2 would otherwise wait up to half a second.
    let url =
        format!("jdbc:h2:file:{};WRITE_DELAY=0", home.join("data").join("registry").display());
    launch.environment = [
        ("QUARKUS_OTEL_SDK_DISABLED", "true"),
        ("APICURIO_DATASOURCE_URL", &url),
        ("APICURIO_DATASOURCE_JDBC_INITIAL_SIZE", "2"),
        ("APICURIO_DATASOURCE_JDBC_MIN_SIZE", "2"),
    ]
    .map(|(key, value)| (key.to_string(), value.to_string()))
    .to_vec();
    launch
}

/// Java's options: the variable replaces the defaults, since two collectors exclude each other.
pub fn java_options(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| JAVA_OPTIONS.to_string())
}

fn java(parts: &Parts, home: &Path, variable: &str, archive: ClassArchive, file: &Path) -> Launch {
    let options = java_options(variable);
    let mut arguments: Vec<String> = options.split_whitespace().map(String::from).collect();
    match archive {
        ClassArchive::Use => arguments.push(format!("-XX:SharedArchiveFile={}", file.display())),
        ClassArchive::Make => {
            arguments.push(format!("-XX:ArchiveClassesAtExit={}", file.display()))
        }
        ClassArchive::Without => (),
    }
    // Native libraries are unpacked there; in the system's own directory a SIGKILL would leave them.
    arguments.push(format!("-Djava.io.tmpdir={}", home.join("tmp").display()));
    arguments.push("-XX:-UsePerfData".to_string());
    Launch { program: parts.java.clone(), arguments, ..Launch::default() }
}

/// A service's program: `serve` or `migrate`.
pub fn service(
    programs: &Path,
    name: &str,
    subcommand: &str,
    layout: &Layout,
    member: &Member,
) -> Result<Launch> {
    let program = programs.join(name);
    ensure!(
        program.is_file(),
        "there is no program {}: `cargo build --workspace --profile ci` makes it, HOLDFAST_BIN says where it is",
        program.display()
    );
    Ok(Launch {
        program,
        arguments: vec![subcommand.to_string()],
        environment: layout.environment_of(member)?,
        unprivileged: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_that_is_older_than_a_service_is_given_its_ports() {
        let mut older = Layout::default();
        let taken_away = older.ports.services.remove(SERVICES[2]).unwrap();
        older.ports.services.insert("retired".to_string(), taken_away);
        assert_eq!(older.of_today(), Layout::default());
    }

    #[test]
    fn every_member_is_found_by_the_name_that_people_are_told() {
        for member in Member::all() {
            assert_eq!(member.to_string().parse::<Member>().unwrap(), member);
            let refusal = "nothing".parse::<Member>().unwrap_err().to_string();
            assert!(refusal.contains(&member.to_string()), "{refusal}");
        }
        assert_eq!(Member::all().len(), 2 * SERVICES.len() + 2);
    }
}
