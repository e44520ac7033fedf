//! Who carries the outbox to Kafka.

/// What carries events from the outbox to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Carrier {
    /// The relay of the service.
    Service,
    /// A connector that reads the log of the database (change data capture).
    Cdc,
}
