//! The ports of the stack: where they are by default, what moves them, and which are free.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rand::Rng;
use serde::{Deserialize, Serialize};

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
            let is_free = port < FREE_PORTS.start && TcpListener::bind((HOST, port)).is_ok();
            is_free.then_some(port)
        };
        let ports = (further(first.api), further(first.probe), further(first.operator));
        match ports {
            (Some(api), Some(probe), Some(operator)) => Ok(Self { api, probe, operator }),
            _ => Self::free(),
        }
    }

    fn free() -> Result<Self> {
        Ok(Self { api: free_port()?, probe: free_port()?, operator: free_port()? })
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
        let mut ports = Self::default();
        for (_, port) in ports.settings() {
            *port = free_port()?;
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
const FREE_PORTS: Range<u16> = 10_240..32_000;

/// So many ports are claimed at a time: about what a stack needs.
const BLOCK: u16 = 20;

/// A port on which a proxy can listen, go away, and listen again. It listens already: a program that is just
/// being started has all that was open for a moment, and so would keep a port that was merely tried.
pub fn listener_of_a_proxy() -> Result<TcpListener> {
    free().map(|(_, listener)| listener)
}

/// A port that nobody uses now.
pub fn free_port() -> Result<u16> {
    free().map(|(port, _)| port)
}

fn free() -> Result<(u16, TcpListener)> {
    static DRAWN: Mutex<Drawn> = Mutex::new(Drawn::none());
    DRAWN.lock().unwrap_or_else(PoisonError::into_inner).free(FREE_PORTS)
}

/// The ports that this process draws. Until it ends no other draws them, although nobody may listen on them:
/// many stacks start side by side in a run of the tests, and each of their parts is killed at some time. What
/// it leaves running keeps its ports by listening on them, like any other program.
struct Drawn {
    /// Claimed, and not given away yet.
    rest: Range<u16>,
    claims: Vec<UdpSocket>,
}

impl Drawn {
    const fn none() -> Self {
        Self { rest: 0..0, claims: Vec::new() }
    }

    fn free(&mut self, range: Range<u16>) -> Result<(u16, TcpListener)> {
        for _ in 0..1000 {
            match self.rest.next().map(|port| (port, TcpListener::bind((HOST, port)))) {
                Some((port, Ok(listener))) => return Ok((port, listener)),
                Some((_, Err(_))) => {}
                None => {
                    let nth = rand::rng().random_range(0..range.len() as u16 / BLOCK);
                    let first = range.start + nth * BLOCK;
                    if let Some(claim) = claimed(first)? {
                        self.claims.push(claim);
                        self.rest = first..first + BLOCK;
                    }
                }
            }
        }
        bail!("found no free port in {range:?} on {HOST}")
    }
}

/// The block from this port on, unless a process has it. Whoever has the first port of UDP has the block:
/// nothing here speaks UDP, and a port is given back when its process ends, however it ends.
fn claimed(first: u16) -> Result<Option<UdpSocket>> {
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

    /// Two blocks below those that are drawn in earnest, and the claim of the first.
    fn two_blocks() -> Result<(Range<u16>, UdpSocket)> {
        loop {
            let first = BLOCK * rand::rng().random_range(100..FREE_PORTS.start / BLOCK - 1);
            if let (Some(claim), Some(_)) = (claimed(first)?, claimed(first + BLOCK)?) {
                return Ok((first..first + 2 * BLOCK, claim));
            }
        }
    }

    #[test]
    fn a_port_that_another_process_drew_is_not_drawn_although_nobody_listens_on_it() -> Result<()> {
        let (range, other) = two_blocks()?;
        let mut drawn = Drawn::none();
        let mut ports = BTreeSet::new();
        while let Ok((port, _)) = drawn.free(range.clone()) {
            assert!(ports.insert(port), "{port} is drawn twice");
        }
        let second = range.start + BLOCK..range.end;
        assert!(!ports.is_empty() && ports.iter().all(|port| second.contains(port)), "{ports:?}");

        drop(other);
        assert!(drawn.free(range.clone())?.0 < second.start, "what its process left can be drawn");
        Ok(())
    }

    #[test]
    fn a_port_on_which_somebody_listens_is_not_drawn() -> Result<()> {
        let (range, claim) = two_blocks()?;
        drop(claim);
        let listeners: Vec<_> = range.clone().map(|port| TcpListener::bind((HOST, port))).collect();
        assert!(Drawn::none().free(range).is_err());
        drop(listeners);
        Ok(())
    }
}
