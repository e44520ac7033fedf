//! The settings with which each component of the stack runs. The settings that decide what survives
//! a crash (`fsync`, `synchronous_commit`, `acks`) keep their defaults. The others make the stack
//! small and quick to start.

use std::path::Path;

use anyhow::{Result, ensure};
use rand::Rng;

use crate::artifacts::Artifacts;
use crate::directories::is_root;
use crate::process::LaunchCommand;
use crate::stack_state::StackState;
use crate::topology::{Component, HOST};

/// Enough for a quick start; a benchmark sets a larger heap and the second compiler.
const DEFAULT_JAVA_OPTIONS: &str = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";

/// The PostgreSQL server of a service, with its data in `home/data`.
pub fn postgres(
    artifacts: &Artifacts,
    home: &Path,
    stack_state: &StackState,
    service: &str,
) -> Result<LaunchCommand> {
    let port = stack_state.service_ports(service)?.database;
    let settings = [
        format!("listen_addresses={HOST}"),
        format!("port={port}"),
        "unix_socket_directories=".to_string(),
        "max_connections=200".to_string(),
        "shared_buffers=64MB".to_string(),
        // Outbox and inbox are filled and emptied quickly, and bloat within a minute without
        // vacuum.
        "autovacuum_naptime=5s".to_string(),
        // A short naptime also analyzes young tables as often, so a small sample keeps that cheap.
        // No frequent query is planned by these statistics.
        "default_statistics_target=10".to_string(),
        "shared_preload_libraries=pg_stat_statements".to_string(),
        // The detail of a refused row contains its values.
        "log_error_verbosity=terse".to_string(),
    ];
    let mut arguments = vec!["-D".to_string(), home.join("data").display().to_string()];
    for setting in settings {
        arguments.extend(["-c".to_string(), setting]);
    }
    // PostgreSQL uses the last value of an option.
    let options = std::env::var("POSTGRES_OPTS").unwrap_or_default();
    arguments.extend(options.split_whitespace().map(String::from));
    Ok(LaunchCommand {
        program: artifacts.postgres_bin.join("postgres"),
        arguments,
        environment: stack_state.environment_of(&Component::Database(service.to_string()))?,
        unprivileged: is_root(),
    })
}

/// Creates a new cluster. Only its superuser `postgres` can log in, and only from this machine.
pub fn initdb(artifacts: &Artifacts, into: &Path) -> LaunchCommand {
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
    LaunchCommand {
        program: artifacts.postgres_bin.join("initdb"),
        arguments: arguments.map(String::from).to_vec(),
        environment: Vec::new(),
        unprivileged: is_root(),
    }
}

/// The flags with which a Java process uses the archive of preloaded classes, which halves its
/// start time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ClassArchiveMode {
    Use,
    Create,
    Disabled,
}

pub fn kafka(
    artifacts: &Artifacts,
    home: &Path,
    archive: ClassArchiveMode,
    into: &Path,
) -> LaunchCommand {
    let mut launch = java(artifacts, home, "KAFKA_JAVA_OPTS", archive, into);
    let config = home.join("server.properties").display().to_string();
    let logging =
        format!("-Dlog4j2.configurationFile={}", home.join("log4j2.properties").display());
    let words = [&logging, "-cp", &artifacts.kafka_classpath, "kafka.Kafka", &config];
    launch.arguments.extend(words.map(String::from));
    launch
}

/// A random id for a new cluster.
pub fn new_cluster_id() -> String {
    // 128 random bits in base64: the last of 22 characters holds only two of them.
    let mut id: String =
        (0..21).map(|_| char::from(rand::rng().sample(rand::distr::Alphanumeric))).collect();
    id.push('A');
    id
}

/// Writes the id of a cluster into the log directory that `config` names.
pub fn kafka_format(artifacts: &Artifacts, home: &Path, config: &Path, id: &str) -> LaunchCommand {
    let mut launch =
        java(artifacts, home, "KAFKA_JAVA_OPTS", ClassArchiveMode::Disabled, Path::new(""));
    let logging =
        format!("-Dlog4j2.configurationFile={}", home.join("log4j2.properties").display());
    let config = config.display().to_string();
    let words = ["kafka.tools.StorageTool", "format", "-t", id, "-c", &config];
    launch.arguments.extend([&logging, "-cp", &artifacts.kafka_classpath].map(String::from));
    launch.arguments.extend(words.map(String::from));
    launch
}

pub fn kafka_log_config() -> String {
    "appender.console.type = Console\n\
     appender.console.name = console\n\
     appender.console.layout.type = PatternLayout\n\
     appender.console.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n\n\
     rootLogger.level = info\n\
     rootLogger.appenderRef.console.ref = console\n"
        .to_string()
}

/// Kafka's `server.properties`, with its log in `data`.
pub fn kafka_config(stack_state: &StackState, data: &Path) -> Result<String> {
    let ports = &stack_state.ports;
    let mut listeners = vec![format!("CLIENTS://{HOST}:{}", ports.kafka)];
    let mut advertised = listeners.clone();
    for (service, ports) in &ports.services {
        let name = service.to_uppercase();
        listeners.push(format!("{name}://{HOST}:{}", ports.kafka));
        advertised.push(format!("{name}://{}", stack_state.kafka_address(service)?));
    }
    listeners.push(format!("CONTROLLER://{HOST}:{}", ports.kafka_controller));
    let mut lines = kafka_properties(stack_state, &listeners, &advertised, data);
    lines.extend(["process.roles=broker,controller".to_string(), "node.id=1".to_string()]);
    Ok(lines.join("\n") + "\n")
}

