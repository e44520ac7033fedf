#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

// All state of a stack is in its directory and in `/proc`. So any number of launchers can work on one
// stack, and the next launcher finds everything that a killed one left. Code that keeps the state of a
// stack in memory breaks this, and so does a process that is started without `process::Process`.

mod addresses;
pub mod artifacts;
mod brokers;
mod certificates;
mod class_archives;
mod component;
mod compose;
mod container_secrets;
mod connect_credentials;
mod connect_ports;
mod connect_worker;
mod connectors;
mod control_room;
mod control_server;
mod credentials;
pub mod directories;
mod eventually;
mod exit_journal;
mod further_databases;
mod java;
mod kafka_config;
mod kafka_listeners;
mod kafka_tools;
mod launch_config;
mod lifecycle;
mod logs;
mod maven_project;
mod ports;
pub mod program;
pub mod proc_fs;
pub mod process;
mod project_stacks;
mod provision;
mod readiness;
mod registry_tokens;
mod rotation;
mod run_with_infrastructure;
mod scram;
mod secrets;
mod signals;
mod stack;
mod stack_settings;
mod stack_state;
mod status;
mod streams_ports;
mod token_issuer;
mod token_keys;
mod topology;

pub use brokers::Brokers;
pub use connect_ports::ConnectPorts;
pub use connectors::ConnectorConfig;
pub use eventually::{eventually, retry_while};
pub use exit_journal::{Exit, ExitCause};
pub use further_databases::FurtherDatabase;
pub use ports::{ConsolePorts, InstancePorts, Ports, ServicePorts, bind_free_port, free_port};
pub use run_with_infrastructure::run_with_infrastructure;
pub use stack::Stack;
pub use status::{ComponentState, ComponentStatus, StopOutcome};
pub use streams_ports::StreamsPorts;
pub use token_issuer::TokenIssuer;
pub use topology::{Component, HOST, StackDescription, secure_from_environment};
