//! The addresses at which clients, tests and operators reach the components of a stack.

use std::path::PathBuf;

use anyhow::Result;

use crate::launcher::stack::Stack;
use crate::launcher::topology::HOST;

impl Stack {
    /// `http://127.0.0.1:8001` of a service or one of its instances.
    pub fn url(&self, name: &str) -> Result<String> {
        Ok(format!("http://{HOST}:{}", self.state()?.instance_ports(name)?.api))
    }

    pub fn probe_url(&self, name: &str) -> Result<String> {
        Ok(format!("http://{HOST}:{}", self.state()?.instance_ports(name)?.probe))
    }

    pub fn admin_url(&self, name: &str) -> Result<String> {
        Ok(format!("http://{HOST}:{}", self.state()?.instance_ports(name)?.admin))
    }

    /// The service's own database, as its superuser.
    pub fn database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, "postgres", service)
    }

    /// The maintenance database of the same cluster, for tests that create databases of their own.
    pub fn maintenance_database_url(&self, service: &str) -> Result<String> {
        self.state()?.database_url(service, "postgres", "postgres")
    }

    /// Kafka's listener for clients that are not services.
    pub fn kafka_bootstrap(&self) -> Result<String> {
        Ok(format!("{HOST}:{}", self.state()?.ports.kafka))
    }

    /// Kafka's listener of one service, at its real port.
    pub fn kafka_listener(&self, service: &str) -> Result<String> {
        Ok(format!("{HOST}:{}", self.state()?.service_ports(service)?.kafka))
    }

    /// The name by which the stack claims its Kafka cluster.
    pub fn name(&self) -> Result<String> {
        Ok(self.state()?.stack_name())
    }

    pub fn registry_url(&self) -> Result<String> {
        Ok(self.state()?.registry_url())
    }

    /// The names of a service's instances, the first one first.
    pub fn instances_of(&self, service: &str) -> Result<Vec<String>> {
        Ok(self.state()?.instances_of(service))
    }

    pub fn log_file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.process(&name.parse()?).log)
    }
}
