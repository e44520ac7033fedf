//! What a stack remembers between two commands, in `layout.json`, and what of it a run changes: variables
//! and programs of a service, how many instances it has, and which way its Kafka traffic goes.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::parts::create_open_directory;
use crate::ports::Ports;
use crate::stack::Stack;
use crate::topology::{Layout, Member, SERVICES};

/// Each is a process with a pool of connections to the service's database.
const INSTANCES_MAX: u16 = 9;

impl Stack {
    /// Sets a variable for every later start of a service (all its instances), of one instance or of a
    /// database; `None` takes it back.
    pub fn set_environment(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        name.parse::<Member>()?;
        self.change(|layout| {
            let variables = layout.environment.entry(name.to_string()).or_default();
            match value {
                Some(value) => variables.insert(key.to_string(), value.to_string()),
                None => variables.remove(key),
            };
        })
    }

    /// How long the services wait for a schema that the registry does not know. One registry alone is never behind.
    pub fn set_registry_lag(&self, seconds: u32) -> Result<()> {
        SERVICES.into_iter().try_for_each(|service| {
            self.set_environment(service, "SCHEMA_REGISTRY_LAG_SECONDS", Some(&seconds.to_string()))
        })
    }

    /// Takes the program of one instance from another directory, from its next start on: another
    /// version of the service, beside the others.
    pub fn set_programs(&self, name: &str, directory: &Path) -> Result<()> {
        name.parse::<Member>()?;
        self.change(|layout| {
            layout.programs.insert(name.to_string(), directory.to_path_buf());
        })
    }

    /// So many instances of each service: further ones start with the next `up`, and those beyond
    /// are stopped and forgotten now.
    pub async fn set_instances(&self, count: u16) -> Result<()> {
        ensure!(
            (1..=INSTANCES_MAX).contains(&count),
            "from 1 to {INSTANCES_MAX} instances can run"
        );
        let layout = self.layout()?;
        for service in SERVICES {
            let there = layout.instances_of(service);
            let wanted: Vec<String> = (1..=count)
                .map(|instance| Member::instance(service, instance).to_string())
                .collect();
            for name in there.iter().filter(|name| !wanted.contains(name)) {
                self.remove(name).await?;
            }
            for name in wanted.iter().filter(|name| !there.contains(name)) {
                let ports = layout.ports_for(&name.parse()?)?;
                self.change(|layout| {
                    layout.instances.insert(name.clone(), ports);
                })?;
            }
        }
        Ok(())
    }

    /// Sends a service's Kafka traffic through a proxy at `address`, from Kafka's and the service's
    /// next start on; `None` takes it back.
    pub fn advertise_kafka(&self, service: &str, address: Option<&str>) -> Result<()> {
        self.layout()?.of_service(service)?;
        self.change(|layout| {
            match address {
                Some(address) => {
                    layout.kafka_advertised.insert(service.to_string(), address.to_string())
                }
                None => layout.kafka_advertised.remove(service),
            };
        })
    }

    pub(crate) fn layout(&self) -> Result<Layout> {
        if let Some(compose) = &self.compose {
            return Ok(compose.layout.clone());
        }
        let file = self.directory().join("layout.json");
        let text = fs::read(&file).with_context(|| {
            format!("there is no stack in {}: `make up` starts one", self.directory().display())
        })?;
        let layout: Layout = serde_json::from_slice(&text)
            .with_context(|| format!("cannot read {}", file.display()))?;
        Ok(layout.of_today())
    }

    /// Makes it, unless it is there, on these ports.
    pub(crate) fn make(&self, ports: Ports) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml says how this stack is made");
        for directory in ["", "run", "log"] {
            create_open_directory(&self.directory().join(directory)).with_context(|| {
                format!("cannot make {} (HOLDFAST_STATE moves it)", self.directory().display())
            })?;
        }
        self.write(|layout| {
            let fresh = || Layout {
                name: Some(format!("holdfast-{:08x}", rand::random::<u32>())),
                ..Layout::default()
            };
            Ok(Layout { ports, ..layout.unwrap_or_else(|_| fresh()) })
        })
    }

    /// One that is gone stays so: who still works on it would leave a directory that looks like a
    /// stack.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Layout)) -> Result<()> {
        ensure!(self.compose.is_none(), "docker-compose.yml says how this stack is made");
        self.layout()?;
        self.write(|layout| {
            let mut layout = layout?;
            change(&mut layout);
            Ok(layout)
        })
    }

    fn write(&self, layout: impl FnOnce(Result<Layout>) -> Result<Layout>) -> Result<()> {
        let lock = File::create(self.directory().join("layout.lock"))?;
        lock.lock()?;
        let layout = layout(self.layout())?;
        let fresh = self.directory().join("layout.json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(&layout)?)?;
        fs::rename(fresh, self.directory().join("layout.json"))?;
        Ok(())
    }
}
