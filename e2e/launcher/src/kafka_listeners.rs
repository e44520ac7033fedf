//! Kafka has a listener of its own for each service, each stream processor and Kafka Connect, so that a test can cut
//! off one of them.

use crate::connect_ports::CONNECT;
use crate::ports::Ports;

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
