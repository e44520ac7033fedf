//! What a running stack can do beyond its life cycle.

pub(crate) mod brokers;
pub(crate) mod connectors;
pub(crate) mod control_server;
pub(crate) mod further_databases;
mod kafka_tools;
mod rotation;
mod tokens;
