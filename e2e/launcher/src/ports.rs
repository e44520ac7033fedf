//! The ports of the stack: their defaults, the variables that move them, and free ports.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::connect_ports::ConnectPorts;
use crate::streams_ports::StreamsPorts;
use crate::topology::{HOST, StackDescription};

/// The three ports of one instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePorts {
    /// For clients.
    pub api: u16,
    /// For `/livez`, `/readyz` and `/metrics`.
    pub probe: u16,
    /// For operators.
    pub admin: u16,
}

impl InstancePorts {
    /// The ports of the nth instance of a service: the first one's plus a hundred each, as in 8001,
    /// 8101, 8201. If those are taken, or the first one's are random, any free ports.
    pub(crate) fn for_instance(first: &InstancePorts, instance: u16) -> Result<Self> {
        let further = |port: u16| {
            let port = port.checked_add(INSTANCE_PORT_STEP.checked_mul(instance - 1)?)?;
            let is_free = port < FREE_PORT_RANGE.start && TcpListener::bind((HOST, port)).is_ok();
            is_free.then_some(port)
        };
        let ports = (further(first.api), further(first.probe), further(first.admin));
        match ports {
            (Some(api), Some(probe), Some(operator)) => Ok(Self { api, probe, admin: operator }),
            _ => Self::free(),
        }
    }

    fn free() -> Result<Self> {
        Ok(Self { api: free_port()?, probe: free_port()?, admin: free_port()? })
    }
}

/// The ports of a service, for all its instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePorts {
    /// The ports of its first instance.
    pub first: InstancePorts,
    /// Its PostgreSQL server.
    pub database: u16,
    /// Kafka's listener for this service alone, so that a proxy can be put in front of it.
    pub kafka: u16,
}

/// The ports of the control room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsolePorts {
    /// For browsers.
    pub pages: u16,
    /// For `/livez` and `/readyz`.
    pub probe: u16,
    /// The launcher's control server, which the page of the demo uses.
    pub control: u16,
}

/// Every port of the stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The ports of each service, by its name.
    pub services: BTreeMap<String, ServicePorts>,
    /// The ports of each stream processor, by its name.
    #[serde(default)]
    pub streams: BTreeMap<String, StreamsPorts>,
    /// The ports of the worker of Kafka Connect, which a stack may have.
    #[serde(default)]
    pub connect: ConnectPorts,
    /// Kafka's listener for clients that are none of these.
    pub kafka: u16,
    /// Kafka's controller.
    pub kafka_controller: u16,
    /// The schema registry.
    pub registry: u16,
    /// The control room, if the stack has one.
    #[serde(default)]
    pub console: Option<ConsolePorts>,
}

impl Ports {
    /// The default ports. Those of the nth service, from 1, are 8000 + n, 9000 + n and 9010 + n for
    /// its API, probes and operators, 54320 + n for its database and 9093 + n for Kafka. Those of the
    /// control room are 8000, 9000 and 9010, and those of the first stream processor 8020, 9020 and 9030. Kafka Connect has
    /// 8083 and 9040.
    pub fn new(description: &StackDescription) -> Self {
        let services = description.services.iter().zip(1..).map(|(service, n)| {
            let first = InstancePorts { api: 8000 + n, probe: 9000 + n, admin: 9010 + n };
            let ports = ServicePorts { first, database: 54320 + n, kafka: 9093 + n };
            (service.clone(), ports)
        });
        let streams = description.stream_processors.iter().zip(0..).map(|(name, n)| {
            (name.clone(), StreamsPorts { api: 8020 + n, probe: 9020 + n, kafka: 9030 + n })
        });
        let console =
            description.console.then_some(ConsolePorts { pages: 8000, probe: 9000, control: 9010 });
        Self {
            services: services.collect(),
            streams: streams.collect(),
            connect: ConnectPorts::default(),
            kafka: 9092,
            kafka_controller: 9093,
            registry: 8081,
            console,
        }
    }

