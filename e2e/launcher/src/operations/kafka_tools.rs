//! The tools that Kafka comes with, in Java, for what no other client can do.

use std::fs;

use anyhow::{Context, Result};

use crate::artifacts;
use crate::artifacts::java::java;
use crate::components::kafka::KAFKA;
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
        let settings = directory.join("administrator.properties");
        fs::write(&settings, self.kafka_tool_settings()?)?;
        let (artifacts, bootstrap) = (artifacts::fetched().await?, self.kafka_bootstrap()?);
        let mut tool = java(KAFKA, &directory)?;
        tool.add(["-cp", &artifacts.kafka_classpath, class, "--bootstrap-server", &bootstrap]);
        tool.add(["--command-config", &settings.display().to_string()]);
        tool.add(arguments.iter().copied());
        tool.run_with_input(&directory, "").await.with_context(|| format!("{class} failed"))
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
