//! What every service stands on. It has never heard of an order.
//!
//! In reading order: what a service is (`process`, `service`, `supervise`, `schema`), its edge
//! (`config`, `http`, `extract`, `problem`, `probes`), and what an operator sees of it
//! (`telemetry`, `observe`).

#![warn(missing_docs)]

pub mod event;
pub mod avro;

pub mod process;
pub mod service;
pub mod supervise;
pub mod schema;
pub mod config;
pub mod environment;
pub mod http;
pub mod limits;
pub mod extract;
pub mod problem;
pub mod probes;
pub mod telemetry;
pub mod observe;
