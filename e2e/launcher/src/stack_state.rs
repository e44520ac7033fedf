//! The saved state of a stack, beside its data: ports, instances, variables and programs. The
//! addresses and the environment of each component follow from it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::directories::programs_directory;
use crate::ports::{InstancePorts, Ports, ServicePorts};
use crate::secrets::{Secrets, database_secret};
use crate::streams_ports::StreamsPorts;
use crate::topology::{Component, HOST, StackDescription};

/// The saved state of a stack, beside its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackState {
    pub ports: Ports,
    /// Marks the Kafka cluster as this stack's. A stack that is older than this field has none.
    #[serde(default)]
    pub name: Option<String>,
    /// Further instances of services, by name.
    pub instances: BTreeMap<String, InstancePorts>,
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
    /// The Maven projects whose plugins Kafka Connect has beside its own.
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
        Self {
            ports,
            name: None,
            instances: BTreeMap::new(),
            kafka_advertised: BTreeMap::new(),
            environment: BTreeMap::new(),
            programs: BTreeMap::new(),
            all_programs: None,
            replication_factor: None,
            secure: false,
            streams: false,
            connect: false,
            connect_plugins: Vec::new(),
            features: BTreeMap::new(),
            database_password: None,
            secrets: None,
        }
    }

    /// Adapts a state that was saved before a service was added or removed.
    pub fn with_services_of(mut self, description: &StackDescription) -> Self {
        self.ports.services.retain(|service, _| description.services.contains(service));
        for (service, ports) in Ports::new(description).services {
            self.ports.services.entry(service).or_insert(ports);
        }
        self.ports.streams.retain(|name, _| description.stream_processors.contains(name));
        for (name, ports) in Ports::new(description).streams {
            self.ports.streams.entry(name).or_insert(ports);
        }
        if description.console && self.ports.console.is_none() {
            self.ports.console = Ports::new(description).console;
        }
        self
    }

    /// The infrastructure, the first instance of each service, the further ones, the control room, the worker
    /// of Kafka Connect, and the stream processors of a stack that has them.
    pub fn components(&self, description: &StackDescription) -> Vec<Component> {
        let first = description.services.iter().map(|service| Component::service(service));
        let further = self.instances.keys().filter_map(|name| description.component(name).ok());
        let console = description.console.then_some(Component::Console);
        let connect = self.connect.then_some(Component::Connect);
        let services = first.chain(further);
        let streams = self.streams.then_some(&description.stream_processors);
        let streams = streams.into_iter().flatten().cloned().map(Component::Streams);
        description
            .infrastructure()
            .into_iter()
            .chain(services)
            .chain(console)
            .chain(connect)
            .chain(streams)
            .collect()
    }

    pub fn streams_ports(&self, name: &str) -> Result<&StreamsPorts> {
        let ports = self.ports.streams.get(name);
        ports.with_context(|| format!("there is no stream processor `{name}`"))
    }

    /// See [`crate::Stack::streams_urls`].
    pub fn streams_urls(&self) -> Vec<(String, String)> {
        let ports = self.ports.streams.iter().filter(|_| self.streams);
        let url = |port: u16| format!("{}://{HOST}:{port}", self.http_scheme());
        ports.map(|(name, ports)| (name.clone(), url(ports.api))).collect()
    }

    pub fn service_ports(&self, service: &str) -> Result<&ServicePorts> {
        self.ports.services.get(service).with_context(|| format!("there is no service `{service}`"))
    }

    pub fn instance_ports(&self, name: &str) -> Result<&InstancePorts> {
        let further = self.instances.get(name);
        further
            .or_else(|| self.ports.services.get(name).map(|ports| &ports.first))
            .with_context(|| format!("there is no instance `{name}`"))
    }

    /// The names of a service's instances, the first one first.
    pub fn instances_of(&self, service: &str) -> Vec<String> {
        let number = |name: &String| name.strip_prefix(service)?.strip_prefix('-')?.parse().ok();
        let mut numbers: Vec<u16> = self.instances.keys().filter_map(number).collect();
        numbers.sort_unstable();
        let instances = [1].into_iter().chain(numbers);
        instances.map(|instance| Component::instance(service, instance).to_string()).collect()
    }

    /// The ports that a further instance will have.
    pub fn ports_for_new_instance(&self, component: &Component) -> Result<InstancePorts> {
        let Component::Service { service, instance } = component else {
            bail!("there is only one {component}");
        };
        InstancePorts::for_instance(&self.service_ports(service)?.first, *instance)
    }

    /// The ports that a component listens on, each with the variable that moves it.
    pub fn listening_ports(&self, component: &Component) -> Result<Vec<(u16, Option<String>)>> {
        let with_variable = |port: u16| {
            let mut ports = self.ports.clone();
            let mut settings = ports.variables_mut().into_iter();
            let setting = settings.find(|(_, set)| **set == port).map(|(variable, _)| variable);
            (port, setting)
        };
        let ports = match component {
            Component::Database(service) => vec![self.service_ports(service)?.database],
            Component::Registry => vec![self.ports.registry],
            Component::Console => {
                let ports = self.console_ports()?;
                vec![ports.pages, ports.probe]
            }
            Component::Connect => vec![self.ports.connect.rest],
            Component::Streams(name) => {
                let ports = self.streams_ports(name)?;
                vec![ports.api, ports.probe]
            }
            Component::Kafka => {
                let listeners = self.ports.kafka_listeners().into_iter().map(|(_, port)| port);
                [self.ports.kafka, self.ports.kafka_controller]
                    .into_iter()
                    .chain(listeners)
                    .collect()
            }
            Component::Service { .. } => {
                let ports = self.instance_ports(&component.to_string())?;
                vec![ports.api, ports.probe, ports.admin]
            }
        };
        Ok(ports.into_iter().map(with_variable).collect())
    }

    /// Kafka's address for one service or stream processor.
    pub fn kafka_address(&self, name: &str) -> Result<String> {
        let port = self.ports.kafka_listener(name);
        let own = format!(
            "{HOST}:{}",
            port.with_context(|| format!("Kafka has no listener for `{name}`"))?
        );
        Ok(self.kafka_advertised.get(name).cloned().unwrap_or(own))
    }

    /// The scheme of the URLs of the services and of the registry.
    pub fn http_scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    pub fn registry_url(&self) -> String {
        format!("{}://{HOST}:{}/apis/ccompat/v7", self.http_scheme(), self.ports.registry)
    }

    pub fn database_url(&self, service: &str, role: &str, database: &str) -> Result<String> {
        let port = self.service_ports(service)?.database;
        let password = match &self.database_password {
            Some(password) => password.clone(),
            None => self.secrets()?.password(&database_secret(service, role))?,
        };
        let url = format!("postgres://{role}:{password}@{HOST}:{port}/{database}");
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
    pub fn programs_of(&self, component: &Component) -> Result<PathBuf> {
        let own = self.programs.get(&component.to_string()).or(self.all_programs.as_ref());
        own.cloned().map_or_else(programs_directory, Ok)
    }

    /// The environment of one instance: its addresses, then the variables of its service, then its
    /// own.
    pub fn environment_of(&self, component: &Component) -> Result<Vec<(String, String)>> {
        let name = component.to_string();
        let own = |name: &str| self.environment.get(name).cloned().unwrap_or_default();
        let service = match component {
            Component::Service { service, .. } => service,
            Component::Console => {
                let given = BTreeMap::from_iter(self.console_environment()?);
                return Ok(given.into_iter().chain(own(&name)).collect());
            }
            Component::Streams(name) => {
                let given = BTreeMap::from_iter(self.streams_environment(name)?);
                return Ok(given.into_iter().chain(own(name)).collect());
            }
            _ => return Ok(own(&name).into_iter().collect()),
        };
        let ports = self.instance_ports(&name)?;
        let at = |port: u16| format!("{HOST}:{port}");
        let mut environment = BTreeMap::from(
            [
                ("HTTP_ADDR", at(ports.api)),
                ("PROBE_ADDR", at(ports.probe)),
                ("ADMIN_ADDR", at(ports.admin)),
                ("KAFKA_BOOTSTRAP_SERVERS", self.kafka_address(service)?),
                ("SCHEMA_REGISTRY_URL", self.registry_url()),
            ]
            .map(|(key, value)| (key.to_string(), value)),
        );
        environment.extend(self.credentials_of_service(service)?);
        for name in [service, &name] {
            for (key, value) in own(name) {
                environment.remove(&format!("{key}_FILE"));
                environment.insert(key, value);
            }
        }
        Ok(environment.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::describe;

    #[test]
    fn a_stack_state_older_than_a_service_gets_its_ports() {
        let description = describe(&["a", "b", "c"]);
        let current = StackState::new(Ports::new(&description));
        let mut older = current.clone();
        let taken_away = older.ports.services.remove("c").unwrap();
        older.ports.services.insert("retired".to_string(), taken_away);
        assert_eq!(older.with_services_of(&description), current);
    }

    #[test]
    fn the_instances_of_a_service_are_in_order_and_without_those_of_another() {
        let mut state = StackState::new(Ports::new(&describe(&["a", "ab"])));
        let ports = state.ports.services["a"].first.clone();
        for name in ["a-10", "a-2", "ab-2"] {
            state.instances.insert(name.to_string(), ports.clone());
        }
        assert_eq!(state.instances_of("a"), ["a", "a-2", "a-10"]);
        assert_eq!(state.instances_of("ab"), ["ab", "ab-2"]);
    }
}
