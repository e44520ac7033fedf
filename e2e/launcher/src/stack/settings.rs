//! The settings that a run changes in a stack: the variables and the program of a service, the
//! number of its instances, and Kafka's advertised address. Each change takes effect at the next
//! start.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::description::{CONNECT, instance_name};
use crate::stack::Stack;

/// The largest number of instances: each is a process with a connection pool to its database.
const INSTANCES_MAX: u16 = 9;

/// Each of these methods fails if the stack is not native.
impl Stack {
    /// Sets a variable for every later start of a service (all its instances), of one instance or of a
    /// database; `None` takes it back.
    pub fn set_environment(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.component(name)?;
        self.update_state(|state| {
            let variables = state.environment.entry(name.to_string()).or_default();
            match value {
                Some(value) => variables.insert(key.to_string(), value.to_string()),
                None => variables.remove(key),
            };
        })
    }

    /// Adds the stream processors of the description, which start with the next `up`.
    pub fn process_streams(&self) -> Result<()> {
        self.update_state(|state| state.streams = true)
    }

    /// Adds the worker of Kafka Connect, which starts with the next `up`. The databases then write what a connector
    /// reads from their log: `up` starts those again that do not.
    pub fn connect(&self) -> Result<()> {
        self.update_state(|state| state.connect = true)
    }

    /// Adds a feature of the system, by its name in the contracts, with its users in Kafka. In a secured stack they get
    /// their passwords and rights when the contracts are applied next.
    pub fn add_feature(&self, name: &str, users: &[String]) -> Result<()> {
        self.update_state(|state| {
            state.features.insert(name.to_string(), users.to_vec());
        })
    }

    /// Removes a feature of the system. In a secured stack its users lose their passwords and rights when the contracts are
    /// applied next.
    pub fn remove_feature(&self, name: &str) -> Result<()> {
        self.update_state(|state| {
            state.features.remove(name);
        })
    }

    /// Whether the stack has this feature.
    pub fn has_feature(&self, name: &str) -> Result<bool> {
        Ok(self.state()?.features.contains_key(name))
    }

    /// Adds the worker of Kafka Connect with further plugins: those that the Maven project in the folder
    /// `services/<project>` leaves in `target/plugins`. A worker without them is stopped, since it finds its plugins at
    /// its start. The next `up` starts it.
    ///
    /// # Errors
    /// If the stack is not native, or the worker cannot be stopped.
    pub async fn connect_with_plugins_of(&self, project: &str) -> Result<()> {
        self.connect()?;
        if self.state()?.connect_plugins.iter().any(|known| known == project) {
            return Ok(());
        }
        self.update_state(|state| state.connect_plugins.push(project.to_string()))?;
        self.stop(CONNECT).await.map(drop)
    }

    /// How long the services wait for a schema that the registry does not have. A single registry
    /// is never behind.
    pub fn set_registry_lag(&self, seconds: u32) -> Result<()> {
        self.description().services.iter().try_for_each(|service| {
            self.set_environment(service, "SCHEMA_REGISTRY_LAG_SECONDS", Some(&seconds.to_string()))
        })
    }

    /// Runs the program of one instance from another directory, from its next start on: another
    /// version of the service, beside the others.
    pub fn set_programs(&self, name: &str, directory: &Path) -> Result<()> {
        self.component(name)?;
        self.update_state(|state| {
            state.programs.insert(name.to_string(), directory.to_path_buf());
        })
    }

    /// Runs the services, their migrations and the contracts of another version, from a directory with their programs.
    pub fn set_all_programs(&self, directory: &Path) -> Result<()> {
        self.update_state(|state| state.all_programs = Some(directory.to_path_buf()))
    }

    /// Sets the number of instances of each service: further ones start with the next `up`, and
    /// surplus ones are stopped and forgotten now.
    ///
    /// # Errors
    /// If the number is not 1 to 9, the stack is not native, or a surplus instance cannot be stopped.
    pub async fn set_instances(&self, count: u16) -> Result<()> {
        ensure!(
            (1..=INSTANCES_MAX).contains(&count),
            "a service can have 1 to {INSTANCES_MAX} instances"
        );
        let state = self.state()?;
        for service in &self.description().services {
            let there = state.instances_of(service);
            let wanted: Vec<String> = (1..=count).map(|nth| instance_name(service, nth)).collect();
            for name in there.iter().filter(|name| !wanted.contains(name)) {
                self.remove(name).await?;
            }
            for name in wanted.iter().filter(|name| !there.contains(name)) {
                self.add_instance(name)?;
            }
        }
        Ok(())
    }

    /// Sends a service's Kafka traffic through a proxy at `address`, from Kafka's and the service's
    /// next start on; `None` takes it back.
    pub fn advertise_kafka(&self, service: &str, address: Option<&str>) -> Result<()> {
        self.kafka_listener(service)?;
        self.update_state(|state| {
            match address {
                Some(address) => {
                    state.kafka_advertised.insert(service.to_string(), address.to_string())
                }
                None => state.kafka_advertised.remove(service),
            };
        })
    }
}
