//! The ports of a stream processor.

use serde::{Deserialize, Serialize};

/// The ports of a stream processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamsPorts {
    /// For clients that ask for its sums.
    pub api: u16,
    /// For `/livez`, `/readyz` and `/metrics`.
    pub probe: u16,
    /// Kafka's listener for it alone.
    pub kafka: u16,
}
