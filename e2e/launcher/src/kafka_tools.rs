//! The tools that Kafka comes with, in Java, for what no other client can do.

use std::fs;

use anyhow::{Context, Result};

use crate::process::LaunchCommand;
use crate::secrets::{ADMINISTRATOR, create_private_directory};
use crate::stack::Stack;

/// A tool runs for a second and holds little.
const OPTIONS: [&str; 3] = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];

impl Stack {
    /// Runs one of Kafka's tools as the administrator, by the name of its class, such as
    /// `org.apache.kafka.tools.TransactionsCommand`, and returns what it prints.
    ///
    /// # Errors
    /// If the tool fails.
    pub async fn run_kafka_tool(&self, class: &str, arguments: &[&str]) -> Result<String> {
        let directory = self.directory().join("kafka-tools");
        create_private_directory(&directory)?;
        let settings = directory.join("administrator.properties");
        fs::write(&settings, self.kafka_tool_settings()?)?;
        let (artifacts, settings) = (self.artifacts().await?, settings.display().to_string());
        let bootstrap = self.kafka_bootstrap()?;
        let words = ["-cp", &artifacts.kafka_classpath, class];
        let connection = ["--bootstrap-server", &bootstrap, "--command-config", &settings];
        let words = OPTIONS.iter().chain(&words).chain(&connection).chain(arguments);
        let launch = LaunchCommand {
            program: artifacts.java.clone(),
            arguments: words.map(ToString::to_string).collect(),
            ..LaunchCommand::default()
        };
        launch.run_with_input(&directory, "").await.with_context(|| format!("{class} failed"))
    }

    /// The settings of the administrator for a client in Java.
    fn kafka_tool_settings(&self) -> Result<String> {
        if !self.is_secure()? {
            return Ok(String::new());
        }
        let state = self.state()?;
        let secrets = state.secrets()?;
        let (own, ca) = (secrets.certificate(ADMINISTRATOR)?, secrets.ca()?);
        Ok(format!(
            "security.protocol=SSL\n\
             ssl.keystore.type=PEM\nssl.keystore.location={}\n\
             ssl.truststore.type=PEM\nssl.truststore.location={}\n",
            own.display(),
            ca.display()
        ))
    }
}
