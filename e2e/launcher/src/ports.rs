//! The ports of a stack: one base with a fixed offset for each, the variables that move them, and free ports.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::description::HOST;
use crate::environment::variable;

/// The name of a port, and its distance from the base.
pub type PortOffset = (String, u16);

/// The variable that moves all ports, and its default.
pub const BASE_VARIABLE: &str = "PORT_BASE";
const DEFAULT_BASE: u16 = 8000;

/// Every port of a stack, by its name. That for clients has the name of its component, such as `kafka`, `order-db` or
/// `order`. The others have a role behind it, such as `order-probe` and `order-admin`. `order-kafka` is Kafka's
/// listener for order alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports(BTreeMap<String, u16>);

impl Ports {
    /// The port of this name.
    ///
    /// # Errors
    /// If the stack has no such port.
    pub fn get(&self, name: &str) -> Result<u16> {
        self.0.get(name).copied().with_context(|| format!("the stack has no port `{name}`"))
    }

    /// Every port with its name, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u16)> {
        self.0.iter().map(|(name, port)| (name.as_str(), *port))
    }

    pub(crate) fn insert(&mut self, name: String, port: u16) {
        self.0.insert(name, port);
    }

    pub(crate) fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_kept(name));
    }

    /// The default ports.
    pub(crate) fn new(offsets: &[PortOffset]) -> Self {
        let ports = offsets.iter().map(|(name, offset)| (name.clone(), DEFAULT_BASE + offset));
        Self(ports.collect())
    }

    /// Those of a running stack, or the default ones, but for those that a variable moves: `PORT_BASE` all of them, and
    /// the variable of a port that one.
    pub(crate) fn from_environment(offsets: &[PortOffset], running: Option<Ports>) -> Result<Self> {
        let mut ports = running.unwrap_or_else(|| Self::new(offsets));
        if let Some(base) = port_of(BASE_VARIABLE)? {
            for (name, offset) in offsets {
                let port = base.checked_add(*offset);
                let port = port.with_context(|| format!("{BASE_VARIABLE}={base} is too high"))?;
                ports.insert(name.clone(), port);
            }
        }
        let mut taken = BTreeMap::new();
        for (name, port) in &mut ports.0 {
            let moved = variable_of(name).map_or(Ok(None), |variable| port_of(&variable))?;
            *port = moved.unwrap_or(*port);
            if let Some(other) = taken.insert(*port, name) {
                bail!("the ports {name} and {other} are both {port}: {BASE_VARIABLE} moves all");
            }
        }
        Ok(ports)
    }

    /// Free ports, for a stack beside others. No other process of a launcher claims them until this one
    /// ends.
    pub(crate) fn free(offsets: &[PortOffset]) -> Result<Self> {
        let ports = offsets.iter().map(|(name, _)| Ok((name.clone(), free_port()?)));
        ports.collect::<Result<_>>().map(Self)
    }

    /// Adds those of `other`, in place of its own ones of the same names.
    pub(crate) fn extend(&mut self, other: Ports) {
        self.0.extend(other.0);
    }

    /// The first port that `other` has elsewhere, as in `kafka=19092`.
    pub(crate) fn first_difference(&self, other: &Ports) -> Option<String> {
        let (name, port) = other.iter().find(|(name, port)| self.0.get(*name) != Some(port))?;
        Some(format!("{name}={port}"))
    }

    /// Kafka's listeners for one client each, with the names of these clients. A client can be cut off alone.
    pub(crate) fn kafka_listeners(&self) -> impl Iterator<Item = (&str, u16)> {
        self.iter().filter_map(|(name, port)| Some((name.strip_suffix("-kafka")?, port)))
    }
}

/// The variable that moves this port alone. Ports that only components use have none.
pub(crate) fn variable_of(name: &str) -> Option<String> {
    let role = name.split_once('-').map_or("", |(_, role)| role);
    let is_for_people = ["", "probe", "admin", "db"].contains(&role);
    is_for_people.then(|| format!("{}_PORT", name.to_uppercase().replace('-', "_")))
}

fn port_of(name: &str) -> Result<Option<u16>> {
    let parse =
        |value: String| value.parse().with_context(|| format!("{name}={value} is not a port"));
    variable(name).map(parse).transpose()
}

/// A port for a further instance, at this distance from the first one's. `None` if it is in use, or the first is random.
pub(crate) fn port_beside(first: u16, distance: u16) -> Option<u16> {
    let port = first.checked_add(distance)?;
    let is_free = port < FREE_PORT_RANGE.start && TcpListener::bind((HOST, port)).is_ok();
    is_free.then_some(port)
}

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

    #[test]
    fn the_variable_of_a_port_has_its_name_and_internal_ports_have_none() {
        let moved = ["kafka", "order_2", "order-probe", "order-admin", "order-db"].map(variable_of);
        let named = ["KAFKA", "ORDER_2", "ORDER_PROBE", "ORDER_ADMIN", "ORDER_DB"];
        assert_eq!(moved, named.map(|name| Some(format!("{name}_PORT"))));
        for internal in ["order-kafka", "kafka-controller", "console-control", "order-2", "kafka-2"]
        {
            assert_eq!(variable_of(internal), None, "{internal}");
        }
    }

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