    /// The same ports, but for those that a variable moves: `KAFKA_PORT`, `KAFKA_CONTROLLER_PORT`,
    /// `REGISTRY_PORT`, `CONSOLE_PORT`, `CONSOLE_PROBE_PORT`, `CONSOLE_CONTROL_PORT`, and for a
    /// service `shop` `SHOP_PORT`, `SHOP_PROBE_PORT`, `SHOP_ADMIN_PORT`, `SHOP_DB_PORT` and `SHOP_KAFKA_PORT`.
    /// A stream processor `sums` has `SUMS_PORT`, `SUMS_PROBE_PORT` and `SUMS_KAFKA_PORT`, and Kafka Connect
    /// `CONNECT_PORT` and `CONNECT_KAFKA_PORT`.
    ///
    /// # Errors
    /// If a variable is no port, or two ports are the same.
    pub fn with_environment_overrides(mut self) -> Result<Self> {
        for (variable, port) in self.variables_mut() {
            let value = std::env::var(&variable).ok().filter(|value| !value.is_empty());
            if let Some(value) = value {
                *port =
                    value.parse().with_context(|| format!("{variable}={value} is not a port"))?;
            }
        }
        let mut taken = BTreeMap::new();
        for (variable, port) in self.variables_mut() {
            if let Some(other) = taken.insert(*port, variable.clone()) {
                bail!("{variable} and {other} are both {port}: move one of them");
            }
        }
        Ok(self)
    }

    /// The first setting that is different in `other`, as in `KAFKA_PORT=19092`.
    pub(crate) fn first_difference(&self, mut other: Ports) -> Option<String> {
        let mut own = self.clone();
        let mut pairs = own.variables_mut().into_iter().zip(other.variables_mut());
        let (_, (variable, port)) = pairs.find(|((_, own), (_, other))| own != other)?;
        Some(format!("{variable}={port}"))
    }

    /// Free ports, for a stack beside others. No other process of a launcher claims them until this one
    /// ends.
    ///
    /// # Errors
    /// If there are not enough free ports.
    pub fn free(description: &StackDescription) -> Result<Self> {
        let mut ports = Self::new(description);
        for (_, port) in ports.variables_mut() {
            *port = free_port()?;
        }
        Ok(ports)
    }

    /// Each port with the variable that moves it.
    pub(crate) fn variables_mut(&mut self) -> Vec<(String, &mut u16)> {
        let mut settings = vec![
            ("KAFKA_PORT".to_string(), &mut self.kafka),
            ("KAFKA_CONTROLLER_PORT".to_string(), &mut self.kafka_controller),
            ("REGISTRY_PORT".to_string(), &mut self.registry),
            ("CONNECT_PORT".to_string(), &mut self.connect.rest),
            ("CONNECT_KAFKA_PORT".to_string(), &mut self.connect.kafka),
        ];
        for (service, ports) in &mut self.services {
            let name = service.to_uppercase();
            settings.push((format!("{name}_PORT"), &mut ports.first.api));
            settings.push((format!("{name}_PROBE_PORT"), &mut ports.first.probe));
            settings.push((format!("{name}_ADMIN_PORT"), &mut ports.first.admin));
            settings.push((format!("{name}_DB_PORT"), &mut ports.database));
            settings.push((format!("{name}_KAFKA_PORT"), &mut ports.kafka));
        }
        for (name, ports) in &mut self.streams {
            let name = name.to_uppercase();
            settings.push((format!("{name}_PORT"), &mut ports.api));
            settings.push((format!("{name}_PROBE_PORT"), &mut ports.probe));
            settings.push((format!("{name}_KAFKA_PORT"), &mut ports.kafka));
        }
        // Last: a stack without a control room has the same settings before it.
        if let Some(ports) = &mut self.console {
            settings.push(("CONSOLE_PORT".to_string(), &mut ports.pages));
            settings.push(("CONSOLE_PROBE_PORT".to_string(), &mut ports.probe));
            settings.push(("CONSOLE_CONTROL_PORT".to_string(), &mut ports.control));
        }
        settings
    }
}

/// The distance between the ports of two instances of a service.
const INSTANCE_PORT_STEP: u16 = 100;

/// Below Linux's range of ephemeral ports: otherwise a client that keeps connecting to a stopped
/// server could get the server's own port as its local port.
const FREE_PORT_RANGE: Range<u16> = 10_240..32_000;

