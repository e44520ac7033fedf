//! The addresses at which clients, tests and operators reach the components of a stack.

use std::path::PathBuf;

use anyhow::Result;
use rdkafka::ClientConfig;

use crate::ports::Ports;
use crate::secrets::{ADMINISTRATOR, SUPERUSER, owner_role};
use crate::stack::Stack;
use crate::topology::HOST;

impl Stack {
    /// The API of an instance, such as `http://127.0.0.1:8001`.
    ///
    /// # Errors
    /// If the stack has no such instance.
    pub fn url(&self, name: &str) -> Result<String> {
        let state = self.state()?;
        Ok(format!("{}://{HOST}:{}", state.http_scheme(), state.instance_ports(name)?.api))
    }

    /// The port for `/livez`, `/readyz` and `/metrics` of an instance, as a URL.
    ///
    /// # Errors
    /// If the stack has no such instance.
    pub fn probe_url(&self, name: &str) -> Result<String> {
        Ok(format!("http://{HOST}:{}", self.state()?.instance_ports(name)?.probe))
    }

    /// The port for operators of an instance, as a URL.
    ///
    /// # Errors
    /// If the stack has no such instance.
    pub fn admin_url(&self, name: &str) -> Result<String> {
        let state = self.state()?;
        Ok(format!("{}://{HOST}:{}", state.http_scheme(), state.instance_ports(name)?.admin))
    }

    /// The service's own database, as its superuser.
    ///
    /// # Errors
    /// If the stack has no such service.
    pub fn database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, SUPERUSER, service)
    }

    /// The service's own database, as the role that serves.
    ///
    /// # Errors
    /// If the stack has no such service.
    pub fn service_database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, service, service)
    }

    /// The service's own database, as the role that owns its tables.
    ///
    /// # Errors
    /// If the stack has no such service.
    pub fn owner_database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, &owner_role(service), service)
    }

    /// The maintenance database of the same cluster, as its superuser, for tests that create databases
    /// of their own.
    ///
    /// # Errors
    /// If the stack has no such service.
    pub fn maintenance_database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, SUPERUSER, "postgres")
    }

    /// Kafka's listener for clients that are not services, such as `127.0.0.1:9092`.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn kafka_bootstrap(&self) -> Result<String> {
        Ok(format!("{HOST}:{}", self.state()?.ports.kafka))
    }

    /// The settings of a client of Kafka that may do anything: at the listener for clients that are
    /// not services, and in a secured stack with a certificate.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn kafka_client(&self) -> Result<ClientConfig> {
        self.kafka_client_as(ADMINISTRATOR)
    }

    /// The settings of a client of Kafka with a name: that of a service, at its own listener and with
    /// its password, or that of a client of the platform, which presents a certificate. In a stack
    /// that is not secured, Kafka asks for no name.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn kafka_client_as(&self, name: &str) -> Result<ClientConfig> {
        self.state()?.kafka_client_as(name)
    }

    /// The certificate that clients of a secured stack check its servers against.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn ca_certificate(&self) -> Result<Option<PathBuf>> {
        let state = self.state()?;
        if state.secure { state.secrets()?.ca().map(Some) } else { Ok(None) }
    }

    /// The token with which a client may write to the registry of a secured stack.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn registry_token(&self) -> Result<Option<String>> {
        let state = self.state()?;
        if !state.secure {
            return Ok(None);
        }
        Ok(Some(std::fs::read_to_string(state.secrets()?.registry_token()?)?))
    }

    /// Whether every connection is encrypted, and every client has a name.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn is_secure(&self) -> Result<bool> {
        Ok(self.state()?.secure)
    }

    /// Kafka's listener of one service, at its real port.
    ///
    /// # Errors
    /// If the stack has no such service.
    pub fn kafka_listener(&self, service: &str) -> Result<String> {
        Ok(format!("{HOST}:{}", self.state()?.service_ports(service)?.kafka))
    }

    /// The name by which the stack claims its Kafka cluster, such as `shop-5f0c1d2e`.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn name(&self) -> Result<String> {
        let name = self.state()?.name;
        Ok(name.unwrap_or_else(|| self.description().project.clone()))
    }

    /// The registry's API in the format of Confluent's: the value of `SCHEMA_REGISTRY_URL`.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn registry_url(&self) -> Result<String> {
        Ok(self.state()?.registry_url())
    }

    /// Every port of the stack.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn ports(&self) -> Result<Ports> {
        Ok(self.state()?.ports)
    }

    /// The stream processors of a stack that has them, each with the URL of its sums.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn streams_urls(&self) -> Result<Vec<(String, String)>> {
        Ok(self.state()?.streams_urls())
    }

    /// The names of a service's instances, the first one first.
    ///
    /// # Errors
    /// If the stack was deleted.
    pub fn instances_of(&self, service: &str) -> Result<Vec<String>> {
        Ok(self.state()?.instances_of(service))
    }

    /// The file with the output of a component of the native stack.
    ///
    /// # Errors
    /// If the stack has no such component.
    pub fn log_file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.process(&self.component(name)?).log)
    }
}
