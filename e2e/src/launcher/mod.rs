//! The launcher starts, stops, kills and pauses a whole stack on this machine: the databases,
//! Kafka, the schema registry and the services. Each is a detached process with a log, a pid file
//! and a supervisor that records its exit. All state of a stack is in its directory and in `/proc`.
//! So any number of launchers can work on one stack, and the next launcher finds everything that a
//! killed one left. To the launcher a service is a name in the list of services. Code that keeps
//! the state of a stack in memory breaks this, and so does a process that is started without
//! [`process::Process`].

mod addresses;
pub mod artifacts;
pub mod brokers;
pub(crate) mod class_archives;
mod component;
pub mod compose;
pub mod console;
pub mod directories;
pub mod eventually;
pub mod exit_journal;
pub mod format;
pub(crate) mod launch_config;
mod lifecycle;
pub mod ports;
pub mod proc_fs;
pub mod process;
pub(crate) mod provision;
pub(crate) mod readiness;
pub mod run_with_infrastructure;
pub mod stack;
mod stack_settings;
pub(crate) mod stack_state;
pub mod status;
pub mod topology;
