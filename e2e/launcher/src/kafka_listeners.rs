//! Kafka has a listener of its own for each service, each stream processor and Kafka Connect, so that a test can cut
//! off one of them. A connector uses that of Kafka Connect, with a user of its own.

use std::collections::BTreeSet;

use crate::connect_ports::CONNECT;
use crate::ports::Ports;
use crate::stack_state::StackState;

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

impl StackState {
    /// The users of Kafka that have a password: the services, the stream processors, and those of the features that run.
    pub(crate) fn kafka_users(&self) -> BTreeSet<&str> {
        let listeners = self.ports.kafka_listeners().into_iter().map(|(name, _)| name);
        let own = listeners.filter(|name| *name != CONNECT || self.connect);
        own.chain(self.features.values().flatten().map(String::as_str)).collect()
    }

    /// Kafka's listener for the user of this name, if it has a password.
    pub(crate) fn listener_of_user(&self, user: &str) -> Option<u16> {
        let is_known = self.kafka_users().contains(user);
        let own = self.ports.kafka_listener(user).unwrap_or(self.ports.connect.kafka);
        is_known.then_some(own)
    }
}
