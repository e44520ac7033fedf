//! How Kafka runs: its command, its `server.properties`, and in a secured stack the certificates,
//! users and rights that it demands.

use std::path::Path;

use anyhow::Result;
use rand::Rng;

use crate::artifacts::Artifacts;
use crate::launch_config::{ClassArchiveMode, java};
use crate::process::LaunchCommand;
use crate::secrets::{ADMINISTRATOR, BROKER, CONTRACTS, SCRAM};
use crate::stack_state::StackState;
use crate::topology::HOST;

/// The listener of the platform: the brokers, the program of the contracts, and the tools. In a
/// secured stack its clients present a certificate, whose common name is their name.
const PLATFORM: &str = "CLIENTS";
const CONTROLLER: &str = "CONTROLLER";

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

/// The settings by which a running broker reads its certificate and those that it trusts again. The listener of
/// the controller has no such settings.
pub fn kafka_certificate_settings(stack_state: &StackState) -> Result<Vec<(String, String)>> {
    let secrets = stack_state.secrets()?;
    let files = [("keystore", secrets.certificate(BROKER)?), ("truststore", secrets.ca()?)];
    let own = stack_state.ports.kafka_listeners().into_iter().map(|(name, _)| name.to_lowercase());
    let listeners = own.chain([PLATFORM.to_lowercase()]);
    let settings = listeners.flat_map(|listener| {
        files.clone().map(|(store, file)| {
            let name = format!("listener.name.{listener}.ssl.{store}.location");
            (name, file.display().to_string())
        })
    });
    Ok(settings.collect())
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
    for (client, port) in ports.kafka_listeners() {
        let name = client.to_uppercase();
        listeners.push(format!("{name}://{HOST}:{port}"));
        advertised.push(format!("{name}://{}", stack_state.kafka_address(client)?));
    }
    listeners.push(format!("CONTROLLER://{HOST}:{}", ports.kafka_controller));
    let mut lines = kafka_properties(stack_state, &listeners, &advertised, data)?;
    lines.extend(["process.roles=broker,controller".to_string(), "node.id=1".to_string()]);
    Ok(lines.join("\n") + "\n")
}

/// The same for a further broker, which is no controller and listens on its own ports.
pub fn kafka_additional_config(
    stack_state: &StackState,
    node: u16,
    ports: &[u16],
    data: &Path,
) -> Result<String> {
    let names = [PLATFORM.to_string()].into_iter();
    let own = stack_state.ports.kafka_listeners();
    let names = names.chain(own.into_iter().map(|(client, _)| client.to_uppercase()));
    let listeners = names.zip(ports).map(|(name, port)| format!("{name}://{HOST}:{port}"));
    let listeners: Vec<String> = listeners.collect();
    let mut lines = kafka_properties(stack_state, &listeners, &listeners, data)?;
    lines.extend(["process.roles=broker".to_string(), format!("node.id={node}")]);
    Ok(lines.join("\n") + "\n")
}

fn kafka_properties(
    stack_state: &StackState,
    listeners: &[String],
    advertised: &[String],
    data: &Path,
) -> Result<Vec<String>> {
    let mut names: Vec<&str> =
        listeners.iter().filter_map(|listener| listener.split(':').next()).collect();
    if !names.contains(&CONTROLLER) {
        names.push(CONTROLLER);
    }
    let protocol = |name: &str| match (stack_state.secure, name) {
        (false, _) => "PLAINTEXT",
        (true, PLATFORM | CONTROLLER) => "SSL",
        (true, _) => "SASL_SSL",
    };
    let protocols: Vec<String> =
        names.iter().map(|name| format!("{name}:{}", protocol(name))).collect();
    let copies = stack_state.replication_factor.unwrap_or(1);
    let in_sync = if copies > 1 { copies - 1 } else { 1 };
    let mut lines = vec![
        // These names are here and not in the log directory, so that the ports can move.
        format!("controller.quorum.voters=1@{HOST}:{}", stack_state.ports.kafka_controller),
        format!("controller.listener.names={CONTROLLER}"),
        format!("inter.broker.listener.name={PLATFORM}"),
        format!("listeners={}", listeners.join(",")),
        format!("advertised.listeners={}", advertised.join(",")),
        format!("listener.security.protocol.map={}", protocols.join(",")),
        format!("log.dirs={}", data.display()),
        "broker.heartbeat.interval.ms=500".to_string(),
        format!("broker.session.timeout.ms={}", broker_session_millis(stack_state)),
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
    ];
    if stack_state.secure {
        lines.extend(security_properties(stack_state, &names)?);
    }
    Ok(lines)
}

/// After a SIGKILL, the new broker can register only when the session of the old one has expired, so the session is
/// short. Kafka's own 9 s are for stacks with transactions: a broker that is fenced because it was too busy for its
/// heartbeats can drop the end of a transaction (KAFKA-20734), and all who read committed records wait for it.
fn broker_session_millis(stack_state: &StackState) -> u32 {
    if stack_state.streams || stack_state.connect { 9_000 } else { 3_000 }
}

/// Every connection is encrypted. A client of the platform presents a certificate, and a service its
/// name and password. Without a rule that allows it, a service may do nothing: `contracts apply`
/// brings the rules and the passwords.
fn security_properties(stack_state: &StackState, listeners: &[&str]) -> Result<Vec<String>> {
    let secrets = stack_state.secrets()?;
    let module = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let mut lines = vec![
        "ssl.keystore.type=PEM".to_string(),
        format!("ssl.keystore.location={}", secrets.certificate(BROKER)?.display()),
        "ssl.truststore.type=PEM".to_string(),
        format!("ssl.truststore.location={}", secrets.ca()?.display()),
        "ssl.principal.mapping.rules=RULE:^CN=([^,]+)$/$1/".to_string(),
        format!("sasl.enabled.mechanisms={SCRAM}"),
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_string(),
        "allow.everyone.if.no.acl.found=false".to_string(),
        format!("super.users=User:{BROKER};User:{CONTRACTS};User:{ADMINISTRATOR}"),
    ];
    for listener in listeners {
        let prefix = format!("listener.name.{}", listener.to_lowercase());
        lines.push(match *listener {
            PLATFORM | CONTROLLER => format!("{prefix}.ssl.client.auth=required"),
            _ => format!("{prefix}.{}.sasl.jaas.config={module}", SCRAM.to_lowercase()),
        });
    }
    Ok(lines)
}
