//! The native stack and what is proved on it: real Kafka, a real schema registry and three real
//! PostgreSQL clusters, started on loopback beside the services.
//!
//! # Layout
//! - `topology`: what the stack consists of, its ports, and the settings each member runs with.
//! - `stack`: start, stop, kill, pause and look at the members.
//! - `process`: one detached process, known by more than its pid.
//! - `parts`: Kafka, registry and PostgreSQL, fetched once into a cache.

pub mod topology;
pub mod stack;
pub mod process;
pub mod parts;

pub use stack::Stack;
pub use topology::Ports;
