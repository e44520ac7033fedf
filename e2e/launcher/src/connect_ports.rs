//! The name and the ports of the worker of Kafka Connect.

use serde::{Deserialize, Serialize};

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
