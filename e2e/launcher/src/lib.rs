#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

// All state of a stack is in its directory and in `/proc`. So any number of launchers can work on one
// stack, and the next launcher finds everything that a killed one left. Code that keeps the state of a
// stack in memory breaks this, and so does a process that is started without `processes::Process`.

//
// From the bottom up:
//
// - `environment`, `directories`, `processes`, `ports`: the machine, without a stack
// - `description`, `state`, `secrets`, `artifacts`: what a stack is, and what it needs
// - `component`: what the life cycle has to know about a component; `components`: one file for each kind
// - `stack`: a stack by its directory; `lifecycle`: start, stop, kill, pause, wipe, for every kind alike
// - `operations`: what a running stack can do, such as a rotation; `program`: the commands for a terminal
//
// A new kind of component is a new file in `components`, and a line in its `KINDS`.

pub mod artifacts;
mod component;
mod components;
mod description;
pub mod directories;
mod environment;
mod eventually;
mod lifecycle;
mod operations;
mod ports;
mod processes;
pub mod program;
mod readiness;
mod run_with_infrastructure;
mod secrets;
mod stack;
mod state;
mod status;

/// Signals to processes.
pub mod process {
    pub use crate::processes::{NOBODY_ID, Signal, send_signal};
}

pub use component::Component;
pub use components::connect_credentials::ConnectorConfig;
pub use description::{HOST, OptionalService, StackDescription, instance_name};
pub use environment::{is_on, secure_from_environment};
pub use eventually::{eventually, retry_while};
pub use operations::brokers::Brokers;
pub use operations::further_databases::FurtherDatabase;
pub use ports::{Ports, bind_free_port, free_port};
pub use processes::exit_journal::{Exit, ExitCause};
pub use processes::proc_fs;
pub use run_with_infrastructure::run_with_infrastructure;
pub use secrets::token_issuer::TokenIssuer;
pub use stack::Stack;
pub use stack::compose::GENERATED_OVERRIDE;
pub use status::{ComponentState, ComponentStatus, StopOutcome};