/// The same for a further broker, which is no controller and listens on its own ports.
pub fn kafka_additional_config(
    stack_state: &StackState,
    node: u16,
    ports: &[u16],
    data: &Path,
) -> String {
    let names = ["CLIENTS".to_string()].into_iter();
    let names =
        names.chain(stack_state.ports.services.keys().map(|service| service.to_uppercase()));
    let listeners = names.zip(ports).map(|(name, port)| format!("{name}://{HOST}:{port}"));
    let listeners: Vec<String> = listeners.collect();
    let mut lines = kafka_properties(stack_state, &listeners, &listeners, data);
    lines.extend(["process.roles=broker".to_string(), format!("node.id={node}")]);
    lines.join("\n") + "\n"
}

fn kafka_properties(
    stack_state: &StackState,
    listeners: &[String],
    advertised: &[String],
    data: &Path,
) -> Vec<String> {
    let names = listeners.iter().filter_map(|listener| listener.split(':').next());
    let mut protocols: Vec<String> = names.map(|name| format!("{name}:PLAINTEXT")).collect();
    if !protocols.iter().any(|protocol| protocol.starts_with("CONTROLLER")) {
        protocols.push("CONTROLLER:PLAINTEXT".to_string());
    }
    let copies = stack_state.replication_factor.unwrap_or(1);
    let in_sync = if copies > 1 { copies - 1 } else { 1 };
    vec![
        // These names are here and not in the log directory, so that the ports can move.
        format!("controller.quorum.voters=1@{HOST}:{}", stack_state.ports.kafka_controller),
        "controller.listener.names=CONTROLLER".to_string(),
        "inter.broker.listener.name=CLIENTS".to_string(),
        format!("listeners={}", listeners.join(",")),
        format!("advertised.listeners={}", advertised.join(",")),
        format!("listener.security.protocol.map={}", protocols.join(",")),
        format!("log.dirs={}", data.display()),
        // After a SIGKILL, the new broker can register only when the old one's session has expired.
        "broker.heartbeat.interval.ms=500".to_string(),
        "broker.session.timeout.ms=3000".to_string(),
        "auto.create.topics.enable=false".to_string(),
        "log.message.timestamp.type=LogAppendTime".to_string(),
        // 21 days: longer than the retention of topics, so that a stopped consumer keeps its
        // offsets.
        "offsets.retention.minutes=30240".to_string(),
        format!("default.replication.factor={copies}"),
        format!("min.insync.replicas={in_sync}"),
        format!("offsets.topic.replication.factor={copies}"),
        "offsets.topic.num.partitions=4".to_string(),
        format!("transaction.state.log.replication.factor={copies}"),
        format!("transaction.state.log.min.isr={in_sync}"),
        "transaction.state.log.num.partitions=4".to_string(),
        format!("share.coordinator.state.topic.replication.factor={copies}"),
        format!("share.coordinator.state.topic.min.isr={in_sync}"),
        "group.initial.rebalance.delay.ms=0".to_string(),
        // The default of 128 MB does not fit into a small heap.
        "log.cleaner.dedupe.buffer.size=8388608".to_string(),
        "num.network.threads=2".to_string(),
        "num.io.threads=4".to_string(),
    ]
}

pub fn registry(
    artifacts: &Artifacts,
    home: &Path,
    port: u16,
    archive: ClassArchiveMode,
    into: &Path,
) -> LaunchCommand {
    let mut launch = java(artifacts, home, "REGISTRY_JAVA_OPTS", archive, into);
    let jar = artifacts.registry_jar.display().to_string();
    let words = [
        &format!("-Dquarkus.http.host={HOST}"),
        &format!("-Dquarkus.http.port={port}"),
        "-jar",
        &jar,
    ];
    launch.arguments.extend(words.map(String::from));
    // A commit reaches the disk before its response; H2's default delay is up to half a second.
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

/// Java's options: the variable replaces the defaults, since two garbage collectors exclude each
/// other.
pub fn java_options(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| DEFAULT_JAVA_OPTIONS.to_string())
}

fn java(
    artifacts: &Artifacts,
    home: &Path,
    variable: &str,
    archive: ClassArchiveMode,
    file: &Path,
) -> LaunchCommand {
    let options = java_options(variable);
    let mut arguments: Vec<String> = options.split_whitespace().map(String::from).collect();
    match archive {
        ClassArchiveMode::Use => {
            arguments.push(format!("-XX:SharedArchiveFile={}", file.display()))
        }
        ClassArchiveMode::Create => {
            arguments.push(format!("-XX:ArchiveClassesAtExit={}", file.display()))
        }
        ClassArchiveMode::Disabled => (),
    }
    // Native libraries are unpacked there; in the system's directory a SIGKILL would leave them
    // behind.
    arguments.push(format!("-Djava.io.tmpdir={}", home.join("tmp").display()));
    arguments.push("-XX:-UsePerfData".to_string());
    LaunchCommand { program: artifacts.java.clone(), arguments, ..LaunchCommand::default() }
}

/// A service's program: `serve` or `migrate`.
pub fn service(
    programs: &Path,
    name: &str,
    subcommand: &str,
    stack_state: &StackState,
    component: &Component,
) -> Result<LaunchCommand> {
    let program = programs.join(name);
    ensure!(
        program.is_file(),
        "there is no program {}: build it first, in the profile of this program",
        program.display()
    );
    Ok(LaunchCommand {
        program,
        arguments: vec![subcommand.to_string()],
        environment: stack_state.environment_of(component)?,
        unprivileged: false,
    })
}
