//! The native stack and the tests of its promises: real Kafka, a real schema registry and a PostgreSQL
//! cluster for each service, started on loopback beside the services.
//!
//! # Layout
//! A folder imports only folders above it.
//! - `stack_description`: the stack of this project, which the crate `launcher` starts.
//! - `console`, `format`: output for users.
//! - `port_forward`: publishes the ports of a service's containers in docker compose.
//! - `client`: the services as their clients use them, and the history of responses to each client.
//! - `metrics`: reads the metrics of a service.
//! - `monitoring`: the rules and boards of `k8s/monitoring`, and a Prometheus that runs them.
//! - `checker`: reads all databases and topics, and finds violations of the invariants I1 to I17.
//! - `workload`: orders at a fixed rate, and the summary of their outcomes.
//! - `admin`: the commands of an operator: dead letters, the timeline of an order, republish, rebuild.
//! - `scenarios`: runs that inject faults under load and end with the checker: demo, outages, chaos,
//!   crash points, poison, redelivery and hostile clients.
//! - `mutants`: bugs in a copy of the code, one at a time, each of which the suite must detect.
//! - `new_service`: generates a new service from the template.
//! - `image_pins`: writes the digests of images into the files that name them.
//! - `new_repository`: generates a repository that depends on the crates.

pub mod stack_description;
pub mod console;
pub mod format;
pub mod port_forward;
pub mod client;
pub mod metrics;
pub mod monitoring;
pub mod checker;
pub mod workload;
pub mod admin;
pub mod scenarios;
pub mod mutants;
pub mod new_service;
pub mod image_pins;
pub mod new_repository;
