//! Kafka: the broker `kafka`, which is also the controller, and further brokers, which only carry records. In a secured
//! stack they demand certificates, users and rights.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use rand::Rng;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::net::TcpStream;

use crate::artifacts::java::java;
use crate::artifacts::{self, Artifacts};
use crate::component::{Component, Context, Kind, Ready, Stage};
use crate::description::{StackDescription, instance_name};
use crate::ports::Ports;
use crate::processes::LaunchCommand;
use crate::secrets::{ADMINISTRATOR, BROKER, CONTRACTS, SCRAM};
use crate::state::StackState;

/// The name of the first broker.
pub const KAFKA: &str = "kafka";

/// Its port as the controller.
const CONTROLLER_PORT: &str = "kafka-controller";

/// The listener of the platform: the brokers, the program of the contracts, and the tools. In a
/// secured stack its clients present a certificate, whose common name is their name.
const PLATFORM: &str = "CLIENTS";
const CONTROLLER: &str = "CONTROLLER";

const FORMAT_TIMEOUT: Duration = Duration::from_secs(120);

pub const LOG_CONFIG: &str = "appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
";

struct Kafka {
    /// The number of the broker, from 1.
    node: u16,
    name: String,
}

/// The contracts name the users of optional services always, so each has its listener also in a stack without it.
pub fn components(description: &StackDescription) -> Vec<Component> {
    let all = description.of_stack(|_| true);
    let listener =
        |(service, position): (&String, u16)| (format!("{service}-kafka"), 1093 + position);
    let own = [(KAFKA.to_string(), 1092), (CONTROLLER_PORT.to_string(), 1093)];
    let ports = own.into_iter().chain(all.positions().map(listener)).collect();
    vec![Component { ports, ..broker(1) }]
}

/// The broker of this number, from 1.
pub fn broker(node: u16) -> Component {
    let name = instance_name(KAFKA, node);
    let kind = Kafka { node, name: name.clone() };
    Component {
        has_listeners: true,
        ready: Ready::Asked,
        class_archive: Some(KAFKA),
        ..Component::new(&name, "java", Stage::Infrastructure, kind)
    }
}

/// The names of the ports of a broker: that of the platform, and one for each client that has a listener of its own.
pub fn ports_of_broker(ports: &Ports, node: u16) -> Vec<String> {
    let name = instance_name(KAFKA, node);
    let listeners = ports.kafka_listeners().map(|(client, _)| format!("{client}-{name}"));
    [name.clone()].into_iter().chain(listeners).collect()
}

impl Kafka {
    fn is_controller(&self) -> bool {
        self.node == 1
    }

    /// The settings of a broker whose log is in `data`.
    fn settings(&self, state: &StackState, data: &Path) -> Result<String> {
        let name = &self.name;
        let mut listeners = vec![format!("{PLATFORM}://{}", state.address(name)?)];
        let mut advertised = listeners.clone();
        for (client, _) in state.ports.kafka_listeners() {
            let own = state.address(&format!("{client}-{name}"))?;
            let address =
                if self.is_controller() { state.kafka_address(client)? } else { own.clone() };
            listeners.push(format!("{}://{own}", client.to_uppercase()));
            advertised.push(format!("{}://{address}", client.to_uppercase()));
        }
        let mut names: Vec<&str> = listeners.iter().filter_map(|it| it.split(':').next()).collect();
        names.push(CONTROLLER);
        let security = if state.secure { security_properties(state, &names)? } else { Vec::new() };
        let protocols = protocols(state, &names);
        if self.is_controller() {
            listeners.push(format!("{CONTROLLER}://{}", state.address(CONTROLLER_PORT)?));
        }
        let roles = if self.is_controller() { "broker,controller" } else { "broker" };
        let mut lines = vec![
            format!("process.roles={roles}"),
            format!("node.id={}", self.node),
            format!("listeners={}", listeners.join(",")),
            format!("advertised.listeners={}", advertised.join(",")),
            format!("listener.security.protocol.map={protocols}"),
            format!("log.dirs={}", data.display()),
        ];
        lines.extend(properties(state)?);
        lines.extend(security);
        Ok(lines.join("\n") + "\n")
    }

    /// Writes the settings, and formats the log if it is missing.
    async fn provision(&self, artifacts: &Artifacts, context: &Context<'_>) -> Result<()> {
        let (home, state) = (&context.process.home, context.state);
        let logs = home.join("data");
        fs::write(home.join("log4j2.properties"), LOG_CONFIG)?;
        fs::write(home.join("server.properties"), self.settings(state, &logs)?)?;
        if logs.exists() {
            return Ok(());
        }
        // A temporary name first, so that the log is either complete or missing.
        let (fresh, config) = (home.join("data.new"), home.join("format.properties"));
        let _ = fs::remove_dir_all(&fresh);
        fs::write(&config, self.settings(state, &fresh)?)?;
        let id = if self.is_controller() { new_cluster_id() } else { cluster_id(home)? };
        let mut format = java(KAFKA, home)?;
        let config = config.display().to_string();
        format.add(arguments(artifacts, home));
        format.add(["kafka.tools.StorageTool", "format", "-t", &id, "-c", &config]);
        context.process.run("the format of Kafka's log", &format, FORMAT_TIMEOUT).await?;
        Ok(fs::rename(fresh, logs)?)
    }
}

