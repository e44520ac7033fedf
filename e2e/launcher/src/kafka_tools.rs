//! The tools that Kafka comes with, in Java, for what no other client can do.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::launch_config::{ClassArchiveMode, java};
use crate::provision::provision_java;
use crate::secrets::{ADMINISTRATOR, create_private_directory};
use crate::stack::Stack;

impl Stack {
    /// Runs one of Kafka's tools as the administrator, by the name of its class, such as
    /// `org.apache.kafka.tools.TransactionsCommand`, and returns what it prints.
    ///
    /// # Errors
    /// If the tool fails.
    pub async fn run_kafka_tool(&self, class: &str, arguments: &[&str]) -> Result<String> {
        let directory = self.directory().join("kafka-tools");
        create_private_directory(&directory)?;
        provision_java(&directory)?;
        let settings = directory.join("administrator.properties");
        fs::write(&settings, self.kafka_tool_settings()?)?;
        let (artifacts, settings) = (self.artifacts().await?, settings.display().to_string());
        let bootstrap = self.kafka_bootstrap()?;
        let (archive, none) = (ClassArchiveMode::Disabled, Path::new(""));
        let mut launch = java(&artifacts, &directory, "KAFKA_JAVA_OPTS", archive, none);
        launch.arguments.extend(["-cp", &artifacts.kafka_classpath, class].map(String::from));
        let connection = ["--bootstrap-server", &bootstrap, "--command-config", &settings];
        launch.arguments.extend(connection.iter().chain(arguments).map(ToString::to_string));
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
