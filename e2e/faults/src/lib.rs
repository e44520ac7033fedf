#![doc = include_str!("../README.md")]
//!
//! A function fails if the stack is not native, has no such component, or a component does not respond.
#![warn(missing_docs)]

pub mod database_faults;
pub mod faulty_network;
pub mod file_limit;
pub mod group_offsets;
pub mod keep_alive_clients;
pub mod links;
pub mod log_truncation;
pub mod nginx;
pub mod registry_gateway;
pub mod registry_loss;
pub mod skewed_clock;
pub mod transactional_producer;