impl Kind for Kafka {
    fn command<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>> {
        Box::pin(async move {
            let (artifacts, home) = (artifacts::fetched().await?, &context.process.home);
            self.provision(&artifacts, context).await?;
            let mut command = java(KAFKA, home)?;
            command.add(artifacts.class_archive_option(KAFKA, context.archives_classes)?);
            command.add(arguments(&artifacts, home));
            let config = home.join("server.properties").display().to_string();
            command.add(["kafka.Kafka", &config]);
            Ok(command)
        })
    }

    /// The broker is in its own metadata as soon as it can serve.
    fn check_ready<'a>(&'a self, state: &'a StackState) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            // The port is tried first: after a refused connection, Kafka's client waits before its next
            // attempt.
            TcpStream::connect(state.address(&self.name)?).await?;
            if !self.is_controller() {
                return Ok(());
            }
            let mut client = state.kafka_client_as(ADMINISTRATOR)?;
            let fetch_metadata = move || -> Result<()> {
                let client: BaseConsumer = client
                    .set("reconnect.backoff.max.ms", "100")
                    .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
                    .create()?;
                let metadata = client.fetch_metadata(None, Duration::from_secs(2))?;
                ensure!(!metadata.brokers().is_empty(), "Kafka has no broker");
                Ok(())
            };
            tokio::task::spawn_blocking(fetch_metadata).await?
        })
    }

    /// A new service needs its own listener.
    fn outdated<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Option<&'static str>>> {
        Box::pin(async move {
            let home = &context.process.home;
            let now = self.settings(context.state, &home.join("data"))?;
            let then = fs::read_to_string(home.join("server.properties")).unwrap_or_default();
            Ok((now != then).then_some("runs with other settings"))
        })
    }
}

/// The arguments of Java for a program of Kafka, before its name.
fn arguments(artifacts: &Artifacts, home: &Path) -> [String; 3] {
    let logging = home.join("log4j2.properties");
    let logging = format!("-Dlog4j2.configurationFile={}", logging.display());
    [logging, "-cp".to_string(), artifacts.kafka_classpath.clone()]
}

/// A random id for a new cluster.
fn new_cluster_id() -> String {
    // 128 random bits in base64: the last of 22 characters holds only two of them.
    let mut id: String =
        (0..21).map(|_| char::from(rand::rng().sample(rand::distr::Alphanumeric))).collect();
    id.push('A');
    id
}

/// The id of the cluster, from the log of the first broker, whose directory is next to this one.
fn cluster_id(home: &Path) -> Result<String> {
    let file = home.with_file_name(KAFKA).join("data").join("meta.properties");
    let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("cluster.id="));
    Ok(id.context("a formatted log names its cluster")?.to_string())
}

/// The settings by which a running broker reads its certificate and those that it trusts again. The listener of
/// the controller has no such settings.
pub fn certificate_settings(state: &StackState) -> Result<Vec<(String, String)>> {
    let secrets = state.secrets()?;
    let files = [("keystore", secrets.certificate(BROKER)?), ("truststore", secrets.ca()?)];
    let own = state.ports.kafka_listeners().map(|(name, _)| name.to_lowercase());
    let listeners = own.chain([PLATFORM.to_lowercase()]);
    let settings = listeners.flat_map(|listener| {
        files.clone().map(|(store, file)| {
            let name = format!("listener.name.{listener}.ssl.{store}.location");
            (name, file.display().to_string())
        })
    });
    Ok(settings.collect())
}

/// The protocol of each listener.
fn protocols(state: &StackState, listeners: &[&str]) -> String {
    let protocol = |name: &str| match (state.secure, name) {
        (false, _) => "PLAINTEXT",
        (true, PLATFORM | CONTROLLER) => "SSL",
        (true, _) => "SASL_SSL",
    };
    let protocols = listeners.iter().map(|name| format!("{name}:{}", protocol(name)));
    protocols.collect::<Vec<_>>().join(",")
}

/// The settings that all brokers share.
fn properties(state: &StackState) -> Result<Vec<String>> {
    let copies = state.replication_factor.unwrap_or(1);
    let in_sync = if copies > 1 { copies - 1 } else { 1 };
    Ok(vec![
        // These names are here and not in the log directory, so that the ports can move.
        format!("controller.quorum.voters=1@{}", state.address(CONTROLLER_PORT)?),
        format!("controller.listener.names={CONTROLLER}"),
        format!("inter.broker.listener.name={PLATFORM}"),
        "broker.heartbeat.interval.ms=500".to_string(),
        format!("broker.session.timeout.ms={}", broker_session_millis(state)),
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
    ])
}

/// After a SIGKILL, the new broker can register only when the session of the old one has expired, so the session is
/// short. Kafka's own 9 s are for stacks with transactions: a broker that is fenced because it was too busy for its
/// heartbeats can drop the end of a transaction (KAFKA-20734), and all who read committed records wait for it.
fn broker_session_millis(state: &StackState) -> u32 {
    if state.streams || state.connect { 9_000 } else { 3_000 }
}

/// Every connection is encrypted. A client of the platform presents a certificate, and a service its
/// name and password. Without a rule that allows it, a service may do nothing: `contracts apply`
/// brings the rules and the passwords.
fn security_properties(state: &StackState, listeners: &[&str]) -> Result<Vec<String>> {
    let secrets = state.secrets()?;
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
