//! The addresses at which clients, tests and operators reach the components of a stack.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rdkafka::ClientConfig;

use crate::ports::Ports;
use crate::secrets::{ADMINISTRATOR, CONSOLE, SUPERUSER, owner_role};
use crate::stack::Stack;

impl Stack {
    /// The API of an instance, such as `http://127.0.0.1:8001`.
    pub fn url(&self, name: &str) -> Result<String> {
        self.state()?.url(name)
    }

    /// The port for `/livez`, `/readyz` and `/metrics` of an instance, as a URL.
    pub fn probe_url(&self, name: &str) -> Result<String> {
        self.state()?.probe_url(name)
    }

    /// The port for operators of an instance, as a URL.
    pub fn admin_url(&self, name: &str) -> Result<String> {
        self.state()?.url(&format!("{name}-admin"))
    }

    /// The service's own database, as its superuser.
    pub fn database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, SUPERUSER, service)
    }

    /// The service's own database, as the role that serves.
    pub fn service_database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, service, service)
    }

    /// The service's own database, as the role that owns its tables.
    pub fn owner_database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, &owner_role(service), service)
    }

    /// The maintenance database of the same cluster, as its superuser, for tests that create databases
    /// of their own.
    pub fn maintenance_database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, SUPERUSER, "postgres")
    }

    /// Kafka's listener for clients that are not services, such as `127.0.0.1:9092`.
    pub fn kafka_bootstrap(&self) -> Result<String> {
        self.state()?.address("kafka")
    }

    /// The settings of a client of Kafka that may do anything: at the listener for clients that are
    /// not services, and in a secured stack with a certificate.
    pub fn kafka_client(&self) -> Result<ClientConfig> {
        self.kafka_client_as(ADMINISTRATOR)
    }

    /// The settings of a client of Kafka with a name: that of a service, at its own listener and with
    /// its password, or that of a client of the platform, which presents a certificate. In a stack
    /// that is not secured, Kafka asks for no name.
    pub fn kafka_client_as(&self, name: &str) -> Result<ClientConfig> {
        self.state()?.kafka_client_as(name)
    }

    /// The certificate that clients of a secured stack check its servers against.
    pub fn ca_certificate(&self) -> Result<Option<PathBuf>> {
        self.state()?.ca()
    }

    /// The token with which a client may write to the registry of a secured stack.
    pub fn registry_token(&self) -> Result<Option<String>> {
        let state = self.state()?;
        let token = || Ok(fs::read_to_string(state.secrets()?.registry_token()?)?);
        state.secure.then(token).transpose()
    }

    /// Whether every connection is encrypted, and every client has a name.
    pub fn is_secure(&self) -> Result<bool> {
        Ok(self.state()?.secure)
    }

    /// Kafka's listener of one service, at its real port.
    pub fn kafka_listener(&self, service: &str) -> Result<String> {
        self.state()?.address(&format!("{service}-kafka"))
    }

    /// The name by which the stack claims its Kafka cluster, such as `shop-5f0c1d2e`.
    pub fn name(&self) -> Result<String> {
        let name = self.state()?.name;
        Ok(name.unwrap_or_else(|| self.description().project.clone()))
    }

    /// The registry's API in the format of Confluent's: the value of `SCHEMA_REGISTRY_URL`.
    pub fn registry_url(&self) -> Result<String> {
        self.state()?.registry_url()
    }

    /// Every port of the stack.
    pub fn ports(&self) -> Result<Ports> {
        Ok(self.state()?.ports)
    }

    /// The stream processors of a stack that has them, each with the URL of its sums.
    pub fn streams_urls(&self) -> Result<Vec<(String, String)>> {
        let state = self.state()?;
        let names = self.description().stream_processors.iter().filter(|_| state.streams);
        names.map(|name| Ok((name.clone(), state.url(name)?))).collect()
    }

    /// The pages of the control room, such as `http://127.0.0.1:8000`.
    ///
    /// # Errors
    /// If the stack has none.
    pub fn console_url(&self) -> Result<String> {
        self.state()?.url(CONSOLE)
    }

    /// The names of a service's instances, the first one first.
    pub fn instances_of(&self, service: &str) -> Result<Vec<String>> {
        Ok(self.state()?.instances_of(service))
    }

    /// The file with the output of a component of the native stack.
    pub fn log_file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.process(&self.component(name)?).log)
    }
}