/// The number of ports claimed at a time: about what one stack needs.
const BLOCK_SIZE: u16 = 20;

/// A port on which a proxy can listen, stop, and listen again. It already listens: for a moment, a
/// child process that is being started inherits every open socket, so a port that was only probed
/// could stay taken.
///
/// # Errors
/// If there is no free port.
pub fn bind_free_port() -> Result<TcpListener> {
    allocate().map(|(_, listener)| listener)
}

/// A port of loopback on which no program listens. No other process of a launcher claims it until this
/// one ends.
///
/// # Errors
/// If there is no free port.
pub fn free_port() -> Result<u16> {
    allocate().map(|(port, _)| port)
}

fn allocate() -> Result<(u16, TcpListener)> {
    static ALLOCATOR: Mutex<PortAllocator> = Mutex::new(PortAllocator::new());
    ALLOCATOR.lock().unwrap_or_else(PoisonError::into_inner).allocate(FREE_PORT_RANGE)
}

/// The ports that this process has claimed. Until it exits, no other process claims them, even
/// while no program listens on them: a run of the tests starts many stacks side by side, and kills
/// each of their components at some time. A program that outlives this process keeps its ports by
/// listening on them.
struct PortAllocator {
    /// Claimed and still unused.
    unused: Range<u16>,
    claims: Vec<UdpSocket>,
}

impl PortAllocator {
    const fn new() -> Self {
        Self { unused: 0..0, claims: Vec::new() }
    }

    fn allocate(&mut self, range: Range<u16>) -> Result<(u16, TcpListener)> {
        for _ in 0..1000 {
            match self.unused.next().map(|port| (port, TcpListener::bind((HOST, port)))) {
                Some((port, Ok(listener))) => return Ok((port, listener)),
                Some((_, Err(_))) => {}
                None => {
                    let nth = rand::rng().random_range(0..range.len() as u16 / BLOCK_SIZE);
                    let first = range.start + nth * BLOCK_SIZE;
                    if let Some(claim) = claim_block(first)? {
                        self.claims.push(claim);
                        self.unused = first..first + BLOCK_SIZE;
                    }
                }
            }
        }
        bail!("found no free port in {range:?} on {HOST}")
    }
}

/// Claims the block that begins at this port, unless another process has it. A process owns a block
/// by binding its first UDP port: no component uses UDP, and the system frees the port when the
/// process ends in any way.
fn claim_block(first: u16) -> Result<Option<UdpSocket>> {
    match UdpSocket::bind((HOST, first)) {
        Ok(claim) => Ok(Some(claim)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error).context("cannot claim ports"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Two blocks below the range that stacks use, and the claim of the first.
    fn claim_two_blocks() -> Result<(Range<u16>, UdpSocket)> {
        loop {
            let first =
                BLOCK_SIZE * rand::rng().random_range(100..FREE_PORT_RANGE.start / BLOCK_SIZE - 1);
            if let (Some(claim), Some(_)) = (claim_block(first)?, claim_block(first + BLOCK_SIZE)?)
            {
                return Ok((first..first + 2 * BLOCK_SIZE, claim));
            }
        }
    }

    #[test]
    fn a_port_claimed_by_another_process_is_not_allocated_even_if_it_is_free() -> Result<()> {
        let (range, other) = claim_two_blocks()?;
        let mut drawn = PortAllocator::new();
        let mut ports = BTreeSet::new();
        while let Ok((port, _)) = drawn.allocate(range.clone()) {
            assert!(ports.insert(port), "{port} is allocated twice");
        }
        let second = range.start + BLOCK_SIZE..range.end;
        assert!(!ports.is_empty() && ports.iter().all(|port| second.contains(port)), "{ports:?}");

        drop(other);
        assert!(
            drawn.allocate(range.clone())?.0 < second.start,
            "a block is free again after its process ended"
        );
        Ok(())
    }

    #[test]
    fn a_port_in_use_is_not_allocated() -> Result<()> {
        let (range, claim) = claim_two_blocks()?;
        drop(claim);
        let listeners: Vec<_> = range.clone().map(|port| TcpListener::bind((HOST, port))).collect();
        assert!(PortAllocator::new().allocate(range).is_err());
        drop(listeners);
        Ok(())
    }
}
