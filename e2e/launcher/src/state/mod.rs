//! The saved state of a stack, in the directory of its data: ports, instances, variables and programs. The
//! addresses of each component follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::description::{CONNECT, HOST, instance_name};
use crate::directories::programs_directory;
use crate::ports::{PortOffset, Ports};
use crate::secrets::{Secrets, database_secret};

mod credentials;

/// The saved state of a stack, in the directory of its data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StackState {
    #[serde(rename = "port_numbers")]
    pub ports: Ports,
    /// Marks the Kafka cluster as this stack's. A stack that is older than this field has none.
    #[serde(default)]
    pub name: Option<String>,
    /// The names of further instances of services.
    #[serde(rename = "further_instances")]
    pub instances: BTreeSet<String>,
    /// Kafka's advertised address for a service's clients, if it is not its own listener.
    pub kafka_advertised: BTreeMap<String, String>,
    /// Additional environment variables, by name of service or of instance.
    pub environment: BTreeMap<String, BTreeMap<String, String>>,
    /// The directory of the program, by name of instance, if it is another version.
    #[serde(default)]
    pub programs: BTreeMap<String, PathBuf>,
    /// The directory of all programs of the system, if it is another version.
    #[serde(default)]
    pub all_programs: Option<PathBuf>,
    /// The number of replicas of each partition, if more than one; see `brokers`.
    #[serde(default)]
    pub replication_factor: Option<u16>,
    /// Whether every connection is encrypted and every client of a component has a name.
    #[serde(default)]
    pub secure: bool,
    /// Whether it has its stream processors.
    #[serde(default)]
    pub streams: bool,
    /// Whether it has Kafka Connect, and databases whose log connectors can read.
    #[serde(default)]
    pub connect: bool,
    /// The Maven projects whose plugins Kafka Connect has in addition to its own.
    #[serde(default)]
    pub connect_plugins: Vec<String>,
    /// The features of the system that run, of those that the contracts name, each with its users in Kafka.
    #[serde(default)]
    pub features: BTreeMap<String, Vec<String>>,
    /// The password of the databases that docker compose runs.
    #[serde(skip)]
    pub database_password: Option<String>,
    /// The secrets of the native stack.
    #[serde(skip)]
    pub secrets: Option<Secrets>,
}

impl StackState {
    /// A stack on these ports, with one instance of each service and no other settings.
    pub fn new(ports: Ports) -> Self {
        Self { ports, ..Self::default() }
    }

    /// Adapts a state that was saved before a component was added or removed.
    pub fn with_ports_of(mut self, offsets: &[PortOffset]) -> Self {
        let component = |name: &str| name.split('-').next().unwrap_or_default().to_string();
        let known: BTreeSet<String> = offsets.iter().map(|(name, _)| component(name)).collect();
        self.ports.retain(|name| known.contains(&component(name)));
        let mut ports = Ports::new(offsets);
        ports.extend(self.ports);
        self.ports = ports;
        self
    }

    /// The address of a port, by its name.
    pub fn address(&self, port: &str) -> Result<String> {
        Ok(format!("{HOST}:{}", self.ports.get(port)?))
    }

    /// The URL of a port whose server speaks TLS in a secured stack.
    pub fn url(&self, port: &str) -> Result<String> {
        Ok(format!("{}://{}", self.http_scheme(), self.address(port)?))
    }

    /// The URL of the probe port of a component, which never speaks TLS.
    pub fn probe_url(&self, component: &str) -> Result<String> {
        Ok(format!("http://{}", self.address(&format!("{component}-probe"))?))
    }

    /// The names of a service's instances, the first one first.
    pub fn instances_of(&self, service: &str) -> Vec<String> {
        let number = |name: &String| name.strip_prefix(service)?.strip_prefix('-')?.parse().ok();
        let mut numbers: Vec<u16> = self.instances.iter().filter_map(number).collect();
        numbers.sort_unstable();
        let instances = [1].into_iter().chain(numbers);
        instances.map(|instance| instance_name(service, instance)).collect()
    }

    /// Kafka's address for one service or stream processor.
    pub fn kafka_address(&self, name: &str) -> Result<String> {
        let own = self.address(&format!("{name}-kafka"))?;
        Ok(self.kafka_advertised.get(name).cloned().unwrap_or(own))
    }

    /// The users of Kafka that have a password: the services, the stream processors, and those of the features that run.
    pub fn kafka_users(&self) -> BTreeSet<&str> {
        let listeners = self.ports.kafka_listeners().map(|(name, _)| name);
        let own = listeners.filter(|name| *name != CONNECT || self.connect);
        own.chain(self.features.values().flatten().map(String::as_str)).collect()
    }

    /// The scheme of the URLs of the services and of the registry.
    pub fn http_scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    pub fn registry_url(&self) -> Result<String> {
        Ok(self.url("registry")? + "/apis/ccompat/v7")
    }

    pub fn database_url(&self, service: &str, role: &str, database: &str) -> Result<String> {
        let address = self.address(&format!("{service}-db"))?;
        let password = match &self.database_password {
            Some(password) => password.clone(),
            None => self.secrets()?.password(&database_secret(service, role))?,
        };
        let url = format!("postgres://{role}:{password}@{address}/{database}");
        if !self.secure {
            return Ok(url);
        }
        let ca = self.secrets()?.ca()?;
        Ok(format!("{url}?sslmode=verify-full&sslrootcert={}", ca.display()))
    }

    pub fn secrets(&self) -> Result<&Secrets> {
        self.secrets.as_ref().context("only the native stack has secrets of its own")
    }

    /// The directory of the program of a service's instance.
    pub fn programs_of(&self, instance: &str) -> Result<PathBuf> {
        let own = self.programs.get(instance).or(self.all_programs.as_ref());
        own.cloned().map_or_else(programs_directory, Ok)
    }

    /// The certificate that clients of a secured stack check its servers against.
    pub fn ca(&self) -> Result<Option<PathBuf>> {
        self.secure.then(|| self.secrets()?.ca()).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(names: &[&str]) -> Vec<PortOffset> {
        names.iter().zip(1..).map(|(name, offset)| (name.to_string(), offset)).collect()
    }

    #[test]
    fn a_stack_state_older_than_a_service_gets_its_ports() {
        let now = offsets(&["a", "a-db", "b", "b-db"]);
        let current = StackState::new(Ports::new(&now));
        let before = StackState::new(Ports::new(&offsets(&["a", "a-db", "retired", "retired-db"])));
        assert_eq!(before.with_ports_of(&now), current);
        // Ports that no description names: of a further instance, and of a further broker.
        let mut further = current.clone();
        further.ports.extend(Ports::new(&offsets(&["a-2", "a-2-probe", "b-kafka-2"])));
        assert_eq!(further.clone().with_ports_of(&now), further);
        let former = r#"{"ports":{}, "instances":{}, "kafka_advertised":{}, "environment":{}}"#;
        assert!(serde_json::from_str::<StackState>(former).is_err(), "its ports would be lost");
    }

    #[test]
    fn the_instances_of_a_service_are_in_order_and_without_those_of_another() {
        let mut state = StackState::new(Ports::default());
        state.instances.extend(["a-10", "a-2", "ab-2"].map(String::from));
        assert_eq!(state.instances_of("a"), ["a", "a-2", "a-10"]);
        assert_eq!(state.instances_of("ab"), ["ab", "ab-2"]);
    }
}
