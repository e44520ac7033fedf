//! Further brokers, so that any one of three can be lost. They carry records; the first is also the controller.

use anyhow::{Result, ensure};

use crate::component::Component;
use crate::components::kafka::{KAFKA, broker, ports_of_broker};
use crate::description::instance_name;
use crate::ports::free_port;
use crate::processes::{Signal, send_signal};
use crate::stack::Stack;

/// The number of brokers, each with a replica of every partition.
const BROKER_COUNT: u16 = 3;

/// The second and the third broker of a stack.
pub struct Brokers<'a> {
    stack: &'a Stack,
}

impl<'a> Brokers<'a> {
    /// Starts the infrastructure of a new stack with three brokers. Topics created from now on, and
    /// the groups' offsets, have three replicas, and a record is acknowledged when two brokers have
    /// it.
    ///
    /// # Errors
    /// If a broker does not start.
    pub async fn start_three(stack: &'a Stack) -> Result<Brokers<'a>> {
        stack.update_state(|state| state.replication_factor = Some(BROKER_COUNT))?;
        stack.up_infrastructure().await?;
        let brokers = Brokers { stack };
        for node in 2..=BROKER_COUNT {
            for name in ports_of_broker(&stack.ports()?, node) {
                let port = free_port()?;
                stack.update_state(|state| state.ports.insert(name, port))?;
            }
            brokers.start(node).await?;
        }
        let state = stack.state()?;
        for (client, _) in state.ports.kafka_listeners() {
            let address = |node| state.address(&format!("{client}-{}", instance_name(KAFKA, node)));
            let all = (1..=BROKER_COUNT).map(address).collect::<Result<Vec<_>>>()?;
            stack.set_environment(client, "KAFKA_BOOTSTRAP_SERVERS", Some(&all.join(",")))?;
        }
        Ok(brokers)
    }

    /// SIGKILL to the second or the third broker, by its number.
    ///
    /// # Errors
    /// If it survives.
    pub fn kill(&self, node: u16) -> Result<()> {
        self.stack.process(&self.broker(node)?).kill_all()
    }

    /// Freezes the broker.
    ///
    /// # Errors
    /// If a process has an invalid id.
    pub fn pause(&self, node: u16) -> Result<()> {
        self.signal(node, Signal::STOP)
    }

    /// Lets a frozen broker continue.
    ///
    /// # Errors
    /// If a process has an invalid id.
    pub fn resume(&self, node: u16) -> Result<()> {
        self.signal(node, Signal::CONT)
    }

    /// Starts the broker, and returns when it listens.
    ///
    /// # Errors
    /// If it exits during its start, or does not listen after two minutes.
    pub async fn start(&self, node: u16) -> Result<()> {
        self.stack.start_component(&self.broker(node)?).await
    }

    fn signal(&self, node: u16, signal: Signal) -> Result<()> {
        send_signal(signal, &self.stack.process(&self.broker(node)?).all_processes())
    }

    fn broker(&self, node: u16) -> Result<Component> {
        ensure!((2..=BROKER_COUNT).contains(&node), "there is no broker {node}");
        Ok(broker(node))
    }
}
