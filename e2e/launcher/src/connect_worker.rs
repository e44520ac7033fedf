//! The worker of Kafka Connect: its artifacts and how it runs. It writes in Kafka transactions. Without them, a
//! connector could confirm more of a database's log than Kafka has, and two workers could write for one task.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::artifacts::{Artifact, Unpack, fetch_all_missing, list_files};
use crate::connect_ports::CONNECT;
use crate::directories::cache_directory;
use crate::java::{find_java, java_options};
use crate::kafka_config::kafka_log_config;
use crate::process::{LaunchCommand, Process};
use crate::provision::provision_java;
use crate::stack::Stack;
use crate::stack_state::StackState;
use crate::topology::HOST;

/// The worker, then its plugins. The archive of a plugin has one folder at its root, which the worker loads by itself.
const ARTIFACTS: [Artifact; 2] = [
    Artifact { name: "connect", title: "Kafka Connect", size: "36 MB", unpack: None },
    Artifact {
        name: "debezium",
        title: "Debezium",
        size: "25 MB",
        unpack: Some(Unpack { archive: ".tar.gz", flags: "-xzf" }),
    },
];

/// The files of the worker, all of them complete.
struct ConnectArtifacts {
    java: PathBuf,
    classpath: String,
    /// The directories of the plugins, separated by commas.
    plugins: String,
}

impl ConnectArtifacts {
    /// Fetches what is missing, and adds the folders of further plugins. `progress` gets one line for each long step.
    async fn fetch_missing(further: Vec<PathBuf>, progress: &impl Fn(&str)) -> Result<Self> {
        let cache = cache_directory()?;
        fetch_all_missing(&ARTIFACTS, &cache, progress).await?;
        let [worker, plugins @ ..] = &ARTIFACTS;
        let files = list_files(&worker.directory(&cache))?.into_iter();
        let mut jars: Vec<String> = files.filter(|path| path.ends_with(".jar")).collect();
        jars.sort();
        let plugins = plugins.iter().map(|plugin| plugin.directory(&cache));
        let plugins = plugins.chain(further).map(|folder| folder.display().to_string());
        let plugins: Vec<String> = plugins.collect();
        Ok(Self { java: find_java()?, classpath: jars.join(":"), plugins: plugins.join(",") })
    }
}

/// Fetches the worker if it is missing, writes its settings with the further plugins of the stack, and returns its
/// command line.
pub(crate) async fn prepare(
    stack: &Stack,
    process: &Process,
    stack_state: &StackState,
) -> Result<LaunchCommand> {
    let home = &process.home;
    let further = stack.connect_plugins(stack_state).await?;
    provision_java(home)?;
    let artifacts = &ConnectArtifacts::fetch_missing(further, &|line| eprintln!("{line}")).await?;
    let (settings, logging) = (home.join("worker.properties"), home.join("log4j2.properties"));
    let mut lines = worker_properties(artifacts, stack_state)?;
    if stack_state.secure {
        lines.extend(stack_state.connect_credentials(home)?);
    }
    fs::write(&settings, lines.join("\n") + "\n")?;
    fs::write(&logging, kafka_log_config())?;
    let options = java_options("CONNECT_JAVA_OPTS");
    let mut arguments: Vec<String> = options.split_whitespace().map(String::from).collect();
    arguments.extend([
        format!("-Djava.io.tmpdir={}", home.join("tmp").display()),
        "-XX:-UsePerfData".to_string(),
        format!("-Dlog4j2.configurationFile={}", logging.display()),
        "-cp".to_string(),
        artifacts.classpath.clone(),
        "org.apache.kafka.connect.cli.ConnectDistributed".to_string(),
        settings.display().to_string(),
    ]);
    Ok(LaunchCommand {
        program: artifacts.java.clone(),
        arguments,
        environment: Vec::new(),
        unprivileged: false,
    })
}

fn worker_properties(
    artifacts: &ConnectArtifacts,
    stack_state: &StackState,
) -> Result<Vec<String>> {
    let copies = stack_state.replication_factor.unwrap_or(1);
    let own = stack_state.environment.get(CONNECT);
    let brokers = own.and_then(|variables| variables.get("KAFKA_BOOTSTRAP_SERVERS"));
    let brokers = brokers.cloned().map_or_else(|| stack_state.kafka_address(CONNECT), Ok)?;
    let secrets = stack_state.connect_secrets()?;
    let mut lines = vec![
        format!("bootstrap.servers={brokers}"),
        format!("group.id={CONNECT}"),
        format!("listeners={}", stack_state.connect_url()),
        format!("rest.advertised.host.name={HOST}"),
        "exactly.once.source.support=enabled".to_string(),
        format!("plugin.path={}", artifacts.plugins),
        // The other ways read every class of every plugin, which takes twice the memory.
        "plugin.discovery=service_load".to_string(),
        "key.converter=org.apache.kafka.connect.storage.StringConverter".to_string(),
        "value.converter=org.apache.kafka.connect.converters.ByteArrayConverter".to_string(),
        "header.converter=org.apache.kafka.connect.storage.StringConverter".to_string(),
        // A connector names a password by the file that has it.
        "config.providers=secrets".to_string(),
        "config.providers.secrets.class=\
         org.apache.kafka.common.config.provider.DirectoryConfigProvider"
            .to_string(),
        format!("config.providers.secrets.param.allowed.paths={}", secrets.display()),
        // The only worker: its tasks start again at once, and no other one is waited for.
        "scheduled.rebalance.max.delay.ms=0".to_string(),
        "session.timeout.ms=6000".to_string(),
        "heartbeat.interval.ms=2000".to_string(),
    ];
    // `contracts apply` has created them.
    for (topic, plural) in [("config", "configs"), ("offset", "offsets"), ("status", "statuses")] {
        lines.push(format!("{topic}.storage.topic={CONNECT}-{plural}"));
        lines.push(format!("{topic}.storage.replication.factor={copies}"));
    }
    lines.extend(["offset", "status"].map(|topic| format!("{topic}.storage.partitions=1")));
    Ok(lines)
}
