//! The ports of the stack: where they are by default, what moves them, and which are free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::stack::TEST_STACK;
use crate::topology::{HOST, SERVICES};

/// The three ports of one instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePorts {
    pub api: u16,
    pub probe: u16,
    pub operator: u16,
}

impl InstancePorts {
    /// For the nth instance of a service: a hundred further for each, as in 8001, 8101, 8201. Where
    /// those are taken, or the first one's were drawn by lot, any that are free.
    pub fn of_further(first: &InstancePorts, instance: u16) -> Result<Self> {
        let further = |port: u16| {
            let port = port.checked_add(FURTHER_BY.checked_mul(instance - 1)?)?;
            let is_free = port < FREE_INNER_PORTS.start && TcpListener::bind((HOST, port)).is_ok();
            is_free.then_some(port)
        };
        let ports = (further(first.api), further(first.probe), further(first.operator));
        match ports {
            (Some(api), Some(probe), Some(operator)) => Ok(Self { api, probe, operator }),
            _ => Self::free(),
        }
    }

    fn free() -> Result<Self> {
        Ok(Self {
            api: free_port(FREE_PORTS)?,
            probe: free_port(FREE_PORTS)?,
            operator: free_port(FREE_PORTS)?,
        })
    }
}

/// What a service has for itself, however many instances of it run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePorts {
    /// Of its first instance.
    pub first: InstancePorts,
    pub database: u16,
    /// Kafka's listener for this service alone, so that its traffic can be sent through a proxy.
    pub kafka: u16,
}

/// Every port of the stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub services: BTreeMap<String, ServicePorts>,
    pub kafka: u16,
    pub kafka_controller: u16,
    pub registry: u16,
}

impl Default for Ports {
    fn default() -> Self {
        let services = SERVICES.iter().zip(1..).map(|(service, n)| {
            let first = InstancePorts { api: 8000 + n, probe: 9000 + n, operator: 9010 + n };
            let ports = ServicePorts { first, database: 54320 + n, kafka: 9093 + n };
            (service.to_string(), ports)
        });
        Self { services: services.collect(), kafka: 9092, kafka_controller: 9093, registry: 8081 }
    }
}

impl Ports {
    /// The default ports, moved by the environment.
    pub fn from_environment() -> Result<Self> {
        Self::default().moved_by_environment()
    }

    /// `ORDER_PORT`, `KAFKA_PORT` and so on move single ports.
    pub fn moved_by_environment(mut self) -> Result<Self> {
        for (variable, port) in self.settings() {
            let value = std::env::var(&variable).ok().filter(|value| !value.is_empty());
            if let Some(value) = value {
                *port =
                    value.parse().with_context(|| format!("{variable}={value} is not a port"))?;
            }
        }
        let mut taken = BTreeMap::new();
        for (variable, port) in self.settings() {
            if let Some(other) = taken.insert(*port, variable.clone()) {
                bail!("{variable} and {other} are both {port}: move one of them");
            }
        }
        Ok(self)
    }

    /// The first setting that is different in `other`, as in `KAFKA_PORT=19092`.
    pub fn moved_in(&self, mut other: Ports) -> Option<String> {
        let mut own = self.clone();
        let mut pairs = own.settings().into_iter().zip(other.settings());
        let (_, (variable, port)) = pairs.find(|((_, own), (_, other))| own != other)?;
        Some(format!("{variable}={port}"))
    }

    /// Ports that nobody uses now, for a stack beside others.
    pub fn free() -> Result<Self> {
        Self::free_in(FREE_PORTS)
    }

    /// Ports that no stack of `free` ports is given: the tests' parts run beside many of those, and beside
    /// such parts of the launcher's own tests.
    pub fn free_for_tests() -> Result<Self> {
        let is_within_tests = std::env::var_os(TEST_STACK).is_some();
        Self::free_in(if is_within_tests { FREE_INNER_PORTS } else { FREE_TEST_PORTS })
    }

    fn free_in(range: Range<u16>) -> Result<Self> {
        let mut ports = Self::default();
        for (_, port) in ports.settings() {
            *port = free_port(range.clone())?;
        }
        Ok(ports)
    }

    /// Each port with the variable that moves it.
    pub fn settings(&mut self) -> Vec<(String, &mut u16)> {
        let mut settings = vec![
            ("KAFKA_PORT".to_string(), &mut self.kafka),
            ("KAFKA_CONTROLLER_PORT".to_string(), &mut self.kafka_controller),
            ("REGISTRY_PORT".to_string(), &mut self.registry),
        ];
        for (service, ports) in &mut self.services {
            let name = service.to_uppercase();
            settings.push((format!("{name}_PORT"), &mut ports.first.api));
            settings.push((format!("{name}_PROBE_PORT"), &mut ports.first.probe));
            settings.push((format!("{name}_OPERATOR_PORT"), &mut ports.first.operator));
            settings.push((format!("{name}_DB_PORT"), &mut ports.database));
            settings.push((format!("{name}_KAFKA_PORT"), &mut ports.kafka));
        }
        settings
    }
}

/// How far the ports of two instances of a service lie apart.
const FURTHER_BY: u16 = 100;

/// Below the range from which Linux takes the ports of outgoing connections: a client that keeps
/// asking for a dead server there can be given the server's own port.
const FREE_PORTS: Range<u16> = 14_000..32_000;
const FREE_TEST_PORTS: Range<u16> = 12_000..14_000;
const FREE_INNER_PORTS: Range<u16> = 10_240..12_000;

/// A port on which a proxy can listen, go away, and listen again. It listens already: a program that is just
/// being started has all that was open for a moment, and so would keep a port that was merely tried.
pub fn listener_of_a_proxy() -> Result<TcpListener> {
    free(FREE_PORTS).map(|(_, listener)| listener)
}

/// A port that nobody uses now, for a broker.
pub fn free_for_a_broker() -> Result<u16> {
    free_port(FREE_PORTS)
}

fn free_port(range: Range<u16>) -> Result<u16> {
    free(range).map(|(port, _)| port)
}

/// A port that nobody listened on and that this process has not given away yet.
fn free(range: Range<u16>) -> Result<(u16, TcpListener)> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = rand::rng().random_range(range.clone());
        if !given.contains(&port)
            && let Ok(listener) = TcpListener::bind((HOST, port))
        {
            given.insert(port);
            return Ok((port, listener));
        }
    }
    bail!("found no free port in {range:?} on {HOST}")
}
