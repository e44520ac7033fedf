//! Kafka has a listener of its own for each service, each stream processor and Kafka Connect, so that a test can cut
//! off one of them.

use serde::{Deserialize, Serialize};

use crate::ports::Ports;

/// The name of the worker of Kafka Connect: of its component, of its group and of its user in Kafka.
pub(crate) const CONNECT: &str = "connect";

/// The ports of the worker of Kafka Connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectPorts {
    /// Its REST API.
    pub rest: u16,
    /// Kafka's listener for it alone.
    pub kafka: u16,
}

impl Default for ConnectPorts {
    fn default() -> Self {
        Self { rest: 8083, kafka: 9040 }
    }
}

impl Ports {
    /// Kafka's listeners for one client each: the services, the stream processors, and Kafka Connect.
    pub(crate) fn kafka_listeners(&self) -> Vec<(&str, u16)> {
        let services = self.services.iter().map(|(name, ports)| (name.as_str(), ports.kafka));
        let streams = self.streams.iter().map(|(name, ports)| (name.as_str(), ports.kafka));
        services.chain(streams).chain([(CONNECT, self.connect.kafka)]).collect()
    }

    /// Kafka's listener for the client of this name.
    pub(crate) fn kafka_listener(&self, name: &str) -> Option<u16> {
        self.kafka_listeners().into_iter().find(|(known, _)| *known == name).map(|(_, port)| port)
    }
}
