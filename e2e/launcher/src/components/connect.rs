//! The worker of Kafka Connect: its artifacts and how it runs. It writes in Kafka transactions. Without them, a
//! connector could confirm more of a database's log than Kafka has, and two workers could write for one task.

use std::fs;

use anyhow::Result;
use futures::future::BoxFuture;

use crate::artifacts::java::java;
use crate::artifacts::maven_project::MavenProject;
use crate::artifacts::{Artifact, Unpack, fetch_all_missing};
use crate::component::{Component, Context, Kind, Ready, Stage};
use crate::components::kafka::LOG_CONFIG;
use crate::description::{CONNECT, HOST, StackDescription};
use crate::directories::cache_directory;
use crate::processes::LaunchCommand;
use crate::state::StackState;

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

struct Connect;

pub fn components(_description: &StackDescription) -> Vec<Component> {
    vec![Component {
        belongs_to: |state| state.connect,
        ports: vec![(CONNECT.to_string(), 83), (format!("{CONNECT}-kafka"), 1040)],
        // It answers this once it has joined its group.
        ready: Ready::Api("/connectors"),
        ..Component::new(CONNECT, "java", Stage::Flow, Connect)
    }]
}

impl Kind for Connect {
    /// The worker and its plugins are fetched first, and further plugins compiled.
    fn command<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>> {
        Box::pin(async move {
            let (home, state, cache) = (&context.process.home, context.state, cache_directory()?);
            fetch_all_missing(&ARTIFACTS, &cache, &|line| eprintln!("{line}")).await?;
            let [worker, plugins @ ..] = &ARTIFACTS;
            let mut folders: Vec<_> = plugins.iter().map(|it| it.directory(&cache)).collect();
            for name in &state.connect_plugins {
                let project = MavenProject::build_missing(&context.description.root, name).await?;
                folders.push(project.plugins());
            }
            let folders: Vec<_> = folders.iter().map(|it| it.display().to_string()).collect();
            let (settings, logging) =
                (home.join("worker.properties"), home.join("log4j2.properties"));
            let mut lines = worker_properties(&folders.join(","), state)?;
            if state.secure {
                lines.extend(state.connect_credentials(home)?);
            }
            fs::write(&settings, lines.join("\n") + "\n")?;
            fs::write(&logging, LOG_CONFIG)?;
            let mut command = java(CONNECT, home)?;
            command.add([
                format!("-Dlog4j2.configurationFile={}", logging.display()),
                "-cp".to_string(),
                worker.classpath(&cache)?,
                "org.apache.kafka.connect.cli.ConnectDistributed".to_string(),
                settings.display().to_string(),
            ]);
            Ok(command)
        })
    }
}

/// The settings of the worker with its plugins, whose folders are separated by commas.
fn worker_properties(plugins: &str, state: &StackState) -> Result<Vec<String>> {
    let copies = state.replication_factor.unwrap_or(1);
    let own = state.environment.get(CONNECT);
    let brokers = own.and_then(|variables| variables.get("KAFKA_BOOTSTRAP_SERVERS"));
    let brokers = brokers.cloned().map_or_else(|| state.kafka_address(CONNECT), Ok)?;
    let secrets = state.connect_secrets()?;
    let mut lines = vec![
        format!("bootstrap.servers={brokers}"),
        format!("group.id={CONNECT}"),
        format!("listeners={}", state.url(CONNECT)?),
        format!("rest.advertised.host.name={HOST}"),
        "exactly.once.source.support=enabled".to_string(),
        format!("plugin.path={plugins}"),
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
